"""Which process of a job this is, and where process 0 waits: from options, Slurm or a TPU pod's variables."""

import re
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gram_jax.errors import ClusterError

TPU_PORT = 12380  # of process 0, where the surroundings give hosts and no port
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
METADATA_SECONDS = 3.0
ALONE = (
    "State the place with --coordinator, --processes and --process; or, for one process whatever these variables say, "
    "give --cluster none"
)
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")


@dataclass(frozen=True)
class ClusterSpec:
    """index of count processes; process 0 listens at host:port, and at port + 1 for JAX.

    hosts: by process, where that is known before anybody has come. devices: indices of the local accelerators that
    this process drives, None for all of them.
    """

    index: int
    count: int
    host: str
    port: int
    hosts: tuple[str, ...] = ()
    devices: tuple[int, ...] | None = None


def detect_cluster(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    devices: tuple[int, ...] | None,
    environment: Mapping[str, str],
) -> ClusterSpec | None:
    """The place that was stated, else what Slurm or a TPU pod says; None for a job of one process.

    Raises ClusterError for a place that is stated in part or makes no sense.
    """
    if coordinator is not None and processes is not None and process is not None:
        return _stated(coordinator, processes, process, devices)
    stated = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    given = [name for name, value in stated.items() if value is not None]
    if not given:
        return _slurm(environment, devices) or _tpu_pod(environment, devices)
    missing = [name for name in stated if name not in given]
    raise ClusterError(
        f"{' and '.join(given)} without {' and '.join(missing)}: a process of a job needs all three (or the "
        "variables GRAM_JAX_COORDINATOR, GRAM_JAX_PROCESSES and GRAM_JAX_PROCESS)"
    )


def _stated(
    coordinator: str, processes: int, process: int, devices: tuple[int, ...] | None
) -> ClusterSpec | None:
    if not 0 <= process < processes:
        raise ClusterError(
            f"--process {process} of --processes {processes}: expected a number from 0 to {processes - 1}"
        )
    host, port = _address(coordinator)
    return None if processes == 1 else ClusterSpec(process, processes, host, port, devices=devices)


def parse_device_ids(text: str | None) -> tuple[int, ...] | None:
    """Indices of accelerators written as "0,1"; None for all of them."""
    if text is None:
        return None
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() for number in numbers) or len({*numbers}) < len(numbers):
        raise ClusterError(f"--local-devices {text!r}: expected different numbers such as 0,1")
    return tuple(int(number) for number in numbers)


def _number(env: Mapping[str, str], name: str, stop: int | None = None) -> int:
    """A variable of the surroundings as a number from 0 on, below `stop`."""
    value = env[name].strip()
    if not value.isdecimal() or (stop is not None and int(value) >= stop):
        wanted = "a number" if stop is None else f"a number from 0 to {stop - 1}"
        raise ClusterError(f"{name} = {env[name]!r}: expected {wanted}. {ALONE}")
    return int(value)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65535:
        raise ClusterError(
            f"--coordinator {text!r}: expected host:port of process 0, such as node-1:12380"
        )
    return host.strip("[]"), int(port)


def _slurm(env: Mapping[str, str], devices: tuple[int, ...] | None) -> ClusterSpec | None:
    """Inside a step (srun) of several tasks; one task per node, or one per accelerator."""
    tasks = "SLURM_STEP_NUM_TASKS" if env.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    # The batch script itself, outside of any step, has no node list of a step.
    names = ("SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
    if any(name not in env for name in names) or not env.get(tasks):
        return None
    if (count := _number(env, tasks)) < 2:
        return None
    try:
        nodes = expand_node_list(env["SLURM_STEP_NODELIST"])
        head = nodes[0]
    except (ValueError, IndexError):
        found = env["SLURM_STEP_NODELIST"]
        raise ClusterError(
            f"SLURM_STEP_NODELIST = {found!r}: expected node names such as n[01-04]. {ALONE}"
        ) from None
    index = _number(env, "SLURM_PROCID", count)
    # An even port that differs between the jobs of a node; the one above it is JAX's.
    port = 16384 + 2 * (_number(env, "SLURM_JOB_ID") % 8192)
    if count == len(nodes):
        return ClusterSpec(index, count, head, port, tuple(nodes), devices)
    visible = env.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if devices is None and len(visible) > 1 and "SLURM_LOCALID" in env:
        devices = (_number(env, "SLURM_LOCALID"),)
    return ClusterSpec(index, count, head, port, devices=devices)


def expand_node_list(text: str) -> list[str]:
    """Names of a Slurm node list.

    >>> expand_node_list("a[08-10,12],b,c1-[1-2]x")
    ['a08', 'a09', 'a10', 'a12', 'b', 'c1-1x', 'c1-2x']
    """
    found = []
    for entry in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        if (match := re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", entry)) is None:
            found.append(entry)
            continue
        before, numbers, after = match.groups()
        for part in numbers.split(","):
            low, _, high = part.partition("-")
            for number in range(int(low), int(high or low) + 1):
                found += expand_node_list(f"{before}{number:0{len(low)}}{after}")
    return found


def _tpu_pod(env: Mapping[str, str], devices: tuple[int, ...] | None) -> ClusterSpec | None:
    """Hosts of a TPU slice, or of several slices, as the variables of GKE give them."""
    hosts = [host for host in env.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    several = "MEGASCALE_NUM_SLICES"
    slices = _number(env, several) if several in env else 1
    if max(len(hosts), 1) * slices < 2:
        return None
    wanted = ["TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"]
    if slices > 1:
        wanted += ["MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_SLICE_ID"]
    if missing := [name for name in wanted if not env.get(name)]:
        raise ClusterError(
            f"the variables of a TPU pod name {len(hosts)} host(s) of each of {slices} slice(s), and lack "
            f"{' and '.join(missing)}. {ALONE}"
        )
    worker = _number(env, "TPU_WORKER_ID", len(hosts))
    if slices == 1:
        return ClusterSpec(worker, len(hosts), hosts[0], TPU_PORT, tuple(hosts), devices)
    first = env["MEGASCALE_COORDINATOR_ADDRESS"].partition(":")[0]
    index = _number(env, "MEGASCALE_SLICE_ID", slices) * len(hosts) + worker
    return ClusterSpec(index, slices * len(hosts), first, TPU_PORT, devices=devices)


def has_tpu() -> bool:
    """Whether this machine has TPU chips, without waking them."""
    return any(Path(device).exists() for device in TPU_DEVICES)


def ask_metadata(key: str) -> str:
    """An attribute of a Google Cloud machine; raises OSError elsewhere."""
    request = urllib.request.Request(METADATA + key, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(request, timeout=METADATA_SECONDS) as answer:
        return answer.read().decode()


def tpu_vm_variables(ask: Callable[[str], str] = ask_metadata) -> dict[str, str]:
    """What GKE says in variables, on a TPU VM, which has it in its metadata; nothing elsewhere.

    Workers are listed as addresses or as name:id:address; `tpu-env` holds lines such as MEGASCALE_SLICE_ID: '1'.
    """
    try:
        found = {
            "TPU_WORKER_ID": ask("agent-worker-number"),
            "TPU_WORKER_HOSTNAMES": ",".join(
                worker.split(":")[-1] for worker in ask("worker-network-endpoints").split(",")
            ),
        }
        for line in ask("tpu-env").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip().startswith("MEGASCALE_"):
                found[name.strip()] = value.strip().strip("'")
    except OSError:
        return {}
    return found
