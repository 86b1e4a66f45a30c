"""Model cards: what they say, where it comes from, and whose file they never replace."""

import json
import re
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import jax
import pytest
from cli_runner import run_cli
from report_cases import HOSTILE, attacks, evaluation, settings, source, write
from tiny_runs import tiny_rl_values

from gram_jax.checkpoint.manifest import find_damage
from gram_jax.errors import CheckpointError, ReportError
from gram_jax.evals.identity import fingerprint_as, judge_results
from gram_jax.evals.results import JudgeSettings
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.hub import read_front_matter
from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.recipes.reading import make_recipe, make_rl_recipe, recipe_to_toml
from gram_jax.reports import card as cards
from gram_jax.reports.card import CardOptions, is_ours, write_card
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement

DATA = {
    "rows_read": 1200, "dropped": {"longer than 1024 tokens": 7}, "examples": 1193, "documents": 2386, "shortened": 0,
    "tokens": 800_000, "mean_length": 335.3, "median_length": 300.0, "max_length": 1024, "histogram": [[1, 16, 3]],
    "batch_size": 4, "row_length": 1024, "steps_per_epoch": 200, "tokens_per_step": 4000.0, "examples_per_step": 6.0,
    "padding": 0.02, "first_share": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    placement = make_placement({}, devices=jax.devices()[:1])
    cfg, params = load_model("tiny-random", placement, "float32")
    tokenizer = load_tokenizer("tiny-random")
    spec = make_spec(tokenizer, max_length=512)
    folder = tmp_path_factory.mktemp("models") / "tiny-judge"
    return export_hf(folder, cfg, params, dtype=None, tokenizer=tokenizer, spec=spec)


@pytest.fixture
def model(exported, tmp_path) -> Path:
    return shutil.copytree(exported, tmp_path / "tiny-judge")


@pytest.fixture
def judge(exported) -> str:
    return Scorer.load(exported).spec.hash


def results(folder: Path, judge: str, **sources) -> Path:
    """Of a model that was given by its path, as most are."""
    same = {"judge": judge, "fingerprint": tiny_fingerprint()}
    sources = sources or {"held_out": source()}
    model = "/home/me/secret/judge-hf"
    return write(folder, evaluation(model, sources, **same), attacks(model, **same))


@lru_cache(maxsize=1)
def tiny_fingerprint() -> str:
    return fingerprint_as(Path("tiny-random"), JudgeSettings(**settings()))


def run_folder(path: Path, stage: str, start: str, sources: list[str], **info) -> Path:
    losses = {"finetune": {"label_smoothing": 0.1}, "pretrain": {"loss_chunk_size": 128}}
    values = {
        "stage": stage,
        "run": {"output_dir": str(path), "seed": 3, "max_steps": 300},
        "model": {"name_or_path": start, "param_dtype": "float32"},
        "judge": {"template": "default", "labels": ["A", "B"], "max_length": 512, "thinking": False},
        "data": {"train": sources, "overlong": "drop", "on_bad": "error", "position_augmentation": "both"},
        "batch": {"batch_size": 4, "max_length": 1024, "packing": True, "gradient_accumulation_steps": 1},
        "optimizer": {
            "learning_rate": 5e-5, "warmup_steps": 0.1, "lr_scheduler_type": "cosine", "b1": 0.9, "b2": 0.999,
            "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0,
        },
        "loss": losses[stage],
        "execution": {"compute_dtype": "float32", "attention": "blocked", "remat": "none"},
    }  # fmt: skip
    path.mkdir()
    (path / "recipe.toml").write_text(recipe_to_toml(make_recipe(values)))
    (path / "run.json").write_text(
        json.dumps({"stage": stage, "steps": 300, "finished": True} | info)
    )
    return path


def text_of(model: Path, **options) -> str:
    return write_card(model, CardOptions(**options)).read_text(encoding="utf-8")


def test_a_card_without_anything_says_what_the_score_means_and_what_is_not_known(model):
    text = text_of(model)
    head = read_front_matter(model / "README.md")
    assert head["pipeline_tag"] == "text-generation" and head["library_name"] == "transformers"
    assert not {"license", "base_model", "datasets", "model-index"} & head.keys()
    assert len(re.findall("^## ", text, flags=re.MULTILINE)) == 5 and "[Response A]" in text
    assert not re.search(r"^\|", text, flags=re.MULTILINE)  # no table: nothing is known
    assert find_damage(model) == []  # the manifest knows the card


@pytest.mark.parametrize(
    ("fitted", "useful"),
    [
        ({}, True),
        ({"ece_after": 0.12}, True),  # no worse
        ({"value": 99.99}, False),
        ({"value": 0.01}, False),
        ({"nll_after": 0.58}, False),
        ({"nll_after": 0.60}, False),
        ({"ece_after": 0.13}, False),
        (None, False),
    ],
)
def test_only_a_temperature_that_helped_is_advice(model, judge, tmp_path, fitted, useful):
    told = source()
    if fitted is None:
        told["calibration"]["temperature"] = None
    else:
        told["calibration"]["temperature"] |= fitted
    text = text_of(model, evaluations=(results(tmp_path / "e", judge, told=told),))
    (advice,) = (line for line in text.splitlines() if line.startswith("- Calibration on told: "))
    assert ("margin / 1.70" in advice) == useful
    # The caveat above the figures says the same.
    (caveat,) = (line for line in text.splitlines() if line.startswith("> - ") and "(ECE)" in line)
    assert ("temperature of 1.70" in caveat) == useful


def test_sources_of_one_name_in_two_folders_keep_their_own_temperatures(model, judge, tmp_path):
    good, bad = source(), source()
    bad["calibration"]["temperature"] |= {"value": 0.5, "nll_after": 0.7}
    folders = [
        results(tmp_path / name, judge, pairs=one) for name, one in (("one", good), ("two", bad))
    ]
    text = text_of(model, evaluations=tuple(folders))
    one, two = (line for line in text.splitlines() if line.startswith("- Calibration on pairs ("))
    assert "(one)" in one and "1.70" in one and "(two)" in two and "0.50" not in two
    (index,) = read_front_matter(model / "README.md")["model-index"]
    names = [m["name"] for told in index["results"] for m in told["metrics"]]
    for folder in ("one", "two"):
        assert names.count(f"accuracy, both orders averaged ({folder})") == 1
    assert len(names) == len(set(names))


def test_the_weights_are_read_once_for_each_way_of_holding_them(
    model, judge, tmp_path, monkeypatch
):
    asked = []

    def fingerprint(folder, settings):
        asked.append(settings.weights)
        return f"of {settings.weights}"

    monkeypatch.setattr(cards, "fingerprint_as", fingerprint)
    folders = []
    for at, held in enumerate(("float32", "bfloat16", "float32")):
        same = {"judge": judge, "fingerprint": f"of {held}"}
        same["settings"] = settings(weights=held)
        folder = tmp_path / f"e{at}"
        folders.append(write(folder, evaluation("m", **same), attacks("m", **same)))
    text_of(model, evaluations=tuple(folders))
    assert asked == ["float32", "bfloat16"]


def test_only_names_that_are_told_are_data_sets_and_bases_of_the_hub(model, judge, tmp_path):
    results_of = results(tmp_path / "e", judge, pairs=source(source="mine/pairs"))
    run = run_folder(tmp_path / "run", "finetune", "mine/base", ["mine/pairs", "me/pairs"])
    text = text_of(model, evaluations=(results_of,), run=run, license="mit", datasets=("me/pairs",))
    head = read_front_matter(model / "README.md")
    assert head["model-index"][0]["results"][0]["dataset"]["type"] == "pairs"
    assert head["datasets"] == ["me/pairs"] and "base_model" not in head
    assert "| data | pairs, me/pairs |" in text and "| began with | base |" in text
    assert "mine/" not in text
    text = text_of(model, run=run, base="mine/base", license="mit")
    assert "| began with | mine/base |" in text and "| data | pairs, pairs |" in text


def test_results_and_their_concerns_stand_in_the_card_and_in_the_hubs_index(model, judge, tmp_path):
    sources = {
        "rb": source(0.81, source="allenai/reward-bench:filtered"),
        "mine": source(0.62, source="/home/x/m.jsonl"),
    }
    text = text_of(model, evaluations=(results(tmp_path / "e", judge, **sources),))
    assert "| rb | 900 | 0.81 (0.78 to 0.84) |" in text
    assert "temperature of 1.70" in text and "accuracy 0.93" in text
    assert "verdict\\_spoof" in text and "/home" not in text
    (index,) = read_front_matter(model / "README.md")["model-index"]
    told = ((r["dataset"]["type"], m) for r in index["results"] for m in r["metrics"])
    found = {(dataset, metric["name"]): metric["value"] for dataset, metric in told}
    assert index["name"] == "tiny-judge"
    assert found["allenai/reward-bench", "accuracy, both orders averaged"] == 0.81
    assert found["mine", "Accuracy, macro"] == 0.6


def test_the_runs_tell_of_base_licence_recipe_and_data(model, judge, tmp_path):
    first = run_folder(
        tmp_path / "s1", "pretrain", "smollm2-135m", ["NiuTrans/GRAM-pre-training"], data=DATA
    )
    run = run_folder(
        tmp_path / "s2", "finetune", str(first), ["/home/me/pairs.jsonl"], judge=judge, data=DATA
    )
    text = text_of(model, run=run, datasets=("NiuTrans/GRAM-pre-training",))
    head = read_front_matter(model / "README.md")
    assert head["license"] == "apache-2.0"
    assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert head["datasets"] == ["NiuTrans/GRAM-pre-training"]
    assert "| began with | smollm2-135m | s1 |" in text
    assert "pairs.jsonl" in text and "/home" not in text and str(tmp_path) not in text
    assert "7 longer than 1024 tokens" in text and "label smoothing 0.1" in text


def test_a_policy_of_reinforcement_learning_tells_of_its_start_and_reward(model, judge, tmp_path):
    first = run_folder(tmp_path / "s1", "pretrain", "Qwen/Qwen3-1.7B", ["a.jsonl"], data=DATA)
    second = run_folder(tmp_path / "s2", "finetune", f"{first}@100", ["b.jsonl"], judge=judge)
    recipe = make_rl_recipe(
        tiny_rl_values(
            tmp_path / "rl", policy__name_or_path=str(second), reward__judge="/home/me/judge"
        )
    )
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "recipe.toml").write_text(recipe_to_toml(recipe))
    (tmp_path / "rl" / "run.json").write_text('{"stage": "rl", "steps": 3, "finished": true}')
    text = text_of(model, run=tmp_path / "rl")
    head = read_front_matter(model / "README.md")
    assert (head["license"], head["base_model"]) == ("apache-2.0", "Qwen/Qwen3-1.7B")
    assert "| began with | Qwen/Qwen3-1.7B | s1@100 | s2 |" in text
    assert "| data | a.jsonl | b.jsonl | prompts.jsonl |" in text
    assert re.search(r"^\| reward \|.*\| judge \|$", text, flags=re.MULTILINE)
    assert "label smoothing 0.1" not in text and "/home" not in text


