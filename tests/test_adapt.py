"""Adaptation of a judge: parts by prompt, the best epoch, nothing worse without a word."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
from tiny_runs import compiled_programs, write_pairs  # noqa: F401

import gram_jax.adaptation.adapt
from gram_jax.adaptation.adapt import NotBetterError, adapt, out_of_patience, pinned
from gram_jax.adaptation.config import AdaptConfig
from gram_jax.adaptation.recipe import make_adapt_recipe, write_template
from gram_jax.adaptation.report import doubts, result_rows
from gram_jax.adaptation.settings import default_rate, split
from gram_jax.data.reading import read_records
from gram_jax.errors import DataError, JudgeError, StoppedError
from gram_jax.interop.models import load_spec, load_tokenizer, model_config
from gram_jax.judge.spec import make_spec
from gram_jax.scoring.scorer import Scorer

pytestmark = pytest.mark.slow

SMALL = {"num_train_epochs": 2, "batch_size": 4, "max_length": 192, "learning_rate": 3e-3}


@pytest.fixture
def spec(tmp_path):
    """tiny-random's judge with a budget that its rows hold."""
    return make_spec(load_tokenizer("tiny-random"), max_length=192)


def test_all_pairs_of_a_prompt_lie_in_one_part_and_order_does_not_matter(tmp_path):
    records, _ = read_records(write_pairs(tmp_path / "p.jsonl", 120))
    twice = [*records, *records]
    parts = split(twice, 0.2, 0)
    prompts = [{record.prompt for record in part} for part in parts.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 120
    assert sum(map(len, parts.values())) == 240
    backwards = split(twice[::-1], 0.2, 0)
    assert {r.id for r in backwards["test"]} == {r.id for r in parts["test"]}
    assert 10 < len(parts["test"]) / 2 < 40


def test_too_few_prompts_are_a_named_error(tmp_path):
    records, _ = read_records(write_pairs(tmp_path / "p.jsonl", 30))
    with pytest.raises(DataError, match="at least 10"):
        split(records, 0.2, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("held_out", 0.5),
        ("label_smoothing", 1.0),
        ("num_train_epochs", 0),
        ("patience", -1),
        ("batch_size", 0),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_a_setting_out_of_range_is_named(key, value):
    with pytest.raises(DataError, match=f"{key} = {value}: expected"):
        AdaptConfig(**{key: value})


@pytest.mark.parametrize(
    ("made", "changed", "message"),
    [
        ({"rationale": "think", "max_rationale": 16}, {}, "writes a rationale"),
        ({}, {"end_of_turn": "<|other|>"}, "differs in end_of_turn"),
        ({"template": "{prompt}\n[One]\n{first}\n[Two]\n{second}\n[End]\n\n"}, {}, None),
    ],
)
def test_a_judge_that_a_recipe_cannot_state_is_refused(tmp_path, made, changed, message):
    spec = replace(make_spec(load_tokenizer("tiny-random"), max_length=192, **made), **changed)
    (tmp_path / "data").mkdir()
    write_template(spec, tmp_path)
    judge, data = Scorer.load("tiny-random", spec=spec), write_pairs(tmp_path / "p.jsonl", 8)
    with pytest.raises(JudgeError, match=message) if message else nullcontext():
        make_adapt_recipe("tiny-random", judge, data, tmp_path, AdaptConfig(**SMALL))


def test_a_resumed_adaptation_keeps_the_step_of_a_judge_that_is_trained_further(tmp_path):
    judge, run = tmp_path / "judge", tmp_path / "adapted" / "run"
    for step in (2, 4):
        (judge / "checkpoints" / str(step)).mkdir(parents=True)
        (judge / "recipe.toml").touch()
        (judge / "run.json").write_text(json.dumps({"steps": step}))
        assert pinned(str(judge), run) == f"{judge}@{step}"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"start": f"{judge}@2"}))
    assert pinned(str(judge), run) == f"{judge}@2"
    # Asked for by name: another recipe, which the run refuses.
    assert pinned(f"{judge}@4", run) == f"{judge}@4"
    assert pinned("tiny-random", run) == "tiny-random"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_task_is_learned_and_exported(tmp_path, spec, method):
    source = str(write_pairs(tmp_path / "p.jsonl", 150))
    out = tmp_path / "out"
    settings = AdaptConfig(
        method=method, **SMALL | {"learning_rate": 3e-3 if method == "full" else 1e-2}
    )
    result = adapt("tiny-random", source, out, settings, spec=spec)
    test = result["test"]
    assert test["after"]["accuracy"] > test["before"]["accuracy"] + 0.2
    assert test["gain_interval"][0] > 0
    assert test["gain"] == pytest.approx(test["after"]["accuracy"] - test["before"]["accuracy"])
    assert json.loads((out / "adaptation.json").read_text())["exported"] == str(out / "judge")
    assert load_spec(out / "judge") == spec
    judge, kept = Scorer.load(out / "judge"), read_records(out / "data" / "test.jsonl")[0]
    found = judge.score_many((r.prompt, r.chosen, r.rejected) for r in kept)
    right = sum(score.first > score.second for score in found) / len(kept)
    assert right == pytest.approx(test["after"]["accuracy"])
    assert 4 <= len(result_rows(result)) <= 5


