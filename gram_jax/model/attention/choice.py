"""Which back end computes attention: what each cannot do, and what "auto" takes.

Pure functions of a `AttentionTask`, so that a recipe is refused when it is read, or at the latest when the
model is known, and not by a kernel's message from inside a compilation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gram_jax.errors import RecipeError, nearest, nearest_multiple

# What "auto" tries, in this order, by platform, and where rows are cut over the mesh; the last of
# each runs everywhere.
PREFERRED: dict[str | None, tuple[str, ...]] = {
    "gpu": ("cudnn", "blocked"),
    "tpu": ("splash", "blocked"),
}
PREFERRED_CUT: dict[str | None, tuple[str, ...]] = {"tpu": ("splash", "ring")}

INTERPRETED = "tpu, interpreted"  # a TPU's kernel, run step by step on a CPU: for tests

CUDNN_HEAD = 8  # cuDNN wants head sizes that are a multiple of this,
CUDNN_LARGEST_HEAD = 128  # and no larger than this,
CUDNN_LARGEST_HEAD_HOPPER = 256  # or this from compute capability 9.0 on
SPLASH_LENGTH = 128  # the lanes of a TPU's vector unit: rows are a multiple of it
# Head sizes with which the kernel was compiled: multiples of 8 up to 256.
SPLASH_HEAD = 8
SPLASH_LARGEST_HEAD = 256


@dataclass(frozen=True)
class AttentionTask:
    """What is asked of an attention. None where it is not known yet: nothing is refused for that.

    platform: "cpu", "gpu", "tpu", ...; capability: of a CUDA device, such as (9, 0); packed: a row may
    hold several documents; length: T; sequence, tensor: sizes of these mesh axes.
    """

    platform: str | None = None
    capability: tuple[int, int] | None = None
    packed: bool | None = None
    length: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    compute_dtype: str | None = None
    sequence: int | None = None
    tensor: int | None = None


def resolve_backend(wanted: str, task: AttentionTask) -> str:
    """The back end that runs. Raises RecipeError if the wanted one cannot do the task."""
    if wanted != "auto":
        if problems := refusals(wanted, task):
            raise RecipeError("\n  ".join([f'attention = "{wanted}" cannot do this:', *problems]))
        return wanted
    if (task.sequence or 1) > 1:
        candidates = PREFERRED_CUT.get(task.platform, ("ring",))
    else:
        candidates = PREFERRED.get(task.platform, ("blocked",))
    problems: list[str] = []
    for backend in candidates:
        if not (problems := refusals(backend, task)):
            return backend
    raise RecipeError("\n  ".join(["no attention back end can do this:", *problems]))


def refusals(backend: str, task: AttentionTask) -> list[str]:
    """Why a back end cannot do a task, each with what would help; [] where it can."""
    return [*_of_the_mesh(task), *_OWN.get(backend, lambda task: iter(()))(task)]


def _of_the_mesh(task: AttentionTask) -> Iterator[str]:
    if task.length and task.sequence and task.length % task.sequence:
        yield (
            f"rows of {task.length} positions over sequence = {task.sequence}: "
            f"{nearest_multiple(task.length, task.sequence)}"
        )
    if task.kv_heads and task.tensor and task.kv_heads % task.tensor:
        works = [n for n in range(1, task.kv_heads + 1) if task.kv_heads % n == 0]
        yield (
            f"{task.kv_heads} key-value heads over tensor = {task.tensor}: "
            f"{nearest(task.tensor, works)}"
        )


def _of_cudnn(task: AttentionTask) -> Iterator[str]:
    if task.platform not in (None, "gpu"):
        yield f'it needs an NVIDIA GPU, found platform "{task.platform}": use "auto" or "blocked"'
    if task.compute_dtype == "float32":
        yield 'it computes in bfloat16 or float16, asked for is float32: use compute = "bfloat16"'
    if task.packed:
        yield (
            "it knows lengths, not segments, and would let documents of one row see each other: "
            'use batch.packing = false (stage "bradley_terry" always puts two documents in a row) or "blocked"'
        )
    if (task.sequence or 1) > 1:
        yield f'rows are cut over sequence = {task.sequence}, which it cannot do: use "ring"'
    largest = CUDNN_LARGEST_HEAD
    if (task.capability or (0, 0)) >= (9, 0):
        largest = CUDNN_LARGEST_HEAD_HOPPER
    if (size := task.head_size) and (size % CUDNN_HEAD or size > largest):
        yield (
            f"its heads have a size of at most {largest} that is a multiple of {CUDNN_HEAD}, "
            f'found {size}: use "blocked"'
        )


def _of_splash(task: AttentionTask) -> Iterator[str]:
    if task.platform not in (None, "tpu", INTERPRETED):
        yield f'it needs a TPU, found platform "{task.platform}": use "auto" or "blocked"'
    if task.compute_dtype == "float32" and task.platform != INTERPRETED:
        yield (
            'its products are bfloat16, asked for is float32: use compute = "bfloat16" or "blocked"'
        )
    unit = SPLASH_LENGTH * (task.sequence or 1)
    if task.length and task.length % unit:
        devices = f" on each of {task.sequence} devices" if unit > SPLASH_LENGTH else ""
        yield (
            f"its rows are a multiple of {SPLASH_LENGTH} long{devices}, found {task.length}: "
            f"{nearest_multiple(task.length, unit)}"
        )
    if (size := task.head_size) and (size % SPLASH_HEAD or size > SPLASH_LARGEST_HEAD):
        yield (
            f"its heads have a size of at most {SPLASH_LARGEST_HEAD} that is a multiple of "
            f'{SPLASH_HEAD}, found {size}: {nearest_multiple(size, SPLASH_HEAD)}; use "blocked"'
        )


_OWN: dict[str, Callable[[AttentionTask], Iterator[str]]] = {
    "cudnn": _of_cudnn,
    "splash": _of_splash,
}
