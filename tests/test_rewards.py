"""Rewards of a judge: hand-made verdicts, the call forms of the trainers, groups that arrive in parts."""

import asyncio
import time
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from fake_judge import FakeJudge
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from gram_jax.errors import DataError
from gram_jax.judge.encode import encode_items
from gram_jax.judge.messages import NO_CONTENT, REASONING
from gram_jax.rewards import environment
from gram_jax.rewards.chats import without_ends
from gram_jax.rewards.forms import RewardForm, Rewards
from gram_jax.rewards.group_buffer import GroupBuffer
from gram_jax.rewards.messages import (
    UNKNOWN_FORMAT,
    completion_of,
    prompt_of,
    response_in,
    split_query,
)
from gram_jax.rewards.trl import GroupJudge, async_trl_reward, trl_reward
from gram_jax.rewards.tunix import tunix_reward
from gram_jax.rewards.verl import compute_score
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement

REFERENCE = RewardForm("reference")


def rewards_of(texts, *, form=None, prompts=None, references=None, judge=None) -> list[float]:
    """Rewards of responses to one prompt, "q", or to `prompts`."""
    return Rewards(judge or FakeJudge(), form).of(prompts or ["q"] * len(texts), texts, references)


def test_the_win_rate_in_a_group_is_the_mean_over_the_others():
    found = rewards_of(["aaaa", "aa", "a"])
    assert found[0] == pytest.approx((expit(1) + expit(1.5)) / 2)
    assert found[1] == pytest.approx((expit(-1) + expit(0.5)) / 2)
    assert sum(found) == pytest.approx(1.5)  # what one wins another loses


def test_a_position_bias_cancels():
    form, texts = RewardForm(scale="log_odds"), ["aaaa", "aa", "a"]
    biased = rewards_of(texts, form=form, judge=FakeJudge(lean=2.0))
    assert biased == pytest.approx(rewards_of(texts, form=form))


def test_groups_are_formed_by_prompt_in_any_order():
    texts = ["aaaa", "b", "aa", "bbb"]
    mixed = rewards_of(texts, prompts=["q", "r", "q", "r"])
    assert mixed[0::2] == rewards_of(texts[0::2]) and mixed[1::2] == rewards_of(texts[1::2])


@pytest.mark.parametrize(
    ("form", "comparisons"), [(RewardForm(), 2 * 4 * 3), (RewardForm("neighbors"), 2 * 2 * 4)]
)
def test_all_comparisons_of_a_call_are_scored_together(form, comparisons):
    judge = FakeJudge()
    rewards_of(["x" * at for at in range(8)], prompts=["q", "r"] * 4, form=form, judge=judge)
    assert (judge.calls, judge.comparisons) == (1, comparisons)  # both orders


def test_neighbors_are_a_ring():
    form = RewardForm("neighbors")
    found = rewards_of(["aaaa", "aaa", "aa", "a"], form=form)
    assert found[0] == pytest.approx((expit(0.5) + expit(1.5)) / 2)
    assert rewards_of(["aaa", "a"], form=form) == pytest.approx([expit(1), expit(-1)])
    assert rewards_of(["aaa"], form=form) == [0.5]


def test_references_given_or_shared():
    form = RewardForm("reference", references=("aa", "aaaa"))
    given = rewards_of(["aaa", "aaa"], form=form, references=["a", None])
    assert given == pytest.approx([expit(1), (expit(0.5) + expit(-0.5)) / 2])
    several = rewards_of(["aaa"], form=form, references=[["a", "aaaaa"]])
    assert several == pytest.approx([0.5])
    with pytest.raises(DataError, match="nothing to be compared with"):
        rewards_of(["a"], form=REFERENCE, references=[""])


