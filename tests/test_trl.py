"""The reward in the real trainers, where these are installed (pip install trl): a few steps of a tiny policy."""

import jax
import pytest

from gram_jax.generation.generator import TextGenerator
from gram_jax.generation.greedy import GreedyResponses
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.rewards.forms import RewardForm
from gram_jax.rewards.trl import async_trl_reward, trl_reward
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement

pytestmark = pytest.mark.slow

trl = pytest.importorskip("trl", reason="TRL is not installed")


@pytest.fixture(scope="module")
def judge() -> Scorer:
    placement = make_placement({}, devices=jax.devices()[:1])
    with pytest.warns(UserWarning, match=r"no judge.json"):
        return Scorer.load("tiny-random", placement=placement, max_length=256)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    placement = make_placement({}, devices=jax.devices()[:1])
    cfg, params = load_model("tiny-random", placement, "float32")
    folder = tmp_path_factory.mktemp("policy") / "hf"
    tokenizer = load_tokenizer("tiny-random")
    export_hf(folder, cfg, params, dtype=None, tokenizer=tokenizer, spec=None)
    return str(folder)


@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
@pytest.mark.parametrize("form", ["group", "reference", "greedy"])
def test_a_tiny_policy_is_trained_on_the_judges_rewards(judge, policy, tmp_path, trainer, form):
    from datasets import Dataset

    kind, config = {
        "grpo": (trl.GRPOTrainer, trl.GRPOConfig),
        "rloo": (trl.RLOOTrainer, trl.RLOOConfig),
    }[trainer]
    questions = ["Name a tree.", "Name a river.", "Count to three.", "Say hello."]
    rows = {
        "prompt": [[{"role": "user", "content": text}] for text in questions],
    }
    seen: list[list[float]] = []
    asked, given = RewardForm("group" if form == "group" else "reference"), {}
    if form == "reference":
        rows["reference"] = ["oak", "Rhine", "1 2 3", "hello"]
    if form == "greedy":
        given["write"] = GreedyResponses(TextGenerator.load(policy), max_new_tokens=8)
    plain = trl_reward(judge, asked, **given)

    def watched(**passed):
        seen.append(plain(**passed))
        return seen[-1]

    watched.__name__ = plain.__name__
    rewards = [watched, async_trl_reward(judge, asked, **given)]
    settings = config(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        learning_rate=1e-3,
        disable_tqdm=True,
    )
    run = kind(
        model=policy, reward_funcs=rewards, args=settings, train_dataset=Dataset.from_dict(rows)
    )
    run.train()
    assert len(seen) == 2
    assert all(len(group) == 4 and all(0 <= x <= 1 for x in group) for group in seen)
    if form == "group":
        assert all(sum(group) == pytest.approx(2) for group in seen)  # 4 responses, all pairs
    logged = [row for row in run.state.log_history if "rewards/gram_judge/mean" in row]
    assert len(logged) == 2
