"""This process as a member of its job: joining and leaving."""

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import jax

from gram_jax.cluster.lifeline import Lifeline, end_process
from gram_jax.cluster.place import Place
from gram_jax.errors import GramError, StoppedError

# A collective fails in the moment in which its peer dies; the lifeline says within this time whose fault it was.
BLAME_SECONDS = 5.0


@dataclass(frozen=True)
class Member:
    """One process of a job; the only one where `lifeline` is None.

    grace: seconds from SIGTERM until the process has to be gone. stuck_after: seconds without any progress after
    which it ends itself. None: no limit.
    """

    lifeline: Lifeline | None = None
    grace: float | None = None
    stuck_after: float | None = None

    def doing(self, what: str) -> None:
        """For the messages of the others, should this process be lost."""
        if self.lifeline is not None:
            self.lifeline.doing = what

    def fail(self, message: str, status: int) -> None:
        """End the others of the job: this process is about to end with `status`."""
        if self.lifeline is not None:
            self.lifeline.fail(message, status)

    def whereabouts(self) -> str:
        """What every process was doing when it was last heard of; nothing for one process."""
        return "" if self.lifeline is None else self.lifeline.whereabouts()


@contextmanager
def joined(
    place: Place | None,
    *,
    join_timeout: float,
    lost_after: float,
    grace: float | None,
    stuck_after: float | None,
) -> Iterator[Member]:
    """Be a member of the job for the block; call before JAX looks for devices.

    In a job of several processes no exception leaves the block: an error is told to the others and ends this process
    and them, since the way out of Python would wait for processes that are gone. Raises ClusterError where the job
    does not come together.
    """
    if place is None:
        yield Member(None, grace, stuck_after)
        return
    lifeline = Lifeline(place, _versions(), join_timeout=join_timeout, lost_after=lost_after)
    lifeline.join()
    lifeline.doing = "starting JAX"
    # Our own handlers decide what SIGTERM means (train/preemption.py).
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        f"{place.host}:{place.port + 1}",
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(join_timeout),
        # The lifeline is to be the first to notice.
        heartbeat_timeout_seconds=int(max(100, 3 * lost_after)),
    )
    lifeline.doing = "preparing"
    try:
        yield Member(lifeline, grace, stuck_after)
        jax.distributed.shutdown()
    except StoppedError as stopped:  # all processes alike
        sys.stdout.flush()
        if place.index == 0:
            print(f"warning: {stopped}", file=sys.stderr, flush=True)
        jax.distributed.shutdown()
        lifeline.leave()
        sys.exit(stopped.status)
    except GramError as error:
        lifeline.fail(str(error), 2)
        end_process(str(error), 2)
    except BaseException as error:
        lifeline.doing = f"failing with {type(error).__name__}"
        time.sleep(BLAME_SECONDS)  # a lost peer ends this process here
        traceback.print_exc()
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        lifeline.fail(f"{type(error).__name__}: {str(error)[:500]}", status)
        end_process(f"{type(error).__name__}: the traceback is above", status)
    lifeline.leave()


def _versions() -> dict[str, str]:
    try:
        own = version("gram-jax")
    except PackageNotFoundError:
        own = "unknown"
    return {"gram_jax": own, "jax": jax.__version__}
