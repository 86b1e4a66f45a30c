"""The script for TPU VMs against a gcloud that only takes notes: see fake_gcloud.py."""

import subprocess
import sys
from pathlib import Path

import pytest
from launch_fakes import LAUNCH, Place

pytestmark = pytest.mark.slow

SCRIPT = str(LAUNCH / "tpu_vm" / "pod.sh")
FAKE = Path(__file__).with_name("fake_gcloud.py")
BASE = {
    "NAME": "judge",
    "ZONE": "us-west4-a",
    "TYPE": "v5litepod-16",
    "RUNTIME": "v2-alpha-tpuv5-lite",
}
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
        """What was done, in order: create, scp, ssh, delete, without the looks in between."""
        found = [call[3] for call in self.calls()]
        looks = [any("systemctl show" in word for word in call) for call in self.calls()]
        return [
            verb for verb, look in zip(found, looks, strict=True) if verb != "describe" and not look
        ]


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


@pytest.mark.parametrize("name", ["fake_gcloud", "fake_slurm"])
def test_a_stand_in_that_is_only_imported_leaves_nothing_behind(name: str, tmp_path: Path):
    """As pytest imports every file of its folders, to look for examples in it."""
    path = [f"PYTHONPATH={FAKE.parent}", "PYTHONDONTWRITEBYTECODE=1"]
    subprocess.run(["env", *path, sys.executable, "-c", f"import {name}"], cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())


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
    done = cloud.run(SCRIPT, "train", cloud.recipe(""), **SHARED, PROJECT="p", SPOT="1")
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


def test_what_the_workers_are_told_is_sound_shell(cloud: Cloud):
    recipe = cloud.recipe("", "a recipe.toml")
    assert cloud.run(SCRIPT, "train", recipe, "--set", "x=it's", **SHARED).returncode == 0
    remote = [
        w.removeprefix("--command=") for c in cloud.calls() for w in c if w.startswith("--command=")
    ]
    assert len(remote) == 4
    for text in remote:
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_a_worker_runs_the_recipes_with_the_options_as_given(cloud: Cloud):
    """The command for the workers is run here, with stand-ins for systemd and sudo."""
    recipes = [cloud.recipe("", "a write.toml"), cloud.recipe("", "j.toml")]
    done = cloud.run(SCRIPT, "run", *recipes, "--set", "x=it's $HOME", **SHARED, RESTARTS="7")
    assert done.returncode == 0, done.stderr
    (start,) = [w for c in cloud.calls() for w in c if "systemd-run" in w]
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
    assert (
        "--setenv=RESTARTS=7" in words and "--setenv=GRAM_JAX=/home/me/venv/bin/gram-jax" in words
    )
    # SIGTERM goes to the runner alone, which passes it on; and it may take longer than the save.
    assert "--property=KillMode=mixed" in words and "--property=TimeoutStopSec=25" in words
    assert "--working-directory=/mnt/gram" in words


def test_the_archive_holds_what_the_workers_need(cloud: Cloud):
    assert cloud.run(SCRIPT, "install", **SHARED).returncode == 0
    archive = cloud.folder / "gram-jax-judge.tar.gz"
    names = subprocess.run(
        ["tar", "-tzf", archive], capture_output=True, text=True, check=True
    ).stdout
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "gram_jax/cli/__init__.py",
        "configs/smollm2-135m-finetune.toml",
        "launch/one_machine.sh",
    } <= set(names.split())
    assert "__pycache__" not in names


def test_machines_that_are_taken_away_are_replaced_and_the_run_goes_on(cloud: Cloud):
    cloud.answer(
        "states",
        *("NOT_FOUND", "ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED"),
        *("NOT_FOUND", "ACTIVE", "ACTIVE"),
    )
    cloud.answer("workers", "running 0; running 0", "exited 0; exited 0")
    done = cloud.run(SCRIPT, "train", cloud.recipe(""), **SHARED)
    assert done.returncode == 0, done.stderr
    assert cloud.verbs() == [*ONE_LIFE, "delete", *ONE_LIFE, "delete"]
    assert "taken away" in done.stderr and "asking for new machines" in done.stderr


