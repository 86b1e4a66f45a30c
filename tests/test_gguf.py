"""GGUF files: weights, quantisations and tokenizers are those of the original model."""

import copy
import json
import struct
from dataclasses import replace

import gguf
import ml_dtypes
import numpy as np
import pytest
from conftest import tiny_config
from families import family_tokenizer
from gguf import GGMLQuantizationType as Quant

from gram_jax import tree
from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.interop.gguf import (
    GgufFile,
    gguf_config,
    load_gguf,
    open_gguf,
    recover_rope_scaling,
)
from gram_jax.interop.gguf_tokenizer import gguf_tokenizer
from gram_jax.interop.hf_names import tensor_mappings
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.model.config import Llama3Scaling
from gram_jax.model.rope import rotary_frequencies

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def neighbours(rows, heads):
    """What llama.cpp's converter does to the q and k rows of a llama: rotary halves side by side."""
    size = rows.shape[0] // heads
    order = [h * size + half * size // 2 + i for h in range(heads) for i in range(size // 2)
             for half in (0, 1)]  # fmt: skip
    return rows[order]


def write_gguf(
    path, cfg, weights, *, quant=Quant.F32, raw=None, extra=None, numbers=None, tokenizer=None
):
    """A GGUF file as a converter writes it. weights: {hf-laid-out gguf name: f32 array}."""
    writer = gguf.GGUFWriter(path, cfg.family)
    writer.add_block_count(cfg.layers)
    writer.add_context_length(cfg.context_length)
    writer.add_embedding_length(cfg.embed_size)
    writer.add_feed_forward_length(cfg.mlp_size)
    writer.add_head_count(cfg.query_heads)
    writer.add_head_count_kv(cfg.kv_heads)
    writer.add_key_length(cfg.head_size)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_rope_freq_base(cfg.rope_theta)
    if tokenizer is not None:
        tokenizer(writer)
    for key, value in (extra or {}).items():
        writer.add_string(key, value)
    for key, value in (numbers or {}).items():
        writer.add_uint32(key, value)
    for name, array in weights.items():
        if cfg.family == "llama" and ("attn_q." in name or "attn_k." in name):
            heads = cfg.query_heads if "attn_q" in name else cfg.kv_heads
            array = neighbours(array, heads)
        if raw and name in raw:
            writer.add_tensor(name, raw[name], raw_dtype=quant)
        elif array.ndim == 2 and quant != Quant.F32:
            writer.add_tensor(name, gguf.quants.quantize(array, quant), raw_dtype=quant)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_weights(cfg, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=slot.stored_shape).astype(np.float32)
        for name, slot in tensor_mappings(cfg, "gguf").items()
    }


