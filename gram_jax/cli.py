"""`gram-jax`: every command parses, builds and calls. Imports wait for the command that needs them."""

import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gram_jax.console import Console
from gram_jax.errors import DataError, GramError, JudgeError, StoppedError

if TYPE_CHECKING:
    from gram_jax.scoring.scorer import Scorer

app = typer.Typer(
    name="gram-jax",
    help="Generative foundation reward models in JAX: train a judge, score pairs, rank responses, convert weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, help="Look at data as the model will see it.")
app.add_typer(data_app, name="data")

MODEL_HELP = "a run (or RUN@STEP), an exported folder, a hub name, a .gguf file, or smollm2-135m"
ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
Compute = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="auto: bfloat16 on accelerators, float32 on a CPU"),
]
Weights = Annotated[
    Literal["auto", "float32", "bfloat16", "int8"],
    typer.Option(help="how they are held; auto: as they are computed with"),
]
# As scoring/ranking.py has them, which is not imported before it is needed.
Method = Literal["groups", "round_robin", "bradley_terry", "knockout", "linear", "reference"]
Schema = Annotated[str, typer.Option(help="schema of the rows; auto looks at their fields")]
OnBad = Annotated[Literal["error", "skip"], typer.Option(help="what to do with a bad row")]
JudgeOption = Annotated[
    Path | None,
    typer.Option(help="a judge.json to ask with, in place of the one saved with the model"),
]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="token budget of a pair, for a model without judge.json")
]
TokensPerCall = Annotated[
    int | None,
    typer.Option(min=1, help="tokens that a device takes at a time; less needs less memory"),
]


def seconds(least: float) -> Any:
    """Checks an option of so many seconds at least; "nan" is less than nothing and would pass typer's min."""

    def check(value: float) -> float:
        if not least <= value < math.inf:
            raise typer.BadParameter(f"{value:g} s: expected a number of seconds from {least:g} on")
        return value

    return check


JOB = {"rich_help_panel": "Several processes (found by itself inside Slurm and on TPU pods)"}


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="a TOML recipe, see configs/")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="change a key, as optimizer.learning_rate=1e-5"),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(envvar="GRAM_JAX_COORDINATOR", help="host:port of process 0", **JOB),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(envvar="GRAM_JAX_PROCESSES", min=1, help="how many there are", **JOB),
    ] = None,
    process: Annotated[
        int | None, typer.Option(envvar="GRAM_JAX_PROCESS", help="which one this is", **JOB)
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--local-devices",
            envvar="JAX_LOCAL_DEVICE_IDS",
            help="the GPUs of this machine that this process drives, as 0,1; default all",
            **JOB,
        ),
    ] = None,
    cluster: Annotated[
        Literal["auto", "none"],
        typer.Option(help="none: one process, whatever Slurm or the TPU pod says", **JOB),
    ] = "auto",
    join_timeout: Annotated[
        float,
        typer.Option(
            envvar="GRAM_JAX_JOIN_TIMEOUT",
            callback=seconds(1),
            help="seconds to wait for all processes",
            **JOB,
        ),
    ] = 300,
    lost_after: Annotated[
        float,
        typer.Option(
            envvar="GRAM_JAX_LOST_AFTER",
            callback=seconds(3),  # three beats
            help="seconds of silence after which one is lost",
            **JOB,
        ),
    ] = 30,
    grace: Annotated[
        float,
        typer.Option(
            envvar="GRAM_JAX_GRACE",
            callback=seconds(0),
            help="seconds from SIGTERM until the process has to be gone",
        ),
    ] = 25,
    stuck_after: Annotated[
        float,
        typer.Option(
            envvar="GRAM_JAX_STUCK_AFTER",
            callback=seconds(0),
            help="seconds without progress after which the stacks are printed and the process ends; 0: never",
        ),
    ] = 4500,  # more than a save may take (checkpoint/orbax.py)
) -> None:
    """Train a stage; run again after an interruption, it goes on where it stopped.

    As one of several processes it is started once for each of them, all with the same arguments but --process. Status:
    0 done, 2 an error for a person, 75 stopped by SIGTERM and saved (where there was something to save), 76 a process
    was lost or stuck (75 and 76: start again), 130 Ctrl-C.
    """
    from gram_jax.cluster.member import joined
    from gram_jax.cluster.place import find_place, has_tpu, read_devices, tpu_vm_variables
    from gram_jax.config import read_recipe
    from gram_jax.train.loop import train as run

    chosen = read_recipe(recipe, set_ or [])
    place, gpus = None, read_devices(devices)
    if cluster == "auto":
        surroundings = dict(os.environ)
        if coordinator is None and "TPU_WORKER_ID" not in surroundings and has_tpu():
            surroundings |= tpu_vm_variables()
        place = find_place(coordinator, processes, process, gpus, surroundings)
    with joined(
        place,
        devices=gpus,
        join_timeout=join_timeout,
        lost_after=lost_after,
        grace=grace,
        stuck_after=stuck_after or None,
    ) as member:
        run(chosen, console=Console(), member=member)


