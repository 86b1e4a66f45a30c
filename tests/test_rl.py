"""Reinforcement learning on a tiny policy: a checkable reward rises, runs go on exactly, recipes are strict."""

import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import compiled_programs  # noqa: F401
from tiny_runs import tiny_rl_values as values

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.errors import (
    CheckpointError,
    DataError,
    GramError,
    InUseError,
    RecipeError,
    StoppedError,
)
from gram_jax.generation.generator import Generations, TextGenerator
from gram_jax.interop.models import load_model, stop_tokens
from gram_jax.judge.messages import as_prompt
from gram_jax.model.generate import Samples, SamplingConfig
from gram_jax.recipes.reading import make_rl_recipe, read_rl_recipe, recipe_to_toml
from gram_jax.rewards.forms import EVEN, RewardForm
from gram_jax.rl.advantages import adapted_kl_coef
from gram_jax.rl.judged import checked, gains_over_start, judged_reward, win_rate
from gram_jax.rl.loop import run_rl
from gram_jax.rl.objective import token_stats
from gram_jax.run.metrics import read_metrics
from gram_jax.run.verify import verify_folder
from gram_jax.sharding import make_placement

pytestmark = pytest.mark.slow


def one_device():
    return make_placement({}, devices=jax.devices()[:1])


def run(folder: Path, kind: str = "grpo", reward=None, **changes):
    recipe = make_rl_recipe(values(folder, kind, **changes))
    return run_rl(recipe, placement=one_device(), reward=reward)


def vowels(prompts, texts, greedy) -> list[float]:
    """A reward that anybody can check: five times the share of vowels."""
    return [5 * sum(x in "aeiou" for x in text.lower()) / max(1, len(text)) for text in texts]


def metrics(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [row for row in read_metrics(path) if "reward" in row] if path.exists() else []


def interrupted(folder: Path, after: int):
    """The reward `vowels`, with an interruption inside the step behind `after` ones."""

    def reward(prompts, texts, greedy):
        if len(metrics(folder)) == after:
            raise KeyboardInterrupt
        return vowels(prompts, texts, greedy)

    return reward


@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_a_checkable_reward_rises(tmp_path, kind):
    extra = {"algorithm__num_epochs": 2, "algorithm__num_mini_batches": 2} if kind == "ppo" else {}
    done = run(tmp_path / kind, kind, vowels, run__max_steps=28, **extra)
    rewards = [row["reward"] for row in metrics(tmp_path / kind)]
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.5
    last = metrics(tmp_path / kind)[-1]
    assert last["kl"] > 1 and last["num_tokens"] > 0  # it has left its start
    if kind == "grpo":
        assert done.metrics["win_rate"] > 0.6 and done.metrics["gain_over_start"] > 0.3


def test_the_divergence_holds_the_policy_back(tmp_path):
    run(tmp_path / "held", "rloo", vowels, run__max_steps=28, algorithm__kl_coef=3.0)
    assert np.mean([row["kl"] for row in metrics(tmp_path / "held")[-4:]]) < 1  # above 3 without


def test_a_stopped_run_goes_on_exactly(tmp_path):
    whole = run(tmp_path / "whole", "ppo", vowels, run__max_steps=4, algorithm__num_mini_batches=2)

    settings = {"run__max_steps": 4, "algorithm__num_mini_batches": 2}
    settings |= {
        "checkpoint__save_steps": 1,
        "checkpoint__max_to_keep": 1,
        "checkpoint__keep_period": 2,
    }

    def stopping(prompts, texts, greedy):
        if len(metrics(tmp_path / "torn")) == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # this step is finished and saved
        return vowels(prompts, texts, greedy)

    with pytest.raises(StoppedError, match="step 2 of 4"):
        run(tmp_path / "torn", "ppo", stopping, **settings)
    verify_folder(tmp_path / "torn")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "torn", "ppo", interrupted(tmp_path / "torn", after=3), **settings)
    verify_folder(tmp_path / "torn")
    done = run(tmp_path / "torn", "ppo", vowels, **settings)
    for name in ("torn", "whole"):
        verify_folder(tmp_path / name)
    assert done.steps == whole.steps == 4
    assert metrics(tmp_path / "torn") == metrics(tmp_path / "whole")
    kept = {x.name for x in (tmp_path / "torn" / "checkpoints").iterdir() if x.name.isdigit()}
    assert kept == {"2", "4"}
    placement = one_device()
    weights = (load_model(x.folder, placement, None)[1] for x in (done, whole))
    jax.tree.map(np.testing.assert_array_equal, *weights)


