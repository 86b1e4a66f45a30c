"""Python programs in processes forked from one that has imported the package: imports take seconds each time."""

import atexit
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

FORKS = multiprocessing.get_context("forkserver")
# No back end of JAX is started by them: devices and flags are those of the forked process.
FORKS.set_forkserver_preload(
    [
        "matplotlib.backends.backend_agg",
        "pytest",
        "transformers.tokenization_utils_tokenizers",
        "gram_jax.cli",
        "gram_jax.adaptation.adapt",
        "gram_jax.rl.loop",
        "gram_jax.training.loop",
    ]
)


class Fork:
    """`python -c CODE WORDS` with these environment variables, in `folder`; what tests use of `subprocess.Popen`.

    Of the variables that a library reads when it is imported, JAX_COMPILATION_CACHE_DIR alone has an effect.
    """

    def __init__(
        self,
        code: str,
        words: Sequence[str],
        variables: Mapping[str, str],
        folder: Path,
        output: Path,
        errors: Path | None = None,
    ):
        """errors: where standard error is written; default: `output`."""
        given = (
            code,
            list(words),
            dict(variables),
            str(folder),
            str(output),
            errors and str(errors),
        )
        for path in filter(None, (output, errors)):
            path.touch()
        self._process = FORKS.Process(target=_run, args=given, daemon=True)  # ends with this one
        self._process.start()
        self.pid, self.output = self._process.pid, output

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        if self.poll() is None:
            self._process.kill()


def _run(
    code: str,
    words: list[str],
    variables: dict[str, str],
    folder: str,
    output: str,
    errors: str | None,
) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    with open(output, "wb") as one, open(errors or os.devnull, "wb") as other:
        os.dup2(one.fileno(), 1)
        os.dup2(other.fileno() if errors else 1, 2)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    sys.argv = ["-c", *words]
    jax.config.update("jax_compilation_cache_dir", variables.get("JAX_COMPILATION_CACHE_DIR"))
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # a forked process ends without them
