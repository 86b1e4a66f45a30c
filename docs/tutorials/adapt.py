# %% [markdown]
# # Adapt a judge to a new task with 200 labels
#
# A judge that is right on one task may guess on another. `adapt` trains it on a few hundred labeled pairs, measures the
# gain on pairs that it has not seen, and does not export a judge that is not better. This tutorial takes about a minute
# on two CPU cores. Run [the first tutorial](train.py) before it, in the same folder.
#
# ## The new task
#
# The support desk now prefers replies with a date or a number to vague ones. Every reply is polite, so tone says
# nothing. There are 200 labels.

# %%
import json
import random
from pathlib import Path

import matplotlib.pyplot as plt

from gram_jax import AdaptConfig, Scorer, adapt, evaluate_pairs, read_records

THINGS = ["key", "card", "bike", "phone", "order", "ticket", "seat", "parcel"]
EXACT = [
    "The {} arrives on {} May.",
    "The {} is ready at {}:30.",
    "We ship the {} in {} days.",
]
VAGUE = [
    "The {} arrives in spring.",
    "The {} is ready later.",
    "We ship the {} when we can.",
]
rng = random.Random(0)


def make_pair(n):
    thing = rng.choice(THINGS)
    return {
        "prompt": f"Case {n}: when do I get my {thing}?",
        "chosen": rng.choice(EXACT).format(thing, rng.randint(2, 12)),
        "rejected": rng.choice(VAGUE).format(thing),
    }


pairs = [make_pair(n) for n in range(200)]
Path("dates.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

judge = Scorer.load("support-judge")
start = evaluate_pairs(judge, read_records("dates.jsonl")[0])
print(f"before: accuracy {start.accuracy:.2f} on {start.n} pairs")

# %% [markdown]
# The first task says nothing about dates, so the judge guesses. Its accuracy need not be near 0.5 even so: the pairs
# share few wordings, and one accidental preference of the judge decides many of them.
#
# ## Adapt
#
# The pairs are split by a hash of the prompt: 60 % for training, 20 % to select the epoch and to fit a temperature, and
# 20 % to measure. Only a LoRA is trained; it is merged for export.

# %%
result = adapt(
    "support-judge", "dates.jsonl", Path("adapted"), AdaptConfig(max_length=256)
)
print(result["pairs"])
for part in ("before", "after"):
    found = result["test"][part]
    low, high = found["interval"]
    print(f"{part:6} accuracy {found['accuracy']:.2f} ({low:.2f} to {high:.2f})")
    print(f"{part:6} NLL {found['nll']:.3f}")
low, high = result["test"]["gain_interval"]
print(f"gain   {result['test']['gain']:+.2f} ({low:+.2f} to {high:+.2f})")

# %% [markdown]
# The gain is measured on pairs that no decision has used, and its interval excludes 0. An accuracy near 1 is not a
# surprise: a digit decides every pair, and the test part has the wordings of the training part. It says nothing about
# replies of another kind. The intervals of the two accuracies are wide, because fewer than 50 pairs measure an accuracy
# to about 0.1 only. The validation loss selected the epoch:

# %%
losses = result["choosing"]["loss"]
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(range(len(losses)), losses.values(), marker="o")
axes.set(
    xlabel="epoch (0: unadapted)",
    xticks=range(len(losses)),
    title="Validation loss (NLL)",
)

# %% [markdown]
# `adapted/judge` is a judge like any other.

# %%
adapted = Scorer.load("adapted/judge")
score = adapted.score(
    "When do I get my lamp?",
    "The lamp arrives on 7 May.",
    "The lamp arrives in spring.",
)
print(f"{score.first:.2f}")

# %% [markdown]
# A judge that is adapted to one task can become worse at another. Measure the first task again:

# %%
for name, one in (("before", judge), ("after", adapted)):
    metrics = evaluate_pairs(one, read_records("held_out.jsonl")[0])
    print(
        name,
        {
            source: round(accuracy, 2)
            for source, (_, accuracy) in metrics.by_source.items()
        },
    )

# %% [markdown]
# Here the first task survives. This is not guaranteed: in a trial with other words the same code lowered `tone` from
# 1.0 to 0.12. If a judge must keep a task, add pairs of that task to the labels, and look at both accuracies.
#
# ## Random labels
#
# In this copy of the pairs a coin decides which reply is the chosen one. There is nothing to learn.

# %%
for pair in pairs:
    if rng.random() < 0.5:
        pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
Path("coin.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
coin = adapt(
    "support-judge",
    "coin.jsonl",
    Path("coin"),
    AdaptConfig(max_length=256),
    accept=True,
)
print("better on the validation part:", coin["better_where_chosen"])
print(
    f"NLL {coin['test']['before']['nll']:.2f} -> {coin['test']['after']['nll']:.2f}"
)
low, high = coin["test"]["gain_interval"]
print(f"gain {coin['test']['gain']:+.2f} ({low:+.2f} to {high:+.2f})")

# %% [markdown]
# The interval of the gain contains 0: these labels contain nothing to learn. An epoch can still be better on the
# validation part, by accident, because this part has some 40 pairs; the test part exists for this case. `accept=True`
# exports the best epoch in every case. Without it, `adapt` raises an error and exports nothing if no epoch has a lower
# validation loss than the unadapted judge.
#
# ## With a real judge, on a GPU or TPU
#
# | change | value |
# |---|---|
# | `"support-judge"` | your run, folder or a hub name |
# | `max_length` | remove it; the default is 1,024 tokens |
# | `compute_dtype` | nothing: `auto` is bfloat16 on an accelerator |
# | `learning_rate` | nothing: the default for LoRA follows from the model's width and family |
# | `method` | `"full"` trains all weights, if they fit with the optimizer's state |
#
# On real preferences between model answers, 139 to 262 training pairs raised the accuracy of a judge of 135M parameters
# by 0.13 to 0.28, if the preferences were clear; unclear ones gave no gain ([adapting a judge](../adapt.md)). The
# command is `gram-jax adapt JUDGE PAIRS --out FOLDER`.