def test_a_foundation_says_that_it_does_not_judge_yet(model, judge, tmp_path):
    run = run_folder(tmp_path / "s1", "pretrain", "tiny-random", ["a.jsonl"], judge=judge)
    assert "fine-tune it on labeled pairs first" in text_of(model, run=run, license="mit")


def test_a_base_folders_card_gives_its_licence_and_options_take_precedence(model, judge, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: [mit]\nbase_model: [some/one]\n---\n# base\n")
    run = run_folder(tmp_path / "r", "finetune", str(base), ["a.jsonl"], judge=judge)
    for given, expected in (
        ({}, ("mit", "some/one")),
        ({"license": "cc-by-4.0", "base": "other/two"}, ("cc-by-4.0", "other/two")),
    ):
        text_of(model, run=run, **given)
        head = read_front_matter(model / "README.md")
        assert (head["license"], head["base_model"]) == expected


def test_results_runs_and_folders_of_something_else_are_refused(model, tmp_path):
    other = run_folder(tmp_path / "r", "finetune", "x", ["a.jsonl"], judge="f" * 64)
    for options, said in (
        ({"evaluations": (results(tmp_path / "e", "f" * 64),)}, "judge ffffffffffff"),
        ({"run": other}, "judge ffffffffffff"),
        ({"run": tmp_path}, r"recipe\.toml"),
    ):
        with pytest.raises(ReportError, match=said):
            text_of(model, **options)
    assert not (model / "README.md").exists()
    with pytest.raises(ReportError, match=r"is a run, .* gram-jax convert"):
        text_of(other)
    (model / "judge.json").unlink()
    (model / "gram_jax_manifest.json").unlink()
    with pytest.raises(ReportError, match=r"judge\.json"):
        text_of(model)


def test_grades_of_a_best_of_n_set_are_no_accuracies_in_the_hubs_index(model, judge, tmp_path):
    figures = [
        {"name": name, "value": value, "interval": None, "definition": "d", "by": "gram_jax"}
        for name, value in (("a best response is picked", 0.5), ("grade of the pick", 7.25))
    ]
    best = source() | {"benchmark": "best_of_n", "official": figures}
    text = text_of(model, evaluations=(results(tmp_path / "e", judge, best=best),))
    (told,) = read_front_matter(model / "README.md")["model-index"][0]["results"]
    assert [one["value"] for one in told["metrics"]] == [0.5, 0.74]
    assert told["metrics"][1]["name"] == "accuracy over pairs of responses, both orders averaged"
    assert "7.250" in text  # in the table


def test_results_of_other_weights_are_refused_however_they_are_held(model, exported, tmp_path):
    for held in ("float32", "bfloat16", "int8", "float8_dynamic"):
        scorer = Scorer.load(exported, weights=held)
        content = judge_results(scorer, "tiny").model_dump() | {"sources": {"held_out": source()}}
        there = write(tmp_path / held, content)
        assert "held\\_out" in text_of(model, evaluations=(there,))
        other = write(tmp_path / f"{held} other", content | {"fingerprint": "0" * 16})
        with pytest.raises(ReportError, match="weights are not those of"):
            text_of(model, evaluations=(other,))
    attack = attacks("m", judge=scorer.spec.hash)
    with pytest.raises(ReportError, match="weights are not those of"):
        text_of(model, evaluations=(write(tmp_path / "attack", attack=attack),))


def test_a_card_of_somebody_is_kept_and_ours_is_replaced(model):
    card = model / "README.md"
    card.write_text("# mine\n")
    with pytest.raises(ReportError, match="not written by gram_jax"):
        text_of(model)
    assert card.read_text() == "# mine\n"
    (model / "README.md").write_bytes(b"no UTF-8: \xfa")
    with pytest.raises(ReportError, match="not written by gram_jax"):
        write_card(model, CardOptions())
    assert is_ours(text_of(model, overwrite=True))
    assert is_ours(text_of(model, license="mit"))  # ours
    card.write_text(card.read_text().replace("# Limits", "# My limits"))
    with pytest.raises(ReportError, match="changed since"):
        text_of(model)


def test_texts_of_others_stay_texts_in_a_card(model, judge, tmp_path):
    text = text_of(
        model, evaluations=(results(tmp_path / "e", judge, **{HOSTILE: source(source=HOSTILE)}),)
    )
    body = text.split("\n---\n", 1)[1]
    assert "<img" not in body and "[link](" not in body and "\x1b" not in text
    assert read_front_matter(model / "README.md")["model-index"][0]["name"] == "tiny-judge"


@pytest.mark.slow
@pytest.mark.torch
def test_the_snippets_run_as_they_stand(model, monkeypatch):
    torch = pytest.importorskip("torch")
    text = text_of(model)
    ours, theirs = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(model.parent)
    said: list[tuple] = []
    names = {"print": lambda *values: said.append(values)}
    exec(theirs, names)
    exec(ours, {"print": names["print"]})
    assert said[0][0] == pytest.approx(said[1][0], abs=1e-6)
    assert sorted(said[2][0]) == [0, 1]
    judge = Scorer.load(model)
    hard = (
        "Say {first} and {second}.",
        "<|im_end|>\n{prompt}",
        "Über 1,000 naïve 漢字 🙂\n\n  code()",
    )
    assert names["score"](*hard) == pytest.approx(judge.score(*hard).first, abs=1e-6)
    assert torch.is_grad_enabled()


class Hub:
    """What the hub's client was asked for. card: what stands in the repository already."""

    def __init__(
        self, monkeypatch, folder: Path, card: str | None = None, token: str | None = "hf_x"
    ):
        self.asked: list[tuple] = []
        self.card, self.folder = card, folder
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)

    def create_repo(self, repo, **how):
        self.asked.append(("create", repo, how))

    def file_exists(self, repo, name):
        return self.card is not None

    def hf_hub_download(self, repo, name):
        path = self.folder / "there.md"
        path.write_text(self.card)
        return str(path)

    def upload_folder(self, **how):
        self.asked.append(("upload", SimpleNamespace(**how)))


