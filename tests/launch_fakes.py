"""Stand-ins for what the launchers call: programs in a folder of their own that is put first in PATH."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"

# Exit statuses after which every launcher starts again: asked for (75, 76), or a death by a signal.
START_AGAIN = (75, 76, 134, 135, 137, 139, 143)
FOR_PEOPLE = (1, 2, 126, 127, 130)

# `gram-jax train RECIPE ...` records how it was called and runs the recipe as a shell script.
GRAM_JAX = """#!/usr/bin/env bash
echo "$GRAM_JAX_PROCESS|$GRAM_JAX_PROCESSES|$GRAM_JAX_COORDINATOR|$JAX_LOCAL_DEVICE_IDS|$SLURM_PROCID|$*" >> "$CALLS"
export ARGUMENTS="$*"
exec bash "$2"
"""

# Runs until SIGTERM, and then takes the given seconds to save.
UNTIL_SIGTERM = """
trap 'sleep {save}; echo saved >> "$SAVED"; exit 75' TERM
echo up >> "$UP"
while :; do sleep 0.05; done
"""


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.02)


def stop(
    process: subprocess.Popen[str], number: int = signal.SIGTERM, seconds: float = 30
) -> tuple[int, str, float]:
    """Send a signal; the exit status, the text on standard error, and the seconds until the end."""
    began = time.monotonic()
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, err, time.monotonic() - began


def lint(program: str, *arguments: object, package: str) -> None:
    """Run a linter on a file; skips if it is not installed."""
    beside = Path(sys.executable).with_name(program)
    found = beside if beside.exists() else shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed: pip install {package}")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


class Place:
    """A folder with fake programs in PATH, recipes, and records of the calls."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.programs = folder / "bin"
        self.notes = {name: folder / name.lower() for name in ("CALLS", "SAVED", "UP")}
        self.program("gram-jax", GRAM_JAX)

    def program(self, name: str, text: str) -> Path:
        return write_program(self.programs / name, text)

    def recipe(self, text: str, name: str = "a.toml") -> str:
        (self.folder / name).write_text(text)
        return name

    def lines(self, note: str) -> list[str]:
        return self.notes[note].read_text().splitlines() if self.notes[note].exists() else []

    def environment(self, **more: str) -> dict[str, str]:
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "GRAM_JAX", "JAX_"))
        }
        notes = {name: str(path) for name, path in self.notes.items()}
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        quick = {"RESTART_DELAY": "0", "LOGS": str(self.folder / "logs"), "POLL": "0.1"}
        return kept | notes | quick | {"PATH": path} | more

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*command, **environment)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, process.returncode, out, err)