def test_a_run_that_saved_on_sigterm_waits_for_its_machines_to_go(cloud: Cloud):
    """The workers say 75 a little before the cloud says that it takes them."""
    cloud.answer(
        "states",
        *("NOT_FOUND", "ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED"),
        *("NOT_FOUND", "ACTIVE", "ACTIVE"),
    )
    cloud.answer("workers", "failed 75; failed 75", "exited 0; exited 0")
    done = cloud.run(SCRIPT, "train", cloud.recipe(""), **SHARED)
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
def test_a_run_that_ends_on_sound_machines_is_for_people(cloud: Cloud, workers: str, code: int):
    cloud.answer("states", "NOT_FOUND", "ACTIVE")
    cloud.answer("workers", workers)
    done = cloud.run(SCRIPT, "train", cloud.recipe(""), **SHARED)
    assert done.returncode == code
    assert cloud.verbs() == ONE_LIFE
    assert "the machines are kept" in done.stderr


def test_new_machines_are_asked_for_only_so_often(cloud: Cloud):
    cloud.answer("states", "NOT_FOUND", "SUSPENDED", "SUSPENDED", "NOT_FOUND", "SUSPENDED")
    done = cloud.run(SCRIPT, "train", cloud.recipe(""), **SHARED, RESTARTS="1")
    assert done.returncode == 76
    assert cloud.verbs() == ["create", "delete", "create"]


def test_a_gcloud_that_cannot_be_reached_does_not_end_a_run(cloud: Cloud):
    cloud.answer("states", "NOT_FOUND", "ACTIVE", "FAIL", "FAIL", "ACTIVE")
    done = cloud.run(SCRIPT, "train", cloud.recipe(""), **SHARED)
    assert done.returncode == 0
    assert cloud.verbs() == [*ONE_LIFE, "delete"]
    assert done.stderr.count("could not reach") == 2


def test_an_installation_that_fails_starts_no_run(cloud: Cloud):
    cloud.answer("states", "NOT_FOUND", "ACTIVE")
    cloud.answer("fail", "apt-get")
    done = cloud.run(SCRIPT, "train", cloud.recipe(""), **SHARED)
    assert done.returncode == 1
    assert cloud.verbs() == ["create", "scp", "ssh"]


def test_recipes_of_one_name_would_replace_each_other_and_are_refused(cloud: Cloud):
    (cloud.folder / "b").mkdir()
    recipes = (cloud.recipe("first"), cloud.recipe("second", "b/a.toml"))
    done = cloud.run(SCRIPT, "train", *recipes, **SHARED)
    assert done.returncode == 2 and "two recipes are called a.toml" in done.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize("action", ["status", "logs", "stop", "delete"])
def test_every_other_command_is_a_call_or_two(cloud: Cloud, action: str):
    assert cloud.run(SCRIPT, action, **BASE).returncode == 0
    assert 1 <= len(cloud.calls()) <= 2
    assert all("judge" in call for call in cloud.calls())


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        ((), BASE, "launch/tpu_vm/pod.sh train RECIPE"),
        (("fly",), BASE, "launch/tpu_vm/pod.sh train RECIPE"),
        (("create",), {"NAME": "n"}, "the zone, as ZONE="),
        (("create",), {"NAME": "n", "ZONE": "z"}, "the accelerator type, as TYPE="),
        (("install",), BASE, "an NFS export that all workers write"),
        (("run", "absent.toml"), SHARED, "there is no recipe absent.toml"),
        (("train", "absent.toml"), SHARED, "there is no recipe absent.toml"),
        (("create",), BASE | {"SLICES": "abc"}, "SLICES=abc: expected a whole number from 1"),
        (("create",), BASE | {"SLICES": "0"}, "SLICES=0: expected a whole number from 1"),
        (("create",), BASE | {"RESTARTS": "-1"}, "RESTARTS=-1: expected a whole number from 0"),
        (("create",), BASE | {"GRACE": "08"}, "GRACE=08: expected a whole number from 1"),
    ],
)
def test_what_is_missing_is_named(
    cloud: Cloud, arguments: tuple[str, ...], environment: dict, says: str
):
    done = cloud.run(SCRIPT, *arguments, **environment)
    assert done.returncode != 0
    assert says in done.stderr
    assert cloud.calls() == []
