"""The whole way, tiny: a judge learns a preference from labeled pairs, and a policy learns from the judge."""

import json

import jax
import numpy as np
import pytest
from test_rl import one_device, run, vowels
from tiny_runs import compiled_programs, tiny_recipe, train  # noqa: F401

from gram_jax.generation.generator import TextGenerator
from gram_jax.judge.messages import as_prompt
from gram_jax.model.generate import SamplingConfig

ASKED = [as_prompt(f"Say {at % 8}.") for at in range(640)]  # the prompts of test_rl's runs


def write(name, count: int, seed: int) -> list[str]:
    policy = TextGenerator.load(name, compute_dtype="float32", placement=one_device())
    return policy.generate(ASKED[:count], SamplingConfig(8, seed=seed), batch_size=80).texts


def liking(texts: list[str]) -> list[float]:
    return vowels(None, texts, None)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Taught on what the policy writes at first: of two texts to a prompt, that with more vowels is the better one."""
    folder = tmp_path_factory.mktemp("judge")
    texts = write("tiny-random", 640, seed=99)
    rows = []
    for at in range(0, 640, 16):
        for one, two in zip(range(at, at + 8), range(at + 8, at + 16), strict=True):
            worse, better = sorted((texts[one], texts[two]), key=lambda text: liking([text])[0])
            if liking([worse]) != liking([better]):
                question = ASKED[one][0].content
                rows.append({"prompt": question, "chosen": better, "rejected": worse})
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = train(
        tiny_recipe(
            "finetune",
            folder / "run",
            run__max_steps=120,
            data__train=[str(data)],
            batch__batch_size=16,
        )
    )
    jax.clear_caches()
    return done.folder


@pytest.mark.slow
def test_a_policy_learns_from_a_trained_judge_what_the_judge_learned(judge, tmp_path):
    """With GRPO; test_rl.py has the other algorithms, with rewards of other kinds."""
    settings = {"run__max_steps": 30, "reward__judge": str(judge), "evaluate__limit": 8}
    done = run(tmp_path / "grpo", "grpo", sampling__prompts_per_step=8, **settings)
    before, after = (np.mean(liking(write(x, 64, 5))) for x in ("tiny-random", done.folder))
    assert after > 2 * before, (before, after, done.metrics)
    assert done.metrics["win_rate"] > 0.5 and done.metrics["p_better_than_start"] > 0.5