def test_references_are_written_for_prompts_without_one():
    asked = []

    def write(prompts):
        asked.append([prompt[-1].content for prompt in prompts])
        return ["a" * len(prompt[-1].content) for prompt in prompts]

    written = Rewards(FakeJudge(), REFERENCE, write=write)
    found = written.of(["qq", "r", "qq"], ["aaa", "aaa", "a"])
    assert found == pytest.approx([expit(0.5), expit(1), expit(-0.5)])
    assert asked == [["qq", "r"]]  # each prompt once
    mixed = written.of(["qq", "r"], ["aaa", "aaa"], np.array(["a", ""], object))
    assert mixed == pytest.approx([expit(1), expit(1)]) and asked[1:] == [["r"]]
    empty = Rewards(FakeJudge(), REFERENCE, write=lambda prompts: [""])  # is a reference too
    assert empty.of(["q"], ["aa"]) == pytest.approx([expit(1)])
    with pytest.raises(DataError, match="1 prompts and 0 generated references"):
        Rewards(FakeJudge(), REFERENCE, write=lambda prompts: []).of(["q"], ["a"])
    for other in (RewardForm(), RewardForm("reference", references=("a",))):
        with pytest.raises(DataError, match="leave out one of the two"):
            Rewards(FakeJudge(), other, write=write)


@pytest.mark.parametrize(("scale", "value"), [("probability", 0.5), ("log_odds", 0.0)])
def test_equal_texts_are_even_without_a_comparison(scale, value):
    judge = FakeJudge(lean=3.0)
    form = RewardForm("reference", scale)
    assert rewards_of(["same"], form=form, references=["same"], judge=judge) == [value]
    group = RewardForm(scale=scale)
    assert rewards_of(["a", "a"], form=group, judge=judge) == [value, value]
    assert judge.comparisons == 0
    found = rewards_of(["aa", "aa", "a"], form=group)
    win = expit(0.5) if scale == "probability" else 0.5
    assert found[0] == found[1] == pytest.approx((value + win) / 2)


def test_normalized_rewards_have_mean_zero_and_deviation_one_in_their_group():
    form, texts = RewardForm(scale="normalized"), ["aaaa", "b", "aa", "b"]
    found = rewards_of(texts, form=form, prompts=["q", "r", "q", "r"])
    assert found[0::2] == pytest.approx([1, -1]) and found[1::2] == [0, 0]


def test_a_length_penalty_is_per_thousand_characters():
    texts = ["a" * 500, "a" * 1500]
    penalized = rewards_of(texts, form=RewardForm(length_penalty=0.2))
    assert np.subtract(rewards_of(texts), penalized) == pytest.approx([0.1, 0.3])


