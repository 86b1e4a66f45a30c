"""What the loops of a program of stage 1 exchange between devices."""

import re
from dataclasses import replace
from itertools import chain

import jax
import jax.numpy as jnp
from conftest import tiny_config

from gram_jax.batch import Sequences, TokenBatch
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.specs import init_params, param_shardings, param_specs
from gram_jax.plan.collectives import KINDS
from gram_jax.plan.hlo import HloModule, parse_hlo
from gram_jax.sharding import Placement
from gram_jax.training.objectives import pretrain_objective

ROWS, LENGTH = 8, 128


def exchanged_in_loops(placement: Placement, *, tied: bool) -> tuple[list[str], list[str]]:
    """(types of all arrays that a loop exchanges, those of them with a dimension of the vocabulary or a part of it)."""
    cfg = replace(tiny_config("qwen3", tied), vocab_size=8 * 1009, layers=1)
    cfg = replace(cfg, query_heads=8, kv_heads=8)
    module = loss_and_gradients(cfg, placement)
    found = [
        this.type
        for name in _looped(module)
        for this in module.computations[name].values()
        if this.opcode.removesuffix("-start") in KINDS
    ]
    parts = {str(cfg.vocab_size // n) for n in (1, 2, 4, 8)}
    return found, [type_ for type_ in found if parts & set(re.findall(r"\d+", type_))]


def loss_and_gradients(cfg: ModelConfig, placement: Placement) -> HloModule:
    """The compiled loss of stage 1 and its gradients, one chunk for each row."""
    specs = param_specs(cfg)
    params = jax.eval_shape(lambda: init_params(specs, jax.random.key(0), placement, "float32"))
    shardings = param_shardings(specs, placement)
    rows = placement.sharding("batch")
    integers = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=rows)
    weights = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.float32, sharding=rows)
    batch = TokenBatch(Sequences(*[integers] * 3), integers, weights)
    execution = Execution("float32", "auto", "full", placement)
    objective = pretrain_objective(cfg, execution, chunk_size=LENGTH)
    step = jax.jit(
        jax.value_and_grad(lambda *given: objective(*given)[0]),
        in_shardings=(shardings, None),
        out_shardings=(placement.sharding(), shardings),
    )
    return parse_hlo(step.lower(params, batch).compile().as_text())


def _looped(module: HloModule) -> set[str]:
    """The computations that a loop runs."""
    found: set[str] = set()

    def add(name: str) -> None:
        if name not in found:
            found.add(name)
            for this in module.computations[name].values():
                for _, called in this.called:
                    add(called)

    for this in chain.from_iterable(c.values() for c in module.computations.values()):
        if this.opcode == "while":
            add(dict(this.called)["body"])
    return found
