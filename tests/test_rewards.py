"""Rewards of a judge: hand-made verdicts, the call forms of the trainers, groups that arrive in parts."""

import asyncio
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from scipy.special import expit

from gram_jax.errors import DataError
from gram_jax.ranking.jobs import RankingJob
from gram_jax.rewards import environment
from gram_jax.rewards.forms import RewardForm, Rewards
from gram_jax.rewards.group_buffer import GroupBuffer
from gram_jax.rewards.messages import completion_of, prompt_of
from gram_jax.rewards.trl import GroupJudge, async_trl_reward, trl_reward
from gram_jax.rewards.tunix import tunix_reward
from gram_jax.rewards.verl import compute_score
from gram_jax.scoring.pair import combine_orders
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement


class ByLength:
    """Log-odds: half the difference of lengths, plus `lean` for what is shown first; counts its comparisons."""

    def __init__(self, lean: float = 0.0):
        self.lean, self.asked, self.calls = lean, 0, 0

    def gap(self, first: str, second: str) -> float:
        self.asked += 1
        return (len(first) - len(second)) / 2 + self.lean

    def score_many(self, triples):
        self.calls += 1
        return [combine_orders(self.gap(a, b), self.gap(b, a), False) for _, a, b in triples]

    def rank_many(self, items, config=None):
        self.calls += 1
        for prompt, responses in items:
            from gram_jax.ranking.jobs import RankingConfig

            job = RankingJob(prompt, responses, config or RankingConfig("round_robin"))
            while job.ranking is None:
                logit_diffs = [self.gap(a, b) for _, a, b in job.pending_comparisons()]
                job.update(np.array(logit_diffs), shortened=False)
            yield job.ranking


def rewards(form: RewardForm | None = None, lean: float = 0.0) -> Rewards:
    return Rewards(ByLength(lean), form)


def test_the_win_rate_in_a_group_is_the_mean_over_the_others():
    found = rewards().of(["q"] * 3, ["aaaa", "aa", "a"])
    assert found[0] == pytest.approx((expit(1) + expit(1.5)) / 2)
    assert found[1] == pytest.approx((expit(-1) + expit(0.5)) / 2)
    assert sum(found) == pytest.approx(1.5)  # what one wins another loses


def test_a_preference_for_a_place_cancels():
    lean = rewards(RewardForm(scale="log_odds"), lean=2.0).of(["q"] * 3, ["aaaa", "aa", "a"])
    assert lean == pytest.approx(
        rewards(RewardForm(scale="log_odds")).of(["q"] * 3, ["aaaa", "aa", "a"])
    )


def test_groups_are_formed_by_prompt_wherever_they_stand():
    prompts, texts = ["q", "r", "q", "r"], ["aaaa", "b", "aa", "bbb"]
    mixed = rewards().of(prompts, texts)
    assert mixed[0::2] == rewards().of(["q"] * 2, texts[0::2])
    assert mixed[1::2] == rewards().of(["r"] * 2, texts[1::2])


def test_all_comparisons_of_a_call_are_scored_together():
    judge = ByLength()
    Rewards(judge).of(["q", "r"] * 4, [f"{'x' * at}" for at in range(8)])
    assert judge.calls == 1 and judge.asked == 2 * 4 * 3  # both orders of six pairs, twice


def test_neighbors_ask_for_as_many_pairs_as_there_are_responses():
    judge = ByLength()
    found = Rewards(judge, RewardForm(compare_with="neighbors")).of(
        ["q"] * 4, ["aaaa", "aaa", "aa", "a"]
    )
    assert judge.asked == 2 * 4
    assert found[0] == pytest.approx((expit(0.5) + expit(1.5)) / 2)
    pair = Rewards(ByLength(), RewardForm(compare_with="neighbors")).of(["q"] * 2, ["aaa", "a"])
    assert pair == pytest.approx([expit(1), expit(-1)])


def test_references_given_or_shared():
    form = RewardForm(compare_with="reference", references=("aa", "aaaa"))
    given = rewards(form).of(["q", "q"], ["aaa", "aaa"], ["a", None])
    assert given == pytest.approx([expit(1), (expit(0.5) + expit(-0.5)) / 2])
    several = rewards(form).of(["q"], ["aaa"], [["a", "aaaaa"]])
    assert several == pytest.approx([0.5])
    with pytest.raises(DataError, match="nothing to be compared with"):
        rewards(RewardForm(compare_with="reference")).of(["q"], ["a"], [""])