def test_a_run_that_was_killed_before_its_first_state_is_not_called_damaged(tmp_path):
    """It then has a recipe, and no run.json that states its kind."""
    recipe = make_rl_recipe(values(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text(recipe_to_toml(recipe))
    with pytest.raises(CheckpointError, match="has nothing to verify"):
        verify_folder(tmp_path / "run")


def test_a_steered_divergence_goes_on_exactly(tmp_path):
    settings = {
        "algorithm__kl_coef": 0.1,
        "algorithm__kl_target": 0.02,
        "checkpoint__save_steps": 1,
    }
    whole = run(tmp_path / "whole", "rloo", vowels, run__max_steps=4, **settings)
    rows = metrics(tmp_path / "whole")
    assert rows[0]["kl_weight"] == 0.1
    verify_folder(tmp_path / "whole")
    for row, following in itertools.pairwise(rows):
        assert following["kl_weight"] == adapted_kl_coef(row["kl_weight"], row["kl"], 0.02)
    assert rows[1]["kl_weight"] == 0.1 * 0.98 and rows[3]["kl_weight"] > rows[2]["kl_weight"]

    torn = interrupted(tmp_path / "torn", after=2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "torn", "rloo", torn, run__max_steps=4, **settings)
    (tmp_path / "torn" / "metrics.jsonl").rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl has no line of step 2"):
        run(tmp_path / "torn", "rloo", vowels, run__max_steps=4, **settings)
    (tmp_path / "away").rename(tmp_path / "torn" / "metrics.jsonl")
    assert (
        run(tmp_path / "torn", "rloo", vowels, run__max_steps=4, **settings).metrics
        == whole.metrics
    )


def test_the_reference_stays_what_the_run_began_with(tmp_path):
    """Another run is the start, and goes on in between."""
    base = {"checkpoint__save_steps": 1, "checkpoint__max_to_keep": 3}
    run(tmp_path / "base", "grpo", vowels, run__max_steps=1, **base)
    start = {"policy__name_or_path": str(tmp_path / "base"), "checkpoint__save_steps": 1}

    stopping = interrupted(tmp_path / "next", after=1)
    whole = run(tmp_path / "whole", "rloo", vowels, run__max_steps=2, **start)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "next", "rloo", stopping, run__max_steps=2, **start)
    later = tmp_path / "base" / "checkpoints" / "2"
    shutil.copytree(whole.folder / "checkpoints" / "2", later)
    assert (
        run(tmp_path / "next", "rloo", vowels, run__max_steps=2, **start).metrics == whole.metrics
    )


def test_on_eight_devices_a_step_is_the_same(tmp_path):
    one = run(tmp_path / "one", "grpo", vowels, run__max_steps=2)
    spread = values(tmp_path / "eight", mesh__data=2, mesh__fsdp=4, run__max_steps=2)
    eight = run_rl(make_rl_recipe(spread), reward=vowels)
    for name in ("reward", "entropy", "length", "loss"):
        assert eight.metrics[name] == pytest.approx(one.metrics[name], abs=1e-4), name


@pytest.mark.filterwarnings("ignore:.*no judge.json")
def test_a_judge_on_devices_of_its_own_says_the_same(tmp_path):
    rewards = {}
    for name, apart, sizes in (("same", 0, {"data": 8}), ("apart", 4, {"data": 4})):
        mesh = {f"mesh__{axis}": size for axis, size in ({"fsdp": 1} | sizes).items()}
        recipe = make_rl_recipe(
            values(tmp_path / name, run__max_steps=1, reward__num_devices=apart, **mesh)
        )
        rewards[name] = run_rl(recipe).metrics["reward"]
    assert rewards["apart"] == pytest.approx(rewards["same"], abs=1e-5)
    none = make_rl_recipe(values(tmp_path / "none", reward__num_devices=8))
    with pytest.raises(RecipeError, match="none of the 8 devices"):
        run_rl(none)


def test_the_judge_is_the_reward_and_the_win_rate_is_that_against_the_start(tmp_path):
    with pytest.warns(UserWarning, match=r"no judge.json"):
        done = run(
            tmp_path / "run", "grpo", run__max_steps=2, evaluate__eval_steps=1, evaluate__limit=4
        )
    assert 0 <= done.metrics["reward"] <= 1
    assert 0 <= done.metrics["win_rate"] <= 1
    trained = TextGenerator.load(done.folder)
    assert trained.generate([as_prompt("Hi")], SamplingConfig(3, 0)).texts
    assert (
        stop_tokens(done.folder)
        == trained.stop_token_ids
        == TextGenerator.load("tiny-random").stop_token_ids
    )


def test_log_probabilities_of_learning_are_those_of_sampling():
    policy = TextGenerator.load("tiny-random", compute_dtype="float32", placement=one_device())
    prompt = policy.encode(as_prompt("Say 3."))
    found = policy.generate([as_prompt("Say 3.")], SamplingConfig(7, 0.8, seed=2)).samples
    length = int(found.lengths[0])
    whole = np.concatenate([prompt, found.tokens[0, :length]]).astype(np.int32)
    row = np.zeros((1, 96), np.int32)
    row[0, : len(whole)] = whole
    targets = np.roll(row, -1, axis=1)
    positions = np.arange(96, dtype=np.int32)[None]
    segments = (np.arange(96)[None] < len(whole)).astype(np.int32)
    seqs = Sequences(*map(jnp.asarray, (row, positions, segments)))
    for chunk in (16, 4096):
        seen = token_stats(
            policy.params,
            seqs,
            jnp.asarray(targets),
            cfg=policy.cfg,
            execution=policy.execution,
            temperature=0.8,
            chunk_size=chunk,
        )
        ours = seen.logprobs[0, len(prompt) - 1 : len(whole) - 1]
        np.testing.assert_allclose(ours, found.logprobs[0, :length], atol=2e-5)
        assert (seen.entropy[0, : len(whole)] > 0).all()


def test_the_recipe_that_comes_with_the_project_is_read():
    path = Path(__file__).parents[1] / "configs" / "smollm2-135m-rl.toml"
    recipe = read_rl_recipe(path, ["algorithm.kind=grpo"])
    assert recipe.algorithm.kind == "grpo" and recipe.rows == 32


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.0], r"shape \(1,\) for 16 responses: expected a list with one number for each"),
        ([[0.0]] * 16, r"shape \(16, 1\) for 16 responses"),
        (
            [0.0] * 5 + [float("nan"), 1.0, None] + [0.0] * 8,
            r"nan for response 5 of 16 \(and 1 more",
        ),
        (["good"] * 16, "no numbers"),
    ],
)
def test_what_a_reward_function_must_not_give(answer, message):
    with pytest.raises(DataError, match=message):
        checked(answer, 16)


