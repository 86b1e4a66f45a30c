"""Hugging Face folders: a round trip changes no bit, and errors name the faults."""

import errno
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import FAMILIES, tiny_config
from model_cases import random_params
from safetensors.numpy import load_file, save_file

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.checkpoint.manifest import write_manifest
from gram_jax.distributed.lock import file_lock, hold_lock
from gram_jax.errors import CheckpointError, InUseError, LayoutError
from gram_jax.interop import assemble, hf_export
from gram_jax.interop.hf_config import config_to_hf
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.hf_files import check_texts, load_hf
from gram_jax.interop.hf_names import tensor_mappings
from gram_jax.interop.models import load_model, stop_tokens
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.spec import JudgeSpec, make_spec
from gram_jax.model.decoder import hidden_states
from gram_jax.model.heads import unembedding

PLAIN = dict(dtype=None, tokenizer=None, spec=None)


def assert_same_bits(found, expected):
    found, expected = tree.flatten(found), tree.flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype, path
        assert np.asarray(found[path]).tobytes() == np.asarray(leaf).tobytes(), path


def stored_by_others(folder, cfg, *, new_rope, seed=0):
    """A bf16 folder as another program would have written it: {name: array}."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.normal(size=slot.stored_shape).astype(ml_dtypes.bfloat16)
        for name, slot in tensor_mappings(cfg, "hf").items()
    }
    settings = config_to_hf(cfg, "bfloat16")
    for name in ("rope_theta", "rope_scaling") if new_rope else ("rope_parameters",):
        del settings[name]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize("new_rope", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bf16_folder_comes_back_bit_for_bit(family, tied, new_rope, tmp_path, one_device):
    cfg = tiny_config(family, tied)
    tensors = stored_by_others(tmp_path / "theirs", cfg, new_rope=new_rope)
    found, params = load_hf(tmp_path / "theirs", one_device, None)
    assert found == cfg
    export_hf(tmp_path / "ours", cfg, params, **PLAIN)
    back = load_file(tmp_path / "ours" / "model.safetensors")
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype
        assert back[name].tobytes() == array.tobytes(), name
    again, same = load_hf(tmp_path / "ours", one_device, None)
    assert again == cfg
    assert_same_bits(same, params)


def test_a_mesh_gets_the_same_numbers_and_its_own_shardings(tmp_path, one_device, cube):
    cfg = tiny_config("qwen3", False)
    params = random_params(cfg, one_device)
    export_hf(tmp_path / "model", cfg, params, **PLAIN)
    _, spread = load_hf(tmp_path / "model", cube, None)
    assert_same_bits(spread, params)
    q = spread["layers"]["q"]
    assert q.sharding.is_equivalent_to(
        cube.sharding("layers", "embed", "heads", "head_size"), q.ndim
    )
    assert q.addressable_shards[0].data.size == q.size // 4
    export_hf(tmp_path / "spread", cfg, spread, **PLAIN)
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("model", "spread"))
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_a_sharded_leaf_reads_each_stored_row_once(one_device, cube):
    cfg, read = tiny_config("llama", True), []

    def reader(name, shape):
        def part_of(part):
            found = np.zeros(shape, np.float32)[part]
            read.append((name, found.size))
            return found

        return assemble.StoredTensor(shape, "float32", "x", part_of)

    slots = tensor_mappings(cfg, "hf")
    files = {name: reader(name, slot.stored_shape) for name, slot in slots.items()}
    assemble.assemble(cfg, files, "hf", cube, None)
    name = "model.layers.0.self_attn.q_proj.weight"
    sizes = [size for found, size in read if found == name]
    assert sizes == [32 * 32 // 4] * 4  # fsdp x tensor parts; the two data replicas share a reading


def test_dtype_casts_on_the_way_in_and_out(tmp_path, one_device):
    cfg = tiny_config("llama", True)
    params = random_params(cfg, one_device)
    export_hf(tmp_path / "bf16", cfg, params, dtype="bfloat16", tokenizer=None, spec=None)
    settings = json.loads((tmp_path / "bf16" / "config.json").read_text())
    assert settings["torch_dtype"] == settings["dtype"] == "bfloat16"
    _, found = load_hf(tmp_path / "bf16", one_device, "float32")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    assert_same_bits(found, rounded)


def test_sharded_files_and_their_index_hold_the_same_model(tmp_path, one_device):
    cfg = tiny_config("qwen2", False)
    params = random_params(cfg, one_device)
    export_hf(tmp_path / "many", cfg, params, **PLAIN, shard_bytes=20_000)
    files = sorted(p.name for p in (tmp_path / "many").glob("*.safetensors"))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 3
    assert sorted(set(index["weight_map"].values())) == files
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert index["metadata"]["total_size"] == weights
    assert_same_bits(load_hf(tmp_path / "many", one_device, None)[1], params)

    (tmp_path / "many" / files[1]).unlink()
    write_manifest(tmp_path / "many")
    with pytest.raises(CheckpointError, match=files[1]):
        load_hf(tmp_path / "many", one_device, None)


@pytest.mark.parametrize("count", [1, 2])
def test_two_files_have_an_index_and_one_has_none(count, tmp_path, one_device):
    cfg = tiny_config("llama", True)
    params = random_params(cfg, one_device)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) * (5 - count) // 4
    folder = export_hf(tmp_path / "model", cfg, params, **PLAIN, shard_bytes=size)
    assert len(list(folder.glob("*.safetensors"))) == count
    assert (folder / "model.safetensors.index.json").exists() is (count == 2)
    assert_same_bits(load_hf(folder, one_device, None)[1], params)


@pytest.mark.parametrize("file", ["model-00001-of-{}.safetensors", "../elsewhere.safetensors"])
def test_an_index_that_contradicts_its_files_is_refused(file, tmp_path, one_device):
    cfg = tiny_config("llama", True)
    folder = tmp_path / "model"
    export_hf(folder, cfg, random_params(cfg, one_device), **PLAIN, shard_bytes=20_000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    count = index["weight_map"]["model.norm.weight"][-17:-12]
    index["weight_map"]["model.norm.weight"] = wrong = file.format(count)
    path.write_text(json.dumps(index))
    write_manifest(folder)
    with pytest.raises((LayoutError, CheckpointError), match=wrong):
        load_hf(folder, one_device, None)


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_one_error_lists_everything_that_does_not_fit(tmp_path, one_device):
    cfg = tiny_config("llama", False)
    folder = tmp_path / "model"
    stored_by_others(folder, cfg, new_rope=True)

    def spoil(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
        tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
        tensors["vision.patch"] = np.zeros(3, np.float32)
        tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((48, 32), np.float32)
        tensors["lm_head.weight"] = np.zeros((288, 32), np.int8)

    rewrite(folder, spoil)
    with pytest.raises(LayoutError) as error:
        load_hf(folder, one_device, "float32")
    head, *lines = str(error.value).splitlines()
    assert str(folder) in head and len(lines) == 6
    for name, hint in {
        "model.norm.weight": "",
        "model.layers.0.self_attn.q_proj.bias in model.safetensors": "qkv_bias = false",
        "model.layers.7.mlp.up_proj.weight in model.safetensors": "0 to 1",
        "vision.patch in model.safetensors": "",
        "model.layers.1.mlp.down_proj.weight in model.safetensors": "[48, 32], expected [32, 48]",
        "lm_head.weight in model.safetensors": "I8",
    }.items():
        (line,) = (line for line in lines if line.strip().startswith(f"{name}:"))
        assert hint in line


def test_layers_in_different_formats_need_a_dtype(tmp_path, one_device):
    folder = tmp_path / "model"
    stored_by_others(folder, tiny_config("llama", True), new_rope=True)
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].astype(np.float32)}))
    with pytest.raises(LayoutError, match=r'layers/up.*dtype="float32"'):
        load_hf(folder, one_device, None)
    load_hf(folder, one_device, "float32")


def test_a_head_that_repeats_the_embedding_is_tolerated_and_another_is_not(tmp_path, one_device):
    cfg = tiny_config("llama", True)
    folder = tmp_path / "model"
    tensors = stored_by_others(folder, cfg, new_rope=True)
    embed = tensors["model.embed_tokens.weight"]

    def extras(stored):
        stored["lm_head.weight"] = embed.copy()
        stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    rewrite(folder, extras)
    _, params = load_hf(folder, one_device, None)
    assert "head" not in params
    rewrite(folder, lambda stored: stored.update({"lm_head.weight": embed + embed}))
    with pytest.raises(LayoutError, match="tie_word_embeddings"):
        load_hf(folder, one_device, None)


def test_a_head_is_compared_to_its_last_row(tmp_path, one_device):
    """More rows than are compared at a time, of which the last ones alone differ."""
    cfg = replace(tiny_config("llama", True), vocab_size=4200)
    folder = tmp_path / "model"
    embed = stored_by_others(folder, cfg, new_rope=True)["model.embed_tokens.weight"]
    other = embed.copy()
    other[-1] += 1
    rewrite(folder, lambda stored: stored.update({"lm_head.weight": other}))
    with pytest.raises(LayoutError, match="tie_word_embeddings"):
        load_hf(folder, one_device, None)


def test_folders_of_gram_jax_must_have_a_manifest(tmp_path):
    export, run = tmp_path / "export" / "model", tmp_path / "run" / "model"
    for folder, advice in [(export, "export the model again"), (run, "start the run's command")]:
        folder.mkdir(parents=True)
        if folder is run:
            (tmp_path / "run" / "recipe.toml").write_text("")
        check_texts(folder)
        with pytest.raises(CheckpointError, match=advice):
            check_texts(folder, ours=True)


PREFIXES = {
    "a base model": ("", ""),
    "a wrapper": ("module.model.", "module."),
    "torch.compile": ("_orig_mod.model.", "_orig_mod."),
    "with images": ("language_model.model.", "language_model."),
    "with images, newer": ("model.language_model.", ""),
}


@pytest.mark.parametrize("kind", PREFIXES)
def test_names_under_another_prefix_are_the_usual_ones(kind, tmp_path, one_device):
    cfg, folder = tiny_config("qwen3", kind == "a base model"), tmp_path / "model"
    inner, outer = PREFIXES[kind]
    tensors = stored_by_others(folder, cfg, new_rope=True)
    _, expected = load_hf(folder, one_device, None)
    (folder / "model.safetensors").unlink()
    renamed = {
        inner + name.removeprefix("model.") if name.startswith("model.") else outer + name: array
        for name, array in tensors.items()
    }
    save_file(renamed, folder / "model.safetensors")
    assert_same_bits(load_hf(folder, one_device, None)[1], expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04" + b"x" * 200, "pickle"),
        (b"\x80\x02}q\x00." * 20, "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"GGUF" + b"\x03\x00\x00\x00" * 30, "GGUF"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{not json at all", "truncated or damaged"),
        (None, "truncated or damaged"),
    ],
)
def test_the_error_names_what_a_file_is_instead_of_safetensors(
    content, expected, tmp_path, one_device
):
    folder = tmp_path / "model"
    stored_by_others(folder, tiny_config("llama", True), new_rope=True)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(CheckpointError, match=expected):
        load_hf(folder, one_device, None)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path, one_device):
    folder = tmp_path / "model"
    stored_by_others(folder, tiny_config("llama", True), new_rope=True)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin.*save_pretrained"):
        load_hf(folder, one_device, None)


def test_missing_files_are_named(tmp_path, one_device):
    def error(folder) -> str:
        with pytest.raises(CheckpointError) as found:
            load_hf(folder, one_device, None)
        return str(found.value)

    assert str(tmp_path / "nowhere") in error(tmp_path / "nowhere")
    (tmp_path / "readme.md").write_text("x")
    assert "config.json" in error(tmp_path) and "readme.md" in error(tmp_path)
    (tmp_path / "config.json").write_text("{oh no")
    assert "JSON" in error(tmp_path)
    settings = config_to_hf(tiny_config("llama", True), "float32")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert "model.safetensors" in error(tmp_path)


def test_an_export_holds_all_that_the_judge_needs(tmp_path, one_device):
    from gram_jax.judge.tokenizer import folder_tokenizer

    cfg, tokenizer = tiny_config("llama", True), tiny_tokenizer()
    spec = make_spec(tokenizer, max_length=300)
    params, given = random_params(cfg, one_device), {"dtype": None, "tokenizer": tokenizer}
    folder = export_hf(tmp_path / "judge", cfg, params, spec=spec, **given)
    assert JudgeSpec.load(folder) == spec
    again = folder_tokenizer(folder)
    text = "In 2024: <|im_start|>it's\n  A B"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.chat_template == tokenizer.chat_template
    settings = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == generation["eos_token_id"] == tokenizer.eos_token_id
    assert settings["bos_token_id"] is None and "bos_token_id" not in generation
    assert stop_tokens(folder) == (tokenizer.eos_token_id,)
    more = export_hf(tmp_path / "more", cfg, params, stops=[7], spec=None, **given)
    assert stop_tokens(more) == (tokenizer.eos_token_id, 7)
    loaded = load_hf(more, one_device, None)
    same = export_hf(tmp_path / "same", *loaded, stops=stop_tokens(more), spec=None, **given)
    assert stop_tokens(same) == stop_tokens(more)
    saved = json.loads((folder / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"  # a name that transformers 4 knows


def test_a_tokenizer_that_does_not_fit_the_weights_is_refused(tmp_path, one_device):
    cfg = replace(tiny_config("llama", True), vocab_size=256)
    params, given = random_params(cfg, one_device), {**PLAIN, "tokenizer": tiny_tokenizer()}
    with pytest.raises(LayoutError, match=r"288 .* 287.*256"):
        export_hf(tmp_path / "x", cfg, params, **given)
    assert not list(tmp_path.iterdir())


def test_parameters_of_another_model_are_not_exported(tmp_path, one_device):
    cfg = tiny_config("llama", True)
    params = random_params(cfg, one_device)
    params["layers"]["lora"] = {"q": {"a": jnp.zeros(1), "b": jnp.zeros(1)}}
    params["score"] = jnp.zeros(32)
    del params["final_norm"]
    with pytest.raises(LayoutError) as error:
        export_hf(tmp_path / "x", cfg, params, **PLAIN)
    text = str(error.value)
    assert "merge_lora" in text and "final_norm: missing" in text and "score" in text
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone_unless_told_otherwise(tmp_path, one_device):
    cfg = tiny_config("llama", True)
    params = random_params(cfg, one_device)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all I have")
    with pytest.raises(CheckpointError, match="not empty"):
        export_hf(tmp_path / "mine", cfg, params, **PLAIN)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all I have"
    export_hf(tmp_path / "mine", cfg, params, **PLAIN, overwrite=True)
    (tmp_path / "empty").mkdir()
    export_hf(tmp_path / "empty", cfg, params, **PLAIN)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "mine"]


def full_before(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))


def full_while_writing_weights(monkeypatch):
    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise hf_export.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(hf_export, "save_file", fail)


def full_while_writing_texts(monkeypatch):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hf_export, "write_json", fail)


@pytest.mark.parametrize(
    "make_full", [full_before, full_while_writing_weights, full_while_writing_texts]
)
def test_a_full_disk_leaves_the_old_export_and_nothing_half_written(
    make_full, tmp_path, one_device, monkeypatch
):
    cfg = tiny_config("llama", True)
    params = random_params(cfg, one_device)
    export_hf(tmp_path / "model", cfg, params, **PLAIN)
    doubled = jax.tree.map(lambda x: 2 * x, params)
    make_full(monkeypatch)
    with pytest.raises(CheckpointError, match=r"disk .* is full: .* MB .* MB"):
        export_hf(tmp_path / "model", cfg, doubled, **PLAIN, overwrite=True)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert_same_bits(load_hf(tmp_path / "model", one_device, None)[1], params)


def logits(params, cfg, tokens, execution):
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    seqs = Sequences(tokens, positions, np.ones_like(tokens))
    hidden = hidden_states(params, cfg, seqs, execution)
    return np.asarray(jnp.einsum("btd,vd->btv", hidden, unembedding(params, cfg)))


@pytest.mark.torch
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_our_logits_from_our_folder_and_from_its_own(
    family, tied, tmp_path, execution, one_device
):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    cfg = tiny_config(family, tied)
    params = random_params(cfg, one_device)
    export_hf(tmp_path / "x", cfg, params, dtype="float32", tokenizer=tiny_tokenizer(), spec=None)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "x", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens = np.random.default_rng(1).integers(0, cfg.vocab_size, (2, 40)).astype(np.int32)
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(tokens).long()).logits.numpy()
    assert np.abs(theirs).max() > 0.5  # large enough for the tolerance
    np.testing.assert_allclose(logits(params, cfg, tokens, execution), theirs, rtol=0, atol=1e-4)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    found, back = load_hf(tmp_path / "theirs", one_device, None)
    assert found == cfg
    assert_same_bits(back, params)


def test_equal_weights_give_equal_files(tmp_path, one_device):
    """The library orders the header's metadata at random."""
    cfg, params = load_model("tiny-random", one_device, None)
    found = set()
    for number in range(8):
        folder = export_hf(
            tmp_path / str(number), cfg, params, dtype=None, tokenizer=None, spec=None
        )
        found.add(tuple((p.name, p.read_bytes()) for p in sorted(folder.iterdir())))
    assert len(found) == 1
    load_model(tmp_path / "0", one_device, None)


def test_an_export_that_another_process_writes_is_refused_and_leftovers_are_cleared(
    tmp_path, one_device
):
    cfg, params = load_model("tiny-random", one_device, None)

    def export(**options):
        options = {"dtype": None, "tokenizer": None, "spec": None} | options
        return export_hf(tmp_path / "x", cfg, params, **options)

    with (
        hold_lock(file_lock(tmp_path / "x")),
        pytest.raises(InUseError, match=r"writes .*/x since"),
    ):
        export()
    export()
    # As a process leaves it that was killed between the two renames, and one that was killed while it wrote.
    (tmp_path / "x").rename(tmp_path / ".x.old-1")
    (tmp_path / ".x.partial-1").mkdir()
    with pytest.raises(CheckpointError, match="not empty"):
        export()
    export(overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
