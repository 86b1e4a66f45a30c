"""This process in its job: joining, reporting and leaving."""

import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax

from gram_jax.distributed.cluster import ClusterSpec
from gram_jax.distributed.heartbeat import Heartbeat, exit_process
from gram_jax.errors import ClusterError, GramError, StoppedError
from gram_jax.version import installed_version

# A collective fails in the moment in which its peer dies; the heartbeat says within this time whose fault it was.
BLAME_SECONDS = 5.0


@dataclass(frozen=True)
class ProcessContext:
    """One process of a job; the only one where `heartbeat` is None.

    grace: seconds from SIGTERM until the process has to be gone. stuck_after: seconds without any progress after
    which it ends itself. None: no limit.
    """

    heartbeat: Heartbeat | None = None
    grace: float | None = None
    stuck_after: float | None = None

    @property
    def index(self) -> int:
        """Which process of the job this is; known before JAX is asked."""
        return 0 if self.heartbeat is None else self.heartbeat.place.index

    def report(self, activity: str) -> None:
        """What this process does now: the others log it if this process is lost."""
        if self.heartbeat is not None:
            self.heartbeat.activity = activity

    def abort_others(self, message: str, status: int) -> None:
        """End the others of the job: this process is about to end with `status`."""
        if self.heartbeat is not None:
            self.heartbeat.abort(message, status)

    def abort(self, message: str, status: int) -> None:
        """End the whole job at once, from any thread: the others with the same message and status."""
        self.abort_others(message, status)
        exit_process(message, status)

    def activities(self) -> str:
        """What every process was doing when it was last heard of; nothing for one process."""
        return "" if self.heartbeat is None else self.heartbeat.activities()


@contextmanager
def distributed_session(
    place: ClusterSpec | None,
    *,
    devices: tuple[int, ...] | None,
    join_timeout: float,
    lost_after: float,
    grace: float | None,
    stuck_after: float | None,
) -> Iterator[ProcessContext]:
    """Be a member of the job for the block; call before JAX looks for devices.

    devices: the GPUs of this machine that a job of one process takes, None for all; of several, `place` says it.
    In a job of several processes no exception leaves the block: an error is told to the others and ends this process
    and them, since the way out of Python would wait for processes that are gone. Raises ClusterError if the job
    does not come together, or has not the devices that it asked for.
    """
    if place is None:
        if devices is not None:
            _choose_gpus(devices)
            _check_devices(devices)
        yield ProcessContext(None, grace, stuck_after)
        return
    heartbeat = Heartbeat(place, _versions(), join_timeout=join_timeout, lost_after=lost_after)
    heartbeat.join()
    context = ProcessContext(heartbeat, grace, stuck_after)
    try:
        heartbeat.activity = "starting JAX"
        _start_jax(place, join_timeout, lost_after)
        if place.devices is not None:
            _check_devices(place.devices)
        heartbeat.activity = "preparing"
        yield context
        jax.distributed.shutdown()
    except StoppedError as stopped:  # all processes alike
        sys.stdout.flush()
        if place.index == 0:
            print(f"warning: {stopped}", file=sys.stderr, flush=True)
        jax.distributed.shutdown()
        heartbeat.deregister()
        sys.exit(stopped.status)
    except GramError as error:
        context.abort(str(error), error.status)
    except BaseException as error:
        heartbeat.activity = f"failing with {type(error).__name__}"
        time.sleep(BLAME_SECONDS)  # a lost peer ends this process here
        traceback.print_exc()
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        heartbeat.abort(f"{type(error).__name__}: {str(error)[:500]}", status)
        exit_process(f"{type(error).__name__}: the traceback is above", status)
    heartbeat.deregister()


def _start_jax(place: ClusterSpec, join_timeout: float, lost_after: float) -> None:
    """jax.distributed, at the port above the heartbeat's. Raises ClusterError if that is taken."""
    # Our own handlers decide what SIGTERM means (distributed/preemption.py).
    jax.config.update("jax_enable_preemption_service", False)
    if place.index == 0:
        _check_port(place.port + 1)
    jax.distributed.initialize(
        f"{place.host}:{place.port + 1}",
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(join_timeout),
        # The heartbeat is to be the first to notice.
        heartbeat_timeout_seconds=int(max(100, 3 * lost_after)),
    )


def _check_port(port: int) -> None:
    """JAX listens at all addresses; where it cannot, it ends with a segmentation fault (JAX 0.10.2)."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise ClusterError(
            f"JAX needs port {port} on {socket.gethostname()}, the one above --coordinator's, and cannot listen there "
            f"({error.strerror or error}): another job or program may use it; give another --coordinator"
        ) from error


def _choose_gpus(devices: tuple[int, ...]) -> None:
    """What jax.distributed.initialize does for a job of several processes."""
    visible = ",".join(str(index) for index in devices)
    jax.config.update("jax_cuda_visible_devices", visible)
    jax.config.update("jax_rocm_visible_devices", visible)


def _check_devices(devices: tuple[int, ...]) -> None:
    """Whether JAX took the GPUs that were asked for. Where the platform "cpu" was stated there are none to choose."""
    if jax.config.jax_platforms == "cpu":  # pyright: ignore[reportAttributeAccessIssue]
        return
    asked = f"--local-devices {','.join(str(index) for index in devices)} (or JAX_LOCAL_DEVICE_IDS)"
    try:
        found = jax.local_devices()
    except RuntimeError as error:
        raise ClusterError(f"{asked}: JAX cannot use these GPUs: {error}") from error
    if found[0].platform != "gpu":
        raise ClusterError(
            f"{asked} chooses among the GPUs of a machine, and JAX found {found[0].device_kind}: leave it away (of TPU "
            "chips TPU_VISIBLE_CHIPS chooses); to run on the CPU set JAX_PLATFORMS=cpu"
        )
    if len(found) != len(devices):
        raise ClusterError(f"{asked}: expected {len(devices)} GPUs, JAX found {len(found)}")


def _versions() -> dict[str, str]:
    return {"gram_jax": installed_version(), "jax": jax.__version__}
