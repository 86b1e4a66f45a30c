# %% [markdown]
# # A TPU pod from a laptop: plan, launch, resume
#
# This tutorial plans a training run for TPUs that you do not have yet, prints the commands that start it on a pod, and
# shows on this machine that an interrupted run repeats the uninterrupted one bit for bit. It takes about a minute on
# two CPU cores. Run [the first tutorial](train.py) before it, in the same folder, with `launch/` and `configs/` of a
# checkout. gram_jax has not run on a TPU yet ([limitations](../limitations.md)): the plan comes from the real compiler,
# and the launcher was tested with a stand-in for `gcloud`.
#
# ## Plan
#
# `gram-jax plan` compiles the training step for a TPU topology and reports memory, communication and bounds of the step
# time. It needs the compiler (`pip install "jax[tpu]"`) and no TPU. It exits with status 1 if the program does not fit,
# so a script can stop before it pays for machines. The first plan is of the tutorial's own model, which compiles in
# seconds:

# %% language="bash" needs="libtpu"
# JAX_PLATFORMS=cpu gram-jax plan smollm2-135m-finetune \
#     --model-config support-judge --topology v5e:2x2 \
#     --set batch.batch_size=8 --set batch.max_length=256 --set judge.max_length=256

# %% [markdown]
# Memory is that of one chip; a 16 GiB chip is almost empty here. The times are lower bounds and the tokens per second
# an upper limit. Neither says what a run would reach: the limit leaves out recomputation. Plan the pod of the next
# section like this; it takes some minutes, and `--search` finds the largest batch that fits:
#
#     JAX_PLATFORMS=cpu gram-jax plan gram-qwen3-1.7b-finetune --model-config qwen3-1.7b --topology v5e:4x4 --search
#
# [The sizing table](../planning.md#sizing-table) has results: stage 2 of Qwen3-1.7B needs 4.3 of the 15.8 GiB of each
# of 16 v5e chips.
#
# ## Launch
#
# `pod.sh` runs on the laptop. `train` requests the machines, installs this working tree, starts the recipe on every
# worker, watches it, starts again after a preemption, and deletes the machines at the end. With `DRY_RUN=1` it prints
# the commands and runs nothing.

# %% language="bash"
# export NAME=judge ZONE=us-west4-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite
# export SPOT=1 SHARE=10.0.0.2:/share
# DRY_RUN=1 launch/tpu_vm/pod.sh train configs/gram-qwen3-1.7b-finetune.toml | cut -c 1-120

# %% [markdown]
# Remove `DRY_RUN=1` to start it. **Machines are billed until they are deleted**: `train` deletes them when the run is
# finished, but keeps them after an error, so that you can read the logs (`pod.sh logs`, then `pod.sh delete`). If you
# close the laptop, the run continues, but nothing replaces preempted machines or deletes them at the end: use `pod.sh
# watch`, then `pod.sh delete`. [TPU VMs](../../launch/tpu_vm/README.md) explains the settings.
#
# ## Resume
#
# A preempted worker gets SIGTERM: all workers save the same step if the save ends within the grace period (20 s in
# `pod.sh`), and the same command resumes on new machines. The state is the parameters, the optimizer and the position
# in the data. Here the same happens on this machine: one run without interruption, and one that stops at step 12 and
# resumes.

# %%
import json
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

from gram_jax import Scorer, read_recipe, train

changes = {
    "run.max_steps": 30,
    "model.name_or_path": "tiny-random",
    "judge.template": "template.txt",
    "judge.max_length": 256,
    "data.train": ["pairs.jsonl"],
    "batch.batch_size": 8,
    "batch.max_length": 256,
    "batch.gradient_accumulation_steps": 1,
    "optimizer.learning_rate": 5e-3,
}


def recipe_of(folder):
    settings = changes | {"run.output_dir": folder}
    return read_recipe(
        "smollm2-135m-finetune",
        [f"{k}={json.dumps(v)}" for k, v in settings.items()],
    )


train(recipe_of("runs/whole"))
print("stopped at step", train(recipe_of("runs/resumed"), stop_at_step=12).steps)
print("resumed to step", train(recipe_of("runs/resumed")).steps)

# %%
figure, axes = plt.subplots(figsize=(6, 3))
for name, style in (("whole", "-"), ("resumed", ".")):
    lines = Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    axes.plot(
        [row["step"] for row in rows],
        [row["loss"] for row in rows],
        style,
        label=name,
    )
axes.axvline(12, linestyle="--", color="gray")
axes.set(xlabel="step", title="Loss of the whole and of the resumed run")
axes.legend()

# %% [markdown]
# Equal curves could hide small differences. Compare the weights:

# %%
whole, resumed = (
    Scorer.load(f"runs/{name}").params for name in ("whole", "resumed")
)
print(all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(resumed))))

# %% [markdown]
# The weights are equal bit for bit. This holds on the same number and kind of devices. A run resumes from its last
# checkpoint if a worker is lost without SIGTERM, and the steps since then are repeated: `checkpoint.save_steps` decides
# how many. [Reliability](../reliability.md) lists every kind of failure and what was tested.
#
# ## On the pod
#
# | change | value |
# |---|---|
# | model and recipe | `gram-qwen3-1.7b-finetune`, or a copy: `gram-jax recipe gram-qwen3-1.7b-finetune > my.toml` |
# | `data.train`, `run.output_dir` | paths in the shared folder (`SHARE`), which all workers see |
# | `[mesh]` | `fsdp = -1` shards over all chips; [meshes](../meshes.md) has the other axes |
# | several slices | `SLICES=2` and `--set mesh.dcn.data=2` |
# | Slurm, Kubernetes or one machine | [other launchers](../../launch/README.md) with the same recipe |
