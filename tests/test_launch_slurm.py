"""The Slurm scripts under a stand-in for Slurm, fake_slurm.py, and under a real one, real_slurm.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from launch_fakes import (
    FOR_PEOPLE,
    LAUNCH,
    START_AGAIN,
    UNTIL_SIGTERM,
    Place,
    wait_for,
)
from real_slurm import Cluster, cluster, missing
from test_launch_real import REAL, SECONDS, finished, recipe, surroundings, wait_until_it_trains
from tiny_runs import write_pairs

pytestmark = pytest.mark.slow

SCRIPT, SCORE = (str(LAUNCH / "slurm" / f"{name}.sbatch") for name in ("train", "score"))
FAKE = Path(__file__).with_name("fake_slurm.py")


class Ended(NamedTuple):
    """code: of the last life's batch script, 0 to 255."""

    code: int
    lives: int
    text: str


class FakeSlurm(Place):
    """tests/fake_slurm.py in PATH."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        for name in ("sbatch", "srun", "scontrol"):
            self.program(name, f'#!/bin/sh\nexec {sys.executable} {FAKE} {name} "$@"\n')

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(FAKE_SLURM=str(self.folder), **more)

    def submit(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return self.start("sbatch", *words, **environment)

    def preempt(self, job: subprocess.Popen[str]) -> None:
        job.send_signal(signal.SIGTERM)

    def cancel(self, job: subprocess.Popen[str]) -> None:
        job.send_signal(signal.SIGUSR1)

    def ended(self, job: subprocess.Popen[str], seconds: float = 60) -> Ended:
        try:
            out, err = job.communicate(timeout=seconds)
        finally:
            job.kill()
        return Ended(job.returncode, int((self.folder / "lives").read_text()), out + err)


class RealSlurm(Place):
    """A running cluster of tests/real_slurm.py."""

    def __init__(self, folder: Path, cluster: Cluster):
        super().__init__(folder)
        self.cluster = cluster

    def environment(self, **more: str) -> dict[str, str]:
        own = super().environment(SLURM_CONF=self.cluster.environment["SLURM_CONF"], **more)
        return own | {"PATH": f"{own['PATH']}:/usr/sbin:/usr/bin"}

    def submit(self, *words: str, **environment: str) -> str:
        done = self.run("sbatch", "--parsable", *words, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def preempt(self, job: str) -> None:
        whole = ("--partition=high", f"--nodes={len(NODES)}", "--exclusive", "--output=/dev/null")
        self.submit(*whole, "--wrap=sleep 1")

    def cancel(self, job: str) -> None:
        self.run("scancel", job)

    def ended(self, job: str, seconds: float = 60) -> Ended:
        found = self.cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=seconds)
        code, number = map(int, found["ExitCode"].split(":"))
        text = "".join(path.read_text() for path in self.folder.glob("*.log"))
        return Ended(code or (number and 128 + number), 1 + int(found["Restarts"]), text)


NODES = {name: {"cpus": 4, "gpus": 4} for name in ("n1", "n2", "n3")}


@pytest.fixture(scope="module")
def real_cluster(tmp_path_factory):
    if problem := missing():
        pytest.skip(problem)
    with cluster(tmp_path_factory.mktemp("slurm"), NODES) as running:
        yield running


@pytest.fixture(params=["fake", "real"])
def slurm(request, tmp_path: Path):
    if request.param == "fake":
        return FakeSlurm(tmp_path)
    return RealSlurm(tmp_path, request.getfixturevalue("real_cluster"))


@pytest.fixture
def one_slurm(request, tmp_path: Path):
    """A real Slurm if it can be started here, for tests that take half a minute."""
    if missing():
        return FakeSlurm(tmp_path)
    return RealSlurm(tmp_path, request.getfixturevalue("real_cluster"))


@pytest.fixture
def fake(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


def up(slurm: Place, tasks: int) -> None:
    wait_for(lambda: len(slurm.lines("UP")) == tasks, "running tasks")


def test_a_dry_run_prints_the_steps_and_runs_nothing(fake: FakeSlurm):
    recipes = [fake.recipe("", f"{name}.toml") for name in "wj"]
    done = fake.run(SCRIPT, *recipes, "--set", "run.output_dir=a b", DRY_RUN="1", GRACE="30")
    assert done.stdout.splitlines() == [
        f"srun --kill-on-bad-exit=0 --wait=40 --label gram-jax train {recipe} --grace 30"
        r" --set run.output_dir=a\ b "
        for recipe in recipes
    ]
    assert fake.lines("CALLS") == []


@pytest.mark.parametrize("name", ["RECIPE", "GRACE", "MAX_RESTARTS", "COMMAND"])
def test_arguments_are_checked_before_anything_runs(fake: FakeSlurm, name: str):
    recipes = [fake.recipe("exit 76")] * (name != "RECIPE")
    done = fake.ended(fake.submit(SCRIPT, *recipes, **{name: "abc"}))
    assert (done.code, done.lives) == (2, 1)
    assert name in done.text
    assert fake.lines("CALLS") == []


def test_each_node_runs_both_stages_one_after_the_other(slurm):
    write, judge = slurm.recipe("", "w.toml"), slurm.recipe("", "j.toml")
    job = slurm.submit("--nodes=3", "--gpus-per-node=4", SCRIPT, write, judge, "--set", "a=1")
    assert slurm.ended(job)[:2] == (0, 1)
    calls = [line.split("|") for line in slurm.lines("CALLS")]
    assert [call[-1] for call in calls] == [
        *["train w.toml --grace 60 --set a=1"] * 3,
        *["train j.toml --grace 60 --set a=1"] * 3,
    ]
    assert sorted(call[4] for call in calls) == ["0", "0", "1", "1", "2", "2"]
    # A task finds its GPUs itself: those of the batch script's node may be others.
    assert {call[3] for call in calls} == {""}


def test_reinforcement_learning_is_another_command(fake: FakeSlurm):
    assert fake.ended(fake.submit(SCRIPT, fake.recipe(""), COMMAND="rl")).code == 0
    assert [line.split("|")[-1] for line in fake.lines("CALLS")] == ["rl a.toml --grace 60"]


def test_the_cores_of_a_task_are_passed_on(fake: FakeSlurm):
    done = fake.run("bash", SCRIPT, fake.recipe(""), DRY_RUN="1", SLURM_CPUS_PER_TASK="7")
    assert "--cpus-per-task=7" in done.stdout


@pytest.mark.parametrize("code", START_AGAIN)
def test_a_job_that_asks_for_it_is_requeued(fake: FakeSlurm, code: int):
    requeued(fake, code)


def test_slurm_itself_requeues_a_job_that_asks_for_it(slurm):
    requeued(slurm, 76)


def requeued(slurm, code: int) -> None:
    recipe = slurm.recipe(f'[ "${{SLURM_RESTART_COUNT:-0}}" = 1 ] || exit {code}')
    done = slurm.ended(slurm.submit("--nodes=2", SCRIPT, recipe))
    assert done[:2] == (0, 2)
    assert f"status {code}" in done.text


@pytest.mark.parametrize("code", FOR_PEOPLE)
def test_an_error_for_people_is_not_requeued(fake: FakeSlurm, code: int):
    assert fake.ended(fake.submit("--nodes=2", SCRIPT, fake.recipe(f"exit {code}")))[:2] == (
        code,
        1,
    )
    assert len(fake.lines("CALLS")) == 2


def test_slurm_reports_an_error_for_people(slurm):
    assert slurm.ended(slurm.submit("--nodes=2", SCRIPT, slurm.recipe("exit 2")))[:2] == (2, 1)


def test_requeuing_has_a_limit(fake: FakeSlurm):
    done = fake.ended(fake.submit(SCRIPT, fake.recipe("exit 76"), MAX_RESTARTS="2"))
    assert done[:2] == (76, 3)


def test_a_preempted_job_saves_on_every_task_and_resumes_after_the_requeue(slurm):
    """The same at the end of the time limit: the tasks save one after the other, and none is killed."""
    recipe = slurm.recipe(
        '[ -n "$SLURM_RESTART_COUNT" ] && exit 0\n'
        + UNTIL_SIGTERM.format(save="0.$((SLURM_PROCID * 4))")
    )
    job = slurm.submit("--nodes=3", SCRIPT, recipe)
    up(slurm, 3)
    slurm.preempt(job)
    assert slurm.ended(job)[:2] == (0, 2)
    assert slurm.lines("SAVED") == ["saved"] * 3


def test_a_cancelled_job_saves_and_stays_cancelled(slurm):
    job = slurm.submit("--nodes=2", SCRIPT, slurm.recipe(UNTIL_SIGTERM.format(save=0.5)))
    up(slurm, 2)
    slurm.cancel(job)
    assert slurm.ended(job)[:2] == (75, 1)
    assert slurm.lines("SAVED") == ["saved"] * 2


def test_a_killed_task_ends_the_step_after_the_wait_and_the_job_is_requeued(fake: FakeSlurm):
    recipe = fake.recipe(
        '[ -n "$SLURM_RESTART_COUNT" ] && exit 0; [ $SLURM_PROCID = 1 ] && kill -KILL $$; exec sleep 60'
    )
    began = time.monotonic()
    job = fake.submit("--nodes=2", SCRIPT, recipe, FAKE_SLURM_HASTE="70")
    assert fake.ended(job)[:2] == (0, 2)
    assert time.monotonic() - began < 20


def test_the_set_up_file_is_read_before_the_run(fake: FakeSlurm):
    (fake.folder / "setup.sh").write_text("export FROM_SETUP=yes\n")
    recipe = fake.recipe('[ "$FROM_SETUP" = yes ] || exit 2')
    assert fake.ended(fake.submit(SCRIPT, recipe, SETUP="./setup.sh")).code == 0
    assert fake.ended(fake.submit(SCRIPT, recipe, SETUP="./absent.sh")).code == 2


def test_the_script_needs_nothing_beside_it():
    """Slurm runs a copy of it from a spool folder."""
    text = Path(SCRIPT).read_text()
    assert "dirname" not in text and "BASH_SOURCE" not in text
    assert os.access(SCRIPT, os.X_OK)


def test_the_real_program_trains_on_two_nodes_is_preempted_and_resumes(one_slurm, tmp_path: Path):
    slurm = one_slurm
    slurm.program("gram-jax", REAL)
    job = slurm.submit("--nodes=2", SCRIPT, recipe(tmp_path, 160), **surroundings(tmp_path))
    wait_until_it_trains(tmp_path)
    slurm.preempt(job)
    done = slurm.ended(job, SECONDS)
    assert done[:2] == (0, 2), done.text
    assert finished(tmp_path)
    assert "is saved" in done.text and "resuming from step" in done.text


def test_an_array_of_scoring_is_preempted_resumes_and_is_merged(real_cluster, tmp_path: Path):
    slurm = RealSlurm(tmp_path, real_cluster)
    slurm.program("gram-jax", REAL)
    write_pairs(tmp_path / "pairs.jsonl", 12)
    options, around = ("--model=tiny-random", "--max-length=256"), surroundings(tmp_path)
    words = ("score", "pairs.jsonl", "scores.jsonl", *options, "--part-rows=3")
    array = slurm.submit("--array=0-1", SCORE, *words, **around)
    tasks = [f"{array}_{number}" for number in range(2)]
    for task in tasks:
        real_cluster.wait(task, "RUNNING")
    slurm.preempt(array)
    ends = [slurm.ended(task, SECONDS) for task in tasks]
    assert [end[:2] for end in ends] == [(0, 2), (0, 2)], ends[0].text
    assert slurm.run("gram-jax", "merge", "scores.jsonl", **around).returncode == 0
    done = slurm.run("gram-jax", "score", "pairs.jsonl", "alone.jsonl", *options, **around)
    assert done.returncode == 0, done.stderr
    merged, alone = (tmp_path / f"{name}.jsonl" for name in ("scores", "alone"))
    assert merged.read_bytes() == alone.read_bytes()
