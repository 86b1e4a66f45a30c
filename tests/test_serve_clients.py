"""The server asked by the code of the trainers that call it over HTTP. Skipped where they are not installed."""

import asyncio
from types import SimpleNamespace

import pytest
from fake_judge import FakeJudge
from scipy.special import expit
from server import CHAT, serving

from gram_jax.interop.models import load_tokenizer
from gram_jax.rewards.forms import RewardForm
from gram_jax.serve.middleware import Limits


def test_openrlhf_asks_for_a_sample_at_a_time_with_its_label_as_reference():
    agent = pytest.importorskip("openrlhf.utils.agent")
    tokenizer = load_tokenizer("tiny-random")

    class Engine:
        async def generate(self, *_, **__):
            tokens = tokenizer.encode("aa<|im_end|>")
            one = SimpleNamespace(token_ids=tokens, text="aa", logprobs=None, finish_reason="stop")
            return SimpleNamespace(outputs=[one])

    async def run(url: str):
        executor = agent.SingleTurnAgentExecutor([f"{url}/get_reward"] * 2)
        settings = SimpleNamespace(max_tokens=16, logprobs=None)
        return await asyncio.gather(
            *(
                executor.execute(CHAT, label, settings, 512, tokenizer, Engine())
                for label in ("a", "aaa", "aa")
            )
        )

    with serving(Limits()) as address:
        found = asyncio.run(run(address.url))
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