def test_a_judge_that_gets_no_better_is_not_exported(tmp_path, spec, caplog):
    rows = [json.loads(x) for x in write_pairs(tmp_path / "p.jsonl", 80).read_text().splitlines()]
    for at, row in enumerate(rows):  # labels that mean nothing
        row["chosen"], row["rejected"] = ("oak", "elm") if at % 2 else ("elm", "oak")
    source = tmp_path / "noise.jsonl"
    same = {"prompt": "q", "chosen": "elm", "rejected": "elm"}
    source.write_text("".join(json.dumps(row) + "\n" for row in [*rows, same]))
    out, settings = (
        tmp_path / "out",
        AdaptConfig(method="full", **SMALL | {"learning_rate": 0.1, "num_train_epochs": 1}),
    )
    with pytest.raises(NotBetterError):
        adapt("tiny-random", str(source), out, settings, spec=spec)
    assert not (out / "judge").exists()
    figures = json.loads((out / "adaptation.json").read_text())
    assert figures["exported"] is None
    assert (figures["rows"], figures["left_out"]) == (81, {"identical responses": 1})
    caplog.set_level("INFO", "gram_jax")
    again = adapt("tiny-random", str(source), out, settings, spec=spec, accept=True)
    assert again["exported"] == str(out / "judge") and not again["better_where_chosen"]
    left_out = "81 rows read, 80 labeled pairs, left out: 1 identical responses"
    assert left_out in caplog.text
    assert "no better than tiny-random" in caplog.text


@pytest.mark.parametrize(
    ("temperature", "nll", "ece", "shown"),
    [(1.8, 0.5, 0.05, True), (1.8, 0.5, 0.19, False), (1.8, 0.7, 0.05, False), (0.01, 0.5, 0.05, False)],
)  # fmt: skip
def test_a_temperature_that_makes_calibration_worse_is_not_shown(temperature, nll, ece, shown):
    part = {"accuracy": 0.8, "interval": (0.7, 0.9), "nll": 0.6, "ece": 0.1}
    fitted = {"nll_with_temperature": nll, "ece_with_temperature": ece}
    test = {"before": part, "after": part | fitted, "gain": 0.0, "gain_interval": (-0.1, 0.1)}
    pairs = {"choose": 20, "test": 20}
    names = [
        name for name, *_ in result_rows({"temperature": temperature, "pairs": pairs, "test": test})
    ]
    assert any(f"{temperature:.2f}" in name for name in names) == shown


