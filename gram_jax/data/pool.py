"""A pool of processes that import what their function needs, and nothing else.

The processes of `multiprocessing` import the main module of the program first, and with it JAX; and a fork of a process
that has started JAX may deadlock.
"""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from gram_jax.errors import DataError, GramError


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProcessPool:
    """`count` processes that apply one function. A context manager; the processes end with the block, or its process.

    function: picklable, of one picklable argument.
    """

    def __init__(self, function: Callable[[Any], Any], count: int):
        # One core each: the tokenizers' own threads would compete.
        own = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "RAYON_NUM_THREADS": "1"}
        self._workers = [
            subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **own, "TOKENIZERS_PARALLELISM": "false"},
            )
            for _ in range(count)
        ]
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(count, "gram-jax-pool")
        for worker in self._workers:
            self._threads.submit(self._start, worker, function)

    def _start(self, worker: "subprocess.Popen[bytes]", function: Callable[[Any], Any]) -> None:
        try:
            _send(worker, function)
        finally:
            self._idle.put(worker)  # a process that has ended is reported by its first argument

    def map(self, arguments: Iterable[Any]) -> Iterator[Any]:
        """The results in the order of the arguments, of which a few are taken ahead.

        Raises the GramError that the function raised, and DataError if a process ends or the function fails otherwise.
        """
        waiting = deque[Any]()
        for argument in arguments:
            waiting.append(self._threads.submit(self._apply, argument))
            if len(waiting) > 2 * len(self._workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _apply(self, argument: Any) -> Any:
        worker = self._idle.get()
        assert worker.stdout is not None
        try:
            _send(worker, argument)
            result, error = pickle.load(worker.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise _ended(worker) from None
        finally:
            self._idle.put(worker)
        if error is not None:
            raise error
        return result

    def __enter__(self) -> "ProcessPool":
        return self

    def __exit__(self, kind: type | None, error: object, where: TracebackType | None) -> None:
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.communicate()


def _send(worker: "subprocess.Popen[bytes]", value: Any) -> None:
    assert worker.stdin is not None
    try:
        pickle.dump(value, worker.stdin, pickle.HIGHEST_PROTOCOL)
        worker.stdin.flush()
    except BrokenPipeError:
        raise _ended(worker) from None


def _ended(worker: "subprocess.Popen[bytes]") -> DataError:
    return DataError(
        f"a process that encodes examples ended with status {worker.wait()}. If the system stopped it for lack "
        "of memory (status -9), set data.num_workers to a smaller number; finished shards are kept"
    )


def main() -> None:
    """The loop of a process: read arguments from stdin, write results to stdout."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent ends this process
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the function prints must not be read as a result
    arguments = sys.stdin.buffer
    function = pickle.load(arguments)
    while True:
        try:
            argument = pickle.load(arguments)
        except EOFError:
            return
        try:
            outcome = function(argument), None
        except GramError as error:
            outcome = None, error
        except Exception:
            outcome = None, DataError(f"encoding failed:\n{traceback.format_exc()}")
        try:
            pickle.dump(outcome, results, pickle.HIGHEST_PROTOCOL)
            results.flush()
        except BrokenPipeError:
            os._exit(1)


if __name__ == "__main__":
    main()
