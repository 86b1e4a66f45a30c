# %% [markdown]
# # Best of n, and a judge as an RL reward
#
# This tutorial uses the judge of [the first tutorial](train.py) to select the best of several responses, as the reward
# function of TRL, and in the reinforcement learning of gram_jax. It takes about a minute and a half on two CPU cores.
# Run the first tutorial before it, in the same folder.
#
# ## Rank responses
#
# A judge compares two responses. `rank` makes an order of n responses from comparisons of all pairs.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt

from gram_jax import RewardForm, SamplingConfig, Scorer, TextGenerator, read_records
from gram_jax.rewards.trl import trl_reward

judge = Scorer.load("support-judge")
prompt = "Where is my desk?"
responses = [
    "NO DESK FOR YOU.",
    "Let me check the desk.",
    "FIND THE DESK.",
    "We will send the desk.",
]
ranking = judge.rank(prompt, responses)
for at in ranking.order:
    print(f"{ranking.strengths[at]:+.2f}  {responses[at]}")

# %% [markdown]
# The polite replies are first. The order within the two groups has no meaning, because the judge sees no difference
# there. Strengths are log-odds: a difference of 1 means that the stronger response wins with probability 0.73.
# [Ranking](../ranking.md) compares six methods, some of which need fewer comparisons.
#
# ## Best of n
#
# `gram-jax bon` samples n responses of a policy to each prompt and scores the judge's pick among k of them. Here the
# policy is `tiny-random` too, so its responses are random bytes. The figures show how far selection moves the score,
# not that the text is good.

# %% language="bash"
# gram-jax bon tiny-random support-judge held_out.jsonl --out bon \
#     --n 16 --limit 16 --max-new-tokens 12

# %%
table = json.loads(Path("bon/bon.json").read_text())["best_of"]
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(
    [row["k"] for row in table], [row["proxy"]["mean"] for row in table], marker="o"
)
axes.set_xscale("log", base=2)
axes.set(xlabel="n", ylabel="P(better than greedy)", title="Score of the best of n")

# %% [markdown]
# The curve is the judge's own opinion of its own picks, so it rises for every judge, good or bad. Give a second,
# stronger judge as `--oracle` to measure whether the picks improve ([best of n](../rl.md#best-of-n)).
#
# ## A reward function for TRL
#
# `trl_reward` makes a function with TRL's signature. With `compare_with="group"` the reward of a response is its mean
# win probability against the other responses to the same prompt, which suits GRPO.

# %%
reward = trl_reward(judge, RewardForm(compare_with="group"))
print(
    [round(one, 3) for one in reward(prompts=[prompt] * 4, completions=responses)]
)

# %% [markdown]
# TRL's trainer calls it for every group. The next cells run two steps of a tiny policy if TRL is installed
# (`pip install trl`; 1.16 was run). TRL trains in PyTorch and the judge runs in JAX, so on a GPU give each its own
# device or set `XLA_PYTHON_CLIENT_PREALLOCATE=false`.

# %% language="bash" needs="trl"
# gram-jax convert tiny-random tiny-policy

# %% needs="trl"
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

prompts = [one.prompt[0].content for one in read_records("pairs.jsonl")[0]]
trainer = GRPOTrainer(
    model="tiny-policy",  # for a real run: an instruction-tuned model of the hub
    reward_funcs=[reward],
    args=GRPOConfig(
        output_dir="runs/trl",
        max_steps=2,
        num_generations=4,
        per_device_train_batch_size=4,  # complete groups
        max_completion_length=8,
        save_strategy="no",
        report_to=[],
        use_cpu=True,  # remove it on a GPU
    ),
    train_dataset=Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": text}] for text in prompts]}
    ),
)
trainer.train()

# %% [markdown]
# ## Reinforcement learning in JAX
#
# `gram-jax rl` trains a policy in JAX with PPO, GRPO or RLOO. The reward here is the mean probability of being better
# than two fixed references. Fixed references make the rewards of different steps comparable; a reward against the
# policy's own greedy response or its group is relative to the policy, which changes.

# %% language="bash"
# gram-jax rl smollm2-135m-rl \
#     --set run.output_dir=runs/policy --set run.max_steps=20 \
#     --set policy.name_or_path=tiny-random --set data.train=pairs.jsonl \
#     --set reward.judge=support-judge --set reward.compare_with=reference \
#     --set 'reward.references=["We can help.", "NO HELP."]' \
#     --set sampling.num_generations=4 --set sampling.max_new_tokens=12 \
#     --set algorithm.kind=rloo --set algorithm.kl_coef=0.0 \
#     --set algorithm.gradient_accumulation_steps=1 \
#     --set optimizer.learning_rate=1e-2 \
#     --set evaluate.eval_steps=0 --set evaluate.limit=8

# %%
rows = [
    json.loads(line)
    for line in Path("runs/policy/metrics.jsonl").read_text().splitlines()
]
rows = [row for row in rows if "reward" in row]
figure, panels = plt.subplots(1, 2, figsize=(9, 3))
for axes, key, title in zip(
    panels, ("reward", "kl"), ("Mean reward", "KL from the start"), strict=True
):
    axes.plot([row["step"] for row in rows], [row[key] for row in rows])
    axes.set(xlabel="step", title=title)

# %% [markdown]
# The reward rises, and so does the divergence from the start. `win_rate` in the table compares greedy responses with
# those of the start on 8 prompts, which is too few to say anything. Look at the text before you call this success:

# %%
policy = TextGenerator.load("runs/policy")
for text in policy.generate(
    [prompt, "I lost my bag."], SamplingConfig(max_new_tokens=12)
).texts:
    print(repr(text), f"{judge.score(prompt, text, 'We can help.').first:.2f}")

# %% [markdown]
# The policy learned which bytes this judge likes, without learning to write. This is reward hacking in its simplest
# form: a judge is reliable near its training data, and nothing kept the policy there. With a real model, keep
# `algorithm.kl_coef` above 0 (0.05 in the recipe), watch `kl` and `length`, and judge the result by an oracle or by
# readers.
#
# ## With a real model, on a GPU or TPU
#
# | change | value |
# |---|---|
# | `policy.name_or_path`, `reward.judge` | an instruction-tuned model; a judge of the same size or larger |
# | `reward.compare_with` | remove it (`greedy`, as in the paper), or `group` |
# | `algorithm`, `optimizer`, `sampling` | the recipe's values: learning rate 1e-6, `kl_coef` 0.05, 128 new tokens |
# | `reward.num_devices` | on several devices: the number that hold the judge alone |
#
# [Rewards](../rewards.md) has the forms of reward and other trainers; [RLHF in JAX](../rl.md) has measured runs.
