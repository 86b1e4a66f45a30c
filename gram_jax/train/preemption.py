"""Being asked to stop: Ctrl-C and SIGTERM end the run after the step that is being computed, on all processes alike."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.cluster.lifeline import end_process
from gram_jax.errors import RESTART
from gram_jax.sharding import MESH_AXES, Placement

# What is put to the vote; the larger wins.
NAMES = {0: None, 1: "Ctrl-C", 2: "SIGTERM"}
STATUS = {"Ctrl-C": 130, "SIGTERM": RESTART}


class StopRequest:
    """While entered, the first Ctrl-C or SIGTERM only sets `name`; a second Ctrl-C acts at once.

    grace: seconds after SIGTERM after which the process ends itself, saved or not, as whoever sent it would do a
    moment later without leaving time for a message. Outside of the main thread, where Python allows no handlers, it
    never becomes set.
    """

    def __init__(self, grace: float | None = None) -> None:
        self.name: str | None = None
        self.grace = grace
        self._timer: threading.Timer | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._before[kind] = signal.signal(kind, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python, which it cannot set again
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._timer is not None:
            self._timer.cancel()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = NAMES[1] if number == signal.SIGINT else NAMES[2]
        if number == signal.SIGTERM and self.grace is not None and self._timer is None:
            message = (
                f"not ready within the {self.grace:g} s of grace after SIGTERM: the step in progress is given up. "
                "Start the same command again: it goes on from the last checkpoint"
            )
            self._timer = threading.Timer(self.grace, end_process, (message, RESTART))
            self._timer.daemon = True
            self._timer.start()


class Vote:
    """Whether any process was asked to stop: all of them learn it at the same point of the program.

    One tiny collective per step, sent to the devices behind the step and read with the step's metrics, so that nobody
    waits for it.
    """

    def __init__(self, stop: StopRequest, placement: Placement):
        self.stop = stop
        self._alone = jax.process_count() == 1
        self._spread = jax.sharding.NamedSharding(
            placement.mesh, jax.sharding.PartitionSpec(MESH_AXES)
        )
        self._size = placement.mesh.size
        self._highest = jax.jit(jnp.max, out_shardings=placement.sharding())

    def cast(self) -> Any:
        """This process's voice; for `read`."""
        if self._alone:
            return None
        mine = next(number for number, name in NAMES.items() if name == self.stop.name)
        voices = jax.make_array_from_callback(
            (self._size,),
            self._spread,
            lambda at: np.full(len(range(*at[0].indices(self._size))), mine, np.int32),
        )
        return self._highest(voices)

    def read(self, cast: Any) -> str | None:
        """ "SIGTERM", "Ctrl-C" or None, the same on every process."""
        return self.stop.name if self._alone else NAMES[int(cast)]

    def now(self) -> str | None:
        """Cast and read, which waits for the others."""
        return self.read(self.cast())
