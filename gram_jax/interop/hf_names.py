"""The names and layouts of stored tensors: one table for Hugging Face and GGUF files, used in both directions.

A `form` states the layout of a stored tensor in the letters of the package: "(N H) D -> D N H" is a matrix of N*H rows
and D columns that becomes [D, N, H]. Conversion only reshapes and transposes, so a round trip is bit-exact.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import numpy as np

from gram_jax import tree
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import param_specs

Format = Literal["hf", "gguf"]

# Prefix of the names of a layer's tensors; "{}" is the layer's number.
LAYER_PREFIX: Mapping[Format, str] = {"hf": "model.layers.{}.", "gguf": "blk.{}."}


@dataclass(frozen=True)
class NameRule:
    """One leaf of the parameter tree: its path, its stored layout, and its names (inside a layer, if any).

    A matrix of experts has the layout of one of them: a Hugging Face file holds each apart, a GGUF file one of all.
    """

    path: str
    form: str
    hf: str
    gguf: str

    @property
    def stacked(self) -> bool:
        """Whether the leaf holds all layers, stored as one tensor per layer."""
        return self.path.startswith("layers/")

    def name(self, names: Format) -> str:
        """The full name in a file; "{}" is the layer's number, "{expert}" that of the expert."""
        name = self.hf if names == "hf" else self.gguf
        return LAYER_PREFIX[names] + name if self.stacked else name

    def of(self, cfg: ModelConfig, names: Format) -> "NameRule":
        """The rule in a model's file: some names and layouts depend on its norms, those of experts on the format."""
        if self.path.startswith("layers/expert_") and names == "gguf":
            return replace(self, form=self.form.replace(" -> ", " -> E ").join(("E ", "")))
        if self.path == "layers/mlp_norm" and cfg.traits.norms == "both":
            return replace(self, hf="pre_feedforward_layernorm.weight")
        if self.path in _PROJECTION_NORMS and cfg.traits.projection_norm:
            return replace(self, form=_PROJECTION_NORMS[self.path])
        return self


# Queries and keys need no reordering: model/rope.py has the half-split convention of Hugging Face.
RULES = (
    NameRule("embed", "V D -> V D", "model.embed_tokens.weight", "token_embd.weight"),
    NameRule("layers/attention_norm", "D -> D", "input_layernorm.weight", "attn_norm.weight"),
    NameRule("layers/q", "(N H) D -> D N H", "self_attn.q_proj.weight", "attn_q.weight"),
    NameRule("layers/k", "(K H) D -> D K H", "self_attn.k_proj.weight", "attn_k.weight"),
    NameRule("layers/v", "(K H) D -> D K H", "self_attn.v_proj.weight", "attn_v.weight"),
    NameRule("layers/o", "D (N H) -> N H D", "self_attn.o_proj.weight", "attn_output.weight"),
    NameRule("layers/q_bias", "(N H) -> N H", "self_attn.q_proj.bias", "attn_q.bias"),
    NameRule("layers/k_bias", "(K H) -> K H", "self_attn.k_proj.bias", "attn_k.bias"),
    NameRule("layers/v_bias", "(K H) -> K H", "self_attn.v_proj.bias", "attn_v.bias"),
    NameRule("layers/q_norm", "H -> H", "self_attn.q_norm.weight", "attn_q_norm.weight"),
    NameRule("layers/k_norm", "H -> H", "self_attn.k_norm.weight", "attn_k_norm.weight"),
    NameRule("layers/mlp_norm", "D -> D", "post_attention_layernorm.weight", "ffn_norm.weight"),
    # The first of these names is that of mlp_norm in a family with norms of inputs only.
    NameRule(
        "layers/post_attention_norm",
        "D -> D",
        "post_attention_layernorm.weight",
        "post_attention_norm.weight",
    ),
    NameRule(
        "layers/post_mlp_norm",
        "D -> D",
        "post_feedforward_layernorm.weight",
        "post_ffw_norm.weight",
    ),
    NameRule("layers/gate", "F D -> D F", "mlp.gate_proj.weight", "ffn_gate.weight"),
    NameRule("layers/up", "F D -> D F", "mlp.up_proj.weight", "ffn_up.weight"),
    NameRule("layers/down", "D F -> F D", "mlp.down_proj.weight", "ffn_down.weight"),
    NameRule("layers/router", "E D -> D E", "mlp.gate.weight", "ffn_gate_inp.weight"),
    NameRule(
        "layers/expert_gate",
        "F D -> D F",
        "mlp.experts.{expert}.gate_proj.weight",
        "ffn_gate_exps.weight",
    ),
    NameRule(
        "layers/expert_up",
        "F D -> D F",
        "mlp.experts.{expert}.up_proj.weight",
        "ffn_up_exps.weight",
    ),
    NameRule(
        "layers/expert_down",
        "D F -> F D",
        "mlp.experts.{expert}.down_proj.weight",
        "ffn_down_exps.weight",
    ),
    NameRule("final_norm", "D -> D", "model.norm.weight", "output_norm.weight"),
    NameRule("head", "V D -> V D", "lm_head.weight", "output.weight"),
    NameRule("score", "Y D -> Y D", "score.weight", "cls.output.weight"),
)


# Layouts of the norms of queries and keys that span all heads.
_PROJECTION_NORMS = {"layers/q_norm": "(N H) -> N H", "layers/k_norm": "(K H) -> K H"}

