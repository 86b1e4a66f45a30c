"""Batches are a function of (examples, seed, step, shard), lose no token and mix no documents."""

import hashlib
import math
import random
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_jax.batch import BradleyTerryBatch, TokenBatch, VerdictBatch
from gram_jax.data.batches import BatchPlan
from gram_jax.data.examples import Examples, flat_documents, make_examples, shown_first
from gram_jax.data.mixture import epoch_units, most_draws
from gram_jax.data.packing import epoch_order, pack_epoch
from gram_jax.data.records import Comparison
from gram_jax.data.report import ReadReport, length_histogram
from gram_jax.errors import DataError, RecipeError
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.messages import as_prompt
from gram_jax.judge.spec import make_spec

KINDS = ("verdict", "verdict both", "token", "token both", "ranking")


def distinct_examples(kind: str, lengths: list[int]) -> Examples:
    """Examples whose tokens are all different. The two documents of a unit have n and n + 1 tokens."""
    per_unit = 1 if kind in ("verdict", "token") else 2
    sizes = [n + d for n in lengths for d in range(per_unit)]
    ends = np.cumsum(sizes)
    weights = np.linspace(0.5, 2.0, len(sizes), dtype=np.float32)
    if kind.startswith("token"):
        weights = np.linspace(0, 1, int(ends[-1]), dtype=np.float32)
    stage = {"verdict": "finetune", "token": "pretrain", "ranking": "bradley_terry"}[
        kind.split()[0]
    ]
    return Examples(
        stage=stage,
        documents=flat_documents(
            np.arange(end - n + 1, end + 1) for n, end in zip(sizes, ends, strict=True)
        ),
        weights=weights[::2] if kind == "ranking" else weights,
        label=np.arange(len(sizes) if stage == "finetune" else 0, dtype=np.int32) % 2,
        source=np.zeros(len(lengths), np.int32),
        ids=tuple(f"r{i}" for i in range(len(lengths))),
        per_unit=per_unit,
        read=ReadReport(len(lengths), len(lengths)),
    )


def epoch_of(plan: BatchPlan, epoch: int = 0) -> list:
    return [plan.batch(step) for step in range(plan.steps(epoch), plan.steps(epoch + 1))]


def documents_in(batch) -> list[np.ndarray]:
    """The documents of a batch, told apart by their segment ids alone."""
    found = []
    for tokens, segments in zip(batch.seqs.tokens, batch.seqs.segments, strict=True):
        found += [tokens[segments == s] for s in np.unique(segments) if s]
    return found


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))


def flat(batch) -> list[np.ndarray]:
    return [*batch.seqs, *batch[1:]]


lengths = st.lists(st.integers(2, 20), min_size=1, max_size=40)
shapes = st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.integers(42, 60), st.booleans())


def plan_for(kind: str, sizes: list[int], shape: tuple[int, int, bool], seed: int = 3) -> BatchPlan:
    rows, length, pack = shape
    if not pack and rows % 2 and kind.endswith("both"):
        rows += 1
    examples = distinct_examples(kind, sizes)
    return BatchPlan(examples, batch_size=rows, max_length=length, seed=seed, packing=pack)


@pytest.mark.parametrize("kind", KINDS)
@given(lengths, shapes)
@settings(max_examples=30, deadline=None)
def test_every_token_of_every_example_appears_once_in_each_epoch(kind, sizes, shape):
    plan = plan_for(kind, sizes, shape)
    documents = plan.examples.documents
    for epoch in (0, 1):
        found = [d for batch in epoch_of(plan, epoch) for d in documents_in(batch)]
        assert sorted(map(tuple, found)) == sorted(
            tuple(documents[i]) for i in range(len(documents))
        )


