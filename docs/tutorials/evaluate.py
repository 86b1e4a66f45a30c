# %% [markdown]
# # Evaluate a judge and read the report
#
# This tutorial measures the judge of [the first tutorial](train.py) on 200 held-out pairs, compares it with the
# untrained model, and explains each figure. It takes under a minute on two CPU cores. Run the first tutorial before it,
# in the same folder.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt

from gram_jax import JudgeSpec, Scorer, evaluate

judge = Scorer.load("support-judge")
results = evaluate(judge, ["held_out.jsonl"], model="trained", out=Path("trained"))
pairs = results.sources["held_out"].pairs
low, high = pairs.interval
print(f"accuracy {pairs.accuracy:.3f}, 95 % interval {low:.3f} to {high:.3f}")
print(f"order consistency {pairs.consistency:.2f}")
print(f"position bias {pairs.position_bias:+.3f}")
print(f"ECE {pairs.ece:.3f}, length slope {pairs.length_slope:+.2f}")

# %% [markdown]
# - **Accuracy** counts a pair as right if the chosen response has more than half of the probability, averaged over both
#   orders. Chance is 0.5. Accuracies whose difference is within the interval are not distinguishable by these pairs.
# - **Order consistency** is the share of pairs for which both orders give the same verdict. **Position bias** is the
#   mean change of P(a response) between the first and the second position.
# - **ECE** compares confidence and accuracy: 0 if 80 % of the verdicts of confidence 0.8 are right.
# - **Length slope** is the log-odds that a response of twice the length gains. It does not show the cause: most polite
#   replies of these data are also longer, so a judge that reads the tone alone has a slope too.
#
# ## Subsets
#
# One accuracy is a mean over easy and difficult pairs. The `source` of each row gives the accuracy of each subset.

# %%
subsets = results.sources["held_out"].subsets
for one in subsets:
    low, high = one.interval
    print(
        f"{one.name:6} {one.n} pairs, {one.accuracy:.2f} ({low:.2f} to {high:.2f})"
    )

figure, axes = plt.subplots(figsize=(6, 2.2))
low = [max(0.0, one.accuracy - one.interval[0]) for one in subsets]
high = [max(0.0, one.interval[1] - one.accuracy) for one in subsets]
axes.errorbar(
    [s.accuracy for s in subsets],
    [s.name for s in subsets],
    xerr=(low, high),
    fmt="o",
)
axes.axvline(0.5, linestyle="--", color="gray")
axes.set(
    xlim=(0, 1.02),
    ylim=(-0.5, 1.5),
    title="Accuracy of each subset, with 95 % intervals",
)

# %% [markdown]
# The judge separates the tones and not the topics. The interval of `topic` contains 0.5: these pairs show no ability.
#
# ## Individual scores
#
# The folder keeps the score of each pair. A useful judge is confident where it is right and near 0.5 elsewhere.

# %%
scores = [
    json.loads(line)
    for line in Path("trained/held_out.scores.jsonl").read_text().splitlines()
]
figure, axes = plt.subplots(figsize=(6, 3))
for name in ("tone", "topic"):
    values = [one["score_chosen"] for one in scores if one["source"] == name]
    axes.hist(values, bins=[n / 25 for n in range(26)], alpha=0.7, label=name)
axes.set(
    xlabel="P(chosen response)",
    ylabel="pairs",
    title="Scores of the held-out pairs",
)
axes.legend()

# %% [markdown]
# ## Compare two judges
#
# Evaluate the untrained model with the same judge prompt, so that only the weights differ. The comparison is paired: it
# uses the difference on each prompt, which gives a narrower interval than the two accuracies.

# %%
untrained = Scorer.load("tiny-random", spec=JudgeSpec.load("support-judge"))
before = evaluate(
    untrained, ["held_out.jsonl"], model="untrained", out=Path("untrained")
)
print(f"untrained: accuracy {before.sources['held_out'].pairs.accuracy:.2f}")

# %% language="bash"
# gram-jax report trained --out trained.html
# gram-jax report untrained trained --out both.html --markdown both.md
# head -n 12 both.md

# %% [markdown]
# The two intervals of the accuracies do not overlap, so the training helped on pairs of this kind.
#
# `trained.html` is one file without scripts that opens from disk. Its section *Before you use these figures* lists what
# limits them: few prompts, position or length bias, bad calibration. Read it first. Here it warns that the judge
# favours the longer response, which the length slope shows too; only pairs in which the rude reply is the longer one
# can tell whether the cause is the length or the tone. [Reports](../report.md) explains each plot.
#
# ## With a real judge, on a GPU or TPU
#
# Nothing changes except names: `Scorer.load` takes your run or folder, and computes in bfloat16 on all devices that JAX
# finds. Add `reward_bench.jsonl`, `judgebench.json` or RM-Bench to the sources, or use `gram-jax evaluate JUDGE
# --benchmark rewardbench --out FOLDER`, which downloads them; each benchmark is recognised by its fields and reported
# as its authors define it ([evaluation](../evaluation.md)). 2,000 pairs measure an accuracy of 0.8 to within 2 points.
