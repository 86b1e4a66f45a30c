"""Commands that train, and that say beforehand what it takes. Imports wait for the command that needs them."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from gram_jax.cli.options import (
    JOB,
    MODEL_HELP,
    RECIPE_HELP,
    Compute,
    JudgeOption,
    OnBad,
    Schema,
    seconds,
)
from gram_jax.console import Console, log_to

GraceOption = Annotated[
    float,
    typer.Option(
        envvar="GRAM_JAX_GRACE",
        callback=seconds(0),
        help="seconds from SIGTERM until the process has to be gone",
    ),
]
StuckAfterOption = Annotated[
    float,
    typer.Option(
        envvar="GRAM_JAX_STUCK_AFTER",
        callback=seconds(0),
        help="seconds without progress after which the stacks are printed and the process ends; 0: never",
    ),
]
STUCK_AFTER = 4500  # more than a save may take (checkpoint/orbax.py)


def train(
    recipe: Annotated[Path, typer.Argument(help=RECIPE_HELP)],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="change a key, as optimizer.learning_rate=1e-5"),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            envvar="GRAM_JAX_COORDINATOR", help="host:port of process 0", rich_help_panel=JOB
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            envvar="GRAM_JAX_PROCESSES", min=1, help="how many there are", rich_help_panel=JOB
        ),
    ] = None,
    process: Annotated[
        int | None,
        typer.Option(envvar="GRAM_JAX_PROCESS", help="which one this is", rich_help_panel=JOB),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--local-devices",
            envvar="JAX_LOCAL_DEVICE_IDS",
            help="the GPUs of this machine that this process drives, as 0,1; default all",
            rich_help_panel=JOB,
        ),
    ] = None,
    cluster: Annotated[
        Literal["auto", "none"],
        typer.Option(
            help="none: one process, whatever Slurm or the TPU pod says", rich_help_panel=JOB
        ),
    ] = "auto",
    join_timeout: Annotated[
        float,
        typer.Option(
            envvar="GRAM_JAX_JOIN_TIMEOUT",
            callback=seconds(1),
            help="seconds to wait for all processes",
            rich_help_panel=JOB,
        ),
    ] = 300,
    lost_after: Annotated[
        float,
        typer.Option(
            envvar="GRAM_JAX_LOST_AFTER",
            callback=seconds(3),  # three beats
            help="seconds of silence after which one is lost",
            rich_help_panel=JOB,
        ),
    ] = 30,
    grace: GraceOption = 25,
    stuck_after: StuckAfterOption = STUCK_AFTER,
) -> None:
    """Train a stage; run again after an interruption, it goes on where it stopped.

    As one of several processes it is started once for each of them, all with the same arguments but --process. Status:
    0 done, 2 an error for a person, 75 stopped by SIGTERM and saved (where there was something to save), 76 a process
    was lost or stuck (75 and 76: start again), 130 Ctrl-C.
    """
    from gram_jax.distributed.cluster import (
        detect_cluster,
        has_tpu,
        parse_device_ids,
        tpu_vm_variables,
    )
    from gram_jax.distributed.process import distributed_session
    from gram_jax.recipes.reading import read_recipe
    from gram_jax.training.loop import train as run

    chosen = read_recipe(recipe, set_ or [])
    place, gpus = None, parse_device_ids(devices)
    if cluster == "auto":
        surroundings = dict(os.environ)
        if coordinator is None and "TPU_WORKER_ID" not in surroundings and has_tpu():
            surroundings |= tpu_vm_variables()
        place = detect_cluster(coordinator, processes, process, gpus, surroundings)
    with distributed_session(
        place,
        devices=gpus,
        join_timeout=join_timeout,
        lost_after=lost_after,
        grace=grace,
        stuck_after=stuck_after or None,
    ) as context:
        console = Console(mute=context.index > 0)  # process 0 speaks for the job
        log_to(console)
        done = run(chosen, process=context, progress=console.progress)
        console.table(f"{done.folder.name} ({chosen.stage})", ("", "first", "last"), done.summary)


def recipe(
    name: Annotated[
        str | None, typer.Argument(help="of one that comes with gram-jax, or a file")
    ] = None,
) -> None:
    """Print a recipe, to be changed; without a name, list those that come with gram-jax."""
    from gram_jax.recipes.reading import recipe_names, recipe_text

    if name is not None:
        print(recipe_text(name), end="")
        return
    console, names = Console(), recipe_names()
    for known in names:
        about = recipe_text(known).splitlines()[0].strip("# ")
        console.say(f"{known:{max(map(len, names))}}  {about}")
    console.say(
        "Each is a name for train, plan or rl; to change one: gram-jax recipe NAME > my.toml"
    )


def adapt(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    source: Annotated[str, typer.Argument(help="labeled pairs of the task, of any schema")],
    out: Annotated[Path, typer.Option(help="a folder for the run, the figures and the judge")],
    method: Annotated[Literal["lora", "full"], typer.Option(help="which weights move")] = "lora",
    num_train_epochs: Annotated[
        int, typer.Option(min=1, help="Maximum number of epochs; the best one is exported")
    ] = 3,
    patience: Annotated[
        int,
        typer.Option(min=0, help="Number of epochs without improvement to stop after; 0: never"),
    ] = 1,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Peak learning rate; default 3e-5 for full, for LoRA set by the model's width",
        ),
    ] = None,
    label_smoothing: Annotated[
        float, typer.Option(min=0, max=0.99, help="Label smoothing, as torch defines it")
    ] = 0.1,
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank of LoRA")] = 16,
    held_out: Annotated[
        float,
        typer.Option(
            help="Share of the prompts that selects the epoch; the same share measures the result"
        ),
    ] = 0.2,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Batch size in rows; default: about 40 steps an epoch, at most 8 rows"
        ),
    ] = None,
    max_length: Annotated[
        int,
        typer.Option(min=64, help="Tokens of a row; raised to the judge's max_length if smaller"),
    ] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split and of shuffling")] = 0,
    compute: Compute = "auto",
    judge: JudgeOption = None,
    schema: Schema = "auto",
    on_bad: OnBad = "error",
    accept: Annotated[
        bool, typer.Option(help="export the best epoch even where the judge as it came is better")
    ] = False,
) -> None:
    """Make a judge that of a task from a few hundred labeled pairs; an interrupted command goes on."""
    from gram_jax.adaptation.adapt import FILE
    from gram_jax.adaptation.adapt import adapt as run
    from gram_jax.adaptation.report import result_rows
    from gram_jax.adaptation.settings import AdaptConfig
    from gram_jax.judge.spec import JudgeSpec

    console = Console()
    result = run(
        model,
        source,
        out,
        AdaptConfig(
            method,
            num_train_epochs,
            patience,
            learning_rate,
            label_smoothing,
            lora_rank,
            held_out,
            batch_size,
            max_length,
            seed,
        ),
        compute=compute,
        schema=schema,
        on_bad=on_bad,
        spec=None if judge is None else JudgeSpec.load(judge),
        accept=accept,
        progress=console.progress,
    )
    title = f"{model} on {result['pairs']['test']} pairs of {source} that were not trained on"
    console.table(title, ("", "before", "after"), result_rows(result))
    console.say(f"{result['exported']}: the judge; {out / FILE}: the figures")


def rl(
    recipe: Annotated[Path, typer.Argument(help=RECIPE_HELP)],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="change a key, as algorithm.kl_coef=0.1")
    ] = None,
    grace: GraceOption = 25,
    stuck_after: StuckAfterOption = STUCK_AFTER,
) -> None:
    """Train a policy on the judge's rewards by PPO, GRPO or RLOO; run again after an interruption, it goes on."""
    from gram_jax.distributed.process import ProcessContext
    from gram_jax.recipes.reading import read_rl_recipe
    from gram_jax.rl.loop import run_rl

    console, process = Console(), ProcessContext(grace=grace, stuck_after=stuck_after or None)
    chosen = read_rl_recipe(recipe, set_ or [])
    done = run_rl(chosen, process=process, progress=console.progress)
    console.table(f"{done.folder}: {done.steps} steps", ("", "first", "last"), done.summary)


