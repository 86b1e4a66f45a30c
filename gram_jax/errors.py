"""User errors: the message states what was expected, what was found and what to try.

The command line prints the message of a `GramError` and exits with its status; every other exception is a bug.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

# Exit statuses after which a launcher starts the command again.
RESTART = 75  # stopped by SIGTERM, state saved
LOST = 76  # a process of the job was lost, stuck or absent

# Exit statuses of every command.
STATUSES = {
    0: "success, or nothing was left to do",
    1: "`plan`: the program does not fit; any other command: a bug, with its traceback",
    2: "user error: the message states what was expected, what was found and what to try",
    RESTART: "stopped by SIGTERM with the state saved: the same command resumes",
    LOST: "a process of the job was lost or stuck: the same command resumes from the last checkpoint",
    130: "stopped by Ctrl-C with finished work kept: the same command resumes",
}


class GramError(Exception):
    """Base class of the errors that gram_jax raises on purpose. status: exit status of the command.

    >>> from gram_jax import GramError, read_records
    >>> try:
    ...     read_records("nowhere.jsonl")
    ... except GramError as error:
    ...     print(type(error).__name__, error.status)
    DataError 2
    """

    status = 2

    def __init__(self, message: str = "", status: int | None = None):
        super().__init__(message)
        self.status = self.status if status is None else status


class GramWarning(UserWarning):
    """A warning for the user; the command line logs it."""


class RecipeError(GramError):
    """A recipe or a value in it is invalid."""


class DataError(GramError):
    """A data source or a row in it does not have the expected format."""


class JudgeError(GramError):
    """A template, label or tokenizer cannot be used for a judge, or two judges that should agree differ."""


class LayoutError(GramError):
    """Tensors do not fit the model; one error lists all of them."""


class InUseError(GramError):
    """Another process writes to the same run, folder or file."""


class CheckpointError(GramError):
    """A checkpoint or model is missing, damaged, or belongs to another run."""


class DoesNotFitError(GramError):
    """The compiled program needs more memory than the device has."""


class NonFiniteError(GramError):
    """Weights, logits, a loss or its gradient are NaN or infinite. Training saves the last finite state."""


class ClusterError(GramError):
    """The processes of a job cannot connect or do not agree."""


class StoppedError(GramError):
    """A run was stopped and saved its state: status 130 after Ctrl-C, RESTART after SIGTERM."""

    status = 130


class RemoteError(GramError):
    """The server of a judge does not answer, or its answer does not follow the protocol."""


class MissingExtraError(GramError):
    """An optional package is not installed; the message names its extra."""


class ReportError(GramError):
    """A report or model card cannot be made from its input, or would replace a file that gram_jax did not write."""


def nearest(value: int, works: Sequence[int]) -> str:
    """The valid sizes next to a value, as part of an error message.

    >>> nearest(4, [1, 3, 9]), nearest(4, [1, 2])
    ('the nearest valid sizes are 3 and 9', 'the nearest valid size is 2')
    """
    found = sorted(n for n in works if n <= value)[-1:] + sorted(n for n in works if n > value)[:1]
    sizes = "sizes are" if len(found) > 1 else "size is"
    return f"the nearest valid {sizes} {' and '.join(map(str, found))}"


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


# The memory inside a TPU's core. If it does not suffice, an option of the compiler is wrong and not the program's size.
VMEM = "memory space vmem"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA, or the machine, ran out of memory."""
    text = str(error)
    return isinstance(error, MemoryError) or ("RESOURCE_EXHAUSTED" in text and VMEM not in text)


@contextmanager
def explain_out_of_memory(needs: str, advice: str) -> Iterator[None]:
    """Raises DoesNotFitError if the block runs out of memory. needs: what did not fit; advice: what to try."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFitError(
            f"out of memory: {needs}.\n{in_short(str(error))}\n{advice}"
        ) from error


def in_short(text: str) -> str:
    """The first three lines of a compiler's message."""
    return "\n".join([line for line in text.splitlines() if line.strip()][:3])[:600]
