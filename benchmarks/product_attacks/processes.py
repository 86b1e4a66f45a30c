"""Commands of gram-jax in forked processes of one that has imported everything and started no device."""

import gc
import importlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from gram_jax.cli import run_command

# Imported once, in the process that is forked.
HEAVY = """
    gram_jax.adaptation.adapt gram_jax.attacks.evaluate gram_jax.evals.best_of_n gram_jax.evals.curation_card
    gram_jax.evals.evaluate gram_jax.evals.thinking gram_jax.interop.hf_export gram_jax.reports.report gram_jax.rl.loop
    gram_jax.scoring.files gram_jax.scoring.group gram_jax.scoring.rationales gram_jax.scoring.remote
    gram_jax.training.loop matplotlib.backends.backend_agg matplotlib.pyplot
    transformers.models.auto.tokenization_auto transformers.models.llama.configuration_llama
"""
SECONDS = 300.0  # of one command


def prepare_forks(base: Path) -> None:
    """Import what the commands need. Their programs are compiled once, into a cache in this folder."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(base / "xla")
    jax.config.update("jax_compilation_cache_dir", str(base / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    logging.getLogger("absl").setLevel(logging.ERROR)
    os.environ["XDG_CACHE_HOME"] = str(base / "cache")
    for module in HEAVY.split():
        importlib.import_module(module)
    gc.freeze()  # the forks do not search these objects


class Done(NamedTuple):
    """status: None if it was killed. rss: peak memory in MB."""

    status: int | None
    text: str
    seconds: float
    rss: float

    @property
    def is_bug(self) -> bool:
        return self.status not in (None, 0, 2, 75, 130) or "Traceback" in self.text


class Child:
    """A command in a forked process."""

    def __init__(self, words: Sequence[object], log: Path):
        self._log, self._start = log, time.monotonic()
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            with log.open("w") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            status = run_command([str(word) for word in words])
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self, seconds: float = SECONDS) -> Done | None:
        """How it ended; None if it still runs after this time."""
        deadline = time.monotonic() + seconds
        while True:
            found, status, usage = os.wait4(self.pid, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                return self._done(None if code < 0 else code, usage.ru_maxrss / 1e3)
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)

    def end(self, seconds: float = SECONDS) -> Done:
        """How it ended; one that does not end within this time is killed, with status 99: a bug."""
        try:
            return self.wait(seconds) or self.kill()._replace(status=99)
        except BaseException:  # the time of the attack is up
            self.kill()
            raise

    def kill(self) -> Done:
        """End it by SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        _, _, usage = os.wait4(self.pid, 0)
        return self._done(None, usage.ru_maxrss / 1e3)

    def _done(self, status: int | None, rss: float) -> Done:
        text = self._log.read_text(errors="replace")
        return Done(status, text, time.monotonic() - self._start, rss)


def run(words: Sequence[object], log: Path) -> Done:
    """Run a command to its end."""
    return Child(words, log).end()
