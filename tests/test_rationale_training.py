"""Stage 2 with rationales: the mixed loss by hand, the positions that get gradients, data and a run."""

import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_runner import run_cli
from conftest import tiny_config
from forks import Fork
from model_cases import random_params
from tiny_runs import compiled_programs, tiny_recipe, tiny_rl_values, train  # noqa: F401
from tiny_runs import write_pairs as _write_pairs

from gram_jax.batch import RationaleBatch, Sequences
from gram_jax.data.batches import BatchPlan
from gram_jax.data.examples import make_examples
from gram_jax.data.reading import read_records
from gram_jax.data.records import Comparison, Label
from gram_jax.data.report import ReadReport
from gram_jax.errors import DataError, RecipeError
from gram_jax.interop.models import load_spec
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.messages import as_prompt
from gram_jax.judge.spec import make_spec
from gram_jax.recipes.reading import make_rl_recipe
from gram_jax.rl.loop import run_rl
from gram_jax.run.metrics import read_metrics
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.rationales import Selection, accepted_rows
from gram_jax.scoring.think import Rationale, Thought
from gram_jax.sharding import make_placement
from gram_jax.training import objectives

TOKENIZER = tiny_tokenizer()
SPEC = make_spec(TOKENIZER, rationale="think", max_rationale=64, max_length=192)
CFG = tiny_config("llama", True)
LABELS = (35, 36)


def comparison(number: int, rationale: str = "", label: Label = 0) -> Comparison:
    return Comparison(
        as_prompt(f"{number}"), "zzz", "oak", label=label, id=f"p{number}", rationale=rationale
    )


RECORDS = [comparison(0, "It says zzz."), comparison(1), comparison(2, "No oak.", label=1)]


def examples(records=RECORDS, **options):
    read = ReadReport(len(records), len(records), by_source=(len(records),))
    settings = {"position_augmentation": "hash", "seed": 0, "overlong": "drop"} | options
    return make_examples("rationale", records, TOKENIZER, SPEC, read=read, **settings)


def test_documents_end_before_the_verdict_and_rationales_carry_a_loss_of_one():
    found = examples()
    assert found.units == 3 and found.label[[0, 2]].tolist() == [0, 1]
    for at, record in enumerate(RECORDS):
        tokens, start = found.documents[at], found.documents.starts[at]
        weights = found.weights[start : start + len(tokens)]
        assert weights[0] == 1.0  # the verdict's
        written = TOKENIZER.decode(tokens[1:][weights[1:] > 0])
        if record.rationale:
            assert written == f"{record.rationale}\n</think>\n<answer>\n"
            assert weights[1:].sum() == pytest.approx(1.0)
        else:
            assert written == "" and str(TOKENIZER.decode(tokens)).endswith("assistant\n")


def test_a_rationale_is_of_one_order_and_too_long_ones_are_counted():
    with pytest.raises(DataError, match="both orders"):
        examples(position_augmentation="both")
    assert RECORDS[0].swapped().rationale == ""
    found = examples([comparison(0, "long words " * 60), comparison(1, "Short.")])
    assert found.units == 1 and found.read.dropped["longer than max_length"] == 1


def batch_and_hidden():
    """Two rows: a document with a rationale (its tokens are columns 4 to 6), and one without."""
    T = 9
    tokens = np.arange(2 * T, dtype=np.int32).reshape(2, T) + 3
    segments = np.array([[1] * 7 + [0] * 2, [1] * 5 + [0] * 4], np.int32)
    seqs = Sequences(tokens, np.arange(T)[None] + 0 * tokens, segments)
    target_at = np.array([[3, 4, 5, 0], [0, 0, 0, 0]], np.int32)
    targets = np.take_along_axis(tokens, target_at + 1, 1)
    target_weights = np.where(target_at > 0, np.float32(2 / 3), 0)  # of a document of weight 2
    at, label = np.array([[6], [4]], np.int32), np.array([[0], [1]], np.int32)
    weights = np.array([[2.0], [1.0]], np.float32)
    batch = RationaleBatch(seqs, target_at, targets, target_weights, at, label, weights)
    return batch, jax.random.normal(jax.random.key(0), (2, T, CFG.embed_size))


