"""NaN and infinity are refused wherever they come from: weights, logits, configs, data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_runner import run_cli
from damage import exported
from safetensors.numpy import load_file, save_file

from gram_jax import tree
from gram_jax.errors import LayoutError, NonFiniteError
from gram_jax.generation.generator import TextGenerator
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.model.config import LARGEST, POSITIVE
from gram_jax.model.generate import SamplingConfig
from gram_jax.model.specs import SCORE
from gram_jax.run.verify import accept_changes
from gram_jax.scoring.scalar import ScalarRewardModel
from gram_jax.scoring.scorer import Scorer


def spoil(folder, tensor: str, value: float) -> None:
    """Set one number of an exported model, and accept the change."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if tensor in tensors:
            tensors[tensor].reshape(-1)[-1] = value
            save_file(tensors, path, metadata={"format": "pt"})
    accept_changes(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("tensor", "path"),
    [
        ("model.embed_tokens.weight", "embed"),
        ("model.norm.weight", "final_norm"),
        ("model.layers.1.mlp.down_proj.weight", "layers/down"),
        ("model.layers.0.self_attn.q_norm.weight", "layers/q_norm"),
    ],
)
def test_a_weight_that_is_not_finite_is_refused_by_name(
    tmp_path, one_device, cube, tensor, path, value
):
    folder = exported(tmp_path / "x", one_device)
    spoil(folder, tensor, value)
    for placement in (one_device, cube):
        for dtype in (None, "bfloat16", "float16"):
            with pytest.raises(NonFiniteError, match=f"  {path}: 1 of "):
                load_model(folder, placement, dtype)
    for weights in ("auto", "bfloat16", "int8"):
        with pytest.raises(NonFiniteError, match=path):
            Scorer.load(folder, weights=weights)


def test_numbers_that_overflow_in_the_new_dtype_are_neither_loaded_nor_exported(
    tmp_path, one_device
):
    folder = exported(tmp_path / "x", one_device)
    spoil(folder, "model.norm.weight", 1e30)
    cfg, params = load_model(folder, one_device, None)
    with pytest.raises(NonFiniteError, match="final_norm: 1 of 32"):
        load_model(folder, one_device, "float16")
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight: 1 of 32"):
        export_hf(tmp_path / "y", cfg, params, dtype="float16", tokenizer=None, spec=None)
    assert not (tmp_path / "y").exists()


def test_logits_that_overflow_become_no_score_no_ranking_and_no_text(execution, one_device):
    cfg, params = load_model("tiny-random", one_device, "float32")
    tokenizer = load_tokenizer("tiny-random")
    params["final_norm"] = params["final_norm"] * 1e38
    params["embed"] = params["embed"] * 1e3  # finite, its product with the hidden state is not
    spec = make_spec(tokenizer, max_length=256)
    for method in ("prefix_shared", "padded"):
        judge = Scorer(params, cfg, tokenizer, spec, execution, method=method)
        with pytest.raises(NonFiniteError, match="2 of 2 comparisons"):
            judge.score("p", "a", "b")
        with pytest.raises(NonFiniteError):
            judge.rank("p", ["a", "b", "c"])
    generator = TextGenerator.load(
        "tiny-random", compute_dtype="float32", placement=one_device
    ).with_params(params)
    for temperature in (0, 1):
        with pytest.raises(NonFiniteError, match="1 of 1 responses"):
            generator.generate(["Hi"], SamplingConfig(2, temperature))
    baseline = ScalarRewardModel(
        {**params, SCORE: jnp.full((1, cfg.embed_size), 1e38)}, cfg, tokenizer, spec, execution
    )
    with pytest.raises(NonFiniteError, match="1 of 1 responses"):
        baseline.rewards([("p", "a")])


HF_NAMES = {
    "layers": "num_hidden_layers",
    "embed_size": "hidden_size",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "vocab_size": "vocab_size",
}


@pytest.mark.parametrize("value", [0, -1, 1e6, float("inf"), float("nan"), "5", True, None, [1]])
@pytest.mark.parametrize("name", list(HF_NAMES))
def test_a_number_that_no_model_has_is_refused_by_field(tmp_path, one_device, name, value):
    folder = exported(tmp_path / "x", one_device)
    config = json.loads((folder / "config.json").read_text())
    config |= {HF_NAMES[name]: value, "rope_parameters": None}
    (folder / "config.json").write_text(json.dumps(config))
    accept_changes(folder)
    allowed = value == 1e6 and POSITIVE.get(name, 0) > value
    if allowed or (value is None and name == "rope_theta"):
        load_model(folder, one_device, None)  # a model may have this value
        return
    with pytest.raises(LayoutError, match=HF_NAMES[name]):
        load_model(folder, one_device, None)


def test_the_largest_published_models_are_within_the_limits():
    """Llama 3.1 405B and Qwen3's vocabulary."""
    sizes = {"vocab_size": 151936, "embed_size": 16384, "layers": 126, "mlp_size": 53248}
    assert all(value < LARGEST[name] / 4 for name, value in sizes.items())


def test_nan_in_data_is_refused_by_row(tmp_path):
    chats = [[{"role": "user", "content": "p"}, {"role": "assistant", "content": x}] for x in "ab"]
    scored = {"prompt": "p", "chosen": chats[0], "rejected": chats[1], "score_rejected": 1.0}
    plain = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for good, name in (
        (scored | {"score_chosen": 2.0}, "score_chosen"),
        (scored | {"score_chosen": 2.0}, "score_rejected"),
        (plain, "margin"),
        (plain, "weight"),
    ):
        both = [good, good | {name: float("nan")}]
        (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, both)))
        done = run_cli("data", "inspect", tmp_path / "x.jsonl", "--model", "tiny-random")
        assert (done.status, "line 2" in done.stderr, name in done.stderr) == (2, True, True)


def test_a_tree_on_the_host_is_checked_in_place():
    from gram_jax.finite import check_weights

    good = {
        "a": np.ones(3, np.float32),
        "b": {"c": np.ones(2, jnp.bfloat16), "d": np.ones(2, np.int8)},
    }
    check_weights(good, "x")
    check_weights(jax.tree.map(jnp.asarray, good), "x")
    for path in ("a", "b/c"):
        bad = tree.map_with_path(lambda p, x, path=path: x * np.nan if p == path else x, good)
        with pytest.raises(NonFiniteError, match=f"  {path}: "):
            check_weights(bad, "x")
