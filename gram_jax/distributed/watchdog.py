"""A process that is alive and does nothing: JAX waits for it for ever, and so would the job."""

import faulthandler
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from gram_jax.distributed.heartbeat import exit_process
from gram_jax.distributed.process import ProcessContext
from gram_jax.errors import LOST

# To write the stacks to the run's folder. The others of a job are stuck as well, a moment sooner or later, and whose
# stack is the telling one is not known: nobody ends the job before all had this time.
REPORT_SECONDS = 5.0


class Watchdog:
    """While entered: without a `beat` for process.stuck_after seconds the stacks of all threads are printed and written
    to `report`, and the process ends with status LOST, upon which the others of its job do.

    Whatever may hang begins with a beat: reading data, compiling, loading weights, every step, evaluation and save.
    """

    def __init__(self, process: ProcessContext, report: Path):
        self.process, self.report = process, report
        self._doing, self._since = "the start", time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gram-jax-watchdog", daemon=True)

    def beat(self, doing: str) -> None:
        """There was progress; `doing` is what comes now."""
        self._doing, self._since = doing, time.monotonic()
        self.process.report(doing)

    def __enter__(self) -> "Watchdog":
        self.beat(self._doing)
        if self.process.stuck_after is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        while (limit := self.process.stuck_after) is not None:
            if self._over.wait(min(1.0, limit / 4)):
                return
            if time.monotonic() - self._since > limit:
                self._on_timeout(limit)
                return

    def _on_timeout(self, limit: float) -> None:
        others = self.process.activities()
        message = (
            f"no progress for {limit:g} s, at: {self._doing}. The stacks of all threads are above and in {self.report}"
            + (f". Every process, when last heard of:\n{others}" if others else "")
            + "\nStart the same command again: it goes on from the last checkpoint. If such steps take so long, give a "
            "larger --stuck-after"
        )
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        # The disk may be what hangs.
        writing = threading.Thread(target=self._write, args=(message,), daemon=True)
        writing.start()
        deadline = time.monotonic() + REPORT_SECONDS
        writing.join(REPORT_SECONDS)
        if others:
            time.sleep(max(0.0, deadline - time.monotonic()))
        self.process.abort_others(f"no progress for {limit:g} s, at: {self._doing}", LOST)
        exit_process(message, LOST)

    def _write(self, message: str) -> None:
        with suppress(OSError), self.report.open("w") as file:
            print(message, file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
