"""OpenRLHF's agent executor on a policy that always answers "aa". Tests that use it skip if OpenRLHF is missing."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from gram_jax.interop.models import load_tokenizer


def run_agent(reward: Any, prompt: str, labels: Sequence[str]) -> list[dict[str, Any]]:
    """What the executor returns for a sample with each label. reward: a reward file, or addresses."""
    agent = pytest.importorskip("openrlhf.utils.agent")
    tokenizer = load_tokenizer("tiny-random")

    class Engine:
        async def generate(self, *_, **__):
            tokens = tokenizer.encode("aa<|im_end|>")
            one = SimpleNamespace(token_ids=tokens, text="aa", logprobs=None, finish_reason="stop")
            return SimpleNamespace(outputs=[one])

    async def run():
        executor = agent.SingleTurnAgentExecutor(reward)
        settings = SimpleNamespace(max_tokens=16, logprobs=None)
        return await asyncio.gather(
            *(executor.execute(prompt, x, settings, 512, tokenizer, Engine()) for x in labels)
        )

    return asyncio.run(run())