def test_a_reward_function_has_a_win_rate_against_the_start_too():
    prompts = [as_prompt(x) for x in "abcd"]
    gains = gains_over_start(vowels, prompts, ["aa", "b", "xy", "c"], ["b", "b", "ay", "a"])
    assert gains.tolist() == [5, 0, -2.5, -5] and win_rate(gains) == (1 + 0.5 + 0 + 0) / 4
    assert gains_over_start(vowels, [], [], []).tolist() == []


@pytest.mark.filterwarnings("ignore:.*no judge.json")
def test_responses_that_are_all_empty_are_learned_from_and_counted(tmp_path, monkeypatch):
    """All end at once: the judge finds them even with the greedy ones, and nothing moves."""
    generate = TextGenerator.generate_from_tokens

    def ended(self, tokens, sampling, **options):
        found = generate(self, tokens, sampling, **options).samples
        tokens = np.zeros_like(found.tokens)
        tokens[:, 0] = self.stop_token_ids[0]
        ones = np.ones_like(found.lengths)
        logprobs = np.zeros_like(found.logprobs)
        samples = Samples(tokens, logprobs, ones, np.ones_like(found.stopped))
        return Generations(self.decode(samples), samples)

    monkeypatch.setattr(TextGenerator, "generate_from_tokens", ended)
    done = run(tmp_path / "run", "grpo", run__max_steps=1)
    assert done.metrics["reward"] == done.metrics["win_rate"] == 0.5
    assert done.metrics["p_better_than_start"] == 0.5
    assert done.metrics["length"] == done.metrics["stopped"] == 1 and done.metrics["grad_norm"] == 0


