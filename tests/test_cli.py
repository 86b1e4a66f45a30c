"""The command line: help without jax, clear endings, the commands on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cli_runner import run_cli

from gram_jax.judge.spec import JudgeSpec

RUN = [sys.executable, "-c", "from gram_jax.cli import main; main()"]


# One device, as at the terminal: conftest.py's eight fake ones are not inherited.
ENVIRONMENT = os.environ | {"XLA_FLAGS": "", "COLUMNS": "160"}


def gram_jax(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "q", "chosen": "good", "rejected": "bad"}\n')
    return path


def test_help_does_not_import_jax():
    code = "import sys; from gram_jax import cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    done = gram_jax("--help")
    assert all(name in done.stdout for name in ("train", "score", "evaluate", "convert", "demo"))


@pytest.mark.slow
def test_a_missing_file_is_named_and_ends_with_status_2(tmp_path: Path):
    done = gram_jax("evaluate", "tiny-random", tmp_path / "nothing.jsonl")
    assert done.returncode == 2
    assert "nothing.jsonl" in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_model_lists_what_a_model_may_be(pairs: Path):
    done = gram_jax("evaluate", "no-such-model", pairs)
    assert done.returncode == 2
    assert "smollm2-135m" in done.stderr


@pytest.mark.slow
def test_an_unknown_recipe_key_names_the_nearest(tmp_path: Path):
    recipe = Path(__file__).parents[1] / "configs" / "smollm2-135m-finetune.toml"
    done = gram_jax("train", recipe, "--set", "optimizer.learning_rat=1e-5")
    assert done.returncode == 2
    assert "learning_rate" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    ["--stuck-after=-5", "--grace=-1", "--grace=nan", "--join-timeout=-3", "--lost-after=inf"],
)
def test_times_that_are_none_are_refused_by_name(arguments):
    recipe = Path(__file__).parents[1] / "configs" / "smollm2-135m-finetune.toml"
    done = run_cli("train", recipe, arguments)
    assert done.status == 2
    assert arguments.partition("=")[0] in done.output and "seconds" in done.output


def test_an_impossible_output_is_refused_before_the_model_is_looked_at(pairs: Path):
    done = gram_jax("score", pairs, pairs, "--model", "no-such-model")
    assert done.returncode == 2
    assert "is the input itself" in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_with_status_130_and_no_traceback(pairs: Path, tmp_path: Path):
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(20_000)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "scores.jsonl"
    command = [*RUN, "score", str(pairs), str(out), "--model", "tiny-random"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # A suite that runs in the background of a shell inherits an ignored SIGINT; a person's does not.
    with subprocess.Popen(
        command,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **pipes,
    ) as process:
        deadline = time.monotonic() + 100
        while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said and str(out) in said
    assert out.read_bytes().endswith(b"\n") and 0 < len(out.read_bytes().splitlines()) < 20_000


@pytest.mark.slow
def test_recipes_are_listed_and_printed_by_name(tmp_path: Path):
    listed = gram_jax("recipe").stdout
    assert "smollm2-135m-finetune" in listed and "Stage 2 on a laptop" in listed
    mine = tmp_path / "mine.toml"
    mine.write_text(gram_jax("recipe", "smollm2-135m-finetune").stdout)
    assert (
        mine.read_text()
        == (Path(__file__).parents[1] / "configs/smollm2-135m-finetune.toml").read_text()
    )
    done = gram_jax("recipe", "smollm2-135m-jugde")
    assert done.returncode == 2 and "smollm2-135m-finetune" in done.stderr


def test_the_module_is_the_program():
    run = subprocess.run(
        [sys.executable, "-m", "gram_jax", "recipe"], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0 and "smollm2-135m-finetune" in run.stdout, run.stderr


def test_version_names_the_devices():
    assert "cpu" in gram_jax("version").stdout


def read_sources(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())["sources"]


@pytest.mark.slow
def test_score_evaluate_convert_and_inspect_a_tiny_model(pairs: Path, tmp_path: Path):
    scored = gram_jax("score", pairs, tmp_path / "scores.jsonl", "--model", "tiny-random")
    assert scored.returncode == 0, scored.stderr
    assert "score_chosen" in json.loads((tmp_path / "scores.jsonl").read_text())

    converted = gram_jax("convert", "tiny-random", tmp_path / "hf", "--dtype", "bfloat16")
    assert converted.returncode == 0, converted.stderr

    out = tmp_path / "evaluation"
    evaluated = gram_jax("evaluate", tmp_path / "hf", pairs, "--out", out)
    assert evaluated.returncode == 0, evaluated.stderr
    assert read_sources(out)[pairs.stem]["pairs"]["n"] == 1
    assert "gram-jax report" in evaluated.stdout

    inspected = gram_jax("data", "inspect", pairs, "--model", "tiny-random")
    assert inspected.returncode == 0, inspected.stderr
    assert "⟦A⟧" in inspected.stdout or "⟦B⟧" in inspected.stdout


def test_a_judge_keeps_how_it_is_asked_and_gets_room_for_longer_pairs(tmp_path):
    def judge(out: str, *words: str):
        return run_cli("spec", tmp_path / out, *words)

    model = tmp_path / "model"
    assert run_cli("convert", "tiny-random", model).status == 0
    written = judge("model", "--model", str(model), "--labels", "1", "2", "--max-length", "299")
    assert written.status == 0, written.output
    own = JudgeSpec.load(model)

    assert judge("long.json", "--model", str(model), "--max-length", "512").status == 0
    assert JudgeSpec.load(tmp_path / "long.json") == replace(own, max_length=512)
    other = judge("other.json", "--model", str(model), "--labels", "A", "B")
    assert other.status and "--template" in other.output
    assert judge("no.json", "--model", str(model), "--max-length", "4").status
    fresh = judge(
        "other.json", "--model", str(model), "--labels", "A", "B", "--template", "default"
    )
    assert fresh.status == 0
    assert JudgeSpec.load(tmp_path / "other.json").labels == ("A", "B")


@pytest.mark.slow
def test_a_judge_recovered_from_rendered_rows_is_written_and_asked_with(pairs, tmp_path):
    text = "Judge.\n<question>\n{}\n<one>\n{}\n<two>\n{}\n<end>\nAnswer:"
    rendered = [
        {"instruction": text.format(f"q{i}", f"a{i}", f"b{i}"), "input": "", "output": "AB"[i % 2]}
        for i in range(4)
    ]
    rows, judge = tmp_path / "rendered.jsonl", tmp_path / "gram.json"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rendered))
    how = ("--template", "from-dataset", "--template-rows", rows, "--max-length", 300)
    made = gram_jax("spec", judge, "--model", "tiny-random", *how)
    assert made.returncode == 0, made.stderr
    spec = JudgeSpec.load(judge)
    assert spec.template == text.format("{prompt}", "{first}", "{second}")
    assert (spec.labels, spec.max_length) == (("A", "B"), 300)
    again = gram_jax("spec", judge, "--model", "tiny-random")
    assert again.returncode == 2 and "--overwrite" in again.stderr

    # Its own rows are read, and rendered as they were.
    with rows.open("a") as file:
        file.write("no row\n")
    asked = ("--spec", judge, "--on-bad", "skip")
    shown = gram_jax("data", "inspect", rows, "--model", "tiny-random", "--limit", 9, *asked)
    assert shown.returncode == 0, shown.stderr
    assert "<question>\nq0\n<one>\n" in shown.stdout and "1 bad row" in shown.stdout

    out = tmp_path / "evaluation"
    evaluated = gram_jax("evaluate", "tiny-random", rows, "--out", out, *asked)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "left out: bad row" in evaluated.stdout
    found = json.loads((out / "evaluation.json").read_text())
    assert found["judge"] == spec.hash
    assert read_sources(out)["rendered"]["dropped"] == {"bad row": 1}
    assert read_sources(out)["rendered"]["rows"] == 5

    scored = gram_jax("score", pairs, tmp_path / "s.jsonl", "--model", "tiny-random", *asked)
    assert scored.returncode == 0, scored.stderr
    assert json.loads((tmp_path / "s.jsonl.meta.json").read_text())["judge"] == spec.hash