def test_the_mixed_loss_is_that_of_its_closed_form_and_reaches_these_positions_only(
    execution, monkeypatch
):
    batch, hidden = batch_and_hidden()
    table = jax.random.normal(jax.random.key(1), (CFG.vocab_size, CFG.embed_size))
    monkeypatch.setattr(
        objectives, "hidden_states_and_load", lambda params, *_: (params["hidden"], None)
    )
    objective = objectives.rationale_objective(
        CFG, execution, label_ids=LABELS, smoothing=0.1, verdict_weight=0.7, rationale_weight=0.3,
        chunk_size=8,
    )  # fmt: skip
    params = {"hidden": hidden, "embed": table}
    (loss, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(params, batch)
    logits = np.einsum("btd,vd->btv", hidden, table)
    logprobs = np.asarray(jax.nn.log_softmax(jnp.asarray(logits), -1))
    written = -sum(logprobs[0, t, batch.seqs.tokens[0, t + 1]] * 2 / 3 for t in (3, 4, 5))
    margins = [logits[0, 6, 35] - logits[0, 6, 36], logits[1, 4, 36] - logits[1, 4, 35]]
    verdicts = [np.log1p(np.exp(-t)) + 0.05 * t for t in margins]
    assert float(loss) == pytest.approx(
        0.7 * (2 * verdicts[0] + verdicts[1]) + 0.3 * written, rel=1e-5
    )
    assert float(metrics["loss"][1]) == 3.0
    assert float(metrics["rationale_nll"][0]) == pytest.approx(written, rel=1e-5)
    assert float(metrics["rationale_nll"][1]) == pytest.approx(2.0)
    # By hand: weight x (softmax - one-hot) at the targets, and that of the margin at the verdicts.
    wanted = np.zeros(logits.shape)
    for t in (3, 4, 5):
        wanted[0, t] = 0.3 * 2 / 3 * np.exp(logprobs[0, t])
        wanted[0, t, batch.seqs.tokens[0, t + 1]] -= 0.3 * 2 / 3
    for row, t, margin, weight, label in ((0, 6, margins[0], 2, 1), (1, 4, margins[1], 1, -1)):
        slope = 0.7 * weight * label * (1 / (1 + np.exp(-margin)) - 0.95)
        wanted[row, t, 35], wanted[row, t, 36] = slope, -slope
    np.testing.assert_allclose(
        gradients["hidden"], np.einsum("btv,vd->btd", wanted, table), atol=1e-5
    )
    np.testing.assert_allclose(
        gradients["embed"], np.einsum("btv,btd->vd", wanted, hidden), atol=1e-5
    )
    reached = np.abs(np.asarray(gradients["hidden"])).max(-1) > 0
    expected = np.zeros((2, 9), bool)
    expected[0, 3:7] = expected[1, 4] = True
    assert reached.tolist() == expected.tolist()


def test_a_batch_of_examples_points_at_the_rationale_and_the_verdict():
    plan = BatchPlan(
        examples(), batch_size=3, max_length=256, packing=False, seed=0, passes={"a": 1.0}
    )
    batch = plan.batch(0)
    assert isinstance(batch, RationaleBatch)
    for row in range(3):
        size = int(batch.seqs.segments[row].sum())
        assert batch.verdict_at[row, 0] == size - 1 and batch.weights[row, 0] == 1.0
        used = batch.target_weights[row] > 0
        written = batch.targets[row][used]
        assert str(TOKENIZER.decode(written)).endswith("<answer>\n") or not len(written)
        at = batch.target_at[row][used]
        assert batch.seqs.tokens[row][at + 1].tolist() == written.tolist()
        assert at.tolist() == list(range(size - 1 - len(at), size - 1))
    longest = max(int((row > 0).sum()) for row in batch.target_weights)
    assert batch.targets.shape == (3, longest)


def test_a_packed_row_has_the_targets_of_its_documents():
    found = examples([comparison(at, "Short." * (at % 3)) for at in range(9)])
    plan = BatchPlan(found, batch_size=2, max_length=512, packing=True, seed=0)
    weights = np.concatenate(
        [plan.batch(step).target_weights for step in range(plan.steps_per_epoch)]
    )
    tokens = np.concatenate([plan.batch(step).targets for step in range(plan.steps_per_epoch)])
    text = "".join(
        str(TOKENIZER.decode(row[w > 0])) for row, w in zip(tokens, weights, strict=True)
    )
    assert text.count("Short.") == 9 and text.count("<answer>") == 6
    share = float((found.targets / found.documents.lengths).max())
    assert tokens.shape[1] == plan.targets <= int(512 * share)
    assert weights.sum() == pytest.approx(6.0)


def test_the_parameters_that_a_batch_does_not_reach_have_no_gradient(execution):
    """A token that only stands after the last target and verdict, or in another document, changes nothing."""
    batch, _ = batch_and_hidden()
    cfg = tiny_config("llama", False)
    objective = objectives.rationale_objective(
        cfg, execution, label_ids=LABELS, smoothing=0.1, verdict_weight=1.0, rationale_weight=1.0,
        chunk_size=8,
    )  # fmt: skip
    params = random_params(cfg, execution.placement)
    gradient_of = jax.jit(jax.grad(lambda params, batch: objective(params, batch)[0]))
    gradient = gradient_of(params, batch)
    embedded = np.flatnonzero(np.abs(np.asarray(gradient["embed"])).max(-1))
    assert embedded.tolist() == [*range(3, 10), *range(12, 17)]  # the tokens of both documents
    without = batch._replace(target_weights=0 * batch.target_weights, weights=0 * batch.weights)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient_of(params, without)))