def test_references_are_written_where_none_are_given():
    asked = []

    def write(prompts):
        asked.append([prompt[-1].content for prompt in prompts])
        return ["a" * len(prompt[-1].content) for prompt in prompts]

    form = RewardForm(compare_with="reference")
    written = Rewards(ByLength(), form, write=write)
    found = written.of(["qq", "r", "qq"], ["aaa", "aaa", "a"])
    assert found == pytest.approx([expit(0.5), expit(1), expit(-0.5)])
    assert asked == [["qq", "r"]]  # each prompt once
    mixed = written.of(["qq", "r"], ["aaa", "aaa"], np.array(["a", ""], object))
    assert mixed == pytest.approx([expit(1), expit(1)]) and asked[1:] == [["r"]]
    with pytest.raises(DataError, match="1 prompts and 0 written references"):
        Rewards(ByLength(), form, write=lambda prompts: []).of(["q"], ["a"])
    for other in (RewardForm(), RewardForm("reference", references=("a",))):
        with pytest.raises(DataError, match="leave out one of the two"):
            Rewards(ByLength(), other, write=write)


def test_empty_text_that_is_written_is_a_reference():
    written = Rewards(ByLength(), RewardForm("reference"), write=lambda prompts: [""])
    assert written.of(["q"], ["aa"]) == pytest.approx([expit(1)])


def test_a_response_equal_to_its_reference_has_exactly_one_half():
    for scale, value in (("probability", 0.5), ("log_odds", 0.0)):
        judge = ByLength(lean=3.0)
        form = RewardForm(compare_with="reference", scale=scale)
        assert Rewards(judge, form).of(["q"], ["same"], ["same"]) == [value]
        assert judge.asked == 0


def test_equal_responses_of_a_group_have_equal_rewards():
    found = rewards().of(["q"] * 3, ["aa", "aa", "a"])
    assert found[0] == found[1] == pytest.approx((0.5 + expit(0.5)) / 2)
    assert rewards().of(["q"] * 2, ["a", "a"]) == [0.5, 0.5]


def test_normalised_rewards_have_mean_zero_and_deviation_one_in_their_group():
    form = RewardForm(scale="normalized")
    found = rewards(form).of(["q", "r", "q", "r"], ["aaaa", "b", "aa", "b"])
    assert found[0::2] == pytest.approx([1, -1]) and found[1::2] == [0, 0]


def test_length_costs_only_where_it_is_asked_to():
    texts = ["a" * 500, "a" * 1500]
    plain, dear = rewards(), rewards(RewardForm(length_penalty=0.2))
    cost = np.array(plain.of(["q"] * 2, texts)) - np.array(dear.of(["q"] * 2, texts))
    assert cost == pytest.approx([0.1, 0.3])


