"""Reinforcement learning of a judge: where a written verdict is, what it earns, and its prompts."""

import json
from typing import Any

import numpy as np
import pytest
from tiny_runs import tiny_rl_values

from gram_jax.errors import JudgeError, RecipeError
from gram_jax.generation.generator import TextGenerator
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.encode import encode_items
from gram_jax.judge.spec import make_spec
from gram_jax.recipes.reading import make_rl_recipe
from gram_jax.rl.prompts import PromptSet
from gram_jax.rl.verdicts import VerdictGenerator, label_reward, read_comparisons, verdict_generator

TOKENIZER = tiny_tokenizer()
SPEC = make_spec(TOKENIZER, rationale="think", max_rationale=64, max_length=192)
NOTHING: Any = None


@pytest.fixture(scope="module")
def judge() -> VerdictGenerator:
    """A policy without weights."""
    loaded = TextGenerator({}, NOTHING, TOKENIZER, NOTHING, None, (), NOTHING)
    return verdict_generator(loaded, SPEC)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


RIGHT = "It says zzz.\n</think>\n<answer>\n"


def test_the_verdict_is_the_token_after_the_closing_text(judge):
    tokens = ids(RIGHT) + list(SPEC.rationale.label_ids) + ids("</answer>")
    assert judge.verdict_end(tokens) == len(ids(RIGHT)) + 1
    assert judge.verdict_end(ids(RIGHT)) is None  # not written yet
    for text in (
        "\n</think>\n<answer>\nA",  # empty
        "It says zzz.</think><answer>\nA",
        "A</think>\n<answer> A\n</think>\n<answer>\nA",  # the first stop text counts
        "It says zzz. <answer>\nA",
    ):
        assert judge.verdict_end(ids(text)) is None, text


def test_the_reward_is_one_for_the_label_only(judge):
    prompts = PromptSet([], [], {"first": "A", "second": "B"})
    reward = label_reward(judge, prompts)
    texts = [RIGHT + "A", RIGHT + "B", "", RIGHT + "AB", RIGHT + " A", "A"]
    assert reward(["first"] * 6, texts, None) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert reward(["second"] * 2, texts[:2], None) == [0.0, 1.0]


def test_the_prompts_are_labeled_pairs_in_both_orders(judge, tmp_path):
    rows = [
        {"prompt": f"{at}", "chosen": "zzz", "rejected": "oak " * (9 * at)} for at in range(1, 4)
    ]
    rows.append({"prompt": "4", "response_a": "x", "response_b": "y", "label": "tie"})
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    found = read_comparisons(str(source), judge, schema="auto", longest=400, limit=2)
    assert [found.preferred[prompt] for prompt in found.prompts] == ["A", "B", "A", "B"]
    (shown,) = encode_items(TOKENIZER, SPEC.comparison, [("1", rows[0]["rejected"], "zzz")], 192)
    assert np.array_equal(found.tokens[1], judge.encoder.prompt(shown.tokens))
    assert str(TOKENIZER.decode(found.tokens[1])).endswith("assistant\n<think>\n")
    length = len(found.tokens[0])
    short = read_comparisons(str(source), judge, schema="auto", longest=length, limit=None)
    assert len(short.prompts) == 2


def test_a_policy_without_rationales_and_two_rewards_are_refused(tmp_path):
    loaded = TextGenerator({}, NOTHING, TOKENIZER, NOTHING, None, (), NOTHING)
    for spec in (None, make_spec(TOKENIZER, max_length=192)):
        with pytest.raises(JudgeError, match="rationale"):
            verdict_generator(loaded, spec)
    with pytest.raises(RecipeError, match="without one"):
        make_rl_recipe(tiny_rl_values(tmp_path / "run", reward__kind="label"))
