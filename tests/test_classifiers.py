"""Judges as classifiers and scalar reward models: the logits of transformers, and the same judge when read again."""

import copy
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import tiny_config
from families import family_tokenizer
from model_cases import random_params
from safetensors.numpy import load_file, save_file
from test_hf_files import assert_same_bits

from gram_jax.errors import GramWarning, JudgeError, LayoutError
from gram_jax.interop.classifier import as_classifier, classifier_card, cross_encoder_files
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.hf_files import load_hf
from gram_jax.interop.models import has_scalar_head, load_tokenizer, reward_spec
from gram_jax.judge.encode import encode_items
from gram_jax.judge.spec import make_spec
from gram_jax.scoring.scalar import ScalarRewardModel
from gram_jax.scoring.scorer import Scorer

PAIRS = [
    ("Name a tree.", "oak", "a bay by the sea, no tree"),
    ("What is it? " * 9 + "Say.", "elm " * 20, " ash"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return family_tokenizer("qwen3")


def judge(family, tied, tokenizer, placement):
    cfg = replace(tiny_config(family, tied), vocab_size=512)
    return cfg, random_params(cfg, placement), make_spec(tokenizer, max_length=256)


def exported(folder, kind, cfg, params, spec, tokenizer):
    cfg, params = as_classifier(cfg, params, spec, kind)
    given = {"dtype": None, "tokenizer": tokenizer, "spec": spec}
    return export_hf(folder, cfg, params, **given)


def logits_of_transformers(folder, texts, *, left=False):
    """One row of logits for each text, padded to one batch."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    length, pad = max(map(len, texts)), model.config.pad_token_id
    rows, mask = np.full((len(texts), length), pad), np.zeros((len(texts), length), int)
    for row, text in enumerate(texts):
        part = slice(length - len(text), None) if left else slice(len(text))
        rows[row, part], mask[row, part] = text, 1
    positions = np.clip(np.cumsum(mask, 1) - 1, 0, None)
    with torch.no_grad():
        return model(
            torch.from_numpy(rows),
            attention_mask=torch.from_numpy(mask),
            position_ids=torch.from_numpy(positions),
        ).logits.numpy()


@pytest.mark.torch
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize(
    ("family", "tied"),
    [
        ("llama", True),
        pytest.param("qwen2", False, marks=pytest.mark.slow),
        pytest.param("qwen3", False, marks=pytest.mark.slow),
    ],
)
def test_a_classifier_of_transformers_gives_the_scores_of_the_judge(
    family, tied, left, tokenizer, tmp_path, one_device, execution
):
    cfg, params, spec = judge(family, tied, tokenizer, one_device)
    scorer = Scorer(params, cfg, tokenizer, spec, execution)
    margins = [score.margin for score in scorer.stream(PAIRS)]
    orders = [(p, *pair) for p, a, b in PAIRS for pair in ((a, b), (b, a))]
    texts = [e.tokens for e in encode_items(tokenizer, spec.comparison, orders, spec.max_length)]
    for kind in ("labels", "margin"):
        folder = exported(tmp_path / kind, kind, cfg, params, spec, tokenizer)
        logits = logits_of_transformers(folder, texts, left=left)
        diffs = logits[:, 0] - (logits[:, 1] if kind == "labels" else 0)
        found = (diffs[::2] - diffs[1::2]) / 2
        np.testing.assert_allclose(found, margins, atol=1e-4, rtol=1e-5)
        again = Scorer.load(folder, compute_dtype="float32")
        assert again.spec == spec
        same = [score.margin for score in again.stream(PAIRS)]
        np.testing.assert_allclose(same, margins, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["labels", "margin"])
def test_a_classifier_holds_the_rows_of_the_verdicts_and_comes_back_bit_for_bit(
    kind, tied, tokenizer, tmp_path, one_device
):
    cfg, params, spec = judge("qwen3", tied, tokenizer, one_device)
    params = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    folder = exported(tmp_path / "one", kind, cfg, params, spec, tokenizer)
    stored = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in stored
    rows = np.asarray(params["embed" if tied else "head"])[list(spec.label_ids)]
    if kind == "labels":
        assert stored["score.weight"].tobytes() == rows.tobytes()
    else:
        first, second = rows.astype(np.float32)
        assert stored["score.weight"].dtype == np.float32
        np.testing.assert_array_equal(stored["score.weight"], (first - second)[None])
    settings = json.loads((folder / "config.json").read_text())
    assert settings["architectures"] == ["Qwen3ForSequenceClassification"]
    assert list(settings["id2label"].values()) == ["A", "B"][: 2 if kind == "labels" else 1]
    assert settings["pad_token_id"] is not None
    # Each of them makes a server derive another head, or apply another activation.
    absent = {"method", "classifier_from_token", "is_original_qwen3_reranker"}
    assert not settings.keys() & (absent | {"sentence_transformers"})
    found, again = load_hf(folder, one_device, None)
    assert found.head == kind
    second = exported(tmp_path / "two", kind, found, again, spec, tokenizer)
    assert_same_bits(load_hf(second, one_device, None)[1], again)


@pytest.mark.torch
def test_the_files_of_a_cross_encoder_render_and_read_the_verdict_of_the_judge(
    tokenizer, tmp_path, one_device, execution
):
    """As its modules do: the chat template's tokens, and the difference of two logits after the last one."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    cfg, params, spec = judge("llama", True, tokenizer, one_device)
    with pytest.raises(LayoutError, match="padding token"):
        cross_encoder_files(spec, tokenizer)
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = "<|endoftext|>"
    texts = cross_encoder_files(spec, padded)
    given = {"dtype": None, "tokenizer": padded, "spec": spec, "texts": texts}
    folder = export_hf(tmp_path / "judge", cfg, params, **given)
    found = {name: json.loads((folder / name).read_text()) for name in texts}
    chat = found["sentence_bert_config.json"]["processing_kwargs"]["chat_template"]
    ids = found["1_LogitScore/config.json"]
    content = spec.template.format(prompt="Why?", first="A", second="B")
    text = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, **chat
    )
    (encoded,) = encode_items(tokenizer, spec.comparison, [("Why?", "A", "B")], spec.max_length)
    assert padded(text, add_special_tokens=False).input_ids == encoded.tokens.tolist()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(encoded.tokens[None]).long()).logits[0, -1]
    score = float(logits[ids["true_token_id"]] - logits[ids["false_token_id"]])
    engine = Scorer(params, cfg, tokenizer, spec, execution).engine
    assert engine.label_logit_diffs([encoded], paired=False)[0] == pytest.approx(score, abs=1e-4)
    assert [module["path"] for module in found["modules.json"]] == ["", "1_LogitScore"]
    assert Scorer.load(folder, compute_dtype="float32").spec == spec