def test_a_group_in_parts_is_compared_with_what_came_before_and_warns_once():
    parts = Rewards(FakeJudge(), RewardForm(group_size=3), buffer=GroupBuffer())
    with pytest.warns(UserWarning, match="1 of at least 3"):
        assert parts.of(["q"], ["aaaa"]) == [0.5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parts.of(["q"], ["aa"]) == pytest.approx([expit(-1)])
        both = (expit(-0.5) + expit(-1.5)) / 2
        assert parts.of(["q"], ["a"]) == pytest.approx([both])
        assert parts.of(["r"], ["a"]) == [0.5]


def test_a_complete_group_leaves_nothing_for_the_prompts_next_group():
    parts = Rewards(FakeJudge(), RewardForm(group_size=4), buffer=GroupBuffer())
    with pytest.warns(UserWarning, match="2 of at least 4"):
        assert parts.of(["q"] * 2, ["a", "a"]) == [0.5, 0.5]
    whole = parts.of(["q"] * 2, ["aa", "aa"])
    assert whole == pytest.approx([(0.5 + 2 * expit(0.5)) / 3] * 2)
    assert parts.of(["q"] * 2, ["aaaa", "aaaa"]) == [0.5, 0.5]  # of a later step's policy


@pytest.mark.parametrize("compare_with", ["group", "neighbors"])
@pytest.mark.parametrize("buffer", [None, GroupBuffer()])
def test_a_prompt_twice_in_a_call_is_two_groups(compare_with, buffer):
    form = RewardForm(compare_with, "normalized", group_size=3)
    texts = ["a", "aa", "aaa", "aaaa", "aaa", "aa"]
    twice = Rewards(FakeJudge(), form, buffer=buffer).of(["q"] * 6, texts)
    alone = [*rewards_of(texts[:3], form=form), *rewards_of(texts[3:], form=form)]
    assert twice == pytest.approx(alone)


def test_without_a_buffer_a_call_depends_on_its_arguments_alone():
    alone = Rewards(FakeJudge(), RewardForm(group_size=2))
    assert alone.of(["q"], ["aaaa"]) == alone.of(["q"], ["a"]) == [0.5]


def test_empty_calls_and_wrong_arguments():
    assert rewards_of([]) == []
    with pytest.raises(DataError, match="2 prompts and 1 completions"):
        rewards_of(["a"], prompts=["q", "q"])
    with pytest.raises(DataError, match="expected one of group, neighbors, reference"):
        RewardForm(compare_with="groups")
    for wrong in ("Seven.", ("Seven.", 2), None):
        with pytest.raises(DataError, match="references: expected a tuple of texts"):
            RewardForm("reference", references=wrong)
        with pytest.raises(DataError, match="end_tokens: expected a tuple of texts"):
            RewardForm(end_tokens=wrong)


CHATML = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
LLAMA = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
GEMMA = "<bos><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"


@pytest.mark.parametrize("rendered", [CHATML, LLAMA, GEMMA])
def test_rendered_prompts_are_parsed(rendered: str):
    turns = prompt_of(rendered)
    assert (turns[-1].role, turns[-1].content) == ("user", "Why?")
    assert [turn.role for turn in turns[:-1]] == (["system"] if rendered is CHATML else [])


def test_messages_and_texts_are_the_same_prompt():
    message, empty = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": ""}
    assert prompt_of("Why?") == prompt_of([message]) == prompt_of([message, empty])
    said = [{"role": "assistant", "content": "So."}]
    assert completion_of("So.<|im_end|>\n") == completion_of(said)
    with pytest.raises(
        DataError, match="expected a list of messages with role and content, found int 3"
    ):
        prompt_of(3)


CALL = '<tool_call>\n{"name": "add", "arguments": {"x": 2}}\n</tool_call>'


def test_calls_and_results_of_tools_are_part_of_what_is_judged():
    function = {"name": "add", "arguments": '{"x":2}'}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
    answer = {"role": "tool", "name": "add", "content": "5"}
    said = completion_of([call, answer, {"role": "assistant", "content": "Five."}])
    assert said == f"{CALL}\n<tool_response>\n5\n</tool_response>\nFive."
    assert completion_of([call]) == CALL
    asked = prompt_of([{"role": "user", "content": "2 + 3?"}, call, answer])
    assert [(turn.role, turn.content) for turn in asked[1:]] == [("assistant", CALL), ("tool", "5")]
    with pytest.raises(DataError, match="an assistant's turn"):
        completion_of([answer])


@pytest.mark.parametrize(
    "completion",
    [
        [],
        np.array([], object),
        [{"role": "assistant", "content": None, "tool_calls": []}],
        [{"role": "assistant", "reasoning_content": "6 * 7 is"}],
    ],
)
def test_a_completion_without_content_is_an_empty_response_and_is_counted(completion):
    rewards = Rewards(FakeJudge())
    assert rewards.of(["q", "q"], [completion, "42"]) == rewards.of(["q", "q"], ["", "42"])
    assert rewards.notes[NO_CONTENT] == 1
    assert rewards.notes[REASONING] == ("reasoning_content" in str(completion))


def chat(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


LONG = chat("Tell me. " * 20 + "What is two plus two?")
ACCENTS = unicodedata.normalize("NFD", "Où est le café ?")
PLAIN = f"Question: {ACCENTS}\nAnswer: "
SPM = "<s>[INST] Hi? [/INST]"
DEEPSEEK = "<｜begin▁of▁sentence｜><｜User｜>Hi?<｜Assistant｜>"
QUERIES = {
    "as it is": (LONG + "Four.<|im_end|>", LONG, "Four."),
    "cut on the left": (LONG[60:] + "Four.<|im_end|>", LONG, "Four."),
    "cut inside a character": ("\ufffd" + LONG[61:] + "Four.", LONG, "Four."),
    "normalised": (unicodedata.normalize("NFC", chat(ACCENTS)) + "Ici.", chat(ACCENTS), "Ici."),
    "normalised text": (unicodedata.normalize("NFC", PLAIN) + "Ici.<|im_end|>", PLAIN, "Ici."),
    "SentencePiece": ("<s> [INST] Hi? [/INST] Hello.</s>", SPM, "Hello."),
    "padded": ("<|endoftext|>" * 3 + LONG + "Four.<|im_end|>" + "<|endoftext|>" * 2, LONG, "Four."),
    "padded text": (f"<pad><pad>{PLAIN}Ici.", PLAIN, "Ici."),
    "beginning of text": (f"<s>{SPM[3:]} Hello.</s>", SPM[3:], "Hello."),
    "without special tokens": ("user\nHi?\nassistant\nHello.", chat("Hi?"), "Hello."),
    "DeepSeek": (DEEPSEEK + "Hey.<｜end▁of▁sentence｜>", DEEPSEEK.split("｜>", 1)[1], "Hey."),
    "code keeps its indentation": (PLAIN + "\n    return 4\n", PLAIN, "    return 4"),
    "an empty response": (LONG + "<|im_end|>", LONG, ""),
}


@pytest.mark.parametrize("name", QUERIES)
def test_the_response_is_found_behind_a_prompt_that_was_decoded_from_tokens(name: str):
    query, prompt, response = QUERIES[name]
    assert split_query(query, prompt) == (prompt_of(prompt), response)
    judge = Rewards(FakeJudge(lean=2.0), REFERENCE)
    asked, said = split_query(query, prompt, judge.notes, judge.ends)
    assert judge.of([asked], [said], [response or [""]]) == [0.5]


WORDS = st.characters(exclude_characters="<|｜")  # no control tokens


@given(st.text(WORDS, max_size=60), st.text(WORDS, max_size=40), st.integers(12, 40))
@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_any_response_is_found_behind_a_cut_and_normalised_prompt(form, question, response, cut):
    prompt = chat("What do you know about these words? " + question)
    query = unicodedata.normalize(form, prompt)[cut:] + response + "<|im_end|>"
    assert response_in(query, prompt) == without_ends(response)


def test_a_query_without_its_prompt_is_refused():
    with pytest.raises(DataError, match="begins with its prompt"):
        response_in("Something else. Four.", LONG)
    with pytest.raises(DataError, match="known format"):
        split_query("A chat. USER: Hi? ASSISTANT: Hello.</s>")


RENDERED = {
    "Mistral": "<s>[INST] Hi? [/INST] Hello.</s>[INST] Bye? [/INST] Bye.</s>",
    "DeepSeek": "<｜User｜>Hi?<｜Assistant｜>Hello.<｜end▁of▁sentence｜><｜User｜>Bye?<｜Assistant｜>Bye.",
    "Zephyr": "<|user|>\nHi?</s>\n<|assistant|>\nHello.</s>\n<|user|>\nBye?</s>\n<|assistant|>\nBye.</s>",
    "Phi": "<|user|>Hi?<|end|><|assistant|>Hello.<|end|><|user|>Bye?<|end|><|assistant|>Bye.<|end|>",
    "gpt-oss": "<|start|>user<|message|>Hi?<|end|><|start|>assistant<|channel|>final<|message|>Hello.<|end|>"
    "<|start|>user<|message|>Bye?<|end|><|start|>assistant<|channel|>final<|message|>Bye.<|return|>",
    "Llama 4": "<|begin_of_text|><|header_start|>user<|header_end|>\n\nHi?<|eot|><|header_start|>assistant"
    "<|header_end|>\n\nHello.<|eot|><|header_start|>user<|header_end|>\n\nBye?<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\nBye.<|eot|>",
    "Command R": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Bye?"
    "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Bye.<|END_OF_TURN_TOKEN|>",
}


@pytest.mark.parametrize("name", RENDERED)
def test_rendered_conversations_of_other_families_are_taken_apart(name: str):
    prompt, response = split_query(RENDERED[name])
    assert [(t.role, t.content) for t in prompt] == [
        ("user", "Hi?"), ("assistant", "Hello."), ("user", "Bye?")
    ]  # fmt: skip
    assert response == "Bye."


def test_control_tokens_of_an_unknown_format_are_counted():
    rewards = Rewards(FakeJudge())
    rewards.of(["<|odd|>Hi?", "[USER] Hi?"], ["a", "b"])
    assert rewards.notes == {UNKNOWN_FORMAT: 1}


def test_the_form_of_trl():
    reward = trl_reward(FakeJudge(), REFERENCE)
    assert reward.__name__ == "gram_judge"
    found = reward(
        prompts=[[{"role": "user", "content": "q"}]] * 2,
        completions=[[{"role": "assistant", "content": text}] for text in ("aaa", "a")],
        completion_ids=[[1], [2]],
        trainer_state=object(),
        reference=["a", "a"],
    )
    assert found == pytest.approx([expit(1), 0.5]) and all(type(x) is float for x in found)
    with pytest.raises(DataError, match="no column 'reference': found answer"):
        reward(prompts=["q"], completions=["a"], answer=["b"])
    later = async_trl_reward(FakeJudge())
    assert asyncio.iscoroutinefunction(later)
    assert asyncio.run(later(["q"] * 2, ["aaa", "a"])) == pytest.approx([expit(1), expit(-1)])


@pytest.mark.parametrize("make", [trl_reward, async_trl_reward, tunix_reward])
def test_trainers_rewards_may_write_references(make):
    reward = make(FakeJudge(), REFERENCE, write=lambda prompts: ["a"])
    found = reward(prompts=["q"], completions=["aaa"], answer=["b"])
    found = asyncio.run(found) if make is async_trl_reward else found
    assert found == pytest.approx([expit(1)])


def test_the_form_of_tunix():
    reward, rendered = tunix_reward(FakeJudge()), [CHATML] * 2
    found = reward(prompts=rendered, completions=["aaa", "a"])
    assert found == pytest.approx([expit(1), expit(-1)])
    plain = reward(prompts=rendered, completions=["aaa", "a"], question=np.array(["q", "r"]))
    assert plain == [0.5, 0.5]  # two prompts, no group


@pytest.mark.parametrize(
    ("column", "expected"),
    [(np.array([["a", "aaaaa"]]), 0.5), (np.array([b"a"], object), expit(1))],
    ids=["several", "bytes"],
)
def test_references_as_arrays_and_bytes(column, expected):
    """Tunix and other loaders pass such columns."""
    reward = tunix_reward(FakeJudge(), REFERENCE)
    found = reward(prompts=["q"], completions=["aaa"], question=["q"], reference=column)
    assert found == pytest.approx([expected])


def test_the_judge_as_an_index():
    judge = GroupJudge(FakeJudge())
    assert judge(["q", "r"], [["a", "aaa", "aa"], ["bb", "b"]]) == [1, 0]
    assert judge.rank(["q"], [["a", "aaa", "aa"]]) == [[1, 2, 0]]
    assert judge.pairwise(["q"], [["aaa", "a"]]) == pytest.approx([expit(1)])
    with pytest.raises(DataError, match="expected two completions"):
        judge.pairwise(["q"], [["a"]])


@pytest.fixture
def from_environment(monkeypatch):
    def made(form: RewardForm) -> None:
        there = Rewards(FakeJudge(), form)
        monkeypatch.setattr(environment, "load_rewards", lambda: there)

    return made


def test_the_form_of_verl(from_environment):
    from_environment(REFERENCE)
    found = compute_score("math", "aaa", "a", {"prompt": [{"role": "user", "content": "q"}]})
    assert found == {"score": pytest.approx(expit(1))}
    # As a data frame holds lists.
    question = np.array([{"role": "user", "content": "q"}], object)
    for truth, reward in (
        (np.array(["a"], object), expit(1)),
        (np.array(["a", "aaaaa"], object), 0.5),
        ({"ground_truth": np.array(["a"], object)}, expit(1)),
        (np.int64(4), expit(1)),
    ):
        found = compute_score("math", "aaa", truth, {"prompt": question})
        assert found == {"score": pytest.approx(reward)}
    with pytest.raises(DataError, match="nothing to be compared with"):
        compute_score("math", "aaa", np.array([], object), {"prompt": question})
    with pytest.raises(DataError, match="extra_info has no prompt"):
        compute_score("math", "aaa", "a", {"index": 3})
    from_environment(RewardForm())
    with pytest.raises(DataError, match="one response at a time"):
        compute_score("math", "aaa", "a", {"prompt": "q"})


@pytest.mark.parametrize(("scale", "reward"), [("probability", expit(1)), ("log_odds", 1)])
def test_the_form_of_openrlhf(from_environment, scale, reward):
    torch = pytest.importorskip("torch")
    from gram_jax.rewards.openrlhf import reward_func

    from_environment(RewardForm("reference", scale))
    found = reward_func([CHATML + "aaa<|im_end|>"], [CHATML], ["a"])
    assert found["rewards"].dtype == torch.float32 and found["rewards"].shape == (1,)
    assert found["rewards"].item() == pytest.approx(reward)
    assert found["scores"].item() == pytest.approx(expit(1))
    assert reward_func([], [], [])["rewards"].shape == (0,)


@pytest.fixture
def variables(monkeypatch):
    """Sets GRAM_JAX_ variables; the rewards of the process are loaded anew."""
    environment.load_rewards.cache_clear()
    monkeypatch.delenv("GRAM_JAX_JUDGE", raising=False)
    yield lambda **values: [monkeypatch.setenv(f"GRAM_JAX_{k}", v) for k, v in values.items()]
    environment.load_rewards.cache_clear()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({}, "GRAM_JAX_JUDGE is not set"),
        ({"POLICY": "tiny-random", "COMPARE_WITH": "group"}, "leave out one of the two"),
        ({"MAX_NEW_TOKENS": "few"}, "GRAM_JAX_MAX_NEW_TOKENS"),
        *(
            ({name: value}, f"GRAM_JAX_{name} is ")
            for name in ("REFERENCES", "END_TOKENS")
            for value in ('"Seven."', "5", "null", "[1, 2]", '{"a": "b"}')
        ),
    ],
)
def test_wrong_variables_are_errors_before_anything_is_loaded(variables, values, match):
    variables(**({"JUDGE": "tiny-random"} if values else {}), **values)
    with pytest.raises(DataError, match=match):
        environment.rewards_from_environment()


