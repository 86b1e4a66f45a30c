"""Commands that train, and that plan what training needs. Each imports what it needs."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from gram_jax.adaptation.config import AdaptConfig
from gram_jax.cli.console import Console, log_to
from gram_jax.cli.options import (
    AtLeastOne,
    ComputeDtype,
    JobOptions,
    Judge,
    Overrides,
    RecipeName,
    RowOptions,
    StopOptions,
    WeightFormat,
    read_spec,
)

if TYPE_CHECKING:
    from gram_jax.distributed.process import ProcessContext

Adaptation = Annotated[AdaptConfig, Parameter(name="*")]


def train(
    recipe: RecipeName,
    /,
    *,
    overrides: Overrides = None,
    stop: StopOptions = StopOptions(),
    job: JobOptions = JobOptions(),
) -> None:
    """Train a stage. Run the command again after an interruption: it resumes.

    A job of several processes runs the command once per process, with the same arguments but --process. Exit status 75
    (stopped by SIGTERM, state saved) and 76 (a process was lost or stuck) ask for a restart.
    """
    from gram_jax.recipes.reading import read_recipe
    from gram_jax.training.loop import train as run

    chosen = read_recipe(recipe, overrides or [])
    with job_session(job, stop) as (process, console):
        done = run(chosen, process=process, progress=console.progress)
        console.table(f"{done.folder.name} ({chosen.stage})", ("", "first", "last"), done.summary)


@contextmanager
def job_session(job: JobOptions, stop: StopOptions) -> Iterator[tuple["ProcessContext", Console]]:
    """Join the job that the options or the scheduler state; the console of process 0 alone prints."""
    from gram_jax.distributed.cluster import (
        detect_cluster,
        has_tpu,
        parse_device_ids,
        tpu_vm_variables,
    )
    from gram_jax.distributed.process import distributed_session

    cluster, devices = None, parse_device_ids(job.local_devices)
    if job.cluster == "auto":
        variables = dict(os.environ)
        if job.coordinator is None and "TPU_WORKER_ID" not in variables and has_tpu():
            variables |= tpu_vm_variables()
        cluster = detect_cluster(job.coordinator, job.processes, job.process, devices, variables)
    with distributed_session(
        cluster,
        devices=devices,
        join_timeout=job.join_timeout,
        lost_after=job.lost_after,
        grace=stop.grace,
        stuck_after=stop.stuck_after or None,
    ) as process:
        console = Console(mute=process.index > 0)
        log_to(console)
        yield process, console


def recipe(name: str | None = None, /) -> None:
    """Print a recipe, to start your own from. Without a name, list the recipes that ship with gram-jax.

    Args:
        name: The name of a shipped recipe, or a file.
    """
    from gram_jax.recipes.reading import recipe_names, recipe_text

    if name is not None:
        print(recipe_text(name), end="")
        return
    console, names = Console(), recipe_names()
    for known in names:
        about = recipe_text(known).splitlines()[0].strip("# ")
        console.say(f"{known:{max(map(len, names))}}  {about}")
    console.say("train, plan and rl take these names. A copy: gram-jax recipe NAME > my.toml")


def adapt(
    model: Judge,
    source: str,
    /,
    *,
    out: Path,
    config: Adaptation = AdaptConfig(),
    compute_dtype: ComputeDtype = "auto",
    spec: Path | None = None,
    rows: RowOptions = RowOptions(),
    accept: bool = False,
    stop: StopOptions = StopOptions(),
    job: JobOptions = JobOptions(),
) -> None:
    """Adapt a judge to a task with a few hundred labeled pairs. An interrupted command resumes.

    A job of several processes runs the command once per process, as `train` does.

    Args:
        source: Labeled pairs of the task, of any schema.
        out: A folder for the run, the figures and the judge.
        compute_dtype: Dtype of matrix products; auto: bfloat16 on accelerators, float32 on CPUs.
        spec: A judge.json to use instead of the one saved with the model.
        accept: Export the best epoch even if the unadapted judge is better.
    """
    from gram_jax.adaptation.adapt import FILE
    from gram_jax.adaptation.adapt import adapt as run
    from gram_jax.adaptation.report import result_rows

    with job_session(job, stop) as (process, console):
        result = run(
            model,
            source,
            out,
            config,
            compute_dtype=compute_dtype,
            **rows.arguments(),
            spec=read_spec(spec),
            accept=accept,
            process=process,
            progress=console.progress,
        )
        title = f"{model} on {result['pairs']['test']} held-out pairs of {source}"
        console.table(title, ("", "before", "after"), result_rows(result))
        console.say(f"{result['exported']}: the judge; {out / FILE}: the figures")


def rl(
    recipe: RecipeName,
    /,
    *,
    overrides: Overrides = None,
    stop: StopOptions = StopOptions(),
    job: JobOptions = JobOptions(),
) -> None:
    """Train a policy on the judge's rewards by PPO, GRPO or RLOO. Run again after an interruption: it resumes.

    A job of several processes runs the command once per process, as `train` does.
    """
    from gram_jax.recipes.reading import read_rl_recipe
    from gram_jax.rl.loop import run_rl

    chosen = read_rl_recipe(recipe, overrides or [])
    with job_session(job, stop) as (process, console):
        done = run_rl(chosen, process=process, progress=console.progress)
        console.table(f"{done.folder}: {done.steps} steps", ("", "first", "last"), done.summary)


def plan(
    recipe: RecipeName,
    /,
    *,
    topology: str = "local",
    slices: Annotated[int | None, AtLeastOne] = None,
    overrides: Overrides = None,
    model_config: str | None = None,
    score: bool = False,
    pairs: Annotated[int | None, AtLeastOne] = None,
    weights: WeightFormat = "auto",
    slots: Annotated[int | None, AtLeastOne] = None,
    search: bool = False,
    advice: Annotated[bool, Parameter(negative="--no-advice")] = True,
    search_mesh: tuple[Literal["data", "tensor", "sequence"], ...] = (),
    operations: Annotated[int | None, AtLeastOne] = None,
    against: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Compile a recipe for a pod on any machine: memory, collectives, FLOPs, the compiler's estimate of the time.

    Exit status 0: the program fits; 1: it does not.

    Args:
        topology: local, or devices that need not be present: v5e:4x4, 2xv5e:16x16, h200:8.
        slices: Number of slices of the topology.
        model_config: A config.json, or a published shape such as qwen3-8b; default model.name_or_path.
        score: Plan scoring instead of training.
        pairs: Number of pairs of a scoring call.
        weights: Format in which the weights of a scoring call are stored; auto: the compute dtype.
        slots: Number of examples that a packed row may hold.
        search: Find the largest batch.batch_size that fits, then the least recomputation.
        advice: If the program does not fit, compile changes until one does.
        search_mesh: Compile the step for sizes 1 to 8 of these axes, with fsdp for the rest; list the fastest first.
        operations: Number of the most expensive operations to list, with their source lines (TPUs only).
        against: Compare with an earlier plan, a file with the output of --json.
        as_json: Print one JSON object.
    """
    import jax

    from gram_jax.files import read_json
    from gram_jax.plan.command import PlanOptions, run_plan
    from gram_jax.plan.report import compared, plan_heading, plan_tables, plan_values
    from gram_jax.plan.topology import read_topology
    from gram_jax.recipes.reading import read_recipe

    old = None if against is None else read_json(against)
    wanted = read_topology(topology, slices)
    if wanted.chip is not None:
        jax.config.update("jax_platforms", "cpu")  # this machine's accelerators are not used
    log_to(Console(stderr=True))
    options = PlanOptions(model_config, score, pairs, weights, slots, search, search_mesh, advice)
    found, hint = run_plan(read_recipe(recipe, overrides or []), wanted, options)
    if as_json:
        print(json.dumps(plan_values(found) | {"advice": hint}, indent=2))
    else:
        console = Console()
        console.heading(plan_heading(found))
        console.say(", ".join(f"{name} {value}" for name, value in found.program.settings.items()))
        for table in plan_tables(found, operations=operations or 0):
            console.table(*table)
        if old is not None and found.fit.fits:
            console.table(*compared(old, plan_values(found)))
        if hint:
            console.say(hint)
    return 0 if found.fit.fits else 1