def stored(params, cfg):
    """The loaded parameters, laid out as in a file again."""
    leaves, places = tree.flatten(params), tensor_mappings(cfg, "gguf")

    def part(slot):
        leaf = np.asarray(leaves[slot.rule.path])
        return slot.to_stored(leaf[slot.at])

    return {name: part(slot) for name, slot in places.items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_weights_and_config_come_back_exactly(family, tied, tmp_path, one_device):
    cfg = tiny_config(family, tied)
    weights = random_weights(cfg)
    path = write_gguf(tmp_path / "x.gguf", cfg, weights)
    found, params = load_gguf(path, one_device, None)
    assert found == cfg == gguf_config(path)
    for name, array in stored(params, cfg).items():
        assert array.tobytes() == weights[name].tobytes(), name


def test_a_query_turned_by_neighbours_is_our_query_turned_by_halves(tmp_path, one_device):
    """The meaning of the rearrangement, without its formula: scores of q and k are the same."""
    cfg = replace(tiny_config("llama", True), layers=1)
    path = write_gguf(tmp_path / "x.gguf", cfg, random_weights(cfg))
    in_file = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    _, params = load_gguf(path, one_device, None)
    x, y = np.random.default_rng(1).normal(size=(2, cfg.embed_size))
    angle = 7 * cfg.rope_theta ** (-np.arange(0, 8, 2) / 8)
    cos, sin = np.cos(angle), np.sin(angle)

    def by_neighbours(v):
        a, b = v[0::2], v[1::2]
        return np.stack([a * cos - b * sin, a * sin + b * cos], -1).ravel()

    def by_halves(v):
        a, b = v[:4], v[4:]
        return np.concatenate([a * cos - b * sin, a * sin + b * cos])

    q = np.asarray(params["layers"]["q"][0], np.float64)
    k = np.asarray(params["layers"]["k"][0], np.float64)
    for head in range(4):
        group = head // 2
        theirs_q = in_file["blk.0.attn_q.weight"][head * 8 : head * 8 + 8] @ x
        theirs_k = in_file["blk.0.attn_k.weight"][group * 8 : group * 8 + 8] @ y
        expected = by_neighbours(theirs_q) @ theirs_k
        assert by_halves(x @ q[:, head]) @ (y @ k[:, group]) == pytest.approx(expected, rel=1e-6)


# Offsets of a block's half-precision factors: random bytes there could be infinite.
FACTORS = {
    Quant.Q2_K: (80, 82),
    Quant.Q3_K: (108,),
    Quant.Q4_K: (0, 2),
    Quant.Q5_K: (0, 2),
    Quant.Q6_K: (208,),
    Quant.Q4_0: (0,),
    Quant.Q4_1: (0, 2),
    Quant.Q5_0: (0,),
    Quant.Q5_1: (0, 2),
    Quant.Q8_0: (0,),
    Quant.IQ4_NL: (0,),
    Quant.IQ4_XS: (0,),
}


@pytest.mark.parametrize("quant", FACTORS, ids=lambda quant: quant.name)
def test_quantised_tensors_are_those_of_the_package_on_any_mesh(quant, tmp_path, one_device, cube):
    sizes = dict(embed_size=256, mlp_size=256, head_size=64, vocab_size=16, layers=1)
    cfg = replace(tiny_config("qwen3", True), **sizes)
    weights, rng = random_weights(cfg), np.random.default_rng(2)
    count, size = gguf.GGML_QUANT_SIZES[quant]
    expected, raw = dict(weights), {}
    for name, array in weights.items():
        if array.ndim == 2:
            blocks = rng.integers(0, 256, (len(array), 256 // count, size)).astype(np.uint8)
            for at in FACTORS[quant]:
                values = rng.normal(size=blocks.shape[:2]).astype(np.float16)
                blocks[..., at : at + 2] = values[..., None].view(np.uint8)
            raw[name] = blocks.reshape(len(array), -1)
            expected[name] = gguf.quants.dequantize(raw[name], quant)
    path = write_gguf(tmp_path / "x.gguf", cfg, weights, quant=quant, raw=raw)
    for placement in (one_device, cube):
        found = stored(load_gguf(path, placement, None)[1], cfg)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("quant", "half_dtype"), [(Quant.F16, np.float16), (Quant.BF16, ml_dtypes.bfloat16)]
)
def test_half_precision_files_are_read_exactly(quant, half_dtype, tmp_path, one_device):
    cfg = tiny_config("qwen2", False)
    weights = random_weights(cfg)
    path = write_gguf(tmp_path / "x.gguf", cfg, weights, quant=quant)
    for dtype in (None, "bfloat16"):
        _, params = load_gguf(path, one_device, dtype)
        assert params["embed"].dtype == (dtype or "float32")
    for name, array in stored(load_gguf(path, one_device, None)[1], cfg).items():
        expected = weights[name]
        if expected.ndim == 2:
            expected = expected.astype(half_dtype).astype(np.float32)
        np.testing.assert_array_equal(array, expected)


def test_an_unknown_quantisation_is_named(tmp_path, one_device):
    cfg = replace(tiny_config("llama", True), mlp_size=32)
    weights = {"token_embd.weight": np.zeros((288, 32), np.float32)}
    size = gguf.GGML_QUANT_SIZES[Quant.Q8_1][1]
    raw = {name: np.zeros((len(array), size), np.uint8) for name, array in weights.items()}
    path = write_gguf(tmp_path / "x.gguf", cfg, weights, quant=Quant.Q8_1, raw=raw)
    with pytest.raises(LayoutError, match=r"Q8_1, .*F32, F16, .*Q6_K"):
        load_gguf(path, one_device, None)


def split(path, cfg, weights, parts=2):
    """The file of a model in parts, as llama-gguf-split writes them: metadata in the first."""
    names = sorted(weights)
    for at in range(parts):
        here = {name: weights[name] for name in names[at::parts]}
        numbers = {"split.no": at, "split.count": parts, "split.tensors.count": len(names)}
        target = path.with_name(f"{path.stem}-{at + 1:05}-of-{parts:05}.gguf")
        write_gguf(target, cfg, here, numbers=numbers)
    return path.with_name(f"{path.stem}-00001-of-{parts:05}.gguf")


def test_a_split_file_is_the_model_of_all_its_parts(tmp_path, one_device):
    cfg = tiny_config("llama", False)
    weights = random_weights(cfg)
    first = split(tmp_path / "x.gguf", cfg, weights)
    found, params = load_gguf(first, one_device, None)
    assert found == cfg
    for name, array in stored(params, cfg).items():
        assert array.tobytes() == weights[name].tobytes(), name
    second = first.with_name("x-00002-of-00002.gguf")
    with pytest.raises(CheckpointError, match=first.name):
        load_gguf(second, one_device, None)
    second.unlink()
    gguf_config(write_gguf(tmp_path / "y.gguf", cfg, weights))  # the last file is cached
    with pytest.raises(CheckpointError, match=second.name):
        load_gguf(first, one_device, None)


def test_llama3_scaling_is_recovered_from_its_divisors(tmp_path, one_device):
    cfg = replace(tiny_config("llama3", True), head_size=64)
    plain = rotary_frequencies(replace(cfg, rope_scaling=None))
    divisors = np.asarray(plain / rotary_frequencies(cfg), np.float32)
    assert divisors.min() == 1 and divisors.max() == pytest.approx(32)
    weights = {**random_weights(cfg), "rope_freqs.weight": divisors}
    path = write_gguf(tmp_path / "x.gguf", cfg, weights)
    assert gguf_config(path) == cfg
    assert load_gguf(path, one_device, None)[0] == cfg
    eight = replace(cfg, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192), rope_theta=5e5)
    divisors = np.asarray(plain / rotary_frequencies(eight), np.float32)
    assert recover_rope_scaling(divisors, 5e5, 64, 512) == eight.rope_scaling


def test_other_rope_scalings_are_refused(tmp_path):
    cfg = tiny_config("llama", True)
    odd = {**random_weights(cfg), "rope_freqs.weight": np.array([3, 1, 4, 2], np.float32)}
    with pytest.raises(LayoutError, match=r"rope_freqs\.weight"):
        gguf_config(write_gguf(tmp_path / "x.gguf", cfg, odd))
    for kind in ("yarn", "longrope"):  # yarn without its numbers
        extra = {"llama.rope.scaling.type": kind}
        with pytest.raises(LayoutError, match=kind):
            gguf_config(write_gguf(tmp_path / "y.gguf", cfg, random_weights(cfg), extra=extra))


def test_everything_that_does_not_fit_is_listed(tmp_path, one_device):
    cfg = tiny_config("llama", True)
    weights = random_weights(cfg)
    del weights["output_norm.weight"]
    weights["blk.1.attn_q.bias"] = np.zeros(32, np.float32)
    with pytest.raises(LayoutError) as error:
        load_gguf(write_gguf(tmp_path / "x.gguf", cfg, weights), one_device, None)
    assert "output_norm.weight" in str(error.value)
    assert "blk.1.attn_q.bias in x.gguf" in str(error.value)


@pytest.mark.parametrize("keep", [3, 10, 200, 3000, -5000, -10])
def test_a_truncated_file_is_an_error_that_names_it(keep, tmp_path):
    cfg = tiny_config("llama", True)
    path = write_gguf(tmp_path / "x.gguf", cfg, random_weights(cfg))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"x\.gguf"):
        gguf_config(path)