def test_what_is_no_classifier_is_refused(tokenizer, tmp_path, one_device, execution):
    cfg, params, spec = judge("llama", True, tokenizer, one_device)
    found, classifier = as_classifier(cfg, params, spec, "labels")
    with pytest.raises(LayoutError, match="labels"):
        as_classifier(found, classifier, spec, "margin")
    with pytest.raises(LayoutError, match="padding token"):
        exported(
            tmp_path / "x",
            "labels",
            cfg,
            params,
            replace(spec, generation_prompt="<|im_end|>"),
            tokenizer,
        )
    with pytest.raises(JudgeError, match="no scalar head"):
        ScalarRewardModel(params, cfg, tokenizer, spec, execution)


@pytest.mark.parametrize("kind", ["labels", "margin"])
def test_the_card_of_a_classifier_has_the_requests_as_json(kind, tokenizer, one_device):
    cfg, params, spec = judge("qwen3", True, tokenizer, one_device)
    text = classifier_card(as_classifier(cfg, params, spec, kind)[0], spec, "judge")
    bodies = [json.loads(part.split("```")[0]) for part in text.split("```json")[1:]]
    assert [sorted(body) for body in bodies] == [
        ["input", "model", "use_activation"],
        ["model", "text"],
    ]
    assert "enable_thinking" in text and "add_generation_prompt" in text


