"""Watchdog: ends a process that makes no progress, because the job would otherwise wait without a time limit."""

import faulthandler
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from gram_jax.distributed.heartbeat import exit_process
from gram_jax.distributed.process import ProcessContext
from gram_jax.errors import LOST

# Time for writing the stacks to the run's directory. The processes of a job time out at about the same moment, and the
# stacks of any of them may show the cause, so each waits this long before it ends the others.
REPORT_SECONDS = 5.0


class Watchdog:
    """While entered: after process.stuck_after seconds without a `beat`, print the stacks of all threads, write them to
    `report` and end the job with status LOST.

    Every activity that may hang begins with a beat: reading data, compiling, loading weights, every step,
    evaluation, save.
    """

    def __init__(self, process: ProcessContext, report: Path):
        self.process, self.report = process, report
        self._activity, self._since = "the start", time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gram-jax-watchdog", daemon=True)

    def beat(self, activity: str) -> None:
        """Report progress; `activity` begins now."""
        self._activity, self._since = activity, time.monotonic()
        self.process.report(activity)

    def __enter__(self) -> "Watchdog":
        self.beat(self._activity)
        if self.process.stuck_after is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
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
        problem = f"no progress for {limit:g} s, at: {self._activity}"
        message = (
            f"{problem}. The stacks of all threads are above and in {self.report}"
            + (f". Last activity of every process:\n{others}" if others else "")
            + "\nStart the same command again: it resumes from the last checkpoint. If such steps take so long, give a "
            "larger --stuck-after"
        )
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        # In a thread, because the disk may hang.
        writing = threading.Thread(target=self._write, args=(message,), daemon=True)
        writing.start()
        deadline = time.monotonic() + REPORT_SECONDS
        writing.join(REPORT_SECONDS)
        if others:
            time.sleep(max(0.0, deadline - time.monotonic()))
        self.process.abort_others(problem, LOST)
        exit_process(message, LOST)

    def _write(self, message: str) -> None:
        with suppress(OSError), self.report.open("w") as file:
            print(message, file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