def test_a_group_in_parts_is_compared_with_what_came_before_and_said_once():
    parts = Rewards(ByLength(), RewardForm(group_size=3), buffer=GroupBuffer())
    with pytest.warns(UserWarning, match="1 of at least 3"):
        assert parts.of(["q"], ["aaaa"]) == [0.5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parts.of(["q"], ["aa"]) == pytest.approx([expit(-1)])
        both = (expit(-0.5) + expit(-1.5)) / 2
        assert parts.of(["q"], ["a"]) == pytest.approx([both])
        assert parts.of(["r"], ["a"]) == [0.5]


def test_a_group_that_is_whole_leaves_nothing_for_the_prompts_next_group():
    parts = Rewards(ByLength(), RewardForm(group_size=4), buffer=GroupBuffer())
    with pytest.warns(UserWarning, match="2 of at least 4"):
        assert parts.of(["q"] * 2, ["a", "a"]) == [0.5, 0.5]
    whole = parts.of(["q"] * 2, ["aa", "aa"])
    assert whole == pytest.approx([(0.5 + 2 * expit(0.5)) / 3] * 2)
    assert parts.of(["q"] * 2, ["aaaa", "aaaa"]) == [0.5, 0.5]  # a later step's, of a later policy


def test_without_a_buffer_a_call_depends_on_nothing_but_its_arguments():
    alone = rewards(RewardForm(group_size=2))
    assert alone.of(["q"], ["aaaa"]) == alone.of(["q"], ["a"]) == [0.5]


def test_empty_calls_and_wrong_lengths():
    assert rewards().of([], []) == []
    with pytest.raises(DataError, match="2 prompts and 1 completions"):
        rewards().of(["q", "q"], ["a"])
    with pytest.raises(DataError, match="expected one of group, neighbors, reference"):
        RewardForm(compare_with="groups")


CHATML = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
LLAMA = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
GEMMA = "<bos><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"


@pytest.mark.parametrize("rendered", [CHATML, LLAMA, GEMMA])
def test_rendered_prompts_are_taken_apart(rendered: str):
    turns = prompt_of(rendered)
    assert (turns[-1].role, turns[-1].content) == ("user", "Why?")
    assert [turn.role for turn in turns[:-1]] == (["system"] if rendered is CHATML else [])


def test_messages_and_texts_are_the_same_prompt():
    message = {"role": "user", "content": "Why?"}
    assert (
        prompt_of("Why?")
        == prompt_of([message])
        == prompt_of([message, {"role": "assistant", "content": ""}])
    )
    assert completion_of("So.<|im_end|>\n") == completion_of(
        [{"role": "assistant", "content": "So."}]
    )
    with pytest.raises(DataError, match="expected text or a list of messages, found int 3"):
        prompt_of(3)


def test_a_response_with_tool_calls_is_what_the_assistant_said():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    answer = {"role": "tool", "name": "add", "content": "5"}
    assert completion_of([call, answer, {"role": "assistant", "content": "Five."}]) == "Five."
    assert completion_of([call]) == ""
    asked = prompt_of([{"role": "user", "content": "2 + 3?"}, call, answer])
    assert [turn.role for turn in asked] == ["user", "assistant", "tool"]
    with pytest.raises(DataError, match="expected a message with role"):
        completion_of([{"role": "assistant", "content": None}])
    with pytest.raises(DataError, match="without an assistant's turn"):
        completion_of([answer])


def test_the_form_of_trl():
    reward = trl_reward(ByLength(), RewardForm(compare_with="reference"))
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
    own = trl_reward(ByLength(), RewardForm("reference"), write=lambda prompts: ["a"])
    assert own(prompts=["q"], completions=["aaa"], answer=["b"]) == pytest.approx([expit(1)])
    form, write = RewardForm("reference"), lambda prompts: ["a"]
    for make in (async_trl_reward, tunix_reward):
        found = make(ByLength(), form, write=write)(prompts=["q"], completions=["aaa"])
        found = asyncio.run(found) if make is async_trl_reward else found
        assert found == pytest.approx([expit(1)])
    later = async_trl_reward(ByLength())
    assert asyncio.iscoroutinefunction(later)
    assert asyncio.run(later(["q"] * 2, ["aaa", "a"])) == pytest.approx([expit(1), expit(-1)])


def test_the_form_of_tunix():
    reward = tunix_reward(ByLength())
    rendered = [CHATML] * 2
    assert reward(prompts=rendered, completions=["aaa", "a"]) == pytest.approx(
        [expit(1), expit(-1)]
    )
    plain = reward(prompts=rendered, completions=["aaa", "a"], question=np.array(["q", "r"]))
    assert plain == [0.5, 0.5]  # two prompts, no group


def test_references_as_arrays_and_bytes():
    """As Tunix and other loaders hand on columns: several references of a prompt stay several."""
    reward = tunix_reward(ByLength(), RewardForm(compare_with="reference"))
    columns = {"question": ["q"], "reference": np.array([["a", "aaaaa"]])}
    assert reward(prompts=["q"], completions=["aaa"], **columns) == pytest.approx([0.5])
    columns["reference"] = np.array([b"a"], object)
    assert reward(prompts=["q"], completions=["aaa"], **columns) == pytest.approx([expit(1)])


def test_the_judge_as_an_index():
    judge = GroupJudge(ByLength())
    assert judge(["q", "r"], [["a", "aaa", "aa"], ["bb", "b"]]) == [1, 0]
    assert judge.rank(["q"], [["a", "aaa", "aa"]]) == [[1, 2, 0]]
    assert judge.pairwise(["q"], [["aaa", "a"]]) == pytest.approx([expit(1)])
    with pytest.raises(DataError, match="expected two completions"):
        judge.pairwise(["q"], [["a"]])


@pytest.fixture
def from_environment(monkeypatch):
    def made(form: RewardForm) -> None:
        there = Rewards(ByLength(), form)
        monkeypatch.setattr(environment, "load_rewards", lambda: there)

    return made


def test_the_form_of_verl(from_environment, monkeypatch):
    from_environment(RewardForm(compare_with="reference"))
    found = compute_score("math", "aaa", "a", {"prompt": [{"role": "user", "content": "q"}]})
    assert found == {"score": pytest.approx(expit(1))}
    with pytest.raises(DataError, match="extra_info has no prompt"):
        compute_score("math", "aaa", "a", {"index": 3})
    from_environment(RewardForm())
    with pytest.raises(DataError, match="one response at a time"):
        compute_score("math", "aaa", "a", {"prompt": "q"})


def test_the_form_of_openrlhf(from_environment):
    torch = pytest.importorskip("torch")
    from gram_jax.rewards.openrlhf import reward_func

    from_environment(RewardForm(compare_with="reference"))
    found = reward_func([CHATML + "aaa<|im_end|>"], [CHATML], ["a"])
    assert found["rewards"].dtype == torch.float32 and found["rewards"].shape == (1,)
    assert found["rewards"].item() == pytest.approx(expit(1))
    assert reward_func([], [], [])["rewards"].shape == (0,)
    from_environment(RewardForm(compare_with="reference", scale="log_odds"))
    found = reward_func([CHATML + "aaa<|im_end|>"], [CHATML], ["a"])
    assert found["rewards"].item() == 1 and found["scores"].item() == pytest.approx(expit(1))


def test_an_environment_without_a_judge_is_a_named_error(monkeypatch):
    environment.load_rewards.cache_clear()
    monkeypatch.delenv("GRAM_JAX_JUDGE", raising=False)
    with pytest.raises(DataError, match="GRAM_JAX_JUDGE is not set"):
        environment.rewards_from_environment()


def test_samples_of_many_threads_are_scored_together(monkeypatch):
    """As verl and OpenRLHF ask: one at a time, from threads. The first call holds the others up."""
    environment.load_rewards.cache_clear()
    judge, go = ByLength(), threading.Event()
    plain = judge.score_many

    def slow(triples):
        assert go.wait(20)
        return plain(triples)

    judge.score_many = slow
    monkeypatch.setattr(environment.Scorer, "load", lambda name: judge)
    monkeypatch.setenv("GRAM_JAX_JUDGE", "one")
    rewards = environment.rewards_from_environment()
    with ThreadPoolExecutor(16) as threads:
        texts = ["a" * (1 + at) for at in range(16)]
        found = [threads.submit(compute_score, "chat", t, "aaa", {"prompt": "q"}) for t in texts]
        until = time.monotonic() + 20
        while rewards.scorer.batcher.waiting < 2 * 15:  # all but the one that equals its reference
            assert time.monotonic() < until
            time.sleep(0.01)
        go.set()
        scores = [one.result()["score"] for one in found]
    environment.load_rewards.cache_clear()
    assert scores == pytest.approx([expit((len(text) - 3) / 2) for text in texts])
    assert judge.calls <= 2 and judge.asked == 2 * 15


@pytest.mark.slow
def test_an_environment_with_a_policy_compares_with_its_greedy_response(monkeypatch):
    environment.load_rewards.cache_clear()
    for name, value in {
        "JUDGE": "tiny-random",
        "POLICY": "tiny-random",
        "MAX_NEW_TOKENS": "4",
    }.items():
        monkeypatch.setenv(f"GRAM_JAX_{name}", value)
    with pytest.warns(UserWarning, match=r"no judge.json"):
        rewards = environment.rewards_from_environment()
    environment.load_rewards.cache_clear()
    greedy = rewards.write([prompt_of("q")])[0]
    assert rewards.of(["q"], [greedy]) == [0.5]
    monkeypatch.setattr(environment, "load_rewards", lambda: rewards)
    assert compute_score("chat", greedy, "", {"prompt": "q"}) == {"score": 0.5}
    assert compute_score("chat", greedy, "other", {"prompt": "q"}) != {"score": 0.5}
    monkeypatch.undo()
    monkeypatch.setenv("GRAM_JAX_JUDGE", "tiny-random")
    monkeypatch.setenv("GRAM_JAX_POLICY", "tiny-random")
    monkeypatch.setenv("GRAM_JAX_COMPARE_WITH", "group")
    with pytest.raises(DataError, match="leave out one of the two"):
        environment.rewards_from_environment()
    monkeypatch.setenv("GRAM_JAX_MAX_NEW_TOKENS", "few")
    with pytest.raises(DataError, match="GRAM_JAX_MAX_NEW_TOKENS"):
        environment.rewards_from_environment()


def test_a_real_judge_gives_what_its_scores_say():
    placement = make_placement({}, devices=jax.devices()[:1])
    with pytest.warns(UserWarning, match=r"no judge.json"):
        judge = Scorer.load("tiny-random", placement=placement, max_length=256)
    texts = ["oak", "elm tree", "yew"]
    found = Rewards(judge).of(["Name a tree."] * 3, texts)
    for at, text in enumerate(texts):
        others = [
            judge.score("Name a tree.", text, other).first for other in texts if other != text
        ]
        assert found[at] == pytest.approx(np.mean(others), abs=1e-6)
