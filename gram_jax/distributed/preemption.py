"""Stop requests: after Ctrl-C or SIGTERM the run ends after the current step, on all processes alike."""

import signal
import socket
import threading
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.distributed.process import ProcessContext
from gram_jax.errors import RESTART
from gram_jax.sharding import MESH_AXES, Placement

# Requests by number. The processes take the maximum of their numbers.
NAMES = {0: None, 1: "Ctrl-C", 2: "SIGTERM"}
STATUS = {"Ctrl-C": 130, "SIGTERM": RESTART}


class StopRequest:
    """While entered, Ctrl-C and SIGTERM set `name` and do not end the process at once.

    Before `begin` there is nothing to save: SIGTERM ends the job with status RESTART, Ctrl-C raises KeyboardInterrupt.
    After `begin`, a second Ctrl-C raises KeyboardInterrupt. process.grace seconds after SIGTERM the job ends, saved or
    not, because the scheduler would kill it shortly after, without a message.

    A thread receives SIGTERM, because Python runs no handler while its main thread compiles or waits for a device.
    Outside of the main thread Python allows no handlers, and `name` stays None.
    """

    def __init__(self, process: ProcessContext) -> None:
        self.name: str | None = None
        self._process = process
        self._begun = False
        self._over = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def begin(self) -> None:
        """State that there is something to save from now on."""
        self._begun = True

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._before[kind] = signal.signal(kind, self._note)
            self._heard, self._told = socket.socketpair()  # a byte for each signal, at once
            self._told.setblocking(False)
            self._told_before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._listen, name="gram-jax-sigterm", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if not self._before:
            return
        signal.set_wakeup_fd(self._told_before)
        for number, handler in self._before.items():
            # None: the handler was not set from Python, which cannot set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._told.close()  # the thread ends

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.name is not None or not self._begun):
            raise KeyboardInterrupt
        self.name = NAMES[1] if number == signal.SIGINT else NAMES[2]

    def _listen(self) -> None:
        heard_before = False
        with self._heard:
            while byte := self._heard.recv(1):  # b"" when the other end is closed
                if byte == bytes([signal.SIGTERM]) and not heard_before:
                    heard_before = True  # schedulers repeat it
                    self._act_on_sigterm()

    def _act_on_sigterm(self) -> None:
        grace, again = self._process.grace, "Start the same command again"
        if not self._begun:
            self._process.abort(
                f"stopped by SIGTERM before the first step: there is nothing to save yet. {again}",
                RESTART,
            )
        elif grace is not None and not self._over.wait(grace):
            self._process.abort(
                f"not finished within the {grace:g} s of grace after SIGTERM: the current step is not saved. {again}: "
                "it resumes from the last checkpoint",
                RESTART,
            )


class StopSync:
    """Exchange of stop requests: all processes receive the same request at the same point of the program.

    It is one small collective per step, dispatched after the step and read with the step's metrics, so that the host
    does not wait for it.
    """

    def __init__(self, stop: StopRequest, placement: Placement):
        self.stop = stop
        self._alone = jax.process_count() == 1
        self._spread = jax.sharding.NamedSharding(
            placement.mesh, jax.sharding.PartitionSpec(MESH_AXES)
        )
        self._size = placement.mesh.size
        self._highest = jax.jit(jnp.max, out_shardings=placement.sharding())

    def send(self) -> Any:
        """Dispatch this process's request; returns what `receive` takes."""
        if self._alone:
            return None
        mine = next(number for number, name in NAMES.items() if name == self.stop.name)

        def part(at: Any) -> np.ndarray:
            return np.full(len(range(*at[0].indices(self._size))), mine, np.int32)

        return self._highest(jax.make_array_from_callback((self._size,), self._spread, part))

    def receive(self, sent: Any) -> str | None:
        """ "SIGTERM", "Ctrl-C" or None, the same on every process."""
        return self.stop.name if self._alone else NAMES[int(sent)]

    def check(self) -> str | None:
        """Send and receive, which waits for the other processes."""
        return self.receive(self.send())