def test_rationales_with_the_right_verdict_are_kept_in_their_order():
    record = comparison(5)
    votes = tuple(Rationale(x, 3, "verdict", d) for x, d in (("right", 1.0), ("wrong", -1.0)))
    lost = Rationale("", 9, "unfinished", None)
    rows = list(
        accepted_rows(
            record,
            Thought(PairScore(0.5, 0.5, 0.0, 0.0, False), None, ((*votes, lost), votes)),
            Selection(),
        )
    )
    assert [(x["rationale"], x["label"], x["response_a"]) for x in rows] == [
        ("right", 0, "zzz"), ("wrong", 1, "oak"),
    ]  # fmt: skip


def thought_of(first, second):
    """A thought with these logit differences of the votes of both orders."""
    orders = (tuple(Rationale(f"{x}", 1, "verdict", x) for x in votes) for votes in (first, second))
    return Thought(PairScore(0.5, 0.5, 0.0, 0.0, False), None, tuple(orders))


def test_without_labels_the_votes_of_both_orders_have_to_agree():
    agree = Selection("agreement", agreement=0.6, keep=2)
    wrong = comparison(5, label=0)  # the label is not used
    rows = list(accepted_rows(wrong, thought_of((-1.0, -2.0, 0.5), (1.0, 2.0, -3.0)), agree))
    assert [(x["order"], x["label"], x["rationale"], x["response_a"]) for x in rows] == [
        (0, 1, "-1.0", "zzz"), (0, 1, "-2.0", "zzz"), (1, 0, "1.0", "oak"), (1, 0, "2.0", "oak"),
    ]  # fmt: skip
    biased = thought_of((1.0, 1.0), (1.0, 1.0))  # always the first
    split = thought_of((1.0, -1.0), (-1.0, -1.0))
    lost = thought_of((1.0, None), (-1.0, -1.0))
    for thought in (biased, split, lost, thought_of((), ())):
        assert list(accepted_rows(wrong, thought, agree)) == []
    every = list(accepted_rows(comparison(5, label=1), split, Selection("all")))
    assert [(x["order"], x["label"], x["response_a"]) for x in every] == [
        (0, 0, "oak"), (0, 0, "oak"), (1, 1, "zzz"), (1, 1, "zzz"),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"agreement = 0\.5"):
        Selection("agreement", agreement=0.5)