def reward_model(folder, tokenizer, placement, family="qwen3", *, pad=None, dtype="float32"):
    """A scalar reward model as transformers saves it, without judge.json."""
    cfg = replace(tiny_config(family, False), vocab_size=512, head="scalar")
    params = jax.tree.map(lambda x: x.astype(dtype), random_params(cfg, placement))
    export_hf(folder, cfg, params, dtype=None, tokenizer=tokenizer, spec=None)
    settings = json.loads((folder / "config.json").read_text())
    settings["pad_token_id"] = settings["pad_token_id"] if pad is None else pad
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "gram_jax_manifest.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.torch
@pytest.mark.parametrize("name", ["qwen3", "llama3", "zephyr"])
@pytest.mark.parametrize("pad", [pytest.param("another", marks=pytest.mark.slow), "end of turn"])
def test_rewards_are_those_of_transformers_on_the_chat_template(name, pad, tmp_path, one_device):
    tokenizer = family_tokenizer(name)
    token = tokenizer.eos_token_id if pad == "end of turn" else 3
    folder = reward_model(tmp_path / "reward", tokenizer, one_device, pad=token)
    assert has_scalar_head(folder)
    chats = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        for prompt, *pair in PAIRS
        for text in (text.strip() for text in pair)  # templates of Llama 3 strip them
    ]
    texts = []
    for chat in chats:
        text = tokenizer.apply_chat_template(chat, tokenize=False, date_string="26 Jul 2024")
        texts.append(tokenizer(text, add_special_tokens=False).input_ids)
    theirs = logits_of_transformers(folder, texts)[:, 0]
    model = ScalarRewardModel.load(folder, compute_dtype="float32")
    items = [(chat[0]["content"], chat[1]["content"]) for chat in chats]
    np.testing.assert_allclose(model.rewards(items), theirs, atol=1e-4, rtol=0)
    for score, first, second in zip(
        model.stream([(p, a.strip(), b.strip()) for p, a, b in PAIRS]),
        theirs[::2],
        theirs[1::2],
        strict=True,
    ):
        assert score.margin == pytest.approx(float(first - second), abs=2e-4)


def test_a_reward_model_comes_back_bit_for_bit(tokenizer, tmp_path, one_device):
    one = reward_model(tmp_path / "one", tokenizer, one_device, dtype="bfloat16")
    cfg, params = load_hf(one, one_device, None)
    two = export_hf(tmp_path / "two", cfg, params, dtype=None, tokenizer=tokenizer, spec=None)
    stored, again = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert stored.keys() == again.keys()
    assert all(stored[name].tobytes() == again[name].tobytes() for name in stored)
    settings = json.loads((two / "config.json").read_text())
    assert settings["architectures"] == ["Qwen3ForSequenceClassification"]
    assert len(settings["id2label"]) == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["v_head.summary", "value_head"])
def test_value_heads_of_other_libraries_are_scalar_heads(
    name, bias, tokenizer, tmp_path, one_device
):
    folder = reward_model(tmp_path / "reward", tokenizer, one_device)
    _, expected = load_hf(folder, one_device, None)
    settings = json.loads((folder / "config.json").read_text())
    for entry in ("id2label", "label2id"):
        del settings[entry]
    settings["architectures"] = ["Qwen3ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(settings))
    stored = load_file(folder / "model.safetensors")
    stored[f"{name}.weight"] = stored.pop("score.weight")
    stored["lm_head.weight"] = np.ones_like(stored["model.embed_tokens.weight"])
    if bias:
        stored[f"{name}.bias"] = np.ones(1, np.float32)
    save_file(stored, folder / "model.safetensors")
    assert has_scalar_head(folder)
    if bias:
        with pytest.warns(GramWarning, match="bias"):
            _, found = load_hf(folder, one_device, None)
    else:
        _, found = load_hf(folder, one_device, None)
    assert_same_bits(found, expected)
    assert reward_spec(folder, load_tokenizer(folder)).end_of_turn == "<|im_end|>\n"
