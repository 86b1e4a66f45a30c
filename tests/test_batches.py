"""Batches are a function of (examples, seed, step, shard), lose no token and mix no documents."""

import random
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_jax.batch import BradleyTerryBatch, TokenBatch, VerdictBatch
from gram_jax.data.batches import BatchPlan, make_batches
from gram_jax.data.comparison import Comparison
from gram_jax.data.examples import (
    BradleyTerryExamples,
    TokenExamples,
    VerdictExamples,
    bradley_terry_examples,
    flat_documents,
    pretrain_examples,
    shown_first,
    verdict_examples,
)
from gram_jax.data.packing import epoch_order, pack_epoch
from gram_jax.data.report import ReadReport, length_histogram
from gram_jax.errors import DataError, RecipeError
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.messages import as_prompt
from gram_jax.judge.spec import make_spec

KINDS = ("verdict", "verdict both", "token", "token both", "ranking")


def make_examples(kind: str, lengths: list[int]):
    """Examples whose tokens all differ, so that each can be found again. A unit of two has n and n
    + 1 tokens.
    """
    pairs = kind in ("verdict both", "token both", "ranking")
    sizes = [n + d for n in lengths for d in range(2 if pairs else 1)]
    ends = np.cumsum(sizes)
    documents = flat_documents(
        np.arange(end - n + 1, end + 1) for n, end in zip(sizes, ends, strict=True)
    )
    ids = tuple(f"r{i}" for i in range(len(lengths)))
    rows = ReadReport(len(lengths), len(lengths))
    per_unit = 2 if pairs else 1
    weights = np.linspace(0.5, 2.0, len(sizes), dtype=np.float32)
    if kind.startswith("verdict"):
        label = np.arange(len(sizes), dtype=np.int32) % 2
        return VerdictExamples(documents, label, weights, ids, per_unit, rows)
    if kind.startswith("token"):
        per_token = np.linspace(0, 1, int(ends[-1]), dtype=np.float32)
        return TokenExamples(documents, per_token, ids, per_unit, rows)
    return BradleyTerryExamples(documents, weights[::2], ids, rows)


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
    return make_batches(
        make_examples(kind, sizes), batch_size=rows, max_length=length, seed=seed, packing=pack
    )


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
        assert all(
            x.shape
            == (expected if isinstance(batch, TokenBatch) else (plan.batch_size, plan.slots))
            for x in batch[1:]
        )
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
    not_first = np.delete(weights, documents.offsets[:-1])
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


def test_steps_are_located_in_their_epochs():
    plan = plan_for("verdict", [5] * 30, (2, 42, True))
    assert plan.steps(0) == 0 and plan.steps_per_epoch == plan.steps(1)
    for step in range(plan.steps(3)):
        epoch, index = plan.locate(step)
        assert step == plan.steps(epoch) + index < plan.steps(epoch + 1)
    with pytest.raises(ValueError, match="before the first"):
        plan.locate(-1)


def test_examples_longer_than_a_row_are_dropped_and_counted():
    for kind in KINDS:
        plan = plan_for(kind, [5, 30, 100, 6], (2, 64, True))
        report = plan.report()
        assert report.dropped == {"longer than a row": 1} and report.examples == 3, kind
        assert plan.examples.ids == ("r0", "r1", "r3")
        assert plan.examples.read.kept == 3
        epoch_of(plan)
    with pytest.raises(DataError, match=r"no example is left .* the shortest example needs 70"):
        plan_for("token", [100, 70], (2, 64, True))


def test_shapes_that_hold_nothing_are_refused():
    with pytest.raises(RecipeError, match="even number"):
        make_batches(
            make_examples("verdict both", [5]), batch_size=3, max_length=64, seed=0, packing=False
        )
    with pytest.raises(RecipeError, match="holds nothing"):
        make_batches(
            make_examples("verdict", [5]), batch_size=0, max_length=64, seed=0, packing=True
        )
    plan = plan_for("verdict", [5], (4, 64, True))
    with pytest.raises(RecipeError, match="shard 0 of 3"):
        plan.batch(0, (0, 3))


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


