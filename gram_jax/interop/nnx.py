"""The model as a Flax NNX module, for tools that expect one (docs/flax.md).

A view: its variables hold the arrays of the parameter tree under the same names, and its call runs the same functions.
No other module imports this one, so flax is loaded only if it is used.
"""

from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.errors import DataError, LayoutError, RecipeError
from gram_jax.model.attention.masked import causal_segment_mask, soft_cap
from gram_jax.model.cache import Cache, extend_visible
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.heads import unembedding
from gram_jax.model.matmul import dot
from gram_jax.model.specs import param_specs
from gram_jax.tree import Tree

SCALE = "layers/lora_scale"
CacheArrays = dict[str, jax.Array]  # "keys", "values" and "end_index", as Tunix names them


class Frozen(nnx.Variable):
    """A leaf that is not trained: the scale of a LoRA; int8 matrices and their scales."""


class NnxModel(nnx.Module):
    """A module from tokens to logits and the cache, with the signature of Tunix models. `nnx_model` makes it."""

    def __init__(self, params: Tree, cfg: ModelConfig, execution: Execution):
        self.cfg = cfg
        self.execution = execution
        self.paths = tuple(tree.flatten(params))
        for name, value in _variables(params).items():
            setattr(self, name, value)

    def __call__(
        self,
        input_tokens: jax.Array,
        positions: jax.Array,
        cache: CacheArrays | None = None,
        attention_mask: jax.Array | None = None,
        *,
        segment_ids: jax.Array | None = None,
        decode_only_last_token: bool = False,
    ) -> tuple[jax.Array, CacheArrays | None]:
        """Logits of the next token, f32 [B, T, V] (T = 1 with decode_only_last_token), and the updated cache.

        input_tokens, positions: i32 [B, T]. segment_ids: i32 [B, T], documents of a row, 0 is padding. attention_mask
        without a cache: bool [B, T, T], causal within the segments (without segment_ids one document with padding
        anywhere); another mask raises DataError, or gives NaN logits if it is traced. attention_mask with a cache of S
        columns: any bool [B, T, S]; logits are NaN once the cache overflows.
        """
        params, valid = self._tree(), None
        if cache is None:
            segments, valid = _segments(input_tokens, attention_mask, segment_ids)
            seqs = Sequences(input_tokens, positions, segments)
            hidden = hidden_states(params, self.cfg, seqs, self.execution)
        else:
            _check_cached(input_tokens, cache, attention_mask, segment_ids)
            columns = cache["keys"].shape[2]
            held = Cache(cache["keys"], cache["values"], cache["end_index"], cache["end_index"][0])
            visible = attention_mask != 0
            hidden, held = extend_visible(
                params, self.cfg, input_tokens, positions, visible, held, self.execution
            )
            cache = {"keys": held.keys, "values": held.values, "end_index": held.lengths}
            valid = held.lengths <= columns
        if decode_only_last_token:
            hidden = hidden[:, -1:]
        logits = dot("btd,vd->btv", hidden, unembedding(params, self.cfg).astype(hidden.dtype))
        logits = soft_cap(logits, self.cfg.traits.logit_softcap)
        if valid is not None:
            logits = jnp.where(valid[:, None, None], logits, jnp.nan)
        self._check_own()
        return logits, cache

    def init_cache(self, batch_size: int, cache_size: int, dtype: Any) -> CacheArrays:
        """An empty cache of cache_size columns; the batch is the leading axis, as beam search expects."""
        cfg = self.cfg
        shape = (batch_size, cfg.layers, cache_size, cfg.kv_heads, cfg.head_size)
        return {
            "keys": jnp.zeros(shape, dtype),
            "values": jnp.zeros(shape, dtype),
            "end_index": jnp.zeros(batch_size, jnp.int32),
        }

    @property
    def config(self) -> SimpleNamespace:
        """The sizes that Tunix reads from a model."""
        return SimpleNamespace(
            num_layers=self.cfg.layers,
            num_kv_heads=self.cfg.kv_heads,
            head_dim=self.cfg.head_size,
            dtype=jnp.dtype(self.execution.compute_dtype),
        )

    @property
    def num_embed(self) -> int:
        """V, by its name in the sampler of Tunix."""
        return self.cfg.vocab_size

    def _check_own(self) -> None:
        """Raises LayoutError if a tool added or replaced variables while the model was called.

        qwix does: it replaces the embedding and the head, but not the layers, whose weights are read inside a scan.
        """
        ours = {path.split("/")[0] for path in self.paths}
        strange = [
            name
            for name, value in vars(self).items()
            if (isinstance(value, nnx.Param) and name not in ours)
            or (name in ours and not isinstance(value, nnx.Variable | nnx.Dict))
        ]
        if strange:
            raise LayoutError(
                f"a tool changed {', '.join(strange)} and does not find the weights of the layers, which are stacked "
                "in a scan. For LoRA make the view of a tree with lora_specs (gram_jax/model/lora.py), for int8 of one "
                "from quantize (gram_jax/model/quantize.py)"
            )

    def _tree(self) -> Tree:
        read = {path: attrgetter(path.replace("/", "."))(self) for path in self.paths}
        return tree.unflatten({path: variable.get_value() for path, variable in read.items()})