def test_samples_of_many_threads_are_scored_together(variables, monkeypatch):
    """verl and OpenRLHF ask so: one at a time, from threads. The first call holds the others up."""
    judge = FakeJudge()
    judge.go.clear()
    monkeypatch.setattr(environment, "load_judge", lambda name: judge)
    variables(JUDGE="one")
    batcher = environment.rewards_from_environment().scorer.batcher
    with ThreadPoolExecutor(16) as threads:
        texts = ["a" * (1 + at) for at in range(16)]
        found = [threads.submit(compute_score, "chat", t, "aaa", {"prompt": "q"}) for t in texts]
        end = time.monotonic() + 20
        # All but the one that equals its reference.
        items = [("q", text, "aaa") for text in texts if text != "aaa"]
        tokens = encode_items(judge.tokenizer, judge.spec.comparison, items, judge.spec.max_length)
        while batcher.waiting < 2 * sum(len(one.tokens) for one in tokens):
            assert time.monotonic() < end
            time.sleep(0.01)
        judge.go.set()
        scores = [one.result()["score"] for one in found]
    assert scores == pytest.approx([expit((len(text) - 3) / 2) for text in texts])
    assert judge.calls <= 2 and judge.comparisons == 2 * 15


@pytest.mark.slow
def test_an_environment_with_a_policy_compares_with_its_greedy_response(variables):
    variables(JUDGE="tiny-random", POLICY="tiny-random", MAX_NEW_TOKENS="4")
    with pytest.warns(UserWarning, match=r"no judge.json"):
        greedy = environment.rewards_from_environment().write([prompt_of("q")])[0]
    assert compute_score("chat", greedy, "", {"prompt": "q"}) == {"score": 0.5}
    assert compute_score("chat", greedy, "other", {"prompt": "q"}) != {"score": 0.5}


def test_a_real_judge_gives_what_its_scores_say():
    placement = make_placement({}, devices=jax.devices()[:1])
    with pytest.warns(UserWarning, match=r"no judge.json"):
        judge = Scorer.load("tiny-random", placement=placement, max_length=256)
    prompt, texts = "Name a tree.", ["oak", "elm tree", "yew"]
    found = Rewards(judge).of([prompt] * 3, texts)
    for text, reward in zip(texts, found, strict=True):
        others = [judge.score(prompt, text, other).first for other in texts if other != text]
        assert reward == pytest.approx(np.mean(others), abs=1e-6)