@pytest.mark.parametrize(
    "gain, interval, losses, said",
    [
        (-0.05, (-0.08, -0.01), (0.6, 0.5), ["is worse on the 20 test pairs: -0.050"]),
        (-0.05, (-0.12, 0.02), (0.6, 0.5), ["perhaps worse"]),
        (0.0, (-0.1, 0.1), (0.6, 0.7), ["0.600 before"]),
        (0.05, (-0.1, 0.2), (0.6, 0.5), []),
    ],
)
def test_a_judge_that_is_worse_where_it_is_measured_goes_out_with_a_word(
    gain, interval, losses, said
):
    test = {"gain": gain, "gain_interval": interval}
    test |= {part: {"nll": loss} for part, loss in zip(("before", "after"), losses, strict=True)}
    found = doubts({"model": "m", "pairs": {"test": 20}, "better_where_chosen": True, "test": test})
    assert len(found) == len(said) and all(part in x for part, x in zip(said, found, strict=True))


@pytest.mark.parametrize(
    "losses, patience, enough",
    [
        ([0.6], 1, False),
        ([0.6, 0.5], 1, False),
        ([0.6, 0.7], 1, True),
        ([0.6, 0.6], 1, True),
        ([0.6, 0.7], 2, False),
        ([0.6, 0.7, 0.65], 2, True),
        ([0.6, 0.7, 0.5], 2, False),
        ([0.6, 0.7, 0.8], 0, False),
    ],
)
def test_patience_ends_once_so_many_epochs_brought_no_new_least_loss(losses, patience, enough):
    assert out_of_patience(losses, patience) is enough


def test_a_training_whose_second_epoch_is_worse_ends_there(tmp_path, spec, monkeypatch):
    source = str(write_pairs(tmp_path / "p.jsonl", 80))
    trained = []
    real = gram_jax.adaptation.adapt.train
    monkeypatch.setattr(
        gram_jax.adaptation.adapt,
        "train",
        lambda *a, stop_at_step, **k: (
            trained.append(stop_at_step) or real(*a, stop_at_step=stop_at_step, **k)
        ),
    )
    monkeypatch.setattr(
        gram_jax.adaptation.adapt, "out_of_patience", lambda losses, patience: len(losses) == 2
    )
    settings = AdaptConfig(method="full", **SMALL | {"num_train_epochs": 4})
    result = adapt("tiny-random", source, tmp_path / "out", settings, spec=spec)
    assert [0, *trained] == [int(step) for step in result["choosing"]["loss"]] and len(trained) == 2
    trained.clear()
    shutil.rmtree(tmp_path / "out" / "after")  # of another epoch, selected with less patience
    shutil.copytree(tmp_path / "out" / "before", tmp_path / "out" / "after")
    again = adapt("tiny-random", source, tmp_path / "out", settings, spec=spec)
    assert not trained and again["test"] == result["test"]


def test_who_stops_an_adaptation_is_told_to_start_it_again(tmp_path, spec, monkeypatch):
    def stopped(*_, **__):
        raise StoppedError("Go on with: gram-jax train run/recipe.toml", 75)

    monkeypatch.setattr(gram_jax.adaptation.adapt, "train", stopped)
    source = str(write_pairs(tmp_path / "p.jsonl", 80))
    with pytest.raises(StoppedError, match="the same command resumes") as found:
        adapt("tiny-random", source, tmp_path / "out", AdaptConfig(**SMALL), spec=spec)
    assert found.value.status == 75 and "gram-jax train" not in str(found.value)


def test_loras_rate_falls_with_the_width_and_the_full_one_does_not():
    cfg = model_config("tiny-random")
    wide = {
        width: [default_rate(m, replace(cfg, embed_size=width)) for m in ("lora", "full")]
        for width in (576, 2000, 4096)
    }
    assert wide[2000] == [5e-4, 3e-5]
    assert wide[576][0] == pytest.approx(1.3226e-3, rel=1e-3)
    assert wide[4096][0] == pytest.approx(2.857e-4, rel=1e-3)
    qwen = default_rate("lora", replace(cfg, family="qwen3", embed_size=1024))
    assert qwen == pytest.approx(5.266e-4, rel=1e-3)
    assert {full for _, full in wide.values()} == {3e-5}
