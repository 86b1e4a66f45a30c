"""Reinforcement learning and adaptation on several processes: the results of one process, also after a stop."""

import json
import signal
from pathlib import Path

import jax
import pytest
import tomli_w
from jobs import COMMAND, start_job
from test_jobs import START, check_close, check_weights, figures
from tiny_runs import compiled_programs, tiny_rl_values, write_pairs  # noqa: F401

from gram_jax.adaptation.adapt import FILE, adapt
from gram_jax.adaptation.config import AdaptConfig
from gram_jax.errors import LOST, RESTART
from gram_jax.recipes.reading import make_rl_recipe
from gram_jax.rl.loop import run_rl
from gram_jax.sharding import make_placement

pytestmark = pytest.mark.slow


def recipe_file(folder: Path, name: str, kind: str, **changes) -> Path:
    settings = {"optimizer__learning_rate": 1e-3, "checkpoint__save_steps": 1} | changes
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(tiny_rl_values(folder / name, kind, **settings)))
    return path


def on_one_process(path: Path) -> None:
    import tomllib

    recipe = make_rl_recipe(tomllib.loads(path.read_text()))
    run_rl(recipe, placement=make_placement({}, devices=jax.devices()[:1]))


def check_equal(one: Path, other: Path) -> None:
    check_close(one, other)
    check_weights(one, other)


STOPPING = (
    COMMAND[0],
    "-c",
    "import signal, sys; import gram_jax.rl.loop as loop; step = loop.rl_step\n"
    "def stop(setup, run, state, number, *rest):\n"
    "    found = step(setup, run, state, number, *rest)\n"
    "    if number == 1 and sys.argv[sys.argv.index('--process') + 1] == '2':\n"
    "        signal.raise_signal(signal.SIGTERM)\n"
    "    return found\n"
    "loop.rl_step = stop\n"
    "from gram_jax.cli import main; main()",
)


@pytest.mark.filterwarnings("ignore:.*no judge.json")
def test_four_processes_stopped_and_continued_by_two_repeat_one_process(tmp_path):
    """PPO: whitening and mini-batches over all rows, weights sharded over processes, win rates."""
    changes = {"run__max_steps": 4, "algorithm__num_mini_batches": 2, "algorithm__kl_coef": 0.1}
    changes |= {"evaluate__eval_steps": 2, "evaluate__limit": 5}
    whole = recipe_file(tmp_path, "whole", "ppo", **changes)
    on_one_process(whole)

    broken = recipe_file(tmp_path, "broken", "ppo", **changes)
    mesh = ("--set", "mesh.data=2", "--set", "mesh.fsdp=2")
    job = start_job(tmp_path, broken, 4, *mesh, devices=1, command=STOPPING, name="rl")
    assert job.wait(START) == [RESTART] * 4
    assert "step 2 of 4 is saved" in job.texts()[0]
    assert figures(tmp_path / "broken")[-1]["step"] == 2
    two = ("--set", "mesh.data=2", "--set", "mesh.fsdp=2")
    job = start_job(tmp_path, broken, 2, *two, devices=2, name="rl")
    assert job.wait(START) == [0, 0], job.texts()
    check_equal(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.filterwarnings("ignore:.*no judge.json")
def test_a_lora_on_two_processes_is_that_of_one(tmp_path):
    """GRPO within groups, from a run and with a run as the judge."""
    start = recipe_file(tmp_path, "start", "grpo", run__max_steps=1)
    on_one_process(start)
    changes = {"policy__name_or_path": str(tmp_path / "start"), "run__max_steps": 2}
    changes |= {"reward__judge": str(tmp_path / "start"), "reward__compare_with": "group"}
    changes["lora__rank"], changes["lora__alpha"] = 2, 4.0
    changes["lora__target_modules"] = ["q", "v"]
    one, two = (recipe_file(tmp_path, name, "grpo", **changes) for name in ("one", "two"))
    on_one_process(one)
    job = start_job(tmp_path, two, 2, "--set", "mesh.data=2", devices=1, name="rl")
    assert job.wait(START) == [0, 0], job.texts()
    check_equal(tmp_path / "one", tmp_path / "two")


def test_a_killed_process_ends_the_others_while_they_wait_for_its_responses(tmp_path):
    endless = recipe_file(tmp_path, "run", "rloo", run__max_steps=10_000)
    job = start_job(tmp_path, endless, 2, "--set", "mesh.data=2", devices=1, name="rl")
    job.wait_for("rl 1/")
    job.processes[1].kill()
    assert job.wait(60) == [LOST, -signal.SIGKILL], "".join(job.texts())
    assert "process 1 on " in job.texts()[0]


def test_more_processes_than_prompts_are_refused(tmp_path):
    few = recipe_file(tmp_path, "run", "grpo", sampling__prompts_per_step=1)
    job = start_job(tmp_path, few, 2, "--set", "mesh.data=2", devices=1, name="rl")
    assert job.wait(START) == [2, 2]
    assert "prompts_per_step = 1" in "".join(job.texts())


def test_a_judge_adapted_by_two_processes_is_that_of_one(tmp_path):
    source, spec = write_pairs(tmp_path / "pairs.jsonl", 80), tmp_path / "judge.json"
    # A batch that eight devices of this process and two of the job divide alike.
    settings = {"num_train_epochs": 1, "batch_size": 8, "max_length": 192, "learning_rate": 3e-3}
    from gram_jax.interop.models import load_tokenizer
    from gram_jax.judge.spec import JudgeSpec, make_spec

    make_spec(load_tokenizer("tiny-random"), max_length=192).save(tmp_path)
    given = JudgeSpec.load(spec)
    adapt("tiny-random", str(source), tmp_path / "one", AdaptConfig(**settings), spec=given)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    arguments = ("tiny-random", str(source), f"--out={tmp_path / 'two'}", f"--spec={spec}", *words)
    job = start_job(tmp_path, arguments[0], 2, *arguments[1:], devices=1, name="adapt")
    assert job.wait(START) == [0, 0], job.texts()
    one, two = (json.loads((tmp_path / name / FILE).read_text()) for name in ("one", "two"))
    assert two["pairs"] == one["pairs"] and two["choosing"]["step"] == one["choosing"]["step"]
    for part in ("before", "after"):
        assert two["test"][part]["nll"] == pytest.approx(one["test"][part]["nll"], abs=1e-4)
    assert (tmp_path / "two" / "judge" / "model.safetensors").is_file()
