"""Which back end computes attention: what each supports, and what "auto" selects.

Pure functions of an `AttentionTask`, so that a recipe is refused when it is read or when the model is known, not by an
error of a kernel during compilation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gram_jax.errors import RecipeError, nearest, nearest_multiple

# What "auto" tries before "blocked" by platform, or before "ring" if rows are sharded.
PREFERRED = {"gpu": "cudnn", "tpu": "splash"}
PREFERRED_CUT = {"tpu": "splash"}

INTERPRETED = "tpu, interpreted"  # a TPU's kernel, interpreted on a CPU for tests

LANES = 128  # of a TPU's vector unit: splash needs rows that are a multiple of it
HEAD_UNIT = 8  # cuDNN and splash need head sizes that are a multiple of it,
LARGEST_HEAD = 256  # and at most this;
CUDNN_LARGEST_HEAD = 128  # cuDNN before compute capability 9.0


@dataclass(frozen=True)
class AttentionTask:
    """The requirements on a back end. None: not known yet, so not checked.

    platform: "cpu", "gpu", "tpu", ...; capability: of a CUDA device, such as (9, 0); packed: a row may hold several
    documents; length: T; sequence, tensor: sizes of these mesh axes; window: some layers have one that is shorter than
    the rows; softcap: attention scores have one.
    """

    platform: str | None = None
    capability: tuple[int, ...] | None = None
    packed: bool | None = None
    length: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    compute_dtype: str | None = None
    sequence: int | None = None
    tensor: int | None = None
    window: bool = False
    softcap: bool = False


def resolve_backend(wanted: str, task: AttentionTask) -> str:
    """The back end that runs. Raises RecipeError if it does not support the task."""
    backend = wanted
    if wanted == "auto":
        sharded = (task.sequence or 1) > 1
        fallback = "ring" if sharded and not (task.window or task.softcap) else "blocked"
        backend = (PREFERRED_CUT if sharded else PREFERRED).get(task.platform or "", fallback)
        if refusals(backend, task):
            backend = fallback
    if problems := refusals(backend, task):
        raise RecipeError(
            "\n  ".join([f'attention = "{wanted}" does not support this:', *problems])
        )
    return backend


def refusals(backend: str, task: AttentionTask) -> list[str]:
    """Why a back end does not support a task, each with a remedy; [] if it does."""
    own = {"cudnn": _of_cudnn, "splash": _of_splash}.get(backend)
    return [*_of_the_mesh(task), *_of_the_model(backend, task), *(own(task) if own else ())]


def _of_the_model(backend: str, task: AttentionTask) -> Iterator[str]:
    if backend in ("xla", "blocked"):
        return
    if task.window:
        yield 'it does not support sliding windows that are shorter than the rows: use "blocked", or shorter rows'
    if task.softcap:
        yield 'it does not support soft caps of attention scores: use "blocked"'


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
        yield 'it computes in bfloat16 or float16, not float32: use compute = "bfloat16"'
    if task.packed:
        yield (
            "it does not keep the documents of a packed row apart: use batch.packing = false (stage "
            '"bradley_terry" always puts two documents in a row) or "blocked"'
        )
    if (task.sequence or 1) > 1:
        yield f'it does not support rows sharded over sequence = {task.sequence}: use "ring"'
    hopper = (task.capability or (0, 0)) >= (9, 0)
    yield from _of_heads(task.head_size, LARGEST_HEAD if hopper else CUDNN_LARGEST_HEAD)


def _of_heads(size: int | None, largest: int) -> Iterator[str]:
    if size and (size % HEAD_UNIT or size > largest):
        yield (
            f"it supports head sizes up to {largest} that are a multiple of {HEAD_UNIT}, found {size}: "
            f'{nearest_multiple(size, HEAD_UNIT)}; use "blocked"'
        )


def _of_splash(task: AttentionTask) -> Iterator[str]:
    if task.platform not in (None, "tpu", INTERPRETED):
        yield f'it needs a TPU, found platform "{task.platform}": use "auto" or "blocked"'
    if task.compute_dtype == "float32" and task.platform != INTERPRETED:
        yield 'its products are bfloat16, not float32: use compute = "bfloat16" or "blocked"'
    unit = LANES * (task.sequence or 1)
    if task.length and task.length % unit:
        devices = f" on each of {task.sequence} devices" if unit > LANES else ""
        yield (
            f"the length of its rows is a multiple of {LANES}{devices}, found {task.length}: "
            f"{nearest_multiple(task.length, unit)}"
        )
    yield from _of_heads(task.head_size, LARGEST_HEAD)