@pytest.mark.parametrize("kind", KINDS)
@given(lengths, shapes)
@settings(max_examples=30, deadline=None)
def test_shapes_are_constant_and_documents_never_mix(kind, sizes, shape):
    plan = plan_for(kind, sizes, shape)
    documents = plan.examples.documents
    start_of = {int(documents[i][0]): i for i in range(len(documents))}
    expected = (plan.batch_size, plan.max_length)
    for batch in epoch_of(plan):
        assert all(x.shape == expected and x.dtype == np.int32 for x in batch.seqs)
        others = expected if isinstance(batch, TokenBatch) else (plan.batch_size, plan.slots)
        assert all(x.shape == others for x in batch[1:])
        for tokens, positions, segments in zip(*batch.seqs, strict=True):
            used = int((segments > 0).sum())
            assert (segments[:used] > 0).all() and not tokens[used:].any()
            assert not positions[used:].any()
            assert set(segments[:used]) == set(range(1, segments.max() + 1))
            for segment in range(1, segments.max() + 1):
                here = np.flatnonzero(segments == segment)
                assert (np.diff(here) == 1).all()
                assert np.array_equal(positions[here], np.arange(len(here)))
                assert np.array_equal(tokens[here], documents[start_of[int(tokens[here[0]])]])


@given(lengths, shapes, st.sampled_from(["token", "token both"]))
@settings(max_examples=30, deadline=None)
def test_targets_are_the_next_tokens_and_their_weights_sum_up(sizes, shape, kind):
    plan = plan_for(kind, sizes, shape)
    documents, weights = plan.examples.documents, plan.examples.weights
    total = 0.0
    for batch in epoch_of(plan):
        segments = batch.seqs.segments
        inside = np.zeros(segments.shape, bool)
        inside[:, :-1] = (segments[:, :-1] > 0) & (segments[:, :-1] == segments[:, 1:])
        following = np.roll(batch.seqs.tokens, -1, axis=1)
        assert np.array_equal(batch.targets[inside], following[inside])
        assert not batch.weights[~inside].any()
        # tokens count from 1, so weights[token - 1] is the weight of a token as target
        assert np.array_equal(batch.weights[inside], weights[batch.targets[inside] - 1])
        total += float(batch.weights.sum())
    not_first = np.delete(weights, documents.starts)
    np.testing.assert_allclose(total, not_first.sum(), rtol=1e-5)


@given(lengths, shapes, st.sampled_from(["verdict", "verdict both"]))
@settings(max_examples=30, deadline=None)
def test_verdicts_stand_at_the_last_token_of_their_document(sizes, shape, kind):
    plan = plan_for(kind, sizes, shape)
    documents, examples = plan.examples.documents, plan.examples
    document_of = {int(documents[i][-1]): i for i in range(len(documents))}
    seen = Counter()
    for batch in epoch_of(plan):
        assert isinstance(batch, VerdictBatch)
        used = batch.weights > 0
        assert (used.sum(1) == batch.seqs.segments.max(1)).all()
        for row, slot in np.argwhere(used):
            at = int(batch.verdict_at[row, slot])
            document = document_of[int(batch.seqs.tokens[row, at])]
            seen[document] += 1
            assert batch.label[row, slot] == examples.label[document]
            assert batch.weights[row, slot] == examples.weights[document]
    assert seen == Counter(range(len(documents)))


