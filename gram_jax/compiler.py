"""Options of XLA's compiler by chip, with the reason for each; results change by rounding only."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax

from gram_jax.errors import VMEM, RecipeError, in_short
from gram_jax.sharding import Placement

Options = Mapping[str, str | int | float | bool]

# Tables by JAX's name of the chip; v5p has two names, TPU7x was not tried. docs/meshes.md and docs/plans.md have the
# compiler's estimates. Nothing was run.
# With the default of 16 MiB (v5e) or 32 MiB (v6e) products read their operands more often. Training on v5e gains 3 % at
# most and takes over four times as long to compile.
_WIDE: Options = {"xla_tpu_scoped_vmem_limit_kib": 65536}
# Gathers of weights run beside products. On v5e this is libtpu's default; on the others the first option alone, or the
# two others alone, change nothing.
_ASYNC: Options = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
}
_V5P: Mapping[str, Options] = {"TPU v5": _ASYNC, "TPU v5p": _ASYNC}
TRAINING: Mapping[str, Options] = {**_V5P, "TPU v6 lite": {**_WIDE, **_ASYNC}}
SCORING: Mapping[str, Options] = {**TRAINING, "TPU v5 lite": _WIDE}


# What libtpu says of an unknown option, of a wrong value, and of options with which a kernel needs too much VMEM.
REJECTED = ("No such compile option", "into flag xla", VMEM)


def compiler_options(
    placement: Placement,
    changes: Options | None = None,
    table: Mapping[str, Options] = TRAINING,
) -> dict[str, str]:
    """The options for the chips of a mesh, with changes; {} on other platforms than TPUs.

    changes: names of libtpu's options with values; an empty value removes an option of the table.
    """
    if placement.platform != "tpu":
        return {}
    kind = placement.mesh.devices.flat[0].device_kind
    chosen = {**table.get(kind, {}), **(changes or {})}
    return {name: _text(value) for name, value in chosen.items() if value != ""}


@contextmanager
def explain_compiler_options() -> Iterator[None]:
    """Raises RecipeError if the block, which compiles, fails because of an option of the compiler."""
    try:
        yield
    except Exception as error:
        text = str(error)
        if not any(words in text for words in REJECTED):
            raise
        raise RecipeError(
            f"the compiler rejects execution.compiler_options: {in_short(text)}\n"
            'Remove the change; the value "" removes an option that gram_jax sets for the chip (docs/meshes.md)'
        ) from error


def with_compiler_options(
    program: Callable[..., Any], placement: Placement, *static: str
) -> Callable[..., Any]:
    """A jitted scoring program with static arguments `static`, compiled with the options for the chips of a mesh."""
    options = compiler_options(placement, table=SCORING)
    return _jitted(program, static, tuple(options.items())) if options else program


@cache
def _jitted(
    program: Callable[..., Any], static: tuple[str, ...], options: tuple[tuple[str, str], ...]
) -> Callable[..., Any]:
    return jax.jit(program, static_argnames=static, compiler_options=dict(options))


def _text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