def with_array(kind, length):
    """The start of a file whose metadata are an array."""
    return b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, kind, length)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "opened"),
        (b"<html>404</html>", "not a GGUF file"),
        (b"GGUF" + np.random.default_rng(0).bytes(4000), "damaged"),
        (with_array(0, 9_000_000) + bytes(9_000_000), "more than 8,000,000 elements"),
        (with_array(8, 9_000_000) + bytes(72_000_000), "more than 8,000,000 elements"),
        (with_array(9, 2) + struct.pack("<IQ", 0, 0) * 2, "an array of arrays"),
    ],
)
def test_files_that_are_no_gguf_are_errors(content, message, tmp_path):
    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        gguf_config(path)


def test_another_architecture_is_named(tmp_path):
    cfg = replace(tiny_config("llama", True), family="mamba")
    with pytest.raises(LayoutError, match=r"'mamba'; .* llama, .*qwen2, qwen3"):
        gguf_config(write_gguf(tmp_path / "x.gguf", cfg, {}))


def vocabulary(tokenizer, pre):
    """What a converter writes for a byte-level BPE tokenizer."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    kinds = {t["content"]: CONTROL if t["special"] else USER_DEFINED for t in state["added_tokens"]}

    def write(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([kinds.get(token, NORMAL) for token in tokens])
        merges = state["model"]["merges"]
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
        if tokenizer.bos_token_id is not None:
            writer.add_bos_token_id(tokenizer.bos_token_id)
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_chat_template(tokenizer.chat_template)

    return write


TEXTS = (
    "In 2024, 123 + 4567 = 4690!",
    "I'm sure we'll DON'T\n\n\n  def f(x):\n\treturn x ** 2  \r\n",
    "naïve café ünïcode 漢字 🙂 e\u0301",
    "<|im_start|>user\nhi<|im_end|>\n<think>\n\n</think>",
    "",
)


@pytest.mark.parametrize(
    ("name", "pre"), [("llama3", "llama-bpe"), ("qwen2.5", "qwen2"), ("qwen3", "qwen2")]
)
def test_a_rebuilt_tokenizer_gives_the_ids_of_the_original(name, pre, tmp_path):
    original = copy.deepcopy(family_tokenizer(name))
    if name == "llama3":  # the published tokenizer leaves accents as they are
        original.backend_tokenizer.normalizer = None
    cfg = tiny_config("llama", True)
    path = write_gguf(tmp_path / "x.gguf", cfg, {}, tokenizer=vocabulary(original, pre))
    rebuilt = gguf_tokenizer(path)
    for text in TEXTS:
        assert rebuilt.encode(text) == original.encode(text), text
    assert rebuilt.chat_template == original.chat_template
    assert (rebuilt.bos_token, rebuilt.eos_token) == (original.bos_token, original.eos_token)
    assert len(rebuilt) == len(original)
    ours, theirs = (
        [(t["id"], t["special"]) for t in json.loads(x.backend_tokenizer.to_str())["added_tokens"]]
        for x in (rebuilt, original)
    )
    assert ours == theirs


def pieces(tokenizer):
    """What a converter writes for SentencePiece's BPE: pieces with the order of their merges as scores."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    order = {}
    for rank, (left, right) in enumerate(state["model"]["merges"]):
        order.setdefault(left + right, -float(rank))
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = {t["content"] for t in state["added_tokens"]}

    def kind(token):
        if token == "<unk>":
            return UNKNOWN
        return CONTROL if token in special else BYTE if token.startswith("<0x") else NORMAL

    def write(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_types([kind(token) for token in tokens])
        writer.add_token_scores([order.get(token, -1e6) for token in tokens])
        for role in ("bos", "eos", "unk"):
            getattr(writer, f"add_{role}_token_id")(getattr(tokenizer, f"{role}_token_id") or 0)
        writer.add_chat_template(tokenizer.chat_template)

    return write


def test_a_rebuilt_sentencepiece_tokenizer_gives_the_ids_of_the_original(tmp_path):
    original = family_tokenizer("zephyr")
    cfg = tiny_config("llama", True)
    path = write_gguf(tmp_path / "x.gguf", cfg, {}, tokenizer=pieces(original))
    rebuilt = gguf_tokenizer(path)
    for text in (*TEXTS, "Compare two responses to a request.\n\n[Response A]</s> Answer A or B."):
        ids = rebuilt(text, add_special_tokens=False).input_ids
        assert ids == original(text, add_special_tokens=False).input_ids, text
        assert "</s>" in text or rebuilt.decode(ids).strip() == text.strip()
    assert rebuilt.encode("a")[0] == rebuilt.bos_token_id


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (vocabulary(tiny_tokenizer(), "tekken"), "tekken"),
        (lambda writer: writer.add_tokenizer_model("rwkv"), "'rwkv'"),
    ],
)
def test_an_unsupported_tokenizer_is_named(write, name, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", tiny_config("llama", True), {}, tokenizer=write)
    with pytest.raises(LayoutError, match=name):
        gguf_tokenizer(path)


WRONG = {  # of a key of the tokenizer: a value that is no list of tokens, no type or no id
    "tokens": lambda tokens: [1] * len(tokens),
    "merges": lambda merges: 5,
    "token_type": lambda types: 5,
    "bos_token_id": lambda index: "1",
    "eos_token_id": lambda index: [1],
}


def with_metadata(monkeypatch, path, **values):
    found = open_gguf(path).metadata | {f"tokenizer.ggml.{key}": x for key, x in values.items()}
    monkeypatch.setattr(
        "gram_jax.interop.gguf_tokenizer.open_gguf", lambda path: GgufFile(found, {})
    )


@pytest.mark.parametrize("key", WRONG)
def test_values_of_the_wrong_type_in_a_tokenizer_are_errors(key, tmp_path, monkeypatch):
    write = vocabulary(tiny_tokenizer(), "smollm")
    path = write_gguf(tmp_path / "x.gguf", tiny_config("llama", True), {}, tokenizer=write)
    value = WRONG[key](open_gguf(path).metadata.get(f"tokenizer.ggml.{key}"))
    with_metadata(monkeypatch, path, **{key: value})
    with pytest.raises((LayoutError, CheckpointError), match=r"x.gguf.*(wrong type|damaged)"):
        gguf_tokenizer(path)


def test_an_id_below_0_is_no_token(tmp_path, monkeypatch):
    write = vocabulary(tiny_tokenizer(), "smollm")
    path = write_gguf(tmp_path / "x.gguf", tiny_config("llama", True), {}, tokenizer=write)
    last = open_gguf(path).metadata["tokenizer.ggml.tokens"][-1]
    with_metadata(monkeypatch, path, padding_token_id=-1)
    assert gguf_tokenizer(path).pad_token != last