def test_a_push_uploads_the_folder_with_its_card_privately(model, monkeypatch, tmp_path):
    hub = Hub(monkeypatch, tmp_path)
    text = text_of(model, push="me/my-judge", license="mit")
    (_, repo, how), (_, upload) = hub.asked
    assert (repo, how) == ("me/my-judge", {"private": True, "exist_ok": True})
    assert upload.folder_path == model and upload.repo_id == repo
    assert 'Scorer.load("me/my-judge")' in text and "# my-judge" in text
    hub.card = text
    text_of(model, push="me/my-judge", license="mit", public=True)  # ours, there as well
    assert hub.asked[2][2]["private"] is False


def test_a_push_that_would_harm_or_cannot_be_is_refused(model, monkeypatch, tmp_path):
    hub = Hub(monkeypatch, tmp_path, card="# somebody's")
    options = CardOptions(push="me/my-judge", license="mit")
    with pytest.raises(CheckpointError, match=r"me/my-judge has a README\.md"):
        write_card(model, options)
    assert [what for what, *_ in hub.asked] == ["create"]
    write_card(model, replace(options, overwrite=True))
    with pytest.raises(ReportError, match="not pushed: no licence is known"):
        write_card(model, replace(options, license=None))
    with pytest.raises(CheckpointError, match="OWNER/NAME"):
        write_card(model, replace(options, push="my-judge"))
    Hub(monkeypatch, tmp_path, token=None)
    with pytest.raises(CheckpointError, match="hf auth login"):
        write_card(model, options)
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    with pytest.raises(CheckpointError, match="could not be pushed"):  # offline, by conftest.py
        write_card(model, options)


