"""The reward files in the code of verl and OpenRLHF that loads and calls them. Skipped where that is missing."""

import asyncio

import numpy as np
import pytest
from fake_judge import FakeJudge
from openrlhf_agent import run_agent
from scipy.special import expit

from gram_jax.interop.models import load_tokenizer
from gram_jax.rewards import environment, openrlhf
from gram_jax.rewards.forms import RewardForm, Rewards

QUESTION = [{"role": "user", "content": "Name a prime."}]


@pytest.fixture(autouse=True)
def judge_of_the_process(monkeypatch):
    there = Rewards(FakeJudge(), RewardForm("reference"))
    monkeypatch.setattr(environment, "load_rewards", lambda: there)


@pytest.fixture
def tokenizer():
    return load_tokenizer("tiny-random")


def rendered(tokenizer) -> str:
    return tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)


def test_verl_loads_the_function_by_its_package_and_calls_it_from_threads(tokenizer):
    torch = pytest.importorskip("torch")
    proto = pytest.importorskip("verl").DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.utils.import_utils import load_extern_object

    function = load_extern_object("pkg://gram_jax.rewards.verl", "compute_score")
    prompt, response = (tokenizer.encode(text) for text in (rendered(tokenizer), "aa"))
    rows = proto.from_dict(
        tensors={
            "prompts": torch.tensor([prompt] * 2),
            "responses": torch.tensor([response] * 2),
            "attention_mask": torch.ones(2, len(prompt) + len(response), dtype=torch.long),
        },
        non_tensors={
            "data_source": np.array(["d"] * 2, object),
            "reward_model": np.array([{"ground_truth": text} for text in ("a", "aaa")], object),
            "extra_info": np.array([{"prompt": QUESTION}] * 2, object),
        },
    )

    async def run():
        manager = NaiveRewardManager({}, tokenizer, function)
        return await asyncio.gather(*(manager.run_single(rows[i : i + 1]) for i in range(2)))

    found = [one["reward_score"] for one in asyncio.run(run())]
    assert found == pytest.approx([expit(0.5), expit(-0.5)])


def test_openrlhf_loads_the_file_and_calls_it_from_threads(tokenizer):
    found = run_agent(openrlhf.__file__, rendered(tokenizer), ("a", "", "aaa"))
    assert found[1]["reward"] is None  # OpenRLHF leaves the reward out if a label is empty
    expected = [expit(0.5), expit(-0.5)]
    assert [found[i]["reward"].item() for i in (0, 2)] == pytest.approx(expected)
    assert [found[i]["scores"].item() for i in (0, 2)] == pytest.approx(expected)
