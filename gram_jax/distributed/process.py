"""This process in its job: join, report activity, leave."""

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

# An error may follow from a lost peer, whose collectives fail at once. Within this time the heartbeat reports the lost
# process and ends this one. A GramError rarely follows from one, so it waits less.
LOST_PEER_SECONDS = 5.0
LOST_PEER_SECONDS_OF_OWN_ERRORS = 1.0


@dataclass(frozen=True)
class ProcessContext:
    """One process of a job; the only one if `heartbeat` is None.

    grace: seconds from SIGTERM to the end of the process. stuck_after: seconds without progress after which it ends
    itself. None: no limit.
    """

    heartbeat: Heartbeat | None = None
    grace: float | None = None
    stuck_after: float | None = None

    @property
    def index(self) -> int:
        """The number of this process, also before JAX is initialised."""
        return 0 if self.heartbeat is None else self.heartbeat.place.index

    @property
    def alone(self) -> bool:
        """Whether this is the only process, without initialising JAX."""
        return self.heartbeat is None

    def report(self, activity: str) -> None:
        """Send the current activity to the other processes; they log it if this process is lost."""
        if self.heartbeat is not None:
            self.heartbeat.activity = activity

    def abort_others(self, message: str, status: int) -> None:
        """End the other processes of the job: this one is about to end with `status`."""
        if self.heartbeat is not None:
            self.heartbeat.abort(message, status)

    def abort(self, message: str, status: int) -> None:
        """End the whole job at once, from any thread, with one message and status."""
        self.abort_others(message, status)
        exit_process(message, status)

    def activities(self) -> str:
        """The last known activity of every process; "" for a single one."""
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
    """Join the job for the block, before JAX initialises its devices.

    devices: the GPUs of a job of one process, None for all; for several processes `place` states them. In a job of
    several processes no exception propagates out of the block: an error ends this process and the others, because
    Python's normal exit would wait for lost processes. Raises ClusterError if a process does not join or devices are
    missing.
    """
    if place is None:
        if devices is not None:
            for platform in (
                "cuda",
                "rocm",
            ):  # as jax.distributed.initialize does for several processes
                jax.config.update(f"jax_{platform}_visible_devices", ",".join(map(str, devices)))
            _check_devices(devices)
        yield ProcessContext(None, grace, stuck_after)
        return
    versions = {"gram_jax": installed_version(), "jax": jax.__version__}
    heartbeat = Heartbeat(place, versions, join_timeout=join_timeout, lost_after=lost_after)
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
        time.sleep(LOST_PEER_SECONDS_OF_OWN_ERRORS)
        context.abort(str(error), error.status)
    except BaseException as error:
        heartbeat.activity = f"failing with {type(error).__name__}"
        time.sleep(LOST_PEER_SECONDS)  # if a peer is lost, the heartbeat ends this process here
        traceback.print_exc()
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        heartbeat.abort(f"{type(error).__name__}: {str(error)[:500]}", status)
        exit_process(f"{type(error).__name__}: the traceback is above", status)
    heartbeat.deregister()


def _start_jax(place: ClusterSpec, join_timeout: float, lost_after: float) -> None:
    """Start jax.distributed at the port above the heartbeat's. Raises ClusterError if it is taken."""
    # SIGTERM is handled in distributed/preemption.py.
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
        # Longer than the heartbeat, whose message names the lost process.
        heartbeat_timeout_seconds=int(max(100, 3 * lost_after)),
    )
    if jax.default_backend() == "cpu":
        # XLA's CPU programs lose the order of their collectives in the compilation cache: devices then run them in
        # different orders and deadlock (JAX 0.10.2: 6 of 16 jobs of two processes, 0 of 15 without).
        jax.config.update("jax_enable_compilation_cache", False)


def _check_port(port: int) -> None:
    """JAX listens at all addresses; if it cannot, it ends with a segmentation fault (JAX 0.10.2)."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise ClusterError(
            f"JAX needs port {port} on {socket.gethostname()}, the one above --coordinator's, and cannot listen there "
            f"({error.strerror or error}): another job or program may use it; give another --coordinator"
        ) from error


def _check_devices(devices: tuple[int, ...]) -> None:
    """Raises ClusterError if JAX does not use these GPUs; returns if the platform is "cpu" by configuration."""
    if jax.config.jax_platforms == "cpu":  # pyright: ignore[reportAttributeAccessIssue]
        return
    listed = ",".join(map(str, devices))
    asked = f"GPUs {listed} (by --local-devices, JAX_LOCAL_DEVICE_IDS or Slurm)"
    try:
        found = jax.local_devices()
    except RuntimeError as error:
        raise ClusterError(f"{asked}: JAX cannot use them: {error}") from error
    if found[0].platform != "gpu":
        raise ClusterError(
            f"{asked}: expected GPUs, JAX found {found[0].device_kind}: install gram-jax[cuda12] or [cuda13], or "
            "omit the option (for TPU chips set TPU_VISIBLE_CHIPS); to run on the CPU set JAX_PLATFORMS=cpu"
        )
    if len(found) != len(devices):
        raise ClusterError(f"{asked}: expected {len(devices)} GPUs, JAX found {len(found)}")
