"""The discriminative baseline as a reader of text: the rewards of training, and pairs scored by their difference."""

import json

import jax
import numpy as np
import pytest
from cli_runner import run_cli
from tiny_runs import compiled_programs, tiny_recipe, train, write_pairs  # noqa: F401

from gram_jax.data.reading import read_records
from gram_jax.errors import JudgeError
from gram_jax.evals.pairwise import evaluate_pairs
from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.model.execution import Execution
from gram_jax.scoring.scalar import ScalarRewardModel
from gram_jax.sharding import make_placement

PAIRS = [
    ("Name a tree.", "oak", "a bay by the sea, no tree"),
    ("Name a tree.", "fig", "oak"),
    ("What is it? " * 9, "elm " * 20, "ash"),
]


def model_of(params, execution, cfg) -> ScalarRewardModel:
    tokenizer = load_tokenizer("tiny-random")
    return ScalarRewardModel(
        params, cfg, tokenizer, make_spec(tokenizer, max_length=256), execution
    )


@pytest.fixture(scope="module")
def tiny():
    placement = make_placement({}, devices=jax.devices()[:1])
    cfg, params = load_model("tiny-random", placement, "float32")
    head = jax.random.normal(jax.random.key(0), (1, cfg.embed_size))
    return cfg, params, head, Execution("float32", "auto", "none", placement, packed=False)


@pytest.fixture(scope="module")
def reward_model(tiny) -> ScalarRewardModel:
    cfg, params, head, execution = tiny
    return model_of({**params, "score": head}, execution, cfg)


def test_a_pair_is_scored_by_the_difference_of_its_rewards(reward_model):
    rewards = reward_model.rewards([(p, text) for p, *pair in PAIRS for text in pair]).reshape(
        -1, 2
    )
    for score, (first, second) in zip(reward_model.stream(PAIRS), rewards.tolist(), strict=True):
        assert score.margin == first - second
        assert score.first == pytest.approx(1 / (1 + np.exp(second - first)), abs=1e-6)
        assert score.first + score.second == 1
        assert score.position_bias == 0


def test_exchanged_responses_exchange_the_scores(reward_model):
    swapped = [(prompt, second, first) for prompt, first, second in PAIRS]
    assert [s.swapped() for s in reward_model.stream(swapped)] == list(reward_model.stream(PAIRS))


def test_rewards_do_not_depend_on_the_order_of_the_texts(reward_model):
    items = [(p, text) for p, *pair in PAIRS for text in pair]
    assert reward_model.rewards(items[::-1])[::-1].tolist() == pytest.approx(
        reward_model.rewards(items).tolist()
    )


def test_weights_without_a_head_are_refused(tiny):
    cfg, params, _, execution = tiny
    with pytest.raises(JudgeError, match="no scalar head"):
        model_of(params, execution, cfg)


@pytest.mark.slow
def test_a_trained_baseline_is_evaluated_as_training_evaluates_it(tmp_path):
    valid = write_pairs(tmp_path / "valid.jsonl", 12, seed=1)
    recipe = tiny_recipe(
        "bradley_terry", tmp_path / "run", data__valid=[str(valid)], batch__max_length=384
    )
    done = train(recipe)
    records = read_records(valid)[0]
    report = evaluate_pairs(ScalarRewardModel.load(done.folder, compute_dtype="float32"), records)
    assert report.accuracy == pytest.approx(done.metrics["valid_accuracy"])
    assert report.margin == pytest.approx(done.metrics["valid_margin"], abs=1e-4)
    assert report.consistency == 1
    assert np.isfinite(report.ece)

    # From the command line, on pairs and on graded responses.
    lists = tmp_path / "n.jsonl"
    row = {"prompt": "1", "responses": ["oak zzz fir", "ash", "ash"], "scores": [2, 1, 1]}
    lists.write_text("".join(json.dumps(row | {"prompt": str(at)}) + "\n" for at in range(3)))
    words = ["evaluate", str(done.folder), str(valid), str(lists), "--out", str(tmp_path / "e")]
    ran = run_cli(*words, "--compute-dtype", "float32")
    assert ran.status == 0, ran.output
    found = json.loads((tmp_path / "e" / "evaluation.json").read_text())["sources"]
    assert found["valid"]["pairs"]["accuracy"] == report.accuracy
    assert found["n"]["benchmark"] == "best_of_n" and found["n"]["pairs"]["consistency"] == 1
    assert found["n"]["pairs"]["shortened"] == 0
    row["responses"][0] = "oak " * 600
    lists.write_text("".join(json.dumps(row | {"prompt": str(at)}) + "\n" for at in range(3)))
    out = str(tmp_path / "long")
    ran = run_cli("evaluate", str(done.folder), str(lists), "--out", out)
    found = json.loads((tmp_path / "long" / "evaluation.json").read_text())["sources"]["n"]
    assert found["pairs"]["shortened"] == 1
    ran = run_cli(*words, "--weights", "int8", "--max-length", "128")
    assert ran.status == 2 and "leave out --weights, --max-length" in ran.output
