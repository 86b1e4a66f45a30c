"""The index of this process and the address of process 0, from options, Slurm or the variables of a TPU pod."""

import logging
import re
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gram_jax.errors import ClusterError

logger = logging.getLogger(__name__)

TPU_PORT = 12380  # of process 0: TPU pods state hosts but no port
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
METADATA_SECONDS = 3.0
OPTIONS = (
    "Give --coordinator, --processes and --process; or --cluster none for a job of one process"
)
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")


@dataclass(frozen=True)
class ClusterSpec:
    """Process `index` of `count`; process 0 listens at host:port, and at port + 1 for JAX.

    hosts: those of all processes, if the scheduler states them. devices: indices of local accelerators, None for all.
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
    """This process from the options, or from the variables of Slurm or a TPU pod; None for a job of one process.

    Raises ClusterError if options or variables are incomplete or out of range.
    """
    options = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in options.items() if value is None]
    if len(missing) == len(options):
        return _slurm(environment, devices) or _tpu_pod(environment, devices)
    if coordinator is None or processes is None or process is None:
        raise ClusterError(
            f"{' and '.join(missing)} missing: a process of a job needs all of {', '.join(options)} (or the variables "
            "GRAM_JAX_COORDINATOR, GRAM_JAX_PROCESSES and GRAM_JAX_PROCESS)"
        )
    if not 0 <= process < processes:
        raise ClusterError(
            f"--process {process} of --processes {processes}: expected a number from 0 to {processes - 1}"
        )
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65535:
        raise ClusterError(
            f"--coordinator {coordinator!r}: expected host:port of process 0, such as node-1:12380"
        )
    if processes == 1:
        return None
    return ClusterSpec(process, processes, host.strip("[]"), int(port), devices=devices)


def launcher_place(environment: Mapping[str, str]) -> tuple[str | None, int | None, int | None]:
    """--coordinator, --processes and --process from the variables GRAM_JAX_...; None for those that are not set."""
    numbers = [
        _number(environment, name) if environment.get(name) else None
        for name in ("GRAM_JAX_PROCESSES", "GRAM_JAX_PROCESS")
    ]
    return environment.get("GRAM_JAX_COORDINATOR"), numbers[0], numbers[1]


def parse_device_ids(text: str | None) -> tuple[int, ...] | None:
    """Indices of accelerators written as "0,1"; None for all of them."""
    if text is None:
        return None
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() for number in numbers) or len({*numbers}) < len(numbers):
        raise ClusterError(f"--local-devices {text!r}: expected different numbers such as 0,1")
    return tuple(int(number) for number in numbers)


def _number(env: Mapping[str, str], name: str, stop: int | None = None) -> int:
    """A variable as a number from 0 to stop - 1."""
    value = env[name].strip()
    if not value.isdecimal() or (stop is not None and int(value) >= stop):
        wanted = "a number" if stop is None else f"a number from 0 to {stop - 1}"
        raise ClusterError(f"{name} = {env[name]!r}: expected {wanted}. {OPTIONS}")
    return int(value)


def _slurm(env: Mapping[str, str], devices: tuple[int, ...] | None) -> ClusterSpec | None:
    """A step (srun) of several tasks."""
    tasks = "SLURM_STEP_NUM_TASKS" if env.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    # A batch script outside of a step has no SLURM_STEP_NODELIST.
    needed = ("SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
    if any(name not in env for name in needed) or not env.get(tasks):
        return None
    if (count := _number(env, tasks)) < 2:
        return None
    text = env["SLURM_STEP_NODELIST"]
    try:
        nodes = expand_node_list(text)
        head = nodes[0]
    except (ValueError, IndexError):
        raise ClusterError(
            f"SLURM_STEP_NODELIST = {text!r}: expected node names such as n[01-04]. {OPTIONS}"
        ) from None
    index = _number(env, "SLURM_PROCID", count)
    # Even, and different for the jobs of a node; JAX uses the next port.
    port = 16384 + 2 * (_number(env, "SLURM_JOB_ID") % 8192)
    hosts = tuple(nodes) if count == len(nodes) else ()
    if devices is None:
        devices = _slurm_gpus(env, count // len(nodes))
    return ClusterSpec(index, count, head, port, hosts, devices)


def _slurm_gpus(env: Mapping[str, str], tasks: int) -> tuple[int, ...] | None:
    """The GPUs of this task, as indices of those that it sees; None if it has none. `tasks`: on a node, if not stated.

    With --gpus-per-task or --gpu-bind a task sees its own GPUs only, and takes all of them. Otherwise all tasks of a
    node see the same GPUs, and each takes an equal share. A process can use one MIG device only, the first it sees.
    Raises ClusterError if tasks are left without a GPU; logs the number of GPUs that no task uses.
    """
    listed = env.get("CUDA_VISIBLE_DEVICES") or env.get("ROCR_VISIBLE_DEVICES") or ""
    visible = [name for name in listed.split(",") if name.strip()]
    if "SLURM_STEP_TASKS_PER_NODE" in env and "SLURM_NODEID" in env:
        counts = expand_counts(env["SLURM_STEP_TASKS_PER_NODE"])
        tasks = counts[_number(env, "SLURM_NODEID", len(counts))]
    allocated = len(visible)
    if "SLURM_GPUS_ON_NODE" in env:
        allocated = _number(env, "SLURM_GPUS_ON_NODE")
    elif per_task := re.fullmatch(r"(?:.*:)?(\d+)", env.get("SLURM_GPUS_PER_TASK", "")):
        allocated = tasks * int(per_task[1])
    seen = len(visible) or allocated  # --gpu-bind=none sets no variable
    if not seen or "SLURM_LOCALID" not in env:
        return None
    local, mig = _number(env, "SLURM_LOCALID", tasks), listed.startswith("MIG-")
    bound = tasks == 1 or seen < allocated
    share = seen if bound else seen // tasks
    if mig and not bound:
        raise ClusterError(
            f"{tasks} tasks of a node see the same {seen} MIG devices, and a process can only use the first that it "
            "sees: give --gpus-per-task=1"
        )
    if not share:
        raise ClusterError(
            f"{tasks} tasks of a node have {seen} GPUs: expected at least one for each. Give --ntasks-per-node={seen}"
        )
    first, used = (0 if bound else local * share), (1 if mig else share)
    if (idle := allocated - tasks * used) > 0 and local == 0:
        name = env.get("SLURMD_NODENAME", "a node")
        logger.warning(
            f"{idle} of the job's {allocated} GPUs on {name} are idle: {tasks} task(s), {used} each"
        )
    return tuple(range(first, first + used))


def expand_counts(text: str) -> list[int]:
    """Numbers of Slurm's short form.

    >>> expand_counts("4(x2),1")
    [4, 4, 1]
    """
    found = []
    for entry in text.split(","):
        if (match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry.strip())) is None:
            raise ClusterError(
                f"SLURM_STEP_TASKS_PER_NODE = {text!r}: expected numbers such as 4(x2),1. {OPTIONS}"
            )
        found += [int(match[1])] * int(match[2] or 1)
    return found


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
    """The hosts of one TPU slice or several, from the variables of GKE."""
    hosts = [host for host in env.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    slices = _number(env, "MEGASCALE_NUM_SLICES") if "MEGASCALE_NUM_SLICES" in env else 1
    if max(len(hosts), 1) * slices < 2:
        return None
    needed = ["TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"]
    if slices > 1:
        needed += ["MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_SLICE_ID"]
    if missing := [name for name in needed if not env.get(name)]:
        raise ClusterError(
            f"the variables of a TPU pod name {len(hosts)} hosts in each of {slices} slices, but not "
            f"{' and '.join(missing)}. {OPTIONS}"
        )
    worker = _number(env, "TPU_WORKER_ID", len(hosts))
    if slices == 1:
        return ClusterSpec(worker, len(hosts), hosts[0], TPU_PORT, tuple(hosts), devices)
    first = env["MEGASCALE_COORDINATOR_ADDRESS"].partition(":")[0]
    index = _number(env, "MEGASCALE_SLICE_ID", slices) * len(hosts) + worker
    return ClusterSpec(index, slices * len(hosts), first, TPU_PORT, devices=devices)


def has_tpu() -> bool:
    """Whether this machine has TPU chips; does not initialise them."""
    return any(Path(device).exists() for device in TPU_DEVICES)


def read_metadata(key: str) -> str:
    """An attribute of a Google Cloud machine. Raises OSError on other machines."""
    request = urllib.request.Request(METADATA + key, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(request, timeout=METADATA_SECONDS) as answer:
        return answer.read().decode()


def tpu_vm_variables(read: Callable[[str], str] = read_metadata) -> dict[str, str]:
    """The variables of GKE from the metadata of a TPU VM; {} on other machines.

    Workers are listed as addresses or as name:id:address; `tpu-env` holds lines such as MEGASCALE_SLICE_ID: '1'.
    """
    try:
        found = {
            "TPU_WORKER_ID": read("agent-worker-number"),
            "TPU_WORKER_HOSTNAMES": ",".join(
                worker.split(":")[-1] for worker in read("worker-network-endpoints").split(",")
            ),
        }
        for line in read("tpu-env").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip().startswith("MEGASCALE_"):
                found[name.strip()] = value.strip().strip("'")
    except OSError:
        return {}
    return found