@pytest.mark.filterwarnings("ignore:.*no judge.json")
def test_rewards_against_the_preferred_response_or_given_texts(tmp_path):
    asked = []

    class Judge:
        def score_many(self, comparisons):
            asked.extend(comparisons)
            return [EVEN] * len(comparisons)

    prompts = [as_prompt("Say 0."), as_prompt("Say 1.")]
    best = {prompts[0]: "zero", prompts[1]: ""}
    reward = judged_reward(Judge(), RewardForm("reference"), best)
    assert reward(prompts, ["x", ""], None) == [0.5, 0.5]
    assert asked == [(prompts[0], "x", "zero")]  # equal texts are not asked about
    for name, changes in (
        ("preferred", {"reward__compare_with": "reference"}),
        ("given", {"reward__compare_with": "reference", "reward__references": ["Yes.", "No."]}),
        ("normal", {"reward__compare_with": "group", "reward__scale": "normalized"}),
    ):
        done = run(tmp_path / name, "ppo", run__max_steps=1, **changes)
        assert np.isfinite(done.metrics["loss"]), name
    assert done.metrics["reward"] == pytest.approx(0, abs=1e-6)  # of every group, so of all
    free = tmp_path / "free.jsonl"
    free.write_text(json.dumps({"prompt": "Hi", "responses": ["a", "b"]}) + "\n")
    lacking = {"reward__compare_with": "reference", "data__train": str(free)}
    with pytest.raises(DataError, match="1 of its 1 prompts have none: give references"):
        run(tmp_path / "lacking", "ppo", run__max_steps=1, **lacking)


def test_recipes_are_strict_and_come_back_from_their_text(tmp_path):
    recipe = make_rl_recipe(values(tmp_path / "run"))
    path = tmp_path / "r.toml"
    path.write_text(recipe_to_toml(recipe))
    assert read_rl_recipe(path) == recipe
    assert read_rl_recipe(path, ["algorithm.kl_coef=0.3"]).algorithm.kl_coef == 0.3
    for change, message in (
        ({"algorithm__clip_rang": 0.2}, "did you mean clip_range"),
        ({"algorithm__kind": "dpo"}, "kind"),
        ({"algorithm__kl_target": 1.0}, "kl_target = 1.0"),
        ({"sampling__num_generations": 1}, "expected at least 2 for"),
        ({"reward__references": ["a"]}, r'references are for compare_with = "reference"'),
        ({"algorithm__num_mini_batches": 5}, "do not divide the 16 responses"),
        ({"sampling__temperature": 0.0}, "temperature"),
        ({"checkpoint__save_steps": 2, "checkpoint__keep_period": 3}, "keep_period = 3"),
    ):
        with pytest.raises(RecipeError, match=message):
            make_rl_recipe(values(tmp_path / "run", **change))


