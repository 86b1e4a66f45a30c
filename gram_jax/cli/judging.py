"""Commands that judge: pairs, lists, samples, requests. Imports wait for the command that needs them."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from gram_jax.cli.options import (
    MODEL_HELP,
    Compute,
    JudgeOption,
    MaxLength,
    Method,
    ModelOption,
    OnBad,
    Schema,
    TokensPerCall,
    Weights,
    load_scorer,
    seconds,
)
from gram_jax.console import Console
from gram_jax.errors import DataError, JudgeError


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
    scorer = load_scorer(model, compute, weights, judge, max_length, tokens_per_call)
    done = score_file(
        scorer,
        model,
        source,
        out,
        schema=schema,
        on_bad=on_bad,
        overwrite=overwrite,
        progress=console.progress,
    )
    console.say(f"{out}: {done.to_text()}")


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
    from gram_jax.ranking.jobs import RankingConfig
    from gram_jax.scoring.files import check_files, rank_file

    console = Console()
    contest = RankingConfig(method, orders, references)
    check_files(source, out, schema=schema, ranked=True)
    scorer = load_scorer(model, compute, weights, judge, max_length, tokens_per_call)
    done = rank_file(
        scorer,
        model,
        source,
        out,
        contest,
        schema=schema,
        on_bad=on_bad,
        overwrite=overwrite,
        progress=console.progress,
    )
    console.say(f"{out}: {done.to_text()}")


def bon(
    policy: Annotated[str, typer.Argument(help=f"Policy model: {MODEL_HELP}")],
    judge: Annotated[str, typer.Argument(help=f"Judge model that picks: {MODEL_HELP}")],
    prompts: Annotated[
        str, typer.Argument(help="Pairs or candidates, of which the prompts are used")
    ],
    out: Annotated[Path, typer.Option(help="Folder for samples, figures and the plot")],
    oracle: Annotated[
        str | None, typer.Option(help="A better judge, which shows over-optimisation")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=2, help="Responses to each prompt")] = 16,
    limit: Annotated[int, typer.Option(min=2, help="Maximum number of prompts")] = 64,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens of a response")
    ] = 256,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling temperature")] = 1.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Sample from the likeliest tokens of this mass")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling")] = 0,
    compute: Compute = "auto",
    schema: Schema = "auto",
) -> None:
    """Sample n responses from a policy, pick the best by the judge, and rate the pick by an oracle."""
    from gram_jax.data.records import read_records, source_kind
    from gram_jax.evals.best_of_n import COLUMNS, PICTURE, best_of_n_rows, run_best_of_n
    from gram_jax.evals.evaluate import make_folder
    from gram_jax.model.generate import SamplingConfig

    make_folder(out)
    records, _ = read_records(prompts, source_kind(prompts, schema=schema), schema=schema)
    chosen = list(dict.fromkeys(record.prompt for record in records))[:limit]
    sampling = SamplingConfig(max_new_tokens, temperature, top_p, seed)
    report = run_best_of_n(
        policy, judge, chosen, out, sampling, n=n, oracle=oracle, compute=compute
    )
    console = Console()
    title = f"best of n from {policy}: P(better than its greedy response)"
    console.table(title, COLUMNS, best_of_n_rows(report["best_of"]))
    console.say(f"curves: {out / PICTURE}")


def serve(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token that requests must carry")
    ] = None,
    compare_with: Annotated[
        Literal["group", "neighbors"] | None,
        typer.Option(
            help="What a response without a reference is compared with; default group, all others to its prompt"
        ),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(help="JSON list of texts that every response is compared with instead"),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help=f"Model whose greedy response every response is compared with instead: {MODEL_HELP}"
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of tokens of the greedy response; default 256"),
    ] = None,
    scale: Annotated[
        Literal["probability", "log_odds", "normalized"], typer.Option(help="Scale of rewards")
    ] = "probability",
    max_queue: Annotated[int, typer.Option(min=2, help="Sequences that may wait")] = 8192,
    max_batch: Annotated[int, typer.Option(min=2, help="Sequences scored in one call")] = 512,
    max_requests: Annotated[int, typer.Option(min=1, help="Concurrent requests")] = 512,
    deadline: Annotated[
        float,
        typer.Option(min=0.1, callback=seconds(0.1), help="Largest time of a request, seconds"),
    ] = 60,
    max_body_mb: Annotated[float, typer.Option(min=0.01, max=1024, help="Largest body, MiB")] = 8,
    group_wait: Annotated[
        float,
        typer.Option(min=0, callback=seconds(0), help="Seconds that /compare waits for a group"),
    ] = 2,
    grace: Annotated[int, typer.Option(min=1, help="Seconds for open requests at the end")] = 60,
    compute: Compute = "auto",
    weights: Weights = "auto",
    judge: JudgeOption = None,
    max_length: MaxLength = None,
    tokens_per_call: TokensPerCall = None,
) -> None:
    """Serve the judge over HTTP, in the protocols of OpenRLHF, LLaMA-Factory and others (docs/serve.md)."""
    from gram_jax.extras import needs_extra

    with needs_extra("serve"):
        from gram_jax.serve.app import make_app
        from gram_jax.serve.run import check_address, read_references, read_token
        from gram_jax.serve.run import serve as run
    from gram_jax.generation.generator import TextGenerator
    from gram_jax.generation.greedy import MAX_NEW_TOKENS, GreedyResponses
    from gram_jax.rewards.forms import RewardForm
    from gram_jax.serve.middleware import Limits

    token, texts = read_token(token_file), read_references(references)
    if sum(map(bool, (texts, policy, compare_with))) > 1 or (max_new_tokens and not policy):
        raise DataError(
            "--compare-with, --references and --policy exclude each other, and --max-new-tokens is for --policy: leave "
            "out one"
        )
    check_address(host, port)
    write = None
    if policy:
        generator = TextGenerator.load(policy, compute=compute)
        write = GreedyResponses(generator, max_new_tokens=max_new_tokens or MAX_NEW_TOKENS)
    app = make_app(
        load_scorer(model, compute, weights, judge, max_length, tokens_per_call),
        model,
        form=RewardForm("reference" if texts or policy else compare_with or "group", scale, texts),
        write=write,
        limits=Limits(int(max_body_mb * 2**20), requests=max_requests, deadline=deadline),
        token=token,
        max_queue=max_queue,
        max_batch=max_batch,
        group_wait=group_wait,
    )
    Console().say(f"http://{host}:{port} serves {model}" + ("" if token else ", without a token"))
    run(app, host=host, port=port, grace=grace)


def bench(
    source: Annotated[
        str | None, typer.Argument(help="Pairs of any schema; default: random tokens")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help=MODEL_HELP)] = None,
    model_config: Annotated[
        str | None,
        typer.Option(help="Random weights of a config.json or a shape such as qwen3-1.7b"),
    ] = None,
    length: Annotated[
        list[str] | None, typer.Option(help="Tokens of a sequence, or mix, the default")
    ] = None,
    best_of: Annotated[
        list[int] | None, typer.Option(min=2, help="Rank this many responses as well")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of each workload")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds, after a warm-up")] = 3,
    compute: Compute = "auto",
    weights: Weights = "auto",
    max_length: MaxLength = None,
    tokens_per_call: TokensPerCall = None,
    method: Annotated[
        Literal["prefix_shared", "padded"] | None,
        typer.Option(help="Scoring program; default: what suits the devices"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Measure pairs, tokens and FLOPs per second, useful shares, times and memory of scoring on this machine."""
    from gram_jax.plan.bench import MIX, BenchConfig, report_lines, report_rows, run_bench

    config = BenchConfig(
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
    report = run_bench(config)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    console = Console()
    columns = ("", *(workload.name for workload in report.workloads))
    console.table("", columns, report_rows(report))
    for line in report_lines(report):
        console.say(line)


def spec(
    out: Annotated[Path, typer.Argument(help="a .json file, or a folder for judge.json")],
    model: ModelOption,
    template: Annotated[
        str | None,
        typer.Option(
            help='"default", "from-dataset", or a text file; without it a judge keeps how it is asked, and any '
            'other model gets "default"'
        ),
    ] = None,
    template_rows: Annotated[
        str | None, typer.Option(help="Rendered GRAM rows, for the template from-dataset")
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
    """Write the judge specification (judge.json) of a model, for --judge or to put beside the model."""
    from gram_jax.checkpoint.manifest import renew_entry
    from gram_jax.data.sources import first_rows
    from gram_jax.interop.models import load_spec, load_tokenizer, model_config
    from gram_jax.judge.spec import default_length, judge_file, make_spec, with_length
    from gram_jax.training.stages import TEMPLATE_ROWS

    if judge_file(out).exists() and not overwrite:
        raise JudgeError(f"{judge_file(out)} exists: give another file, or --overwrite")
    if (template == "from-dataset") != (template_rows is not None):
        raise JudgeError(
            "--template from-dataset and --template-rows need each other: give both or neither"
        )
    tokenizer, context = load_tokenizer(model), model_config(model).context_length
    own = load_spec(model) if template is None else None
    if own is not None:
        if labels is not None or system is not None:
            raise JudgeError(
                f"{model} is a judge and keeps how it is asked: --labels and --system go with a --template"
            )
        found = with_length(own, tokenizer, max_length or own.max_length)
    else:
        found = make_spec(
            tokenizer,
            template=template or "default",
            labels=labels,
            max_length=max_length or min(default_length(tokenizer), context),
            system=system,
            rows=None if template_rows is None else first_rows(template_rows, TEMPLATE_ROWS),
        )
    path = found.save(out)
    renew_entry(path.parent, path.name)  # beside a model that was exported with a manifest
    Console().say(f"{path}: labels {found.labels}, {found.max_length} tokens, {found.hash}")
