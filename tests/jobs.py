"""Jobs of several real processes on this machine: `gram-jax train` or another command, over loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from forks import Fork
from quick_programs import with_devices

COMMAND = (sys.executable, "-c", "from gram_jax.cli import main; main()")


@dataclass
class Job:
    """The processes of one job, and what each of them prints."""

    processes: list[subprocess.Popen | Fork]
    outputs: list[Path]
    started: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float) -> list[int]:
        """Exit statuses; whoever is still there after `seconds` is killed and makes the test fail."""
        deadline = time.monotonic() + seconds
        try:
            return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            texts = "\n".join(self.texts())
            raise AssertionError(f"the job did not end within {seconds} s:\n{texts}") from None
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()

    def texts(self) -> list[str]:
        return [path.read_text(errors="replace") for path in self.outputs]

    def wait_for(self, text: str, index: int = 0, seconds: float = 60) -> None:
        """Return when process `index` has printed `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.texts()[index]:
            if time.monotonic() > deadline or self.processes[index].poll() is not None:
                self.kill()
                raise AssertionError(f"{text!r} was not printed:\n" + "\n".join(self.texts()))
            time.sleep(0.02)


def free_port() -> int:
    """A port of which the next one is free as well."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def environment(devices: int, cache: Path | None = None) -> dict[str, str]:
    """Variables of one process with so many fake devices."""
    here = Path(__file__).parents[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAM_JAX")}
    kept |= {
        "XLA_FLAGS": with_devices(devices),
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")]),
    }
    if cache is not None:
        kept["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    return kept


def start_job(
    folder: Path,
    recipe: Path,
    count: int,
    *arguments: str,
    devices: int = 2,
    only: tuple[int, ...] | None = None,
    command: tuple[str, ...] = COMMAND,
    cache: Path | None = None,
    port: int | None = None,
    name: str = "train",
) -> Job:
    """Start `count` processes (or those of them that `only` names) with `devices` devices each."""
    port, processes, outputs = port or free_port(), [], []
    for index in range(count) if only is None else only:
        place = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(count)]
        output = folder / f"output-{index}-{time.monotonic_ns()}.txt"
        outputs.append(output)
        words = [name, str(recipe), *place, "--process", str(index), *arguments]
        _, _, code = command
        processes.append(Fork(code, words, environment(devices, cache), folder, output))
    return Job(processes, outputs)