def test_a_folder_of_another_recipe_and_a_bad_reward_are_refused(tmp_path):
    run(tmp_path / "run", "grpo", vowels, run__max_steps=1)
    with pytest.raises(RecipeError, match=r"algorithm\.kl_coef: 0\.0 -> 0\.5"):
        run(tmp_path / "run", "grpo", vowels, run__max_steps=1, algorithm__kl_coef=0.5)
    with pytest.raises(DataError, match="16 responses"):
        run(tmp_path / "other", "grpo", lambda *_: [0.0], run__max_steps=1)
    with pytest.raises(RecipeError, match=r"9000 new tokens .* 0: "):
        run(tmp_path / "fourth", "grpo", vowels, sampling__max_new_tokens=9000)
    with pytest.raises(DataError, match="none of 8 prompts has at most 3 tokens"):
        run(tmp_path / "third", "grpo", vowels, sampling__max_prompt_length=3)


def test_what_is_missing_is_noticed_before_the_policy_is_loaded(tmp_path, monkeypatch):
    for changes, named in (
        ({"reward__judge": "absent.json"}, r"absent\.json"),
        ({"data__train": "nowhere.jsonl"}, r"nowhere\.jsonl"),
        ({"data__valid": "nowhere.jsonl"}, r"nowhere\.jsonl"),
    ):
        with monkeypatch.context() as patch, pytest.raises(GramError, match=named):
            patch.setattr(TextGenerator, "load", lambda *_, **__: pytest.fail("loaded"))
            run(tmp_path / "run", "grpo", **changes)
    # The corrected command runs in the same directory, also on prompts alone.
    prompts = tmp_path / "alone.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {at}."}) + "\n" for at in range(8)))
    done = run(tmp_path / "run", "grpo", vowels, data__train=str(prompts), run__max_steps=1)
    assert done.steps == 1


def test_other_prompts_under_the_same_name_are_refused_on_resume(tmp_path):
    def torn(prompts, texts, greedy):
        if (tmp_path / "run" / "run.json").exists() and metrics(tmp_path / "run"):
            raise KeyboardInterrupt
        return vowels(prompts, texts, greedy)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", "grpo", torn, checkpoint__save_steps=1)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("Say 5.", "Say five."))
    with pytest.raises(RecipeError, match="data are not those"):
        run(tmp_path / "run", "grpo", vowels, checkpoint__save_steps=1)


def test_a_second_job_in_the_directory_of_a_run_is_refused(tmp_path):
    seen = []

    def starting_another(prompts, texts, greedy):
        if not seen:
            seen.append(1)
            with pytest.raises(InUseError, match="two at once"):
                run(tmp_path / "run", "grpo", vowels, run__max_steps=1)
        return vowels(prompts, texts, greedy)

    assert run(tmp_path / "run", "grpo", starting_another, run__max_steps=1).steps == 1
    assert seen


def test_a_finished_run_does_nothing_and_has_its_metrics_in_tensorboard(tmp_path):
    settings = {"run__max_steps": 1, "log__tensorboard": True}
    done = run(tmp_path / "run", "grpo", vowels, **settings)
    assert run(tmp_path / "run", "grpo", vowels, **settings) == done
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]
    assert {"loss", "reward", "win_rate"} <= {name for name, _, _ in done.summary}


LORA = {"lora__rank": 2, "lora__alpha": 4.0, "lora__target_modules": ["q", "v"]}


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_lora_learns_beside_a_frozen_reference_and_resumes_exactly(tmp_path, kind):
    settings = {"run__max_steps": 3, "checkpoint__save_steps": 1, **LORA}
    whole = run(tmp_path / "whole", kind, vowels, **settings)
    assert whole.metrics["kl"] != 0 and whole.metrics["grad_norm"] > 0

    def torn(prompts, texts, greedy):
        if (tmp_path / "torn" / "run.json").exists() and len(metrics(tmp_path / "torn")) == 1:
            raise KeyboardInterrupt
        return vowels(prompts, texts, greedy)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "torn", kind, torn, **settings)
    assert run(tmp_path / "torn", kind, vowels, **settings).metrics == whole.metrics
    merged = tree.flatten(load_model(whole.folder, one_device(), None)[1])
    base = tree.flatten(load_model("tiny-random", one_device(), None)[1])
    changed = {path for path, x in merged.items() if not np.array_equal(x, base[path])}
    assert changed == {"layers/q", "layers/v"}