@app.command()
def score(
    source: Annotated[str, typer.Argument(help="pairs, preferences or candidates of any schema")],
    out: Annotated[Path, typer.Argument(help="scores as JSON lines")],
    model: ModelOption,
    compute: Compute = "auto",
    weights: Weights = "auto",
    judge: JudgeOption = None,
    max_length: MaxLength = None,
    tokens_per_call: TokensPerCall = None,
    schema: Schema = "auto",
    on_bad: OnBad = "error",
    overwrite: Annotated[bool, typer.Option(help="begin anew where the output exists")] = False,
) -> None:
    """Score every pair of a file in both orders; an interrupted run goes on. `rank` is for lists of candidates."""
    from gram_jax.scoring.files import check_files, score_file

    console = Console()
    check_files(source, out, schema=schema)
    scorer = _load_scorer(model, compute, weights, judge, max_length, tokens_per_call)
    done = score_file(
        scorer,
        model,
        source,
        out,
        schema=schema,
        on_bad=on_bad,
        overwrite=overwrite,
        console=console,
    )
    console.say(f"{out}: {done.to_text()}")


@app.command()
def rank(
    source: Annotated[str, typer.Argument(help="rows with prompt and responses; pairs also go")],
    out: Annotated[Path, typer.Argument(help="rankings as JSON lines")],
    model: ModelOption,
    method: Annotated[
        Method | None,
        typer.Option(
            help="default: groups from 5 responses on, else round_robin (docs/ranking.md)"
        ),
    ] = None,
    orders: Annotated[
        Literal["both", "one"], typer.Option(help="of showing a pair; one costs half")
    ] = "both",
    references: Annotated[
        int, typer.Option(min=0, help="with --method reference: responses that all others meet")
    ] = 0,
    compute: Compute = "auto",
    weights: Weights = "auto",
    judge: JudgeOption = None,
    max_length: MaxLength = None,
    tokens_per_call: TokensPerCall = None,
    schema: Schema = "auto",
    on_bad: OnBad = "error",
    overwrite: Annotated[bool, typer.Option(help="begin anew where the output exists")] = False,
) -> None:
    """Rank the responses of every row, best first; an interrupted run goes on."""
    from gram_jax.scoring.contests import Contest
    from gram_jax.scoring.files import check_files, rank_file

    console = Console()
    contest = Contest(method, orders, references)
    check_files(source, out, schema=schema, ranked=True)
    scorer = _load_scorer(model, compute, weights, judge, max_length, tokens_per_call)
    done = rank_file(
        scorer,
        model,
        source,
        out,
        contest,
        schema=schema,
        on_bad=on_bad,
        overwrite=overwrite,
        console=console,
    )
    console.say(f"{out}: {done.to_text()}")


