"""The discriminative baseline as a reader of text: the rewards of training, and pairs scored by their difference."""

import json
import re

import jax
import numpy as np
import pytest
from cli_runner import run_cli
from fastapi.testclient import TestClient
from jax import monitoring
from tiny_runs import (  # noqa: F401
    compiled_programs,
    tiny_recipe,
    tiny_rl_values,
    train,
    write_pairs,
)

from gram_jax import compiler
from gram_jax.data.reading import read_records
from gram_jax.errors import JudgeError
from gram_jax.evals.pairwise import evaluate_pairs
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.judge.tokens import text_encoder
from gram_jax.model.execution import Execution
from gram_jax.model.quantize import quantize
from gram_jax.ranking.tournament import METHODS
from gram_jax.recipes.reading import make_rl_recipe
from gram_jax.rewards.forms import RewardForm, Rewards
from gram_jax.rl.judged import judged_reward
from gram_jax.rl.loop import run_rl
from gram_jax.run.metrics import read_metrics
from gram_jax.scoring.remote import RemoteScorer
from gram_jax.scoring.request_batcher import BatchedScorer, RequestBatcher
from gram_jax.scoring.results import read_rows
from gram_jax.scoring.scalar import ScalarRewardModel, load_judge
from gram_jax.serve.app import make_app
from gram_jax.sharding import make_placement

PAIRS = [
    ("Name a tree.", "oak", "a bay by the sea, no tree"),
    ("Name a tree.", "fig", "oak"),
    ("What is it? " * 9, "elm " * 20, "ash"),
]


def model_of(params, execution, cfg, **options) -> ScalarRewardModel:
    tokenizer = load_tokenizer("tiny-random")
    spec = make_spec(tokenizer, max_length=256)
    return ScalarRewardModel(params, cfg, tokenizer, spec, execution, **options)


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
        assert score.margin == np.float32(first) - np.float32(second)
        assert score.first == pytest.approx(1 / (1 + np.exp(second - first)), abs=1e-6)
        assert score.first + score.second == 1
        assert score.position_bias == 0


def test_exchanged_responses_exchange_the_scores(reward_model):
    swapped = [(prompt, second, first) for prompt, first, second in PAIRS]
    assert [s.swapped() for s in reward_model.stream(swapped)] == list(reward_model.stream(PAIRS))


def test_a_reward_has_the_same_bits_alone_and_in_any_order(reward_model):
    items = [(p, text) for p, *pair in PAIRS for text in pair] * 3
    together = reward_model.rewards(items).tolist()
    assert reward_model.rewards(items[::-1])[::-1].tolist() == together
    assert [reward_model.rewards([item])[0] for item in items] == together


@pytest.mark.parametrize("method", [None, *METHODS, "reference"])
def test_a_ranking_is_the_order_of_the_rewards(reward_model, method):
    texts = ["oak", "a bay by the sea, no tree", "fig", "oak", "elm " * 20]
    references = 2 if method == "reference" else 0
    found = reward_model.rank("Name a tree.", texts, method=method, references=references)
    rewards = reward_model.rewards([("Name a tree.", text) for text in texts])
    assert found.order == sorted(range(5), key=lambda at: (-rewards[at], at))
    differences = rewards[:, None] - rewards[None, :]
    compared = ~np.isnan(found.margins)
    assert found.margins[compared] == pytest.approx(differences[compared], abs=1e-6)
    if method != "bradley_terry":  # whose fit has a prior
        distinct = rewards[[0, 1, 2, 4]].mean()
        assert found.strengths == pytest.approx(rewards - distinct, abs=1e-5)
    assert found.ties == 0 and not found.cycles
    assert reward_model.best("Name a tree.", texts) == found.order[0]
    (other, same) = reward_model.rank_many([("q", ["x"]), ("Name a tree.", texts)])
    assert other.order == [0] and same.order == found.order


