"""Where every tensor of a Hugging Face or GGUF file lives in our parameter tree: one table, read in
both directions.

A `form` says how a stored tensor is laid out, in the letters of the package: "(N H) D -> D N H" is
a matrix of N*H rows and D columns that becomes [D, N, H]. Conversion only reshapes and transposes,
so a round trip is bit-exact.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gram_jax import tree
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import param_specs

Format = Literal["hf", "gguf"]


# What the names of a layer's tensors begin with, the layer's number in place of "{}".
LAYER_PREFIX: Mapping[Format, str] = {"hf": "model.layers.{}.", "gguf": "blk.{}."}


@dataclass(frozen=True)
class NameRule:
    """One leaf of the tree: its path, its stored layout, and its names (inside a layer, if any)."""

    path: str
    form: str
    hf: str
    gguf: str

    @property
    def stacked(self) -> bool:
        """Whether the leaf holds all layers, stored as one tensor per layer."""
        return self.path.startswith("layers/")

    def name(self, names: Format) -> str:
        """The full name in a file, "{}" standing for the layer's number."""
        name = self.hf if names == "hf" else self.gguf
        return LAYER_PREFIX[names] + name if self.stacked else name


# Rotary halves need no rearrangement: our rotary convention is Hugging Face's half-split one.
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
    NameRule("layers/gate", "F D -> D F", "mlp.gate_proj.weight", "ffn_gate.weight"),
    NameRule("layers/up", "F D -> D F", "mlp.up_proj.weight", "ffn_up.weight"),
    NameRule("layers/down", "D F -> F D", "mlp.down_proj.weight", "ffn_down.weight"),
    NameRule("final_norm", "D -> D", "model.norm.weight", "output_norm.weight"),
    NameRule("head", "V D -> V D", "lm_head.weight", "output.weight"),
)


@dataclass(frozen=True)
class TensorMapping:
    """One stored tensor's place: rule, layer (None for a leaf that is not stacked), and the shape
    inside the leaf.
    """

    rule: NameRule
    layer: int | None
    shape: tuple[int, ...]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the file."""
        groups, ours = _parse(self.rule.form)
        sizes = dict(zip(ours, self.shape, strict=True))
        return tuple(int(np.prod([sizes[letter] for letter in group])) for group in groups)

    def to_model(self, stored: np.ndarray) -> np.ndarray:
        """A tensor (or a part of one, see `stored_part`) as it lies in the file -> as it lies in
        the leaf.
        """
        groups, ours = _parse(self.rule.form)
        sizes = dict(zip(ours, self.shape, strict=True))
        split: list[int] = []
        for group, size in zip(groups, stored.shape, strict=True):
            inner = [sizes[letter] for letter in group[1:]]
            split += [size // int(np.prod(inner)), *inner]
        letters = [letter for group in groups for letter in group]
        return stored.reshape(split).transpose([letters.index(letter) for letter in ours])

    def to_stored(self, leaf: np.ndarray) -> np.ndarray:
        """The inverse of `to_model` for a whole tensor."""
        groups, ours = _parse(self.rule.form)
        letters = [letter for group in groups for letter in group]
        moved = leaf.transpose([ours.index(letter) for letter in letters])
        return np.ascontiguousarray(moved.reshape(self.stored_shape))

    def stored_part(self, index: Sequence[slice]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Which part of the stored tensor holds `index` of the leaf, and how to cut that part after
        `to_model`.

        A group such as (N H) can be cut in the file along its first letter; a cut along a later
        letter is made after reading, so the second result restates those.
        """
        groups, ours = _parse(self.rule.form)
        sizes = dict(zip(ours, self.shape, strict=True))
        wanted = {
            letter: slice(*cut.indices(sizes[letter])[:2])
            for letter, cut in zip(ours, index, strict=True)
        }
        part = []
        for first, *inner in groups:
            step = int(np.prod([sizes[letter] for letter in inner]))
            part.append(slice(wanted[first].start * step, wanted[first].stop * step))
        outer = {group[0] for group in groups}
        rest = tuple(slice(None) if letter in outer else wanted[letter] for letter in ours)
        return tuple(part), rest


def tensor_mappings(cfg: ModelConfig, names: Format) -> dict[str, TensorMapping]:
    """Every tensor that a file of this model holds: name -> TensorMapping, in the order of the table."""
    specs = tree.flatten(param_specs(cfg))
    found: dict[str, TensorMapping] = {}
    for rule in RULES:
        if rule.path not in specs:
            continue
        shape = specs[rule.path].shape
        name = rule.name(names)
        if rule.stacked:
            for layer in range(cfg.layers):
                found[name.format(layer)] = TensorMapping(rule, layer, shape[1:])
        else:
            found[name] = TensorMapping(rule, None, shape)
    return found


def why_unclaimed(name: str, cfg: ModelConfig, names: Format) -> str:
    """What about this model leaves a tensor without a place: the hint in an error."""
    for rule in RULES:
        pattern = re.escape(rule.name(names)).replace(r"\{\}", r"(\d+)")
        if not re.fullmatch(pattern, name):
            continue
        if rule.path not in tree.flatten(param_specs(cfg)):
            return _SWITCH[rule.path]
        return f"this config has layers 0 to {cfg.layers - 1} only"
    return "no such tensor in this family of models"


_SWITCH: Mapping[str, str] = {
    "head": "this config has a tied head",
    **{f"layers/{p}_bias": "this config has qkv_bias = false" for p in "qkv"},
    **{f"layers/{p}_norm": "this config has qk_norm = false" for p in "qk"},
}


def _parse(form: str) -> tuple[list[list[str]], list[str]]:
    """Groups of stored letters, and our letters: ([["N", "H"], ["D"]], ["D", "N", "H"])."""
    stored, ours = form.split(" -> ")
    groups = [match.strip("()").split() for match in re.findall(r"\([^)]*\)|\S+", stored)]
    return groups, ours.split()