@app.command()
def bench(
    source: Annotated[
        str | None, typer.Argument(help="pairs of any schema; without it, random tokens")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help=MODEL_HELP)] = None,
    model_config: Annotated[
        str | None, typer.Option(help="random weights of a config.json or a shape as qwen3-1.7b")
    ] = None,
    length: Annotated[
        list[str] | None, typer.Option(help="tokens of a sequence, or mix, the default")
    ] = None,
    best_of: Annotated[
        list[int] | None, typer.Option(min=2, help="also rank so many responses")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="of each workload")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="after one for nothing")] = 3,
    compute: Compute = "auto",
    weights: Weights = "auto",
    max_length: MaxLength = None,
    tokens_per_call: TokensPerCall = None,
    method: Annotated[
        Literal["shared", "rows"] | None,
        typer.Option(help="shared beginnings, or padded rows; default: what suits the devices"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Pairs, tokens and FLOPs per second, useful shares, times and memory of scoring on this machine."""
    from gram_jax.bench import MIX, Bench, run_bench

    wanted = Bench(
        model=model,
        model_config=model_config,
        source=source,
        lengths=tuple(length or [MIX]),
        best_of=tuple(best_of or []),
        pairs=pairs,
        rounds=rounds,
        compute=compute,
        weights=weights,
        max_length=max_length,
        tokens_per_call=tokens_per_call,
        method=method,
    )
    found = run_bench(wanted, Console(quiet=as_json))
    if as_json:
        print(json.dumps(found, indent=2))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="benchmarks, labeled pairs or graded responses, of any schema"),
    ] = None,
    benchmark: Annotated[
        str,
        typer.Option(
            help="pairs, rewardbench, rewardbench2, rmbench, judgebench or best_of_n; auto looks at the rows"
        ),
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="a folder for figures and scores; the same command goes on in it"),
    ] = None,
    compute: Compute = "auto",
    weights: Weights = "auto",
    judge: JudgeOption = None,
    max_length: MaxLength = None,
    tokens_per_call: TokensPerCall = None,
    schema: Schema = "auto",
    on_bad: OnBad = "error",
    limit: Annotated[
        int | None, typer.Option(min=1, help="at most so many pairs (or prompts) of each source")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="begin the folder anew")] = False,
) -> None:
    """Accuracy on benchmarks as they define it, and bias, calibration and agreement beside it, with intervals."""
    from gram_jax.evals.evaluation import HUB, read_workload
    from gram_jax.evals.folder import EvaluationFolder, make_folder
    from gram_jax.evals.tables import evaluation_tables
    from gram_jax.scoring.rater import Rater, is_baseline

    console = Console()
    if not sources and benchmark not in HUB:
        known = ", ".join(HUB)
        raise DataError(
            f"there is nothing to evaluate on: name a source, or --benchmark with one of {known}"
        )
    chosen = sources or [HUB[benchmark]]
    if out is not None:
        make_folder(out)
    options = {"schema": schema, "on_bad": on_bad, "limit": limit}
    workloads = [read_workload(source, benchmark, **options) for source in chosen]
    if is_baseline(model):
        scorer = Rater.load(model, compute=compute)
    else:
        scorer = _load_scorer(model, compute, weights, judge, max_length, tokens_per_call)
    folder = EvaluationFolder(out, scorer, model, overwrite=overwrite, console=console)
    for work in workloads:
        found, _ = folder.evaluate(work)
        for title, columns, rows in evaluation_tables(found):
            console.table(title, columns, rows)
    if out is not None:
        console.say(f"{out}: evaluation.json and the scores; a page to read: gram-jax report {out}")


@app.command()
def adapt(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    source: Annotated[str, typer.Argument(help="labeled pairs of the task, of any schema")],
    out: Annotated[Path, typer.Option(help="a folder for the run, the figures and the judge")],
    method: Annotated[Literal["lora", "full"], typer.Option(help="which weights move")] = "lora",
    epochs: Annotated[int, typer.Option(min=1, help="the best of them is kept")] = 3,
    rate: Annotated[
        float | None, typer.Option(min=0, help="peak learning rate; default 5e-4 LoRA, 3e-5 full")
    ] = None,
    smoothing: Annotated[float, typer.Option(min=0, max=0.99, help="of labels")] = 0.1,
    rank: Annotated[int, typer.Option(min=1, help="of LoRA")] = 16,
    held_out: Annotated[
        float,
        typer.Option(help="share of the prompts that choose the epoch, and again that measure"),
    ] = 0.2,
    rows: Annotated[int, typer.Option(min=1, help="of a step")] = 8,
    length: Annotated[int, typer.Option(min=64, help="tokens of a row")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="of the parts and the batches")] = 0,
    compute: Compute = "auto",
    judge: JudgeOption = None,
    schema: Schema = "auto",
    on_bad: OnBad = "error",
    accept: Annotated[
        bool, typer.Option(help="export the best epoch even where the judge as it came is better")
    ] = False,
) -> None:
    """Make a judge that of a task from a few hundred labeled pairs; an interrupted command goes on."""
    from gram_jax.adapt import FILE, Plan, result_rows
    from gram_jax.adapt import adapt as run
    from gram_jax.judge import JudgeSpec

    console = Console()
    result = run(
        model,
        source,
        out,
        Plan(method, epochs, rate, smoothing, rank, held_out, rows, length, seed),
        compute=compute,
        schema=schema,
        on_bad=on_bad,
        spec=None if judge is None else JudgeSpec.load(judge),
        accept=accept,
        console=console,
    )
    title = f"{model} on {result['pairs']['test']} pairs of {source} that were not trained on"
    console.table(title, ("", "before", "after"), result_rows(result))
    console.say(f"{result['exported']}: the judge; {out / FILE}: the figures")


@app.command()
def attack(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    source: Annotated[str, typer.Argument(help="labeled pairs of any schema")],
    out: Annotated[Path, typer.Option(help="a folder for attack.json and the scores")],
    pairs: Annotated[int, typer.Option(min=1, help="at most so many, drawn by the seed")] = 100,
    only: Annotated[
        str | None,
        typer.Option(help="names of attacks, or hostile or harmless, with commas between"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of pairs and wordings")] = 0,
    compute: Compute = "auto",
    weights: Weights = "auto",
    judge: JudgeOption = None,
    max_length: MaxLength = None,
    tokens_per_call: TokensPerCall = None,
    schema: Schema = "auto",
    on_bad: OnBad = "error",
    overwrite: Annotated[bool, typer.Option(help="begin anew where the output exists")] = False,
) -> None:
    """Try to fool the judge with hostile responses and harmless changes; an interrupted run goes on."""
    from gram_jax.data.attacks import choose_attacks
    from gram_jax.data.records import read_records
    from gram_jax.evals.attacks import attack_tables, choose_pairs, run_attacks
    from gram_jax.evals.folder import make_folder

    console = Console()
    attacks = choose_attacks(only if only is None else [name.strip() for name in only.split(",")])
    chosen = choose_pairs(read_records(source, schema=schema, on_bad=on_bad)[0], pairs, seed=seed)
    make_folder(out)
    report = run_attacks(
        _load_scorer(model, compute, weights, judge, max_length, tokens_per_call),
        model,
        source,
        chosen,
        out,
        attacks,
        seed=seed,
        overwrite=overwrite,
        console=console,
    )
    for table in attack_tables(report):
        console.table(*table)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="of evaluate --out and attack --out")],
    out: Annotated[
        Path | None, typer.Option(help="the page; default report.html in the one folder")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="the same as Markdown")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace files that are no reports")] = False,
) -> None:
    """One page of HTML from the results of a model, or a comparison of several models or checkpoints."""
    from gram_jax.reports.files import write_reports

    for path in write_reports(folders, out=out, markdown=markdown, overwrite=overwrite):
        Console().say(str(path))


@app.command()
def rl(
    recipe: Annotated[Path, typer.Argument(help="a TOML recipe, see configs/*-rl.toml")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="change a key, as algorithm.kl=0.1")
    ] = None,
) -> None:
    """Train a policy on the judge's rewards by PPO, GRPO or RLOO; run again after an interruption, it goes on."""
    from gram_jax.rl.loop import run_rl
    from gram_jax.rl.recipe import read_rl_recipe

    done = run_rl(read_rl_recipe(recipe, set_ or []), console=Console())
    rows = [(name, value) for name, value in sorted(done.metrics.items())]
    Console().table(f"{done.folder}: {done.steps} steps", ("", "last"), rows)


@app.command()
def bon(
    policy: Annotated[str, typer.Argument(help=f"who writes: {MODEL_HELP}")],
    judge: Annotated[str, typer.Argument(help=f"who picks: {MODEL_HELP}")],
    prompts: Annotated[str, typer.Argument(help="pairs or candidates, whose prompts are taken")],
    out: Annotated[Path, typer.Option(help="a folder for samples, figures and the plot")],
    oracle: Annotated[
        str | None, typer.Option(help="a better judge, which shows over-optimisation")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=2, help="responses to each prompt")] = 16,
    limit: Annotated[int, typer.Option(min=2, help="prompts")] = 64,
    new: Annotated[int, typer.Option(min=1, help="tokens of a response, at most")] = 256,
    temperature: Annotated[float, typer.Option(min=0.01)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1)] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    compute: Compute = "auto",
    schema: Schema = "auto",
) -> None:
    """Best of n: sample from a policy, pick by the judge, and see what an oracle says of the pick."""
    from gram_jax.data.records import read_records, source_kind
    from gram_jax.evals.folder import make_folder
    from gram_jax.rl.bon import PICTURE, bon_rows, run_bon

    console = Console()
    make_folder(out)
    records, _ = read_records(prompts, source_kind(prompts, schema=schema), schema=schema)
    chosen = list(dict.fromkeys(record.prompt for record in records))[:limit]
    report = run_bon(
        policy,
        judge,
        chosen,
        out,
        oracle=oracle,
        n=n,
        new=new,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        compute=compute,
        console=console,
    )
    title = f"best of n from {policy}: P(better than its greedy response)"
    console.table(title, ("n", "KL", f"{judge}", "oracle"), bon_rows(report["best_of"]))
    console.say(f"curves: {out / PICTURE}")


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    host: Annotated[str, typer.Option(help="0.0.0.0 for every interface")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="a file with the bearer token that requests must carry")
    ] = None,
    against: Annotated[
        Literal["group", "circle"], typer.Option(help="of rewards without a reference")
    ] = "group",
    as_: Annotated[
        Literal["probability", "log_odds", "normalised"], typer.Option("--as", help="of rewards")
    ] = "probability",
    queue: Annotated[int, typer.Option(min=2, help="sequences that may wait")] = 8192,
    together: Annotated[int, typer.Option(min=2, help="sequences scored in one call")] = 512,
    requests: Annotated[int, typer.Option(min=1, help="answered at a time")] = 512,
    deadline: Annotated[float, typer.Option(min=0.1, help="seconds for a request, at most")] = 60,
    body_mb: Annotated[float, typer.Option(min=0.01, help="largest body, MiB")] = 8,
    cohort_wait: Annotated[
        float, typer.Option(min=0, help="seconds that /compare waits for a group")
    ] = 2,
    grace: Annotated[int, typer.Option(min=1, help="seconds for open requests at the end")] = 60,
    compute: Compute = "auto",
    weights: Weights = "auto",
    judge: JudgeOption = None,
    max_length: MaxLength = None,
    tokens_per_call: TokensPerCall = None,
) -> None:
    """Serve the judge over HTTP, in the protocols of OpenRLHF, LLaMA-Factory and others (docs/serve.md)."""
    try:
        from gram_jax.serve.app import make_app
        from gram_jax.serve.run import read_token
        from gram_jax.serve.run import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("gram_jax"):
            raise
        raise DataError(f"{error.name} is not installed: pip install 'gram-jax[serve]'") from error
    from gram_jax.rl.rewards import RewardForm
    from gram_jax.serve.guard import Limits

    token = read_token(token_file)
    app = make_app(
        _load_scorer(model, compute, weights, judge, max_length, tokens_per_call),
        model,
        form=RewardForm(against, as_),
        limits=Limits(int(body_mb * 2**20), requests=requests, deadline=deadline),
        token=token,
        queue=queue,
        together=together,
        cohort_wait=cohort_wait,
    )
    Console().say(f"http://{host}:{port} serves {model}" + ("" if token else ", without a token"))
    run(app, host=host, port=port, grace=grace)


