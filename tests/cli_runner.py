"""Commands of `gram-jax`, run inside the test's process."""

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

from gram_jax.cli import run_command


class Result(NamedTuple):
    """What a command left: its exit status, what it printed, and what it printed as errors."""

    status: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def run_cli(*words: object) -> Result:
    """Run `gram-jax WORDS`; a bug passes as its exception."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run_command([str(word) for word in words])
    return Result(status, out.getvalue(), err.getvalue())
