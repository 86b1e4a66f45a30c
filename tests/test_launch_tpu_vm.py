"""The script for TPU VMs against a fake gcloud that records its calls: see fake_gcloud.py."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from launch_fakes import LAUNCH, Place

pytestmark = pytest.mark.slow

SCRIPT = str(LAUNCH / "tpu_vm" / "pod.sh")
FAKE = Path(__file__).with_name("fake_gcloud.py")
BASE = dict(NAME="judge", ZONE="us-west4-a", TYPE="v5litepod-16", RUNTIME="v2-alpha-tpuv5-lite")
SHARED = BASE | {"SHARE": "10.0.0.2:/share"}


class Cloud(Place):
    def __init__(self, folder: Path):
        super().__init__(folder)
        self.program("gcloud", f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
        self.answer("states", "ACTIVE")
        self.answer("workers", "exited 0; exited 0")

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(FAKE_GCLOUD=str(self.folder), TMPDIR=str(self.folder), **more)

    def answer(self, name: str, *lines: str) -> None:
        (self.folder / name).write_text("\n".join(lines) + "\n")

    def calls(self) -> list[list[str]]:
        path = self.folder / "gcloud-calls"
        text = path.read_text() if path.exists() else ""
        return [call.split("\x1f") for call in text.split("\x1e")[:-1]]

    def verbs(self) -> list[str]:
        """What was done, in order: create, scp, ssh, delete, without the queries in between."""
        return [
            call[3]
            for call in self.calls()
            if call[3] != "describe" and not any("systemctl show" in word for word in call)
        ]

    def train(self, recipe: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        """`pod.sh train` of one recipe."""
        return self.run(SCRIPT, "train", self.recipe(recipe), **SHARED, **more)


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


ONE_LIFE = ["create", "scp", "ssh", "ssh", "scp", "ssh"]


def test_a_dry_run_prints_every_command_and_calls_nothing(cloud: Cloud):
    done = cloud.run(
        SCRIPT, "train", cloud.recipe("", "w.toml"), "--set", "a=b c", **SHARED, DRY_RUN="1"
    )
    assert done.returncode == 0
    assert cloud.calls() == []
    assert not list(cloud.folder.glob("*.tar.gz"))
    commands = [line.split() for line in done.stdout.splitlines()]
    assert [c[4] if c[0] == "gcloud" else c[0] for c in commands] == [
        "create", "describe", "tar", "scp", "ssh", "ssh", "scp", "ssh", "ssh", "delete"
    ]  # fmt: skip
    assert done.stdout.splitlines()[0] == (
        "gcloud compute tpus queued-resources create judge --zone=us-west4-a --node-id=judge"
        " --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite "
    )
    assert done.stdout.splitlines()[-1] == (
        "gcloud compute tpus queued-resources delete judge --zone=us-west4-a --force --quiet "
    )


def test_train_asks_waits_installs_runs_watches_and_deletes(cloud: Cloud):
    cloud.answer("states", "NOT_FOUND", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    cloud.answer("workers", "running 0; running 0", "exited 0; running 0", "exited 0; exited 0")
    done = cloud.train(PROJECT="p", SPOT="1")
    assert done.returncode == 0, done.stderr
    assert cloud.verbs() == [*ONE_LIFE, "delete"]
    assert all("--zone=us-west4-a" in call and "--project=p" in call for call in cloud.calls())
    assert "--spot" in next(call for call in cloud.calls() if "create" in call)
    reached = [call for call in cloud.calls() if call[3] in ("ssh", "scp")]
    assert all("--worker=all" in call for call in reached)


def test_slices_are_made_together_and_each_is_reached(cloud: Cloud):
    assert cloud.run(SCRIPT, "create", **SHARED, SLICES="2").returncode == 0
    (create,) = cloud.calls()
    assert "--node-count=2" in create and "--node-prefix=judge" in create
    assert not any(word.startswith("--node-id") for word in create)
    between = ("--set", "mesh.dcn.data=2")
    done = cloud.run(SCRIPT, "run", cloud.recipe(""), *between, **SHARED, SLICES="2")
    assert done.returncode == 0
    reached = [call[4] for call in cloud.calls() if call[3] == "ssh"]
    assert sorted(reached) == ["judge-0", "judge-0", "judge-1", "judge-1"]


def test_several_slices_need_to_know_what_crosses_them_before_machines_are_asked_for(cloud: Cloud):
    plain = cloud.recipe("[mesh]\nfsdp = -1\n")
    made_for_two = cloud.recipe("[mesh.dcn]\ndata = 2\n", "two.toml")
    for action in ("train", "run"):
        done = cloud.run(SCRIPT, action, made_for_two, plain, **SHARED, SLICES="2")
        assert done.returncode == 2
        assert "a.toml has no [mesh.dcn]" in done.stderr
        assert "--set mesh.dcn.data=2" in done.stderr
    assert cloud.calls() == []
    assert cloud.run(SCRIPT, "train", made_for_two, **SHARED, SLICES="2").returncode == 0


def test_a_worker_runs_the_recipes_with_the_options_as_given(cloud: Cloud):
    """The command for the workers is run here, with stand-ins for systemd and sudo."""
    recipes = [cloud.recipe("", "a write.toml"), cloud.recipe("", "j.toml")]
    done = cloud.run(SCRIPT, "train", *recipes, "--set", "x=it's $HOME", **SHARED, RESTARTS="7")
    assert done.returncode == 0, done.stderr
    remote = [w for c in cloud.calls() for w in c if w.startswith("--command=")]
    for text in remote:
        syntax = text.removeprefix("--command=")
        subprocess.run(["bash", "-n"], input=syntax, text=True, check=True)
    (start,) = [w for w in remote if "systemd-run" in w]
    cloud.program("sudo", '#!/bin/sh\nexec "$@"\n')
    cloud.program("systemctl", "#!/bin/sh\nexit 0\n")
    cloud.program(
        "systemd-run", f"#!{sys.executable}\nimport sys\nprint(*sys.argv[1:], sep='\\n')\n"
    )
    done = cloud.run("bash", "-c", start.removeprefix("--command="), HOME="/home/me")
    words = done.stdout.splitlines()
    assert words[words.index("bash") :] == [
        "bash",
        "/home/me/gram-jax/launch/one_machine.sh",
        "/home/me/recipes/a write.toml",
        "/home/me/recipes/j.toml",
        *("--grace", "20", "--set", "x=it's $HOME"),
    ]
    # KillMode: SIGTERM goes to the runner alone, which passes it on. TimeoutStopSec: more than --grace.
    assert set(words) > {
        "--setenv=RESTARTS=7",
        "--setenv=GRAM_JAX=/home/me/venv/bin/gram-jax",
        "--property=KillMode=mixed",
        "--property=TimeoutStopSec=25",
        "--working-directory=/mnt/gram",
    }


def test_the_archive_holds_what_the_workers_need(cloud: Cloud):
    assert cloud.run(SCRIPT, "install", **SHARED).returncode == 0
    archive = cloud.folder / "gram-jax-judge.tar.gz"
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    files = "pyproject.toml README.md LICENSE gram_jax/cli/__init__.py launch/one_machine.sh"
    assert {*files.split(), "configs/smollm2-135m-finetune.toml"} <= set(names)
    assert not any("__pycache__" in name for name in names)


@pytest.mark.parametrize(
    ("states", "workers"),
    [
        ("ACTIVE ACTIVE SUSPENDING SUSPENDED", "running 0; running 0"),
        # The run saved on SIGTERM; the cloud reports a little later that it takes the machines.
        ("ACTIVE ACTIVE ACTIVE SUSPENDED SUSPENDED", "failed 75; failed 75"),
    ],
)
def test_machines_that_are_taken_away_are_replaced(cloud: Cloud, states: str, workers: str):
    again = ("NOT_FOUND", "ACTIVE", "ACTIVE")
    cloud.answer("states", "NOT_FOUND", *states.split(), *again)
    cloud.answer("workers", workers, "exited 0; exited 0")
    done = cloud.train()
    assert done.returncode == 0, done.stderr
    assert cloud.verbs() == [*ONE_LIFE, "delete", *ONE_LIFE, "delete"]


@pytest.mark.parametrize(
    ("workers", "code"),
    [
        ("failed 2; failed 76", 2),
        ("failed 76; failed 2", 2),
        ("failed 75; failed 75", 75),
        ("exited 0; failed 76", 76),
    ],
)
def test_machines_are_kept_if_a_run_ends_on_them(cloud: Cloud, workers: str, code: int):
    cloud.answer("states", "NOT_FOUND", "ACTIVE")
    cloud.answer("workers", workers)
    assert cloud.train().returncode == code
    assert cloud.verbs() == ONE_LIFE


def test_the_number_of_new_machines_is_limited(cloud: Cloud):
    cloud.answer("states", "NOT_FOUND", "SUSPENDED", "SUSPENDED", "NOT_FOUND", "SUSPENDED")
    assert cloud.train(RESTARTS="1").returncode == 76
    assert cloud.verbs() == ["create", "delete", "create"]


def test_a_gcloud_that_cannot_be_reached_does_not_end_a_run(cloud: Cloud):
    cloud.answer("states", "NOT_FOUND", "ACTIVE", "FAIL", "FAIL", "ACTIVE")
    done = cloud.train()
    assert done.returncode == 0
    assert cloud.verbs() == [*ONE_LIFE, "delete"]
    assert done.stderr.count("could not reach") == 2


def test_an_installation_that_fails_starts_no_run(cloud: Cloud):
    cloud.answer("states", "NOT_FOUND", "ACTIVE")
    cloud.answer("fail", "apt-get")
    assert cloud.train().returncode == 1
    assert cloud.verbs() == ["create", "scp", "ssh"]


def test_recipes_of_one_name_would_replace_each_other_and_are_rejected(cloud: Cloud):
    (cloud.folder / "b").mkdir()
    recipes = (cloud.recipe("first"), cloud.recipe("second", "b/a.toml"))
    done = cloud.run(SCRIPT, "train", *recipes, **SHARED)
    assert done.returncode == 2 and "a.toml" in done.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize("action", ["status", "logs", "stop", "delete"])
def test_every_other_command_is_a_call_or_two(cloud: Cloud, action: str):
    assert cloud.run(SCRIPT, action, **BASE).returncode == 0
    assert 1 <= len(cloud.calls()) <= 2
    assert all("judge" in call for call in cloud.calls())


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        ("", BASE, "launch/tpu_vm/pod.sh train RECIPE"),
        ("fly", BASE, "launch/tpu_vm/pod.sh train RECIPE"),
        ("create", {"NAME": "n"}, "ZONE="),
        ("create", {"NAME": "n", "ZONE": "z"}, "TYPE="),
        ("install", BASE, "SHARE="),
        ("run absent.toml", SHARED, "absent.toml"),
        ("train absent.toml", SHARED, "absent.toml"),
        ("create", BASE | {"SLICES": "abc"}, "SLICES=abc: expected a whole number from 1"),
        ("create", BASE | {"SLICES": "0"}, "SLICES=0: expected a whole number from 1"),
        ("create", BASE | {"RESTARTS": "-1"}, "RESTARTS=-1: expected a whole number from 0"),
        ("create", BASE | {"GRACE": "08"}, "GRACE=08: expected a whole number from 1"),
    ],
)
def test_what_is_missing_is_named(cloud: Cloud, arguments: str, environment: dict, named: str):
    done = cloud.run(SCRIPT, *arguments.split(), **environment)
    assert done.returncode != 0
    assert named in done.stderr
    assert cloud.calls() == []