# Tensors of Hugging Face files that hold several matrices one below the other, inside a layer.
_QKV = {"self_attn.qkv_proj.weight": [f"self_attn.{name}_proj.weight" for name in "qkv"]}
_GATE_UP = {"mlp.gate_up_proj.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"]}
FUSED: Mapping[str, Mapping[str, Sequence[str]]] = {"phi3": {**_QKV, **_GATE_UP}}
# The same in GGUF files.
_GGUF_FUSED: Mapping[str, Mapping[str, Sequence[str]]] = {
    "phi3": {
        "attn_qkv.weight": [f"attn_{name}.weight" for name in "qkv"],
        "ffn_up.weight": ["ffn_gate.weight", "ffn_up.weight"],
    }
}


@dataclass(frozen=True)
class TensorMapping:
    """Place of a stored tensor in its leaf. at: (), (layer,) or (layer, expert); shape: the one that it has there."""

    rule: NameRule
    at: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the file."""
        groups, sizes = self._layout()
        return tuple(math.prod(sizes[letter] for letter in group) for group in groups)

    def to_model(self, stored: np.ndarray) -> np.ndarray:
        """A stored tensor, or a part of it (see `stored_part`), in the layout of the leaf."""
        groups, sizes = self._layout()
        split: list[int] = []
        for group, size in zip(groups, stored.shape, strict=True):
            inner = [sizes[letter] for letter in group[1:]]
            split += [size // math.prod(inner), *inner]
        letters = list(chain(*groups))
        return stored.reshape(split).transpose([letters.index(letter) for letter in sizes])

    def to_stored(self, leaf: np.ndarray) -> np.ndarray:
        """The inverse of `to_model` for a whole tensor."""
        groups, sizes = self._layout()
        moved = leaf.transpose([list(sizes).index(letter) for letter in chain(*groups)])
        return np.ascontiguousarray(moved.reshape(self.stored_shape))

    def stored_part(self, index: Sequence[slice]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """(the part of the stored tensor that holds `index` of the leaf, how to slice that part after `to_model`).

        A group such as (N H) is sliced in the file along its first letter, and after reading along later ones.
        """
        groups, sizes = self._layout()
        wanted = {
            letter: slice(*cut.indices(sizes[letter])[:2])
            for letter, cut in zip(sizes, index, strict=True)
        }
        part = []
        for first, *inner in groups:
            step = math.prod(sizes[letter] for letter in inner)
            part.append(slice(wanted[first].start * step, wanted[first].stop * step))
        outer = {group[0] for group in groups}
        rest = (slice(None) if letter in outer else wanted[letter] for letter in sizes)
        return tuple(part), tuple(rest)

    def _layout(self) -> tuple[list[list[str]], dict[str, int]]:
        """Groups of stored letters ([["N", "H"], ["D"]]), and the sizes of the leaf's letters in their order."""
        stored, ours = self.rule.form.split(" -> ")
        groups = [match.strip("()").split() for match in re.findall(r"\([^)]*\)|\S+", stored)]
        return groups, dict(zip(ours.split(), self.shape, strict=True))


def tensor_mappings(cfg: ModelConfig, names: Format) -> dict[str, TensorMapping]:
    """Every tensor of a file of this model, by name, in the order of the table."""
    specs = tree.flatten(param_specs(cfg))
    found: dict[str, TensorMapping] = {}
    for rule in (rule.of(cfg, names) for rule in RULES if rule.path in specs):
        name, shape = rule.name(names), specs[rule.path].shape
        stacked = int(rule.stacked) + ("{expert}" in name)
        for at in np.ndindex(shape[:stacked]):
            full = name.format(*at[:1], expert=at[-1]) if stacked else name
            found[full] = TensorMapping(rule, at, shape[stacked:])
    return found


def fused_tensors(cfg: ModelConfig, names: Format) -> dict[str, list[str]]:
    """The tensors of a file that hold several of `tensor_mappings`, and the names of these."""
    prefix, table = LAYER_PREFIX[names], FUSED if names == "hf" else _GGUF_FUSED
    return {
        (prefix + whole).format(layer): [(prefix + part).format(layer) for part in parts]
        for layer in range(cfg.layers)
        for whole, parts in table.get(cfg.family, {}).items()
    }


def file_tensors(cfg: ModelConfig) -> dict[str, list[TensorMapping]]:
    """Every tensor of a Hugging Face file, and what it holds, one below the other."""
    places = tensor_mappings(cfg, "hf")
    whole = {part: name for name, parts in fused_tensors(cfg, "hf").items() for part in parts}
    found: dict[str, list[TensorMapping]] = {}
    for name, slot in places.items():
        found.setdefault(whole.get(name, name), []).append(slot)
    return found


def why_unclaimed(name: str, cfg: ModelConfig, names: Format) -> str:
    """The reason, for an error message, why this model has no place for a tensor."""
    for rule in (rule.of(cfg, names) for rule in RULES):
        pattern = re.sub(r"\\\{(expert)?\\\}", r"(\\d+)", re.escape(rule.name(names)))
        if not re.fullmatch(pattern, name):
            continue
        if rule.path in tree.flatten(param_specs(cfg)):
            experts = f" and experts 0 to {cfg.experts.count - 1}" if cfg.experts else ""
            return f"this config has layers 0 to {cfg.layers - 1}{experts} only"
        heads = {"head": "a tied head, or none", "score": "a language model's head"}
        trait = heads | {"bias": "qkv_bias = false", "norm": "qk_norm = false"}
        trait |= dict.fromkeys(("layers/router", "gate", "up", "down"), "no experts")
        trait |= dict.fromkeys(("layers/gate", "layers/up", "layers/down"), "experts instead")
        if "norm" in rule.path and "post" in rule.path:
            continue  # the name of another norm in other families
        return f"this config has {trait[rule.path.rpartition('_')[2]]}"
    return "no such tensor in this family of models"
