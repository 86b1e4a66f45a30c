"""A fake Slurm of one machine: sbatch, srun and scontrol, which start real processes.

    python fake_slurm.py sbatch|srun|scontrol ...

sbatch runs the job in the foreground, from a copy of the script as Slurm does, as often as it is requeued; its status
is that of the last run. SIGTERM to it stands for preemption with a grace time and for the end of the time limit:
--signal names who receives it. SIGUSR1 to it stands for scancel: tasks and batch script get SIGTERM. As in Slurm, srun
ends with the highest status of its tasks, --wait limits the time of the others after the first has ended, and
--kill-on-bad-exit=1 kills them at once; `scontrol requeue` ends the batch script in which it runs.

tests/real_slurm.py starts a real one, under which the tests of the launcher run as well.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.environ.get("FAKE_SLURM", "."))  # notes: requeue, tasks, lives


def split_options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Leading --name=value words, and what follows them."""
    options = {}
    while words and words[0].startswith("--"):
        name, _, value = words[0][2:].partition("=")
        options[name] = value
        words = words[1:]
    return options, words


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def tasks() -> list[int]:
    note = HERE / "tasks"
    return [int(pid) for pid in note.read_text().split()] if note.exists() else []


def sbatch(words: list[str]) -> int:
    given, (script, *arguments) = split_options(words)
    lines = Path(script).read_text().splitlines()
    inside = [line.split()[1] for line in lines if line.startswith("#SBATCH ")]
    options = split_options(inside)[0] | given
    spool = HERE / "spool" / "slurm_script"
    spool.parent.mkdir(exist_ok=True)
    shutil.copy(script, spool)
    nodes, per_node = int(options.get("nodes", "1")), int(options.get("ntasks-per-node", "1"))
    environment = os.environ | {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NTASKS": str(nodes * per_node),
        "SLURM_NTASKS_PER_NODE": str(per_node),
    }
    if "gpus-per-node" in options:
        visible = ",".join(map(str, range(int(options["gpus-per-node"]))))
        environment |= {
            "SLURM_GPUS_ON_NODE": options["gpus-per-node"],
            "CUDA_VISIBLE_DEVICES": visible,
        }
    if "cpus-per-task" in options:
        environment["SLURM_CPUS_PER_TASK"] = options["cpus-per-task"]
    warn = options.get("signal", "").split("@")[0]
    batch: subprocess.Popen | None = None

    def on_warning(*_: object) -> None:
        if warn.removeprefix("B:") == "TERM":
            signal_all([batch.pid] if warn.startswith("B:") else tasks(), signal.SIGTERM)

    def on_cancel(*_: object) -> None:
        signal_all([*tasks(), batch.pid], signal.SIGTERM)

    signal.signal(signal.SIGTERM, on_warning)
    signal.signal(signal.SIGUSR1, on_cancel)
    life = 0
    while True:
        if life:
            environment["SLURM_RESTART_COUNT"] = str(life)
        batch = subprocess.Popen(["bash", spool, *arguments], env=environment)
        (HERE / "batch").write_text(str(batch.pid))
        code = batch.wait()
        (HERE / "lives").write_text(str(life + 1))
        if not (HERE / "requeue").exists() or "requeue" not in options:
            return code
        (HERE / "requeue").unlink()
        life += 1


def srun(words: list[str]) -> int:
    options, command = split_options(words)
    wait = float(options.get("wait", "0")) or None
    count, nodes = (int(os.environ[f"SLURM_{name}"]) for name in ("NTASKS", "JOB_NUM_NODES"))
    each = count // nodes
    # Tests shorten the times of a cluster.
    wait = wait and wait / float(os.environ.get("FAKE_SLURM_HASTE", "1"))
    shared = {
        "SLURM_STEP_NODELIST": ",".join(["localhost"] * nodes),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{nodes})",
    }
    running = []
    for index in range(count):
        numbers = {"PROCID": index, "LOCALID": index % each, "NODEID": index // each}
        own = {f"SLURM_{name}": str(number) for name, number in numbers.items()}
        running.append(subprocess.Popen(command, env=os.environ | shared | own))
    (HERE / "tasks").write_text(" ".join(str(task.pid) for task in running))
    signal.signal(signal.SIGTERM, lambda *_: signal_all([t.pid for t in running], signal.SIGTERM))
    codes: list[int] = []
    end = None
    while running:
        for task in list(running):
            if task.poll() is not None:
                running.remove(task)
                codes.append(task.returncode if task.returncode >= 0 else 128 - task.returncode)
                if codes[-1] and options.get("kill-on-bad-exit") == "1":
                    end = 0
                elif end is None and wait is not None:
                    end = time.monotonic() + wait
        if end is not None and time.monotonic() >= end:
            signal_all([task.pid for task in running], signal.SIGKILL)
        time.sleep(0.02)
    (HERE / "tasks").unlink()
    return max(codes)


def scontrol(words: list[str]) -> int:
    assert words == ["requeue", os.environ["SLURM_JOB_ID"]], words
    (HERE / "requeue").touch()
    signal_all([int((HERE / "batch").read_text())], signal.SIGKILL)
    return 0


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[name](rest))