def plan(
    recipe: Annotated[Path, typer.Argument(help=RECIPE_HELP)],
    topology: Annotated[
        str,
        typer.Option(
            help="local, or devices that need not be present: v5e:4x4, 2xv5e:16x16, h200:8"
        ),
    ] = "local",
    slices: Annotated[int | None, typer.Option(min=1, help="Number of slices")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a recipe key, such as batch.batch_size=64"),
    ] = None,
    model_config: Annotated[
        str | None,
        typer.Option(
            help="A config.json or a published shape such as qwen3-8b; default model.name_or_path"
        ),
    ] = None,
    score: Annotated[bool, typer.Option("--score", help="Plan scoring, not training")] = False,
    pairs: Annotated[int | None, typer.Option(min=1, help="Pairs of a scoring call")] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Examples that a packed row may hold")
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search", help="Find the largest batch.batch_size, then the least recomputation"
        ),
    ] = False,
    advice: Annotated[
        bool, typer.Option(help="If it does not fit, compile changes until one does")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Compile a recipe for a pod from any machine: memory, collectives, FLOPs, bounds of the step time.

    Status 0: it fits; 1: it does not; 2: an error in the options or the recipe.
    """
    import jax

    from gram_jax.plan.command import PlanOptions, run_plan
    from gram_jax.plan.report import plan_heading, plan_tables, plan_values
    from gram_jax.plan.topology import read_topology
    from gram_jax.recipes.reading import read_recipe

    wanted = read_topology(topology, slices)
    if wanted.chip is not None:
        jax.config.update("jax_platforms", "cpu")  # this machine's accelerators are not used
    log_to(Console(stderr=True))
    options = PlanOptions(model_config, score, pairs, slots, search, advice)
    found, hint = run_plan(read_recipe(recipe, set_ or []), wanted, options)
    if as_json:
        print(json.dumps(plan_values(found) | {"advice": hint}, indent=2))
    else:
        console = Console()
        console.heading(plan_heading(found))
        console.say(", ".join(f"{name} {value}" for name, value in found.settings.items()))
        for table in plan_tables(found):
            console.table(*table)
        if hint:
            console.say(hint)
    if not found.fit.fits:
        sys.exit(1)