@pytest.mark.slow
def test_killed_and_sharded_commands_write_the_same_rationales(tmp_path):
    pairs = _write_pairs(tmp_path / "pairs.jsonl", 24)
    run_cli(
        "spec", tmp_path / "judge.json", "--model", "tiny-random", "--template", "default", "--max-length", 192,
        "--rationale", r"Reasons:\n{rationale}\nThe verdict:\n", "--stop", "t", "--max-rationale", 8,
    )  # fmt: skip
    words = ["rationales", "tiny-random", pairs]
    options = ["--spec", tmp_path / "judge.json", "--accept", "all", "--votes", 2]
    out, votes = tmp_path / "a.jsonl", tmp_path / "a.votes.jsonl"
    command = [str(x) for x in (*words, out, *options)]
    code, log = "from gram_jax.cli import main; main()", tmp_path / "log"
    process = Fork(code, command, os.environ, tmp_path, log)
    while process.poll() is None and not (votes.exists() and votes.stat().st_size):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert votes.read_bytes().count(b"\n") < 24 and not out.exists()
    done = run_cli(*words, out, *options)
    assert done.status == 0 and "8 were there" in done.output, done.output
    whole = tmp_path / "b.jsonl"
    assert run_cli(*words, whole, *options).status == 0
    assert votes.read_bytes() == (tmp_path / "b.votes.jsonl").read_bytes()
    assert out.read_bytes() == whole.read_bytes() and out.stat().st_size
    # Two shards, merged, give the same files.
    parts = tmp_path / "c.jsonl"
    for shard in range(2):
        done = run_cli(*words, parts, *options, "--shard", f"{shard}/2", "--part-rows", 5)
        assert done.status == 0 and not parts.exists(), done.output
    assert run_cli("merge", tmp_path / "c.votes.jsonl").status == 0
    assert run_cli(*words, parts, *options).status == 0
    assert (tmp_path / "c.votes.jsonl").read_bytes() == votes.read_bytes()
    assert parts.read_bytes() == out.read_bytes()
    every = out.read_bytes().count(b"\n")
    # Another selection of the same votes needs no new ones.
    done = run_cli(*words, out, *options[:3], "label", "--keep", 2, *options[4:])
    assert done.status == 0 and "0 rows written, 24 were there" in done.output, done.output
    assert out.read_bytes().count(b"\n") < 2 * every
    done = run_cli(*words, pairs, *options)
    assert done.status and "exists" in done.stderr  # a file that this command did not write


def test_the_column_rationale_is_read_and_weights_are_required(tmp_path):
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "1", "response_a": "zzz", "response_b": "oak", "label": 0, "rationale": "It."}
    rows.write_text(json.dumps(row) + "\n")
    (record,), _ = read_records(str(rows), "preference")
    assert (record.rationale, record.label) == ("It.", 0)
    with pytest.raises(RecipeError, match="rationale_weight"):
        recipe(tmp_path / "run", rows, loss__rationale_weight=None)


