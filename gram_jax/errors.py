"""Errors that a person meets: what was expected, what was found, what to try.

The command line prints the message of any `GramError` and exits with its status; every other exception is a bug.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

# Exit statuses that ask to be started again (2 does not: it needs a person).
RESTART = 75  # stopped by SIGTERM, everything saved
LOST = 76  # a process of the job was lost, stuck or never came: it goes on from the last checkpoint

# Of every command.
STATUSES = {
    0: "done, now or before",
    1: "`plan`: it does not fit; any other command: a bug, with its traceback",
    2: "an error for a person: what was expected, what was found, what to try",
    RESTART: "stopped by SIGTERM, the state saved where there was one: start again",
    LOST: "a process of the job was lost or stuck: start again, it goes on from the last checkpoint",
    130: "stopped by Ctrl-C, with whatever was finished kept: the same command goes on",
}


class GramError(Exception):
    """Base of the errors that gram_jax raises on purpose. status: of the process that ends with it.

    >>> from gram_jax import GramError, read_records
    >>> try:
    ...     read_records("nowhere.jsonl")
    ... except GramError as error:
    ...     print(type(error).__name__, error.status)
    DataError 2
    """

    status = 2


class GramWarning(UserWarning):
    """Something that a user should know and that stops nothing; the command line logs it."""


class RecipeError(GramError):
    """A recipe, or a value in it, cannot be used."""


class DataError(GramError):
    """A source of data, or a row in it, cannot be read as what it was said to be."""


class JudgeError(GramError):
    """A template, label or tokenizer does not make a usable judge, or two judges that should agree differ."""


class LayoutError(GramError):
    """Tensors and model do not fit each other: one error lists every tensor concerned."""


class CheckpointError(GramError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class DoesNotFitError(GramError):
    """The compiled program needs more memory than the device has."""


class NonFiniteError(GramError):
    """The loss or the gradient stopped being a number; the last good state was kept."""


class ClusterError(GramError):
    """The processes of a job did not come together, or do not agree."""

    def __init__(self, message: str, status: int = 2):
        super().__init__(message)
        self.status = status


class StoppedError(GramError):
    """A run was asked to stop and saved its state; the same command goes on from there.

    status: of the process, 130 after Ctrl-C, RESTART after SIGTERM.
    """

    def __init__(self, message: str, status: int = 130):
        super().__init__(message)
        self.status = status


class MissingExtraError(GramError):
    """An optional package is not installed; the message names the extra that brings it."""


class ReportError(GramError):
    """A report or a model card cannot be made of what was given, or would replace somebody's file."""


def nearest(value: int, works: Sequence[int]) -> str:
    """The valid sizes next to a value, as part of an error message.

    >>> nearest(4, [1, 3, 9]), nearest(4, [1, 2])
    ('the nearest valid sizes are 3 and 9', 'the nearest valid size is 2')
    """
    around = [max((n for n in works if n <= value), default=None)]
    around.append(min((n for n in works if n > value), default=None))
    found = [str(n) for n in around if n is not None]
    return f"the nearest valid {'sizes are' if len(found) > 1 else 'size is'} {' and '.join(found)}"


def nearest_multiple(value: int, unit: int) -> str:
    """The multiples of `unit` next to a value, as part of an error message.

    >>> nearest_multiple(1000, 128), nearest_multiple(100, 128)
    ('the nearest valid sizes are 896 and 1024', 'the nearest valid size is 128')
    """
    below = value // unit * unit
    return nearest(value, [n for n in (below, below + unit) if n])


def check_choice(name: str, value: Any, choices: Any, error: type[GramError]) -> None:
    """Raises `error` unless the value called `name` is one of those of the Literal `choices`."""
    if value not in get_args(choices):
        raise error(f"{name} = {value!r}: expected one of {', '.join(get_args(choices))}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA, or the machine, ran out of memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


@contextmanager
def explain_out_of_memory(needs: str, advice: str) -> Iterator[None]:
    """Raises DoesNotFitError if the block runs out of memory.

    needs: what did not fit, as far as it is known; advice: what to try.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        found = in_short(str(error))
        raise DoesNotFitError(f"out of memory: {needs}.\n{found}\n{advice}") from error


def in_short(text: str) -> str:
    """The first lines of a compiler's message."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:3])[:600]