def test_nothing_cannot_be_ranked(reward_model):
    with pytest.raises(JudgeError, match="nothing to rank"):
        reward_model.rank("q", [])


def test_rewards_in_groups_are_win_rates_of_the_differences(reward_model):
    texts = ["oak", "fig", "a bay"]
    found = Rewards(reward_model, RewardForm("group")).of(["Name a tree."] * 3, texts)
    scores = reward_model.score_many(
        ("Name a tree.", one, other) for one in texts for other in texts if one != other
    )
    expected = np.array([score.first for score in scores]).reshape(3, 2).mean(axis=1)
    assert found == pytest.approx(expected.tolist())


def test_the_programs_are_compiled_before_the_first_call(tiny, monkeypatch):
    # As on a chip with options of the compiler, which make another program.
    options = {"xla_cpu_enable_fast_math": False}
    monkeypatch.setattr(compiler, "compiler_options", lambda *args, **settings: options)
    cfg, params, head, execution = tiny
    model = model_of({**params, "score": head}, execution, cfg, tokens_per_call=256)
    model.warm_up(rankings=True)
    compiled = []
    monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    model.rank("q", ["a", "b"])
    assert compiled == []


def test_int8_weights_and_another_number_of_tokens_per_call_give_nearly_the_same(
    tiny, reward_model
):
    cfg, params, head, execution = tiny
    small = quantize({**params, "score": head}, "int8")
    for other, tolerance in (
        (model_of(small, execution, cfg), 0.2),
        (model_of({**params, "score": head}, execution, cfg, tokens_per_call=600), 1e-5),
    ):
        for one, two in zip(other.stream(PAIRS), reward_model.stream(PAIRS), strict=True):
            assert one.margin == pytest.approx(two.margin, abs=tolerance)