def test_no_token_is_lost_without_packing_and_a_row_holds_one_document():
    plan = plan_for("token", [5, 9, 4, 7, 6], (2, 42, False))
    assert plan.steps_per_epoch == 3
    for batch in epoch_of(plan):
        assert batch.seqs.segments.max() == 1


# From records


@pytest.fixture(scope="module")
def judge():
    tokenizer = tiny_tokenizer()
    return tokenizer, make_spec(tokenizer, max_length=400)


def preferences(count: int, **changes) -> list[Comparison]:
    """Comparisons whose chosen response is "good N", the first one."""
    return [
        Comparison(
            as_prompt(f"question {i}"), f"good {i}", f"bad {i}", label=0, id=f"p{i}", **changes
        )
        for i in range(count)
    ]


def swapped(records: list[Comparison]) -> list[Comparison]:
    return [record.swapped() for record in records]


READ = ReadReport(10, 10)


def settings_of(orders: str = "hash", seed: int = 0, overlong: str = "drop") -> dict:
    return {"position_augmentation": orders, "seed": seed, "overlong": overlong, "read": READ}


def text_of(tokenizer, examples, document: int) -> str:
    return tokenizer.decode(examples.documents[document])


def test_the_side_shown_first_is_balanced_and_depends_on_seed_and_id_alone(judge):
    sides = [shown_first(0, f"p{i}") for i in range(4000)]
    assert 0.47 < np.mean(sides) < 0.53
    assert sides != [shown_first(1, f"p{i}") for i in range(4000)]
    assert [shown_first(7, name) for name in "abcdefgh"] == [0, 1, 1, 0, 0, 0, 1, 1]
    records = preferences(40)
    shuffled = random.Random(0).sample(records, len(records))
    a, b = (verdict_examples(r, *judge, **settings_of()) for r in (records, shuffled))
    labels = dict(zip(a.ids, a.label, strict=True))
    assert labels == dict(zip(b.ids, b.label, strict=True)) and set(labels.values()) == {0, 1}


def test_a_label_says_which_of_the_shown_responses_is_the_chosen_one(judge):
    tokenizer, _ = judge
    for orders in ("hash", "both", "fixed"):
        for records in (preferences(20), swapped(preferences(20))):
            examples = verdict_examples(records, *judge, **settings_of(orders))
            for d, label in enumerate(examples.label):
                text = text_of(tokenizer, examples, d)
                assert (text.index("good") < text.index("bad")) == (label == 0)


def test_both_orders_are_neighbours_with_opposite_labels_and_count_as_one_example(judge):
    examples = verdict_examples(preferences(5), *judge, **settings_of("both"))
    assert len(examples.documents) == 10 and len(examples.ids) == 5 and examples.per_unit == 2
    assert (examples.label[::2] + examples.label[1::2] == 1).all()
    assert (
        make_batches(examples, batch_size=2, max_length=400, seed=0, packing=True).report().examples
        == 5
    )


def test_fixed_order_shows_what_the_source_showed_first(judge):
    examples = verdict_examples(preferences(4), *judge, **settings_of("fixed"))
    assert not examples.label.any()
    assert verdict_examples(swapped(preferences(4)), *judge, **settings_of("fixed")).label.all()


def test_swapping_the_preferences_turns_every_label_around(judge):
    records = preferences(30)
    exchanged = [replace(record, label=1) for record in records]
    a, b = (verdict_examples(r, *judge, **settings_of()) for r in (records, exchanged))
    assert (a.label + b.label == 1).all()
    assert np.array_equal(a.documents.tokens, b.documents.tokens)


