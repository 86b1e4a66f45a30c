"""The command line: help without jax, errors, and the commands on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cli_runner import run_cli

from gram_jax.distributed.lock import hold_lock
from gram_jax.judge.spec import JudgeSpec

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPE = CONFIGS / "smollm2-135m-finetune.toml"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "q", "chosen": "good", "rejected": "bad"}\n')
    return path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("evaluate tiny-random nothing.jsonl", "nothing.jsonl"),
        ("evaluate no-such-model PAIRS", "smollm2-135m"),
        (
            "score PAIRS out.jsonl --model tiny-random --spec missing.json",
            "gram-jax spec missing.json",
        ),
        # before the data are read
        ("evaluate no-such-model nothing.jsonl", "no-such-model"),
        ("adapt no-such-model nothing.jsonl --out out", "no-such-model"),
        ("attack no-such-model nothing.jsonl --out out", "no-such-model"),
        ("serve no-such-model --policy no-such-policy", "no-such-model"),
        (f"train {RECIPE} --set optimizer.learning_rat=1e-5", "learning_rate"),
        ("recipe smollm2-135m-jugde", "smollm2-135m-finetune"),
        *((f"train {RECIPE} {name}=-5", name) for name in ("--stuck-after", "--join-timeout")),
        (f"train {RECIPE} --grace=nan", "--grace"),
        (f"train {RECIPE} --lost-after=inf", "--lost-after"),
        # before the model is loaded
        ("score PAIRS PAIRS --model no-such-model", "is the input itself"),
    ],
)
def test_a_user_error_has_status_2_and_names_what_is_wrong(words: str, named: str, pairs: Path):
    done = run_cli(*words.replace("PAIRS", str(pairs)).split())
    assert done.status == 2 and named in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_with_status_130_and_no_traceback(pairs: Path, tmp_path: Path):
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(20_000)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "scores.jsonl"
    # A suite that runs in the background of a shell inherits an ignored SIGINT.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from gram_jax.cli import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "score", pairs, out, "--model", "tiny-random"],
        env=os.environ | {"XLA_FLAGS": ""},  # one device, instead of conftest.py's eight
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        deadline = time.monotonic() + 100
        while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        printed = None
        while printed is None:  # Python drops a KeyboardInterrupt that is raised inside a __del__
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                printed, _ = process.communicate(timeout=5)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed and str(out) in printed
    assert out.read_bytes().endswith(b"\n") and 0 < len(out.read_bytes().splitlines()) < 20_000


def test_recipes_are_listed_and_printed_by_name():
    listed = run_cli("recipe").stdout
    assert all(path.stem in listed for path in CONFIGS.glob("*.toml"))
    assert run_cli("recipe", RECIPE.stem).stdout == RECIPE.read_text()


@pytest.mark.slow
def test_the_module_is_the_program():
    command = [sys.executable, "-m", "gram_jax", "version"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "cpu" in run.stdout, run.stderr


def read_sources(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())["sources"]


def succeed(*words: object) -> str:
    """The output of a command."""
    done = run_cli(*words)
    assert done.status == 0, done.output
    return done.stdout


@pytest.mark.slow
def test_score_evaluate_convert_and_inspect_a_tiny_model(pairs: Path, tmp_path: Path):
    succeed("score", pairs, tmp_path / "scores.jsonl", "--model", "tiny-random")
    assert "score_chosen" in json.loads((tmp_path / "scores.jsonl").read_text())
    succeed("convert", "tiny-random", tmp_path / "hf", "--dtype", "bfloat16")
    out = tmp_path / "evaluation"
    assert "gram-jax report" in succeed("evaluate", tmp_path / "hf", pairs, "--out", out)
    assert read_sources(out)[pairs.stem]["pairs"]["n"] == 1
    inspected = succeed("data", "inspect", pairs, "--model", "tiny-random")
    assert "⟦A⟧" in inspected or "⟦B⟧" in inspected


def test_a_judge_keeps_its_specification_and_may_read_longer_pairs(tmp_path: Path):
    model, long, other = (tmp_path / name for name in ("model", "long.json", "other.json"))
    succeed("convert", "tiny-random", model)
    succeed("spec", model, "--model", model, "--labels", "1", "2", "--max-length", "299")
    own = JudgeSpec.load(model)
    succeed("spec", long, "--model", model, "--max-length", "512")
    assert JudgeSpec.load(long) == replace(own, max_length=512)
    labels = ("--model", model, "--labels", "A", "B")
    assert "--template" in run_cli("spec", other, *labels).stderr
    assert run_cli("spec", tmp_path / "no.json", "--model", model, "--max-length", "4").status == 2
    succeed("spec", other, *labels, "--template", "default")
    assert JudgeSpec.load(other).labels == ("A", "B")


@pytest.mark.slow
def test_a_judge_recovered_from_rendered_rows_is_written_and_used(pairs: Path, tmp_path: Path):
    text = "Judge.\n<question>\n{}\n<one>\n{}\n<two>\n{}\n<end>\nAnswer:"
    rendered = [
        {"instruction": text.format(f"q{i}", f"a{i}", f"b{i}"), "input": "", "output": "AB"[i % 2]}
        for i in range(4)
    ]
    rows, judge = tmp_path / "rendered.jsonl", tmp_path / "gram.json"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rendered))
    recover = ("--template", "from-dataset", "--template-rows", rows, "--max-length", 300)
    succeed("spec", judge, "--model", "tiny-random", *recover)
    spec = JudgeSpec.load(judge)
    assert spec.template == text.format("{prompt}", "{first}", "{second}")
    assert (spec.labels, spec.max_length) == (("A", "B"), 300)
    assert "--overwrite" in run_cli("spec", judge, "--model", "tiny-random").stderr

    # Its own rows are read, and rendered as they were.
    with rows.open("a") as file:
        file.write("no row\n")
    options = ("--spec", judge, "--on-bad", "skip")
    shown = succeed("data", "inspect", rows, "--model", "tiny-random", "--limit", 9, *options)
    assert "<question>\nq0\n<one>\n" in shown and "1 bad row" in shown

    out = tmp_path / "evaluation"
    assert "bad row" in succeed("evaluate", "tiny-random", rows, "--out", out, *options)
    assert json.loads((out / "evaluation.json").read_text())["judge"] == spec.hash
    source = read_sources(out)["rendered"]
    assert (source["dropped"], source["rows"]) == ({"bad row": 1}, 5)

    succeed("score", pairs, tmp_path / "s.jsonl", "--model", "tiny-random", *options)
    assert json.loads((tmp_path / "s.jsonl.meta.json").read_text())["judge"] == spec.hash


@pytest.mark.parametrize(
    "address", ["gs://bucket/x", "s3://bucket/x/y", "https://host/x", "hf://a/b"]
)
@pytest.mark.parametrize(
    "words",
    [
        "train smollm2-135m-finetune --set run.output_dir=OUT",
        "rl smollm2-135m-rl --set run.output_dir=OUT",
        "adapt tiny-random x.jsonl --out OUT",
        "evaluate tiny-random x.jsonl --out OUT",
        "attack tiny-random x.jsonl --out OUT",
        "bon tiny-random tiny-random x.jsonl --out OUT",
        "convert tiny-random OUT",
        "spec OUT -m tiny-random",
        "report OUT",
        "report x --out OUT",
        "card OUT",
        "card x --evaluation y --evaluation OUT",
        "verify OUT",
        "demo --folder OUT",
    ],
)
def test_an_address_as_a_path_is_refused_before_anything_is_read(
    tmp_path, monkeypatch, words, address
):
    monkeypatch.chdir(tmp_path)
    done = run_cli(*words.replace("OUT", address).split())
    assert done.status == 2 and "hierarchical namespace" in done.stderr
    assert address.split("/")[0] in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "held"),
    [
        ("score PAIRS OUT.jsonl -m JUDGE", ".OUT.jsonl.lock.json"),
        ("rank PAIRS OUT.jsonl -m JUDGE", ".OUT.jsonl.lock.json"),
        ("evaluate JUDGE PAIRS --out OUT", "OUT/lock.json"),
        ("attack JUDGE PAIRS --out OUT", "OUT/lock.json"),
        ("bon JUDGE JUDGE PAIRS --out OUT", "OUT/lock.json"),
        ("adapt JUDGE PAIRS --out OUT", "OUT/lock.json"),
        ("convert JUDGE COPY", ".COPY.lock.json"),
        ("spec OUT.json -m JUDGE", ".OUT.json.lock.json"),
        ("spec JUDGE -m JUDGE --overwrite", ".JUDGE.lock.json"),
        ("card JUDGE", ".JUDGE.lock.json"),
        ("report OUT", "OUT/.report.html.lock.json"),
        ("verify JUDGE --accept", ".JUDGE.lock.json"),
        ("verify PAIRS --accept", ".PAIRS.lock.json"),
    ],
)
def test_a_second_writer_is_refused_before_its_model_is_loaded(
    words: str, held: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    succeed("convert", "tiny-random", tmp_path / "JUDGE")
    succeed("spec", tmp_path / "JUDGE", "-m", "tiny-random")
    (tmp_path / "JUDGE" / "model.safetensors").write_bytes(b"a model that cannot be loaded")
    pairs.rename(tmp_path / "PAIRS")
    (tmp_path / "PAIRS.jsonl").symlink_to("PAIRS")
    (tmp_path / "OUT").mkdir()
    monkeypatch.chdir(tmp_path)
    source = "PAIRS" if words.startswith("verify") else "PAIRS.jsonl"
    with hold_lock(Path(held)):
        refused = run_cli(*words.replace("PAIRS", source).split())
    assert refused.status == 2 and "two at once" in refused.stderr
    assert not [path for path in tmp_path.rglob("*lock.json")]
