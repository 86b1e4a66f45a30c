"""The server asked by the code of the trainers that call it over HTTP. Skipped where they are not installed."""

import pytest
from fake_judge import FakeJudge
from openrlhf_agent import run_agent
from scipy.special import expit
from server import CHAT, serving

from gram_jax.rewards.forms import RewardForm
from gram_jax.serve.admission import Limits


def test_openrlhf_asks_for_a_sample_at_a_time_with_its_label_as_reference():
    with serving(Limits()) as address:
        found = run_agent([f"{address.url}/get_reward"] * 2, CHAT, ("a", "aaa", "aa"))
    expected = [expit(0.5), expit(-0.5), 0.5]
    assert [one["reward"][0] for one in found] == pytest.approx(expected)
    assert [one["scores"][0] for one in found] == pytest.approx(expected)
    assert found[0]["extra_logs"] == {"gram_judge": found[0]["reward"]}


def test_llama_factory_asks_for_a_batch_of_conversations():
    client = pytest.importorskip("llamafactory.train.ppo.ppo_utils", exc_type=ImportError)
    form = RewardForm("reference", references=("a",))
    with serving(Limits(), FakeJudge(), form=form) as address:
        url = f"{address.url}/v1/score/evaluation"
        found = client.get_rewards_from_server(url, [CHAT + "aaa<|im_end|>", CHAT + "a"])
    assert found.tolist() == pytest.approx([expit(1), 0.5])
