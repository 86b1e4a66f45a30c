"""The Slurm script under a stand-in for Slurm that starts real processes: see fake_slurm.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch_fakes import (
    FOR_PEOPLE,
    LAUNCH,
    START_AGAIN,
    UNTIL_SIGTERM,
    Place,
    stop,
    wait_for,
)

pytestmark = pytest.mark.slow

SCRIPT = str(LAUNCH / "slurm" / "train.sbatch")
FAKE = Path(__file__).with_name("fake_slurm.py")


class Slurm(Place):
    def __init__(self, folder: Path):
        super().__init__(folder)
        for name in ("sbatch", "srun", "scontrol"):
            self.program(name, f'#!/bin/sh\nexec {sys.executable} {FAKE} {name} "$@"\n')

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(FAKE_SLURM=str(self.folder), **more)

    def lives(self) -> int:
        return int((self.folder / "lives").read_text())


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def end(process: subprocess.Popen[str], slurm: Slurm, number: int, tasks: int) -> int:
    """Wait until the tasks run and send a signal to the stand-in; its status."""
    wait_for(lambda: len(slurm.lines("UP")) == tasks, "running tasks")
    return stop(process, number)[0]


def test_a_dry_run_prints_the_steps_and_runs_nothing(slurm: Slurm):
    recipes = [slurm.recipe("", f"{name}.toml") for name in "wj"]
    done = slurm.run(SCRIPT, *recipes, "--set", "run.output_dir=a b", DRY_RUN="1", GRACE="30")
    assert done.stdout.splitlines() == [
        f"srun --kill-on-bad-exit=0 --wait=40 --label gram-jax train {recipe} --grace 30"
        r" --set run.output_dir=a\ b "
        for recipe in recipes
    ]
    assert slurm.lines("CALLS") == []


@pytest.mark.parametrize("name", ["RECIPE", "GRACE", "MAX_RESTARTS"])
def test_arguments_are_checked_before_anything_runs(slurm: Slurm, name: str):
    recipes = [slurm.recipe("exit 76")] * (name != "RECIPE")
    done = slurm.run("sbatch", SCRIPT, *recipes, **{name: "abc"})
    assert done.returncode == 2
    assert name in done.stderr
    assert slurm.lines("CALLS") == [] and slurm.lives() == 1


def test_each_node_runs_both_stages_one_after_the_other(slurm: Slurm):
    write, judge = slurm.recipe("", "w.toml"), slurm.recipe("", "j.toml")
    done = slurm.run(
        "sbatch", "--nodes=3", "--gpus-per-node=4", SCRIPT, write, judge, "--set", "a=1"
    )
    assert done.returncode == 0
    calls = [line.split("|") for line in slurm.lines("CALLS")]
    assert [call[-1] for call in calls] == [
        *["train w.toml --grace 60 --set a=1"] * 3,
        *["train j.toml --grace 60 --set a=1"] * 3,
    ]
    assert sorted(call[4] for call in calls) == ["0", "0", "1", "1", "2", "2"]
    # The only task of a node takes all of its GPUs; JAX alone would take the first.
    assert {call[3] for call in calls} == {"0,1,2,3"}
    assert slurm.lives() == 1


def test_with_a_task_for_each_gpu_jax_chooses_the_gpu(slurm: Slurm):
    options = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2")
    assert slurm.run("sbatch", *options, SCRIPT, slurm.recipe("")).returncode == 0
    assert {line.split("|")[3] for line in slurm.lines("CALLS")} == {""}


def test_without_gpus_no_device_is_named_and_the_cores_are_passed_on(slurm: Slurm):
    assert slurm.run("sbatch", "--nodes=2", SCRIPT, slurm.recipe("")).returncode == 0
    assert {line.split("|")[3] for line in slurm.lines("CALLS")} == {""}
    recipe = slurm.recipe("")
    done = slurm.run("bash", SCRIPT, recipe, DRY_RUN="1", SLURM_CPUS_PER_TASK="7")
    assert "--cpus-per-task=7" in done.stdout


@pytest.mark.parametrize("code", START_AGAIN)
def test_a_job_that_asks_for_it_is_requeued(slurm: Slurm, code: int):
    recipe = slurm.recipe(f'[ "${{SLURM_RESTART_COUNT:-0}}" = 2 ] || exit {code}')
    done = slurm.run("sbatch", "--nodes=2", SCRIPT, recipe)
    assert done.returncode == 0
    assert slurm.lives() == 3
    assert f"status {code}" in done.stderr


@pytest.mark.parametrize("code", FOR_PEOPLE)
def test_an_error_for_people_is_not_requeued(slurm: Slurm, code: int):
    assert slurm.run("sbatch", "--nodes=2", SCRIPT, slurm.recipe(f"exit {code}")).returncode == code
    assert slurm.lives() == 1
    assert len(slurm.lines("CALLS")) == 2


def test_requeuing_has_a_limit(slurm: Slurm):
    done = slurm.run("sbatch", SCRIPT, slurm.recipe("exit 76"), MAX_RESTARTS="2")
    assert done.returncode == 76
    assert slurm.lives() == 3


def test_a_warned_job_saves_on_every_task_and_resumes_after_the_requeue(slurm: Slurm):
    """Preemption, or the end of the time limit: the tasks save one after the other, and none is killed."""
    recipe = slurm.recipe(
        '[ -n "$SLURM_RESTART_COUNT" ] && exit 0\n'
        + UNTIL_SIGTERM.format(save="0.$((SLURM_PROCID * 4))")
    )
    process = slurm.start("sbatch", "--nodes=3", SCRIPT, recipe)
    assert end(process, slurm, signal.SIGTERM, tasks=3) == 0
    assert slurm.lines("SAVED") == ["saved"] * 3
    assert slurm.lives() == 2


def test_a_cancelled_job_saves_and_stays_cancelled(slurm: Slurm):
    process = slurm.start(
        "sbatch", "--nodes=2", SCRIPT, slurm.recipe(UNTIL_SIGTERM.format(save=0.5))
    )
    assert end(process, slurm, signal.SIGUSR1, tasks=2) == 75
    assert slurm.lines("SAVED") == ["saved"] * 2
    assert slurm.lives() == 1


def test_a_killed_task_ends_the_step_after_the_wait_and_the_job_is_requeued(slurm: Slurm):
    recipe = slurm.recipe(
        '[ -n "$SLURM_RESTART_COUNT" ] && exit 0; [ $SLURM_PROCID = 1 ] && kill -KILL $$; exec sleep 60'
    )
    began = time.monotonic()
    done = slurm.run("sbatch", "--nodes=2", SCRIPT, recipe, FAKE_SLURM_HASTE="70")
    assert done.returncode == 0
    assert slurm.lives() == 2
    assert time.monotonic() - began < 20


def test_the_set_up_file_is_read_before_the_run(slurm: Slurm):
    (slurm.folder / "setup.sh").write_text("export FROM_SETUP=yes\n")
    recipe = slurm.recipe('[ "$FROM_SETUP" = yes ] || exit 2')
    assert slurm.run("sbatch", SCRIPT, recipe, SETUP="./setup.sh").returncode == 0
    assert slurm.run("sbatch", SCRIPT, recipe, SETUP="./absent.sh").returncode == 2


def test_the_script_needs_nothing_beside_it(slurm: Slurm):
    """Slurm runs a copy of it from a spool folder."""
    text = Path(SCRIPT).read_text()
    assert "dirname" not in text and "BASH_SOURCE" not in text
    assert os.access(SCRIPT, os.X_OK)
