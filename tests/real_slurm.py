"""A real Slurm on this machine for tests: munged, slurmctld and a slurmd for each node, with made-up GPUs.

It needs root and Debian's packages slurm-wlm and munge. GPUs are copies of /dev/null: Slurm allocates, binds and
numbers them as it would real ones, and nothing opens them. Each node has its own host name, and the names of all
resolve to this machine. Without cgroups a task could also open the GPUs that it was not given.
"""

import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "srun")

CONFIG = """
ClusterName=made-up
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=100000
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=600
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why a Slurm cannot be started here, or None."""
    absent = [name for name in DAEMONS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "the daemons of Slurm need root"


PATH = f"{os.environ['PATH']}:/usr/sbin:/usr/bin"


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


@dataclass(frozen=True)
class Cluster:
    """A running cluster. environment: variables with which Slurm's commands find it."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment | variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def submit(self, *words: str, **variables: str) -> str:
        """The number of a job. Raises RuntimeError if Slurm refuses it."""
        done = self.run("sbatch", "--parsable", *words, **variables)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def hurry(self, job: str) -> None:
        """Start a requeued job now: Slurm waits for two minutes."""
        time.sleep(3)  # its last life may still be completing
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def show(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """The job's fields once it has one of the states."""
        deadline = time.monotonic() + seconds
        while (found := self.show(job)).get("JobState") not in states:
            if found.get("Reason") == "BeginTime":
                self.hurry(job)
            if time.monotonic() > deadline:
                raise AssertionError(f"job {job} is not {states} after {seconds} s: {found}")
            time.sleep(0.2)
        return found


@contextmanager
def cluster(folder: Path, nodes: Mapping[str, Mapping[str, int]]) -> Iterator[Cluster]:
    """A cluster of these nodes, each with its {"cpus": N, "gpus": N}; its daemons end with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    controller, *ports = free_ports(1 + len(nodes))
    lines, gres = [], []
    for port, (name, sizes) in zip(ports, nodes.items(), strict=True):
        gpus = sizes.get("gpus", 0)
        cpus = sizes["cpus"]
        lines.append(
            f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 "
            f"SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN"
            + (f" Gres=gpu:{gpus}" if gpus else "")
        )
        for index in range(gpus):
            os.mknod(folder / f"{name}-gpu{index}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        if gpus:
            gres.append(
                f"NodeName={name} Name=gpu Flags=nvidia_gpu_env File={folder}/{name}-gpu[0-{gpus - 1}]"
            )
    (folder / "slurm.conf").write_text(
        CONFIG.format(
            host=socket.gethostname(), port=controller, folder=folder, nodes="\n".join(lines)
        )
    )
    (folder / "gres.conf").write_text("\n".join(gres) + "\n")
    hosts = [
        f"127.0.0.1 localhost {socket.gethostname()}",
        *(f"127.0.0.1 {name}" for name in nodes),
    ]
    (folder / "hosts").write_text("\n".join(hosts) + "\n")
    (folder / "state").mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "GRAM_JAX"))}
    environment = kept | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    with ExitStack() as running:

        def start(*command: str) -> None:
            with (folder / "daemons.log").open("ab") as log:
                daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            running.callback(stop, daemon)

        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"key-file": key, "socket": folder / "munge.socket", "seed-file": folder / "seed"}
        files |= {"pid-file": folder / "munged.pid", "log-file": folder / "munged.log"}
        start("munged", "--foreground", "--force", *(f"--{k}={v}" for k, v in files.items()))
        wait_for_file(folder / "munge.socket")
        start("slurmctld", "-D", "-c")
        for name in nodes:
            (folder / f"spool-{name}").mkdir(exist_ok=True)
            own = f"hostname {name} && mount --bind {folder}/hosts /etc/hosts && exec slurmd -D -N {name}"
            start("unshare", "--mount", "--uts", "sh", "-c", own)
        here = Cluster(folder, environment)
        deadline = time.monotonic() + 60
        while here.run("sinfo", "-hNp", "low", "-o", "%t").stdout.split() != ["idle"] * len(nodes):
            if time.monotonic() > deadline:
                raise RuntimeError((folder / "slurmctld.log").read_text()[-3000:])
            time.sleep(0.3)
        try:
            yield here
        finally:
            here.run("scancel", "--user=root", "--full", "--signal=KILL")


def stop(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def wait_for_file(path: Path, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path} did not appear within {seconds} s")
        time.sleep(0.05)