def test_a_damaged_folder_is_not_pushed(model, monkeypatch, tmp_path):
    hub = Hub(monkeypatch, tmp_path)
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        text_of(model, push="me/my-judge", license="mit")
    assert hub.asked == []


def test_the_command_takes_several_evaluations(model, judge, tmp_path):
    folders = [results(tmp_path / name, judge) for name in ("one", "two")]
    options = [word for folder in folders for word in ("--evaluation", str(folder))]
    done = run_cli("card", str(model), *options, "--license", "mit")
    assert done.status == 0, done.output
    text = (model / "README.md").read_text()
    assert "\n### one\n" in text and "\n### two\n" in text
    assert not any(path in text for path in ("/home", "secret", str(tmp_path)))


def test_folders_of_one_name_are_told_apart_without_their_paths(model, judge, tmp_path):
    hidden = f"e\u202e{HOSTILE[:10].replace('/', '')}"
    for names in (("a/e", "b/e"), (f"a/{hidden}", f"b/{hidden}")):
        folders = []
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            folders.append(results(tmp_path / name, judge))
        text = text_of(model, evaluations=tuple(folders))
        assert len(re.findall(r"^### e.*, [12]$", text, flags=re.MULTILINE)) == 2
        assert "secret" not in text and str(tmp_path) not in text and "\u202e" not in text
