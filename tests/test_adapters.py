"""LoRA adapters: the model of peft, and a run's LoRA as an adapter."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny_config
from model_cases import random_params
from safetensors.numpy import load_file, save_file
from test_hf_files import assert_same_bits
from test_models import write_run

from gram_jax import tree
from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.interop.hf_export import export_adapter, export_copy, export_hf
from gram_jax.interop.models import (
    adapter_place,
    load_lora,
    load_model,
    load_spec,
    load_tokenizer,
    model_config,
)
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.model.lora import LoraConfig, init_lora, lora_specs

SETTINGS = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 4, "lora_alpha": 6}


@pytest.fixture
def base(tmp_path, one_device):
    """A folder with a base model; (its path, config, parameters)."""
    cfg = tiny_config("qwen2", False)
    params = random_params(cfg, one_device)
    tokenizer = tiny_tokenizer()
    folder = export_hf(tmp_path / "base", cfg, params, dtype=None, tokenizer=tokenizer, spec=None)
    return folder, cfg, params


def write_adapter(folder, cfg, modules, *, rank=4, seed=0, **settings):
    """An adapter with random matrices: {module: (A, B)}."""
    rng, pairs, tensors = np.random.default_rng(seed), {}, {}
    sizes = {"q_proj": (32, 32), "v_proj": (16, 32), "down_proj": (32, 48)}
    for layer in range(cfg.layers):
        for module in modules:
            block = "mlp" if module == "down_proj" else "self_attn"
            name = f"model.layers.{layer}.{block}.{module}"
            outs, ins = sizes[module]
            own = rank[module] if isinstance(rank, dict) else rank
            a, b = rng.normal(size=(own, ins)), rng.normal(size=(outs, own))
            pairs[name] = a.astype(np.float32), b.astype(np.float32)
            for letter, matrix in zip("AB", pairs[name], strict=True):
                tensors[f"base_model.model.{name}.lora_{letter}.weight"] = matrix
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return pairs


@pytest.mark.parametrize("rslora", [True, False])
@pytest.mark.parametrize("mesh", ["one_device", "cube"])
def test_an_adapter_adds_its_product_to_the_base(mesh, rslora, base, tmp_path, request):
    _, cfg, params = base
    ranks = {"q_proj": 4, "v_proj": 2, "down_proj": 4}
    pairs = write_adapter(
        tmp_path / "lora", cfg, list(ranks), rank=ranks, use_rslora=rslora,
        rank_pattern={"v_proj": 2}, alpha_pattern={"layers.1.mlp.down_proj": 3},
    )  # fmt: skip
    found, loaded = load_model(tmp_path / "lora", request.getfixturevalue(mesh), None)
    assert found == cfg
    paths = {"q_proj": "q", "v_proj": "v", "down_proj": "down"}
    for name, (a, b) in pairs.items():
        layer, module = int(name.split(".")[2]), name.rpartition(".")[2]
        alpha = 3 if (layer, module) == (1, "down_proj") else 6
        scale = alpha / (np.sqrt(len(a)) if rslora else len(a))
        before = np.asarray(params["layers"][paths[module]][layer])
        expected = before.reshape(a.shape[1], -1) + scale * (b @ a).T
        np.testing.assert_allclose(
            loaded["layers"][paths[module]][layer], expected.reshape(before.shape), atol=1e-5
        )
    assert_same_bits({"k": loaded["layers"]["k"]}, {"k": params["layers"]["k"]})


def test_a_bfloat16_base_is_rounded_once(base, tmp_path, one_device):
    _, cfg, params = base
    half = export_hf(
        tmp_path / "half", cfg, params, dtype="bfloat16", tokenizer=tiny_tokenizer(), spec=None
    )
    write_adapter(tmp_path / "lora", cfg, ["q_proj"], base_model_name_or_path=str(half))
    _, kept = load_model(tmp_path / "lora", one_device, None)
    _, wide = load_model(tmp_path / "lora", one_device, "float32")
    assert kept["layers"]["q"].dtype == "bfloat16"
    assert_same_bits({"q": kept["layers"]["q"]}, {"q": wide["layers"]["q"].astype("bfloat16")})


def test_a_head_that_comes_with_an_adapter_makes_a_reward_model(base, tmp_path, one_device):
    _, cfg, _ = base
    write_adapter(tmp_path / "lora", cfg, ["q_proj"])
    path = tmp_path / "lora" / "adapter_model.safetensors"
    head = np.arange(32, dtype=np.float32)[None]
    save_file(load_file(path) | {"base_model.model.score.weight": head}, path)
    assert model_config(tmp_path / "lora") == replace(cfg, head="scalar")
    np.testing.assert_array_equal(load_model(tmp_path / "lora", one_device, None)[1]["score"], head)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"r": 8}, "rank 8"),
        ({"lora_alpha": None}, "None"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
        ({"alpha_pattern": {"(": 4}}, "alpha_pattern"),
        ({"base_model_name_or_path": "nowhere"}, "nowhere"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", "lora_magnitude_vector"),
        ("model.embed_tokens.lora_embedding_A", "lora_embedding_A"),
        ("model.layers.7.self_attn.q_proj.lora_A.weight", "layers.7"),
        ("model.embed_tokens.weight", "embed_tokens"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, name, base, tmp_path, one_device):
    settings = change if isinstance(change, dict) else {}
    write_adapter(tmp_path / "lora", base[1], ["q_proj"], **settings)
    if isinstance(change, str):
        path = tmp_path / "lora" / "adapter_model.safetensors"
        save_file(
            load_file(path) | {f"base_model.model.{change}": np.ones((300, 32), np.float32)}, path
        )
    with pytest.raises((LayoutError, CheckpointError), match=name):
        load_model(tmp_path / "lora", one_device, None)


def test_an_adapter_next_to_a_whole_model_is_refused(base, tmp_path, one_device):
    write_adapter(base[0], base[1], ["q_proj"])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(base[0], one_device, None)


@pytest.mark.torch
@pytest.mark.parametrize("rslora", [True, False])
def test_an_adapter_is_applied_as_peft_applies_it(rslora, base, tmp_path, one_device):
    torch, transformers, peft = (pytest.importorskip(x) for x in ("torch", "transformers", "peft"))
    folder, cfg, _ = base
    write_adapter(
        tmp_path / "lora", cfg, ["q_proj", "down_proj"], use_rslora=rslora, target_modules=["q_proj", "down_proj"],
        alpha_pattern={"layers.0.self_attn.q_proj": 2}, base_model_name_or_path=str(folder),
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "lora").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for source in ("lora", "merged"):
        assert model_config(tmp_path / source) == cfg
    ours, theirs = (load_model(tmp_path / x, one_device, None)[1] for x in ("lora", "merged"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


@pytest.mark.parametrize("scalar", [True, False])
def test_the_lora_of_a_run_is_an_adapter_with_the_same_weights(scalar, base, tmp_path, one_device):
    folder, cfg, _ = base
    tokenizer = load_tokenizer(folder)
    spec = make_spec(tokenizer, max_length=256)
    lora = LoraConfig(4, 6.0, ("q", "o", "down"))
    update = init_lora(lora_specs(cfg, lora), jax.random.key(0), one_device, "float32")
    update = jax.tree.map(lambda x: x + 0.1, update)
    if scalar:
        update["score"] = jax.numpy.arange(32.0)[None]
    note = {"base": str(folder), "rank": 4, "alpha": 6.0, "targets": list(lora.targets)}
    write_run(tmp_path / "run", cfg, tokenizer, spec, {5: update}, note)
    found, params, settings, name = load_lora(tmp_path / "run", one_device)
    given = {"base": name, "tokenizer": tokenizer, "spec": spec}
    adapter = export_adapter(tmp_path / "lora", found, settings, params, **given)
    stored = load_file(adapter / "adapter_model.safetensors")
    a = stored["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"]
    assert a.tobytes() == np.asarray(update["layers"]["lora"]["down"]["a"][1]).T.tobytes()
    _, run = load_model(tmp_path / "run", one_device, None)
    loaded, read = load_model(adapter, one_device, None)
    assert loaded.head == ("scalar" if scalar else "language")
    run.pop("head" if scalar else "", None)
    assert tree.flatten(run).keys() == tree.flatten(read).keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), run, read)
    if "peft" in sys.modules or not scalar:
        peft = pytest.importorskip("peft")
        assert peft.PeftConfig.from_pretrained(adapter).r == 4


def test_an_adapter_that_was_loaded_is_written_with_the_same_bits(base, tmp_path, one_device):
    folder, cfg, _ = base
    write_adapter(tmp_path / "lora", cfg, ["q_proj", "down_proj"], use_rslora=True)
    place, name = adapter_place(tmp_path / "lora")
    assert Path(name) == folder  # it stands beside the adapter, but not beside the copy
    tokenizer = load_tokenizer(folder)
    spec = make_spec(tokenizer, max_length=256)
    given = {"base": name, "tokenizer": tokenizer, "spec": spec}
    copy = export_copy(tmp_path / "elsewhere" / "copy", place, **given)
    one, two = (x / "adapter_model.safetensors" for x in (place, copy))
    assert one.read_bytes() == two.read_bytes()
    _, before = load_model(place, one_device, None)
    assert_same_bits(load_model(copy, one_device, None)[1], before)
    assert load_spec(copy) == spec
    assert adapter_place(folder) is None


def test_a_run_without_lora_is_no_adapter(base, tmp_path, one_device):
    folder, cfg, params = base
    tokenizer = load_tokenizer(folder)
    write_run(tmp_path / "run", cfg, tokenizer, make_spec(tokenizer, max_length=256), {5: params})
    with pytest.raises(CheckpointError, match="all weights"):
        load_lora(tmp_path / "run", one_device)
    with pytest.raises(CheckpointError, match="neither a run"):
        load_lora(folder, one_device)
