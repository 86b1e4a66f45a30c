# %% [markdown]
# # Train a judge from your own pairs
#
# A judge learns from pairs: a prompt, the response that was chosen and the one that was rejected. This tutorial writes
# 400 pairs, trains on them, scores new pairs and exports the judge. It takes under a minute on two CPU cores.
#
# It uses `tiny-random`, a model of 130,000 random weights that ships with the package. The task is designed for such
# a model: one half of the pairs differ in tone, which the model can learn; the other half need knowledge of the
# topic, which it cannot learn. The last section names the changes for a real model.

# %% [markdown]
# ## Write the pairs
#
# A support desk prefers a polite reply to a rude one (`source` is `tone`) and a reply about the right thing to a reply
# about another (`topic`). Training and held-out pairs share no thing and no prompt. A file of preferences has one JSON
# object per line; [dataset formats](../formats.md) lists the other formats.

# %%
import json
import random
from pathlib import Path

import matplotlib.pyplot as plt

from gram_jax import Scorer, read_recipe, train

THINGS = ["key", "card", "bike", "phone", "order", "seat", "bag", "lamp", "desk"]
PROMPTS = [
    "Where is my {}?",
    "I lost my {}.",
    "Can I change my {}?",
    "How do I get a {}?",
]
POLITE = [
    "Let me check the {} for you.",
    "We will send the {} today.",
    "I can help with the {}.",
]
RUDE = ["THE {} IS NOT OUR PROBLEM.", "NO {} FOR YOU.", "FIND THE {} ON YOUR OWN."]


def make_pair(n, things, rng):
    thing, other = rng.sample(things, 2)
    kind = ("tone", "topic")[n % 2]
    wrong = (
        rng.choice(RUDE).format(thing.upper())
        if kind == "tone"
        else rng.choice(POLITE).format(other)
    )
    return {
        "prompt": f"Case {n}: {rng.choice(PROMPTS).format(thing)}",
        "chosen": rng.choice(POLITE).format(thing),
        "rejected": wrong,
        "source": kind,
    }


def write_pairs(path, numbers, things):
    rng = random.Random(0)
    rows = [make_pair(n, things, rng) for n in numbers]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


write_pairs("pairs.jsonl", range(400), THINGS[:6])
write_pairs("held_out.jsonl", range(1000, 1200), THINGS[6:])

# %% [markdown]
# Look at the rows as a judge reads them before you train, here with the default template. ⟦ ⟧ mark what the loss
# counts. The histogram of lengths helps to choose `batch.max_length`.

# %% language="bash"
# gram-jax data inspect pairs.jsonl --model tiny-random --limit 2

# %% [markdown]
# ## Train
#
# A [recipe](../configuration.md) states every number that changes results. This one starts from the package's recipe
# for a laptop and changes what the tiny model needs: a short judge template, because its tokenizer has almost one token
# per letter, and a high learning rate, because its weights are random.

# %%
Path("template.txt").write_text("{prompt}\n[A] {first}\n[B] {second}\nBetter:")
changes = {
    "run.output_dir": "runs/support",
    "run.max_steps": 80,
    "model.name_or_path": "tiny-random",
    "judge.template": "template.txt",
    "judge.max_length": 256,
    "data.train": ["pairs.jsonl"],
    "data.valid": ["held_out.jsonl"],
    "batch.batch_size": 8,
    "batch.max_length": 256,
    "batch.gradient_accumulation_steps": 1,
    "optimizer.learning_rate": 5e-3,
    "evaluate.eval_steps": 10,
    "evaluate.limit": 200,
}
recipe = read_recipe(
    "smollm2-135m-finetune", [f"{k}={json.dumps(v)}" for k, v in changes.items()]
)
result = train(recipe)
print(result.steps, "steps")
print(f"held-out accuracy {result.metrics['valid_pair_accuracy']:.2f}")

# %% [markdown]
# The run's folder has the metrics of every step as JSON lines. The training loss has a floor: with labels smoothed by
# 0.1 even a perfect judge cannot fall below 0.198; one that is right on half of the pairs and answers 0.5 on the others
# has 0.446.

# %%
rows = [
    json.loads(line)
    for line in Path("runs/support/metrics.jsonl").read_text().splitlines()
]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
for axes, key in ((left, "loss"), (right, "accuracy")):
    for name in (key, f"valid_{key}"):
        steps = [row["step"] for row in rows if name in row]
        axes.plot(steps, [row[name] for row in rows if name in row], label=name)
    axes.set(xlabel="step", title=f"Training: {key}")
    axes.legend()

# %% [markdown]
# The held-out accuracy stops near 0.75: the judge is right on the half of the pairs that differ in tone, and guesses on
# the other half. A single accuracy hides this; [the next tutorial](evaluate.py) separates the two.
#
# ## Score new pairs
#
# A score is the probability that a response is the better one, averaged over both orders. The two probabilities sum to
# 1.

# %%
judge = Scorer.load("runs/support")
score = judge.score(
    "Where is my desk?", "I can help with the desk.", "NO DESK FOR YOU."
)
print(f"polite against rude: {score.first:.3f}, log-odds {score.margin:+.2f}")
score = judge.score(
    "Where is my desk?", "I can help with the desk.", "I can help with the lamp."
)
print(f"desk against lamp:   {score.first:.3f}, log-odds {score.margin:+.2f}")

# %% [markdown]
# Label smoothing limits the first score to about 0.95: the judge learns that 1 label in 20 may be wrong. The second
# score is near 0.5, as it should be for a judge that cannot see the difference.
#
# ## Export
#
# The exported folder has safetensors, the tokenizer, the chat template and `judge.json`, which holds the judge's
# prompt. transformers and every command of gram_jax open it.

# %% language="bash"
# gram-jax convert runs/support support-judge
# ls support-judge

# %% [markdown]
# ## With a real model, on a GPU or TPU
#
# | change | value |
# |---|---|
# | `data.train`, `data.valid` | your files |
# | recipe | `qwen3-1.7b-finetune-24gb` for one GPU of 24 GB; `gram-qwen3-1.7b-finetune` for several GPUs or a TPU |
# | `model.name_or_path` | a hub name or a stage 1 run; `smollm2-135m` on a laptop (5 s per step on two cores) |
# | `judge.template`, `judge.max_length` | remove these: the default template, and the recipe's length |
# | `optimizer.learning_rate` | the recipe's: 2e-5 at 1.7B parameters, 7e-5 at 135M |
# | `run.max_steps` | remove it, or one or two epochs of your data |
#
# The code stays: `train` uses all devices that JAX finds, sharded by the recipe's `[mesh]` table. An interrupted run
# resumes if the same code runs again. [Train a judge](../training.md) explains the two stages and the important
# numbers.