def test_ties_and_long_records_are_dropped_and_counted(judge):
    records = [
        *preferences(3),
        Comparison(as_prompt("q"), "a", "b", "tie", id="tie"),
        Comparison(as_prompt("q"), "a" * 900, "b", 0, id="long"),
    ]
    for make in (
        lambda: verdict_examples(records, *judge, **settings_of()),
        lambda: bradley_terry_examples(records, *judge, overlong="drop", read=READ),
    ):
        examples = make()
        assert examples.ids == ("p0", "p1", "p2")
        assert examples.read.dropped == {"tie": 1, "longer than max_length": 1}
        assert (examples.read.rows, examples.read.kept) == (10, 3)
    with pytest.raises(DataError, match="record 'long'"):
        verdict_examples(records, *judge, **settings_of(overlong="error"))


def test_unknown_orders_and_treatments_of_long_records_are_refused(judge):
    for make in (verdict_examples, pretrain_examples):
        with pytest.raises(DataError, match="position_augmentation = 'neither': expected"):
            make(preferences(1), *judge, **settings_of("neither"))
        with pytest.raises(DataError, match="overlong = 'shorten': expected"):
            make(preferences(1), *judge, **settings_of(overlong="shorten"))


def test_shortened_records_are_counted_and_those_that_become_alike_dropped(judge):
    records = [
        Comparison(as_prompt("q"), "a" * 900, "b" * 900, 0, id="long"),
        Comparison(as_prompt("q"), "a" * 1000, "a" * 500 + "b" + "a" * 499, 0, id="alike"),
    ]
    examples = verdict_examples(records, *judge, **settings_of(overlong="truncate"))
    assert examples.shortened == 1 and examples.ids == ("long",)
    assert examples.read.dropped == {"identical after shortening": 1}
    assert examples.documents.lengths.max() <= 400


def test_weights_of_records_reach_the_loss(judge):
    records = [*preferences(2), *preferences(1, weight=3.0)[:1]]
    verdicts = verdict_examples(records, *judge, **settings_of("both"))
    assert verdicts.weights.tolist() == [1, 1, 1, 1, 3, 3]
    writing = pretrain_examples(records, *judge, **settings_of())
    first, third = (writing.weights[slice(*writing.documents.offsets[[d, d + 1]])] for d in (0, 2))
    assert first.max() == 1 and np.array_equal(third, 3 * first)
    ranking = bradley_terry_examples(records, *judge, overlong="drop", read=READ)
    assert ranking.weights.tolist() == [1, 1, 3]


def test_stage_one_learns_to_write_both_responses_and_not_the_prompt(judge):
    tokenizer, _ = judge
    pairs = [Comparison(as_prompt("the question"), "one answer", "another answer", id="u")]
    examples = pretrain_examples(pairs, *judge, **settings_of("fixed"))
    learned = tokenizer.decode(examples.documents.tokens[examples.weights > 0])
    given = tokenizer.decode(examples.documents.tokens[examples.weights == 0])
    assert "one answer" in learned and "another answer" in learned
    assert "the question" in given and "the question" not in learned
    assert examples.weights[0] == 0


def test_the_ranking_documents_are_the_chosen_and_the_rejected_response(judge):
    tokenizer, _ = judge
    examples = bradley_terry_examples(preferences(3), *judge, overlong="drop", read=READ)
    for unit in range(3):
        assert f"good {unit}" in text_of(tokenizer, examples, 2 * unit)
        assert f"bad {unit}" in text_of(tokenizer, examples, 2 * unit + 1)


def test_the_report_counts_what_is_in_the_batches(judge):
    records = preferences(50)
    examples = verdict_examples(records, *judge, **settings_of("both"))
    plan = make_batches(examples, batch_size=4, max_length=400, seed=0, packing=True)
    report = plan.report()
    batches = epoch_of(plan)
    filled = sum(int((b.seqs.segments > 0).sum()) for b in batches)
    assert report.tokens == filled and report.steps_per_epoch == len(batches)
    assert report.padding == pytest.approx(1 - filled / (len(batches) * 1600))
    assert sum(count for _, _, count in report.histogram) == report.documents == 100
    assert report.first_share == 0.5 and report.examples == 50
    for part in ("rows read", "padding", "epoch", "first is better  50.0%"):
        assert part in report.to_text()
    assert report.rows_read == 10


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