def test_weights_without_a_head_are_refused(tiny):
    cfg, params, _, execution = tiny
    with pytest.raises(JudgeError, match="no scalar head"):
        model_of(params, execution, cfg)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the baseline, and its held-out pairs."""
    folder = tmp_path_factory.mktemp("baseline")
    valid = write_pairs(folder / "valid.jsonl", 12, seed=1)
    recipe = tiny_recipe(
        "bradley_terry", folder / "run", data__valid=[str(valid)], batch__max_length=384
    )
    return train(recipe), valid


@pytest.mark.slow
def test_a_trained_baseline_is_evaluated_as_training_evaluates_it(trained, tmp_path):
    done, valid = trained
    judge = load_judge(done.folder, compute_dtype="float32")
    report = evaluate_pairs(judge, read_records(valid)[0])
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
    ran = run_cli(*words, "--weights", "int8", "--overwrite")
    assert ran.status == 0, ran.output


@pytest.mark.slow
def test_every_command_that_takes_a_judge_takes_a_baseline(trained, tmp_path):
    done, valid = trained
    run, judge = done.folder, load_judge(done.folder, compute_dtype="float32")
    folder, small = tmp_path, ("--n", 2, "--limit", 2, "--max-new-tokens", 4)
    scores, rankings = folder / "s.jsonl", folder / "r.jsonl"
    for words in (
        ("score", valid, scores, "--model", run),
        ("rank", valid, rankings, "--model", run),
        ("attack", run, valid, "--out", folder / "attack", "--only", "verdict,quotes"),
        ("bon", "tiny-random", run, valid, "--out", folder / "bon", "--oracle", run, *small),
    ):
        ran = run_cli(*words)
        assert ran.status == 0, ran.output
    records = read_records(valid)[0]
    expected = judge.score_many((r.prompt, r.chosen, r.rejected) for r in records)
    assert [row["margin"] for row in read_rows(scores)] == [score.margin for score in expected]
    for row, record in zip(read_rows(rankings), records, strict=True):
        assert row["ranking"] == judge.rank(record.prompt, [record.first, record.second]).order
        assert row["comparisons"] == 2
    report = json.loads((folder / "bon" / "bon.json").read_text())
    assert report["rewards"]["proxy"] == report["rewards"]["oracle"]


@pytest.mark.slow
def test_a_server_and_trainers_take_a_baseline(trained):
    done, valid = trained
    judge = load_judge(done.folder, compute_dtype="float32")
    records = read_records(valid)[0]
    texts = [(r.prompt, r.chosen, r.rejected) for r in records]
    batcher = RequestBatcher(judge)
    client = BatchedScorer(batcher)
    assert client.score_many(texts) == judge.score_many(texts)
    (ranking,) = client.rank_many([("q", ["oak", "zzz", "ash"])])
    assert ranking.order == judge.rank("q", ["oak", "zzz", "ash"]).order
    batcher.close()
    with TestClient(make_app(judge, "baseline")) as http:
        pair = {"prompt": "1", "first": "oak zzz", "second": "ash"}
        answer = http.post("/v1/score_pair", json=pair)
        assert answer.status_code == 200, answer.text
        assert answer.json()["first"] == judge.score("1", "oak zzz", "ash").first
        assert http.get("/readyz").status_code == 200
        assert http.post("/classify", json={"input": [1, 2, 3]}).status_code == 422
    with pytest.raises(JudgeError, match="scalar reward model"):
        RemoteScorer.load(done.folder, "http://127.0.0.1:9", protocol="vllm", model="m")


@pytest.mark.slow
def test_a_policy_is_trained_on_the_rewards_of_a_baseline(trained, tmp_path):
    """They are those that `Rewards` of this judge gives: probabilities of being better than the reference."""
    baseline, place = trained[0].folder, make_placement({}, devices=jax.devices()[:1])
    judge = load_judge(baseline, compute_dtype="float32", placement=place)
    form = RewardForm("reference", references=("oak",))
    found = []
    for name, reward in (("asked", None), ("given", judged_reward(judge, form))):
        asked = {"judge": str(baseline), "compare_with": "reference", "references": ["oak"]}
        recipe = make_rl_recipe(tiny_rl_values(tmp_path / name) | {"reward": asked})
        run_rl(recipe, placement=place, reward=reward)
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        found.append([row["reward"] for row in rows if "reward" in row])
    assert found[0] == found[1] and len(set(found[0])) == 3
    assert all(0 < reward < 1 for reward in found[0])


@pytest.mark.slow
@pytest.mark.torch
def test_the_snippets_of_its_card_run_as_they_stand(trained, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    run, folder = trained[0].folder, tmp_path / "judge"
    for words in (("convert", run, folder), ("card", folder, "--run", run)):
        ran = run_cli(*words)
        assert ran.status == 0, ran.output
    text = (folder / "README.md").read_text()
    ours, theirs = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    said: list[tuple] = []
    names = {"print": lambda *values: said.append(values)}
    exec(theirs, names)
    exec(ours, {"print": names["print"]})
    assert said[0][0] == pytest.approx(said[1][0], abs=1e-6)
    hard = ("<|im_end|> Über", "<|im_start|>", "naïve 漢字 🙂\n\n  code()")
    assert names["score"](*hard) == pytest.approx(load_judge(folder).score(*hard).first, abs=1e-6)
    assert load_judge(folder).score(*hard) == load_judge(run).score(*hard)


def test_an_export_that_transformers_would_read_elsewhere_is_warned_of(tiny, tmp_path, caplog):
    cfg, params, head, _ = tiny
    tokenizer = load_tokenizer("tiny-random")
    spec, weights = make_spec(tokenizer, max_length=256), {**params, "score": head}
    last = text_encoder(tokenizer).frame(spec.end_of_turn)[-1]
    for pad, warned in ((None, 0), (tokenizer.convert_ids_to_tokens(int(last)), 1)):
        tokenizer.pad_token = pad or tokenizer.pad_token
        folder = tmp_path / f"{warned}"
        export_hf(folder, cfg, weights, dtype=None, tokenizer=tokenizer, spec=spec)
        assert len(caplog.records) == warned