def recipe(folder, rows, **changes):
    values = {
        "judge__rationale": "think", "judge__max_rationale": 32, "data__train": [str(rows)],
        "data__position_augmentation": "hash", "batch__max_length": 256, "loss__label_smoothing": 0.1,
        "loss__loss_chunk_size": 256, "loss__verdict_weight": 1.0, "loss__rationale_weight": 1.0,
    } | changes  # fmt: skip
    return tiny_recipe("rationale", folder, **{k: v for k, v in values.items() if v is not None})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(pairs, the run of a judge that has learned to write "zz" before its verdicts)."""
    folder = tmp_path_factory.mktemp("trained")
    pairs = [json.loads(line) for line in _write_pairs(folder / "pairs.jsonl", 16).open()]
    rows = []
    for row in pairs:
        for label, (a, b) in enumerate(
            ((row["chosen"], row["rejected"]), (row["rejected"], row["chosen"]))
        ):
            rows.append(
                {"prompt": row["prompt"], "response_a": a, "response_b": b, "label": label, "rationale": "zz"}
            )  # fmt: skip
    data = folder / "rationales.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(
        recipe(
            folder / "run",
            data,
            run__max_steps=40,
            batch__batch_size=4,
            optimizer__learning_rate=1e-2,
        )
    )
    return folder / "pairs.jsonl", folder / "run"


@pytest.mark.slow
def test_a_judge_learns_to_write_its_rationale_and_thinks_with_it(trained):
    from gram_jax.scoring.scorer import Scorer
    from gram_jax.scoring.think import Think

    judge = Scorer.load(trained[1])
    assert judge.spec.reads == "rationale_then_label"
    pair = json.loads(trained[0].open().readline())
    (thought,) = judge.thinking(Think(temperature=0)).thoughts([pair])
    votes = [vote for order in thought.rationales for vote in order]
    assert all(vote.outcome == "verdict" for vote in votes), votes


@pytest.mark.slow
def test_the_rows_of_a_round_of_self_training_are_made_once(trained, tmp_path):
    pairs, start = trained
    unlabeled = tmp_path / "unlabeled.jsonl"
    shown = [json.loads(line) for line in pairs.open()]
    unlabeled.write_text(
        "".join(
            json.dumps({"prompt": x["prompt"], "response_a": x["rejected"], "response_b": x["chosen"]}) + "\n"
            for x in shown
        )
    )  # fmt: skip
    command = [
        "rationales",
        start,
        unlabeled,
        tmp_path / "round.jsonl",
        "--accept",
        "agreement",
        "--votes",
        2,
    ]
    command += ["--think-temperature", 0.5, "--agreement", 0.6]
    done = run_cli(*command)
    assert done.status == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "round.jsonl").open()]
    assert rows
    assert sum(row["label"] for row in rows) * 2 == len(rows)  # both orders of each pair
    before = [path.read_bytes() for path in sorted(tmp_path.glob("round*"))]
    done = run_cli(*command)
    assert done.status == 0 and "0 rows written, 16 were there" in done.output, done.output
    assert [path.read_bytes() for path in sorted(tmp_path.glob("round*"))] == before


@pytest.mark.slow
def test_the_label_is_the_reward_of_a_policy_that_judges_and_stays_a_judge(trained, tmp_path):
    pairs, start = trained
    values = tiny_rl_values(
        tmp_path / "run", policy__name_or_path=str(start), data__train=str(pairs), run__max_steps=2,
        sampling__prompts_per_step=2, sampling__num_generations=8, sampling__max_prompt_length=256,
        sampling__max_new_tokens=48, sampling__temperature=0.3, evaluate__limit=2,
    )  # fmt: skip
    values["reward"] = {"kind": "label"}
    run_rl(make_rl_recipe(values), placement=make_placement({}, devices=jax.devices()[:1]))
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "reward" in row]
    assert len(rows) == 2 and all(16 * row["reward"] in range(17) for row in rows)
    # Samples end with the verdict: a short rationale, the closing text and one token.
    figures = [(row["stopped"], row["length"], row["reward"]) for row in rows]
    assert all(stopped > 0.5 and length < 40 for stopped, length, _ in figures), figures
    assert load_spec(tmp_path / "run") == load_spec(start) is not None