def nnx_model(params: Tree, cfg: ModelConfig, execution: Execution) -> NnxModel:
    """A view of the model: its variables hold the arrays of `params`, not copies.

    Weights are nnx.Param, those of a LoRA nnx.LoRAParam, untrained leaves Frozen. Raises LayoutError if `params` do
    not fit `cfg`, RecipeError if the execution does not support padding before the text.
    """
    if not execution.packed:
        raise RecipeError(
            "packed = False means rows that begin with their only document, but tools that expect a Flax module pad on "
            "the left: make the view with packed = True"
        )
    own = {path: leaf for path, leaf in tree.walk(params) if not _is_extra(path)}
    problems = tree.differences(own, param_specs(cfg))
    if "lora" in params["layers"] and SCALE not in tree.flatten(params):
        problems.append(f"{SCALE}: missing (lora_scales makes it)")
    if problems:
        raise LayoutError("\n  ".join(["the parameters do not fit this config:", *problems]))
    return NnxModel(params, cfg, execution)


def to_params(view: NnxModel) -> Tree:
    """The view's arrays as a parameter tree. Raises LayoutError if a tool has added or replaced variables."""
    found = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(view))}
    if strange := sorted(found.keys() ^ set(view.paths)):
        lines = [f"{path} is {'new' if path in found else 'gone'}" for path in strange]
        raise LayoutError("\n  ".join(["a tool has changed the model's variables:", *lines]))
    return tree.unflatten({path: found[path].get_value() for path in view.paths})


def _is_extra(path: str) -> bool:
    """Whether a leaf is not in the specs but allowed: LoRA and scales of 8 bits."""
    return path == SCALE or path.startswith(
        ("layers/lora/", "layers/scales/", "layers/dynamic_scales/")
    )


def _variables(params: Tree, prefix: str = "") -> dict[str, Any]:
    return {
        name: nnx.Dict(_variables(value, f"{prefix}{name}/"))
        if isinstance(value, dict)
        else _variable(f"{prefix}{name}", value)
        for name, value in params.items()
    }


def _variable(path: str, leaf: jax.Array) -> nnx.Variable:
    kind = nnx.Param
    if path.startswith("layers/lora/"):
        kind = nnx.LoRAParam
    elif _is_extra(path) or jnp.issubdtype(leaf.dtype, jnp.integer):
        kind = Frozen
    spec = getattr(getattr(leaf, "sharding", None), "spec", None)
    # The array's own sharding, for tools that place optimizer states by it; eager sharding would place it again.
    stated: dict[str, Any] = {} if spec is None else {"out_sharding": tuple(spec)}
    return kind(leaf, eager_sharding=False, **stated)


def _segments(
    tokens: jax.Array, mask: jax.Array | None, segment_ids: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Segments i32 [B, T] equivalent to the mask, and the rows, bool [B], in which they are equivalent."""
    B, T = tokens.shape
    if segment_ids is not None and segment_ids.shape != (B, T):
        raise DataError(f"segment_ids have shape {segment_ids.shape}: expected {(B, T)}")
    if mask is None:
        return (jnp.ones((B, T), jnp.int32) if segment_ids is None else segment_ids), None
    _check_mask(mask, (B, T, T))
    mask, segments = mask != 0, segment_ids
    if segments is None:
        segments = jnp.diagonal(mask, axis1=1, axis2=2).astype(jnp.int32)
    valid = (mask == causal_segment_mask(segments, segments, 0)) | (segments == 0)[:, :, None]
    valid = valid.all((1, 2))
    if not isinstance(valid, Tracer) and not valid.all():
        raise DataError(
            f"the attention mask of row {int(jnp.argmin(valid))} is not causal within one document: without a cache "
            "this model supports segments, not masks. Give segment_ids for rows of several documents"
        )
    return segments, valid


def _check_mask(mask: jax.Array, shape: tuple[int, ...]) -> None:
    if mask.shape != shape or jnp.issubdtype(mask.dtype, jnp.inexact):
        raise DataError(
            f"the attention mask is {mask.dtype} {mask.shape}: expected {shape}, true for the keys of each query (row)"
        )


def _check_cached(
    tokens: jax.Array, cache: CacheArrays, mask: jax.Array | None, segment_ids: jax.Array | None
) -> None:
    if cache.keys() != {"keys", "values", "end_index"}:
        raise DataError(f"a cache with {', '.join(cache)}: expected one made by init_cache")
    rows, _, columns, *_ = cache["keys"].shape
    if mask is None or segment_ids is not None:
        raise DataError("with a cache the model needs an attention mask, and no segment_ids")
    if tokens.shape[0] != rows or tokens.shape[1] > columns:
        raise DataError(f"tokens {tokens.shape} do not fit a cache of {rows} x {columns}")
    _check_mask(mask, (*tokens.shape, columns))