@app.command()
def judge(
    out: Annotated[Path, typer.Argument(help="a .json file, or a folder for judge.json")],
    model: ModelOption,
    template: Annotated[
        str, typer.Option(help='"default", "from-dataset", or a text file')
    ] = "default",
    rows: Annotated[
        str | None, typer.Option(help="rendered GRAM rows, for the template from-dataset")
    ] = None,
    labels: Annotated[
        tuple[str, str] | None, typer.Option(help="the verdicts; default A B, or those of the rows")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="a system turn; empty text drops the chat format's own")
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="token budget of a pair")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace the file where it exists")] = False,
) -> None:
    """Write how a model is to be asked; pass it on with --judge, or put it beside the model."""
    from gram_jax.checkpoint.integrity import renew_entry
    from gram_jax.checkpoint.models import load_tokenizer, model_config
    from gram_jax.data.sources import first_rows
    from gram_jax.judge import default_length, judge_file, make_spec
    from gram_jax.train.stages import TEMPLATE_ROWS

    if judge_file(out).exists() and not overwrite:
        raise JudgeError(f"{judge_file(out)} exists: give another file, or --overwrite")
    if (template == "from-dataset") != (rows is not None):
        raise JudgeError("--template from-dataset and --rows go together: give both or neither")
    tokenizer, context = load_tokenizer(model), model_config(model).context_length
    spec = make_spec(
        tokenizer,
        template=template,
        labels=labels,
        max_length=max_length or min(default_length(tokenizer), context),
        system=system,
        rows=None if rows is None else first_rows(rows, TEMPLATE_ROWS),
    )
    path = spec.save(out)
    renew_entry(path.parent, path.name)  # beside a model that was exported with a manifest
    Console().say(f"{path}: labels {spec.labels}, {spec.max_length} tokens, {spec.hash}")


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    out: Annotated[Path, typer.Argument(help="a new folder in Hugging Face's layout")],
    dtype: Annotated[
        Literal["stored", "float32", "bfloat16", "float16"], typer.Option(help="of the weights")
    ] = "stored",
    overwrite: Annotated[bool, typer.Option(help="replace the folder where it exists")] = False,
) -> None:
    """Write a model as a folder that transformers opens, with tokenizer, chat template and judge.json."""
    import jax

    from gram_jax.checkpoint.hf_files import export_hf
    from gram_jax.checkpoint.models import load_model, load_spec, load_tokenizer
    from gram_jax.sharding import make_placement

    # Weights are only rearranged, and a model that no accelerator holds alone may fit the machine's memory.
    jax.config.update("jax_platforms", "cpu")
    spec, tokenizer = load_spec(model), load_tokenizer(model)
    cfg, params = load_model(
        model, make_placement({}, devices=jax.devices()[:1]), None if dtype == "stored" else dtype
    )
    export_hf(out, cfg, params, dtype=None, tokenizer=tokenizer, spec=spec, overwrite=overwrite)
    Console().say(f"{out}: weights, config, tokenizer{'' if spec is None else ' and judge.json'}")


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="an exported model")],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="a folder of evaluate --out or attack --out; repeat it"),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="the run that was exported: recipe, data, base, licence")
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="in the hub's words; default the base's")
    ] = None,
    base: Annotated[str | None, typer.Option("--base-model", help="its name on the hub")] = None,
    push: Annotated[
        str | None, typer.Option(help="OWNER/NAME: upload the folder to the Hugging Face hub")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="a new repository is for everyone to see")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="replace a card that is not ours")] = False,
) -> None:
    """Write the model card (README.md) of an exported judge, and push it where credentials are."""
    from gram_jax.reports.card import CardWishes, write_card

    wishes = CardWishes(run, tuple(evaluation or ()), license_, base, push, public, overwrite)
    write_card(folder, wishes, Console())


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="a run, or an exported folder")],
    accept: Annotated[
        bool, typer.Option(help="files were changed on purpose: write a new manifest")
    ] = False,
) -> None:
    """Hash every file of a run's checkpoints or of an export; damage ends with status 2 and names."""
    from gram_jax.checkpoint.audit import accept_changes, audit

    if accept:
        accept_changes(folder, Console())
    else:
        audit(folder, Console())


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="a TOML recipe, see configs/")],
    topology: Annotated[
        str,
        typer.Option(help="local, or what need not be there: v5e:4x4, 2xv5e:16x16, h200:8"),
    ] = "local",
    slices: Annotated[int | None, typer.Option(min=1, help="so many of the topology")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="change a key, as batch.rows=64"),
    ] = None,
    model_config: Annotated[
        str | None,
        typer.Option(
            help="a config.json or a published shape such as qwen3-8b; default model.start"
        ),
    ] = None,
    score: Annotated[bool, typer.Option("--score", help="scoring in place of training")] = False,
    pairs: Annotated[int | None, typer.Option(min=1, help="pairs of a scoring call")] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="examples that a packed row may hold")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="largest batch.rows, then least recomputation")
    ] = False,
    advice: Annotated[
        bool, typer.Option(help="where it does not fit, compile changes until one does")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Compile a recipe for a pod from any machine: memory, collectives, FLOPs, bounds of the step time.

    Status 0: it fits; 1: it does not, and what would; 2: an error in what was asked for.
    """
    import jax

    from gram_jax.config import read_recipe
    from gram_jax.plan.command import run_plan
    from gram_jax.plan.topology import read_topology

    wanted = read_topology(topology, slices)
    if wanted.chip is not None:
        jax.config.update("jax_platforms", "cpu")  # accelerators of this machine are left alone
    fits = run_plan(
        read_recipe(recipe, set_ or []),
        wanted,
        model_config=model_config,
        score=score,
        pairs=pairs,
        slots=slots,
        search=search,
        advise=advice,
        as_json=as_json,
    )
    if not fits:
        sys.exit(1)


@data_app.command("inspect")
def inspect(
    source: Annotated[str, typer.Argument(help="a file, folder or dataset of any schema")],
    model: ModelOption = "smollm2-135m",
    stage: Annotated[
        Literal["write", "judge", "rank"], typer.Option(help="stage 1, stage 2, or the baseline")
    ] = "judge",
    limit: Annotated[int, typer.Option(min=1, help="records to show")] = 3,
    schema: Schema = "auto",
    on_bad: OnBad = "error",
    judge: JudgeOption = None,
    max_length: MaxLength = None,
) -> None:
    """Show rendered examples as the model reads them; ⟦ ⟧ mark what the loss counts."""
    from gram_jax.checkpoint.models import load_spec, load_tokenizer
    from gram_jax.data.inspect import inspect_source
    from gram_jax.judge import JudgeSpec, make_spec

    tokenizer = load_tokenizer(model)
    spec = load_spec(model) if judge is None else JudgeSpec.load(judge)
    spec = spec or make_spec(tokenizer, max_length=max_length)
    console = Console()
    for text in inspect_source(
        source,
        tokenizer=tokenizer,
        spec=spec,
        stage=stage,
        limit=limit,
        schema=schema,
        on_bad=on_bad,
    ):
        console.say(text)


@app.command()
def demo(
    fast: Annotated[bool, typer.Option(help="a tiny random model, under a minute")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="default runs/demo, or runs/demo-fast")
    ] = None,
) -> None:
    """From SmolLM2-135M-Instruct to a working judge in ten minutes on two cores."""
    from gram_jax.demo import run_demo

    run_demo(folder or Path("runs/demo-fast" if fast else "runs/demo"), fast=fast)


@app.command()
def version() -> None:
    """Versions of gram_jax, JAX and the devices it sees."""
    import jax

    import gram_jax

    names = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    print(
        f"gram-jax {gram_jax.__version__}, jax {jax.__version__}, {jax.device_count()} device(s): {names}"
    )


def _load_scorer(
    model: str,
    compute: str,
    weights: str,
    judge: Path | None,
    max_length: int | None,
    tokens_per_call: int | None,
) -> "Scorer":
    from gram_jax.judge import JudgeSpec
    from gram_jax.scoring.scorer import Scorer

    return Scorer.load(
        model,
        compute=compute,
        weights=weights,
        max_length=max_length,
        tokens_per_call=tokens_per_call,
        spec=None if judge is None else JudgeSpec.load(judge),
    )


def main() -> None:
    """The console script.

    Status 2: an error made for people, printed without a traceback. 130: stopped by Ctrl-C, with whatever was
    finished kept; 75 and 76 ask to be started again (errors.py). Everything else is a bug with its traceback.
    """
    warnings.showwarning = lambda message, *_: Console(stderr=True).warn(str(message))
    try:
        app()
    except StoppedError as stopped:
        Console(stderr=True).warn(str(stopped))
        sys.exit(stopped.status)
    except GramError as error:
        Console(stderr=True).error(str(error))
        sys.exit(error.status)
    except SystemExit as ended:
        if ended.code == 130:  # typer turns KeyboardInterrupt into this, without a word
            Console(stderr=True).warn("stopped by Ctrl-C")
        raise