@given(lengths, shapes)
@settings(max_examples=30, deadline=None)
def test_both_orders_of_a_pair_are_in_one_batch(sizes, shape):
    plan = plan_for("verdict both", sizes, shape)
    documents = plan.examples.documents
    unit_of = {int(documents[i][0]): i // 2 for i in range(len(documents))}
    for batch in epoch_of(plan):
        units = Counter(unit_of[int(d[0])] for d in documents_in(batch))
        assert set(units.values()) == {2}


@given(lengths, shapes)
@settings(max_examples=30, deadline=None)
def test_both_responses_of_a_ranking_pair_are_in_one_row(sizes, shape):
    plan = plan_for("ranking", sizes, shape)
    documents, weights = plan.examples.documents, plan.examples.weights
    last = {int(documents[i][-1]): i for i in range(len(documents))}
    seen = Counter()
    for batch in epoch_of(plan):
        assert isinstance(batch, BradleyTerryBatch)
        for row, slot in np.argwhere(batch.weights > 0):
            chosen, rejected = (
                last[int(batch.seqs.tokens[row, at[row, slot]])]
                for at in (batch.chosen_at, batch.rejected_at)
            )
            assert chosen % 2 == 0 and rejected == chosen + 1
            assert batch.weights[row, slot] == weights[chosen // 2]
            seen[chosen // 2] += 1
    assert seen == Counter(range(len(sizes)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_shards_of_a_batch_make_the_whole_for_any_number_of_processes(kind, count):
    plan = plan_for(kind, [2 + i % 19 for i in range(60)], (8, 48, True))
    for step in range(plan.steps(2)):
        parts = [flat(plan.batch(step, (i, count))) for i in range(count)]
        whole = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        assert all(np.array_equal(a, b) for a, b in zip(whole, flat(plan.batch(step)), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_plan_repeats_the_uninterrupted_one(kind):
    sizes = [2 + i % 19 for i in range(60)]
    first = plan_for(kind, sizes, (4, 48, True))
    batches = [first.batch(step) for step in range(first.steps(3))]
    resumed = plan_for(kind, sizes, (4, 48, True))
    for step in (len(batches) - 1, 7, 0, first.steps(2), first.steps(1) - 1):
        assert same(resumed.batch(step), batches[step])


def test_seeds_and_epochs_have_different_orders():
    sizes = [10] * 40
    plans = [plan_for("token", sizes, (4, 48, True), seed) for seed in (0, 1)]
    assert not same(plans[0].batch(0), plans[1].batch(0))
    assert not same(plans[0].batch(0), plans[0].batch(plans[0].steps(1)))


def test_the_order_of_an_epoch_is_the_same_on_every_machine():
    assert epoch_order(8, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert epoch_order(8, 5, 1).tolist() == [2, 0, 6, 1, 5, 7, 4, 3]


@pytest.mark.parametrize(
    ("kind", "rows", "pack", "recorded"),
    [
        ("verdict", 6, True, "35b7306f55bd8a61"),
        ("verdict", 4, False, "19263d9ff764873e"),
        ("verdict both", 4, False, "8ab43f3d55b72f2d"),
        ("verdict both", 6, True, "fd76c25c6770ad0c"),
        ("token", 4, False, "61608879dc2f1fa6"),
        ("token", 6, True, "ede00888f7c73820"),
        ("token both", 4, False, "ae2a55b69f4257e7"),
        ("token both", 6, True, "d112ac38e4f50e34"),
        ("ranking", 4, False, "8e99d6aa5372d820"),
        ("ranking", 6, True, "cf141e5b53796898"),
    ],
)
def test_batches_are_those_of_the_first_version(kind, rows, pack, recorded):
    """A run that was started with an earlier version can be resumed."""
    length, count = {(6, True): (300, 3000), (4, False): (48, 60)}[rows, pack]
    plan = plan_for(kind, [2 + n * 7919 % 1009 % 19 for n in range(count)], (rows, length, pack))
    digest = hashlib.sha256()
    for step in range(plan.steps(2)):
        for array in flat(plan.batch(step)):
            digest.update(str((array.dtype, array.shape)).encode() + array.tobytes())
    assert digest.hexdigest()[:16] == recorded


def test_steps_are_located_in_their_epochs():
    plan = plan_for("verdict", [5] * 30, (2, 42, True))
    assert plan.steps(0) == 0 and plan.steps_per_epoch == plan.steps(1)
    for step in range(plan.steps(3)):
        epoch, index = plan.locate(step)
        assert step == plan.steps(epoch) + index < plan.steps(epoch + 1)
    with pytest.raises(ValueError, match="step -1"):
        plan.locate(-1)


def test_examples_longer_than_a_row_are_dropped_and_counted():
    for kind in KINDS:
        plan = plan_for(kind, [5, 30, 100, 6], (2, 64, True))
        report = plan.report()
        assert report.dropped == {"longer than a row": 1} and report.examples == 3, kind
        assert plan.examples.ids == ("r0", "r1", "r3")
        assert plan.examples.read.kept == 3
        epoch_of(plan)
    with pytest.raises(DataError, match=r"2 longer than a row.* needs 70"):
        plan_for("token", [100, 70], (2, 64, True))


def test_shapes_that_hold_nothing_are_refused():
    both = distinct_examples("verdict both", [5])
    with pytest.raises(RecipeError, match="batch_size = 3 "):
        BatchPlan(both, batch_size=3, max_length=64, seed=0, packing=False)
    with pytest.raises(RecipeError, match="0 rows"):
        BatchPlan(both, batch_size=0, max_length=64, seed=0, packing=True)
    with pytest.raises(RecipeError, match="shard 0 of 3"):
        plan_for("verdict", [5], (4, 64, True)).batch(0, (0, 3))


def test_weights_that_draw_no_example_are_refused_with_the_smallest_that_does():
    def plan(source: list[int], **passes: float) -> BatchPlan:
        examples = distinct_examples("verdict", [5] * len(source))
        examples = replace(examples, source=np.array(source, np.int32))
        settings = {"batch_size": 2, "max_length": 64, "seed": 0, "packing": True}
        return BatchPlan(examples, passes=passes, **settings)

    with pytest.raises(RecipeError, match=r"weight = 0.14 of a \(7 examples\).* 0.142858 "):
        plan([0] * 7, a=0.14)
    assert plan([0] * 7, a=0.142858).report().examples_per_step == 1
    with pytest.raises(RecipeError, match=r"weight = 0.1 of a \(6 examples\)"):
        plan([0] * 6 + [1], a=0.1, b=0.9)
    assert plan([0] * 6 + [1], a=0.1, b=1.0).locate(3) == (3, 0)


def test_packing_stays_near_the_permutation_and_fills_the_rows():
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(5.3, 0.6, 3000), 20, 1024).astype(np.int64)
    order = epoch_order(3000, 0, 0)
    plan = pack_epoch(sizes[:, None], order, rows=8, length=1024, pack=True, together=False)
    assert sizes.sum() / (plan.batches * 8 * 1024) > 0.97
    # a unit waits for a later batch only while others still fit
    rank = np.empty(3000, np.int64)
    rank[order] = np.arange(3000)
    expected = rank[plan.document] * plan.batches / 3000
    assert np.abs(plan.row // 8 - expected).max() < 0.1 * plan.batches


@pytest.mark.parametrize(("kind", "documents"), [("token", 1), ("verdict both", 1), ("ranking", 2)])
def test_without_packing_a_row_holds_one_document_or_one_ranking_pair(kind, documents):
    plan = plan_for(kind, [5, 9, 4, 7, 6], (2, 42, False))
    assert plan.steps_per_epoch == (5 if kind == "verdict both" else 3)
    for batch in epoch_of(plan):
        assert batch.seqs.segments.max() == documents


# From records


@pytest.fixture(scope="module")
def judge():
    tokenizer = tiny_tokenizer()
    return tokenizer, make_spec(tokenizer, max_length=400)


def preferences(count: int, **changes) -> list[Comparison]:
    """Comparisons whose chosen response is "good N", the first one."""
    return [
        Comparison(as_prompt(f"question {i}"), f"good {i}", f"bad {i}", 0, id=f"p{i}", **changes)
        for i in range(count)
    ]


def examples_of(
    stage: str, records: list[Comparison], judge, orders="hash", seed=0, overlong="drop"
) -> Examples:
    return make_examples(
        stage,
        records,
        *judge,
        position_augmentation=orders,
        seed=seed,
        overlong=overlong,
        read=ReadReport(10, len(records)),
    )


def text_of(judge, examples: Examples, document: int) -> str:
    return judge[0].decode(examples.documents[document])


def test_the_side_shown_first_is_balanced_and_depends_on_seed_and_id_alone(judge):
    sides = [shown_first(0, f"p{i}") for i in range(4000)]
    assert 0.47 < np.mean(sides) < 0.53
    assert sides != [shown_first(1, f"p{i}") for i in range(4000)]
    assert [shown_first(7, name) for name in "abcdefgh"] == [0, 1, 1, 0, 0, 0, 1, 1]
    records = preferences(40)
    shuffled = random.Random(0).sample(records, len(records))
    a, b = (examples_of("finetune", r, judge) for r in (records, shuffled))
    labels = dict(zip(a.ids, a.label, strict=True))
    assert labels == dict(zip(b.ids, b.label, strict=True)) and set(labels.values()) == {0, 1}


def test_pairs_without_a_label_are_kept_if_asked_for(judge):
    records = [*preferences(4), *(replace(r, label=None) for r in preferences(6)[4:])]
    records += [replace(r, label="tie") for r in preferences(7)[6:]]
    settings = {"position_augmentation": "both", "seed": 0, "overlong": "drop"}
    examples = make_examples(
        "finetune", records, *judge, **settings, read=ReadReport(7, 7), keep_unlabeled=True
    )
    assert examples.label.tolist() == [0, 1] * 4 + [-1, -1] * 2
    assert examples.read.dropped == {"tie": 1}
    assert examples_of("finetune", records, judge, "both").label.tolist() == [0, 1] * 4


@pytest.mark.parametrize("packing", [False, True])
def test_both_orders_of_a_pair_are_in_adjacent_slots(judge, packing):
    examples = examples_of("finetune", preferences(21), judge, "both")
    plan = BatchPlan(examples, batch_size=3, max_length=700, seed=0, packing=packing, together=True)
    assert plan.slots % 2 == 0
    seen = []
    for at in range(plan.steps_per_epoch):
        batch = plan.batch(at)
        assert np.array_equal(batch.weights[:, ::2], batch.weights[:, 1::2])
        used = batch.weights[:, ::2] > 0
        assert (batch.label[:, ::2] + batch.label[:, 1::2])[used].tolist() == [1] * used.sum()
        for row, slot in zip(*np.nonzero(batch.weights), strict=True):
            tokens = batch.seqs.tokens[row][batch.seqs.segments[row] == slot + 1]
            seen.append(judge[0].decode(tokens).split("question ")[1].split()[0])
    assert seen[::2] == seen[1::2] and sorted(map(int, seen[::2])) == list(range(21))


@pytest.mark.parametrize("orders", ["hash", "both", "fixed"])
@pytest.mark.parametrize("turn", [False, True])
def test_a_label_says_which_of_the_shown_responses_is_the_chosen_one(judge, orders, turn):
    records = [record.swapped() if turn else record for record in preferences(20)]
    examples = examples_of("finetune", records, judge, orders)
    for d, label in enumerate(examples.label):
        text = text_of(judge, examples, d)
        assert (text.index("good") < text.index("bad")) == (label == 0)
    if orders == "both":  # neighbours with opposite labels, which count as one example
        assert len(examples.documents) == 40 and examples.per_unit == 2
        assert len(examples.ids) == 20
        assert (examples.label[::2] + examples.label[1::2] == 1).all()
    if orders == "fixed":
        assert (examples.label == turn).all()


def test_exchanging_the_preferences_exchanges_every_label(judge):
    records = preferences(30)
    exchanged = [replace(record, label=1) for record in records]
    a, b = (examples_of("finetune", r, judge) for r in (records, exchanged))
    assert (a.label + b.label == 1).all()
    assert np.array_equal(a.documents.tokens, b.documents.tokens)


def test_ties_and_long_records_are_dropped_and_counted(judge):
    records = [
        *preferences(3),
        Comparison(as_prompt("q"), "a", "b", "tie", id="tie"),
        Comparison(as_prompt("q"), "a" * 900, "b", 0, id="long"),
    ]
    for stage in ("finetune", "bradley_terry"):
        examples = examples_of(stage, records, judge)
        assert examples.ids == ("p0", "p1", "p2")
        assert examples.read.dropped == {"tie": 1, "longer than max_length": 1}
        assert (examples.read.rows, examples.read.kept) == (10, 3)
    assert examples_of("pretrain", records, judge).ids == ("p0", "p1", "p2", "tie")
    with pytest.raises(DataError, match="record 'long'"):
        examples_of("finetune", records, judge, overlong="error")


def test_unknown_settings_are_refused(judge):
    for setting in ({"orders": "neither"}, {"orders": None}, {"overlong": "shorten"}):
        with pytest.raises(DataError, match=f"= {next(iter(setting.values()))!r}: expected"):
            examples_of("finetune", preferences(1), judge, **setting)
    with pytest.raises(DataError, match="stage = 'score'"):
        examples_of("score", preferences(1), judge)


def test_truncated_records_are_counted_and_those_that_become_equal_dropped(judge):
    records = [
        Comparison(as_prompt("q"), "a" * 900, "b" * 900, 0, id="long"),
        Comparison(as_prompt("q"), "a" * 1000, "a" * 500 + "b" + "a" * 499, 0, id="alike"),
    ]
    for stage in ("finetune", "bradley_terry"):
        examples = examples_of(stage, records, judge, overlong="truncate")
        assert examples.shortened == 1 and examples.ids == ("long",)
        assert examples.read.dropped == {"identical after shortening": 1}
        assert examples.documents.lengths.max() <= 400


def test_weights_of_records_reach_the_loss(judge):
    records = [*preferences(2), *preferences(1, weight=3.0)]
    assert examples_of("finetune", records, judge, "both").weights.tolist() == [1, 1, 1, 1, 3, 3]
    writing = examples_of("pretrain", records, judge)
    ends = np.cumsum(writing.documents.lengths)[:-1]
    first, _, third = np.split(writing.weights, ends)
    assert first.max() == 1 and np.array_equal(third, 3 * first)
    assert examples_of("bradley_terry", records, judge, None).weights.tolist() == [1, 1, 3]


def test_stage_one_learns_to_write_both_responses_and_not_the_prompt(judge):
    tokenizer, _ = judge
    pairs = [Comparison(as_prompt("the question"), "one answer", "another answer", id="u")]
    examples = examples_of("pretrain", pairs, judge, "fixed")
    learned = tokenizer.decode(examples.documents.tokens[examples.weights > 0])
    given = tokenizer.decode(examples.documents.tokens[examples.weights == 0])
    assert "one answer" in learned and "another answer" in learned
    assert "the question" in given and "the question" not in learned
    assert examples.weights[0] == 0


def test_the_ranking_documents_are_the_chosen_and_the_rejected_response(judge):
    examples = examples_of("bradley_terry", preferences(3), judge, None)
    for document in range(6):
        side = ("good", "bad")[document % 2]
        assert f"{side} {document // 2}" in text_of(judge, examples, document)


def test_the_report_counts_what_is_in_the_batches(judge):
    examples = examples_of("finetune", preferences(50), judge, "both")
    plan = BatchPlan(examples, batch_size=4, max_length=400, seed=0, packing=True)
    report = plan.report()
    batches = epoch_of(plan)
    filled = sum(int((b.seqs.segments > 0).sum()) for b in batches)
    assert report.tokens == filled and report.steps_per_epoch == len(batches)
    assert report.padding == pytest.approx(1 - filled / (len(batches) * 1600))
    assert sum(count for _, _, count in report.histogram) == report.documents == 100
    assert report.first_share == 0.5 and report.examples == 50
    assert report.rows_read == 10
    assert "50 in 100 documents" in report.to_text() and "50.0%" in report.to_text()


def test_the_histogram_counts_every_length_once():
    lengths = np.array([1, 16, 17, 32, 33, 2048, 2049])
    assert length_histogram(lengths)[0] == (1, 16, 2)
    assert length_histogram(lengths)[-2:] == ((1025, 2048, 1), (2049, 4096, 1))
    assert sum(count for _, _, count in length_histogram(lengths)) == len(lengths)
    assert length_histogram(np.array([100])) == ((65, 128, 1),)


def test_a_plan_may_be_asked_from_two_threads_at_once():
    plan = plan_for("verdict", [2 + i % 19 for i in range(200)], (2, 42, True))
    alone = plan_for("verdict", [2 + i % 19 for i in range(200)], (2, 42, True))
    threads = [threading.Thread(target=plan.steps, args=(6,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [plan.steps(epoch) for epoch in range(7)] == [alone.steps(epoch) for epoch in range(7)]


# Mixtures


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from([0.25, 0.5, 0.3, 1.0, 1.7, 3.0])), min_size=1
    ),
    st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_every_unit_of_a_source_is_drawn_equally_often_over_the_epochs(sources, epochs):
    source = np.repeat(np.arange(len(sources)), [count for count, _ in sources])
    passes = [times for _, times in sources]
    drawn = np.concatenate([epoch_units(source, passes, 7, epoch) for epoch in range(epochs)])
    often = np.bincount(drawn, minlength=len(source))
    for index, (count, times) in enumerate(sources):
        found = often[source == index]
        assert found.sum() == math.floor(epochs * times * count)
        assert not count or found.max() - found.min() <= 1
    bound = most_draws(source, passes)
    for epoch in range(epochs):
        units = epoch_units(source, passes, 7, epoch)
        assert (np.bincount(units, minlength=len(source)) <= bound).all()


def mixture(passes: dict[str, float], seed: int = 3, kind: str = "verdict both") -> BatchPlan:
    examples = distinct_examples(kind, [2 + i % 19 for i in range(60)])
    examples = replace(examples, source=np.repeat(np.arange(2, dtype=np.int32), [20, 40]))
    return BatchPlan(examples, batch_size=4, max_length=60, seed=seed, packing=True, passes=passes)


def test_a_mixture_with_one_pass_over_each_source_is_the_plain_order():
    mixed = mixture({"a": 1.0, "b": 1.0})
    plain = plan_for("verdict both", [2 + i % 19 for i in range(60)], (4, 60, True))
    assert all(same(plain.batch(step), mixed.batch(step)) for step in range(plain.steps(2)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_has_its_shares_in_batches_metrics_and_report(kind):
    passes = {"a": 3.0, "b": 0.5}
    plan = mixture(passes, kind=kind)
    documents = plan.examples.documents
    unit_of = {int(documents[i][0]): i // plan.examples.per_unit for i in range(len(documents))}
    draws = Counter()
    for epoch in range(2):
        for step in range(plan.steps(epoch), plan.steps(epoch + 1)):
            units = [unit_of[int(d[0])] for d in documents_in(plan.batch(step))]
            counts = Counter("ab"[unit >= 20] for unit in units)
            total = len(units)
            assert plan.share_metrics(step) == {
                f"share/{name}": (counts[name], total) for name in "ab"
            }
            draws.update(units)
    per_unit = plan.examples.per_unit
    assert {draws[unit] for unit in range(20)} == {6 * per_unit}
    assert {draws[unit] for unit in range(20, 60)} == {per_unit}  # half in each epoch
    shares = plan.report().sources
    assert [(one.name, one.examples, one.passes) for one in shares] == [
        ("a", 20, 3),
        ("b", 40, 0.5),
    ]
    assert [one.share for one in shares] == [0.75, 0.25]
    assert sum(one.tokens for one in shares) == plan.report().tokens
    again = mixture(passes, kind=kind)
    assert same(again.batch(plan.steps(2) - 1), plan.batch(plan.steps(2) - 1))
    assert not same(mixture(passes, seed=4, kind=kind).batch(0), plan.batch(0))


def test_one_source_has_no_metrics_of_shares():
    assert plan_for("verdict", [5] * 30, (2, 42, True)).share_metrics(0) == {}
