"""Commands that use a judge: bon, bench, serve, spec. Each imports what it needs."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators

from gram_jax.cli.console import Console
from gram_jax.cli.options import (
    AtLeastOne,
    ComputeDtype,
    GroupOptions,
    Judge,
    JudgeOptions,
    ModelOption,
    RowOptions,
    Seed,
    ShardOptions,
    ThinkOptions,
    TwoOrMore,
    after_shard,
    seconds,
)
from gram_jax.errors import DataError, JudgeError


def bon(
    policy: str,
    judge: str,
    prompts: str,
    /,
    *,
    out: Path,
    oracle: str | None = None,
    n: Annotated[int, TwoOrMore] = 16,
    limit: Annotated[int, TwoOrMore] = 64,
    max_new_tokens: Annotated[int, AtLeastOne] = 256,
    temperature: Annotated[float, Parameter(validator=validators.Number(gte=0.01))] = 1.0,
    top_p: Annotated[float, Parameter(validator=validators.Number(gte=0.01, lte=1))] = 1.0,
    seed: Seed = 0,
    compute_dtype: ComputeDtype = "auto",
    rows: RowOptions = RowOptions(),
    samples_only: bool = False,
    shards: ShardOptions = ShardOptions(),
) -> None:
    """Best of n: sample from a policy, select by the judge, and score the selection by an oracle.

    Args:
        policy: The model that responses are sampled from.
        judge: The model that selects.
        prompts: Rows with a prompt only, or pairs or candidates, whose responses are not used.
        out: A folder for samples, figures and the plot.
        oracle: A stronger judge that scores the selected responses, to detect over-optimisation.
        n: Number of responses to each prompt.
        limit: Maximum number of prompts.
        max_new_tokens: Maximum number of tokens of a response.
        temperature: Sampling temperature.
        top_p: Sample from the most likely tokens of this total probability.
        seed: Seed of sampling.
        compute_dtype: Dtype of matrix products; auto: bfloat16 on accelerators, float32 on CPUs.
        samples_only: Write the samples only, before shards score them.
    """
    from gram_jax.data.reading import read_records
    from gram_jax.evals.best_of_n import (
        COLUMNS,
        PICTURE,
        best_of_n_rows,
        draw_samples,
        rate_shard,
        run_best_of_n,
    )
    from gram_jax.evals.evaluate import make_folder, open_folder
    from gram_jax.model.generate import SamplingConfig

    make_folder(out)
    records, read = read_records(prompts, "prompts", **rows.arguments())
    distinct = list(dict.fromkeys(record.prompt for record in records))
    chosen = distinct[:limit]
    sampling = SamplingConfig(max_new_tokens, temperature, top_p, seed)
    console, place = Console(), shards.place(GroupOptions())
    left = f"; {read.dropped_text} left out" if read.dropped else ""
    console.say(f"{len(chosen):,} of {len(distinct):,} prompts in {read.rows:,} rows{left}")
    if samples_only:
        with open_folder(out):
            drawn = draw_samples(
                policy,
                chosen,
                out,
                sampling,
                n=n,
                judges=(judge, oracle),
                compute_dtype=compute_dtype,
            )
        console.say(f"{out}: {n} samples of each of {len(drawn)} prompts")
        return
    settings: dict[str, Any] = {
        "n": n,
        "oracle": oracle,
        "compute_dtype": compute_dtype,
        "progress": console.progress,
    }
    if place is not None:
        for done in rate_shard(policy, judge, chosen, out, sampling, place, **settings):
            console.say(f"{out}: {done.to_text()}{after_shard(place, out)}")
        return
    report = run_best_of_n(policy, judge, chosen, out, sampling, **settings)
    title = f"best of n from {policy}: P(better than its greedy response)"
    console.table(title, COLUMNS, best_of_n_rows(report["best_of"]))
    console.say(f"curves: {out / PICTURE}")


def bench(
    source: str | None = None,
    /,
    *,
    model: ModelOption | None = None,
    model_config: str | None = None,
    length: list[str] | None = None,
    best_of: Annotated[list[int] | None, TwoOrMore] = None,
    pairs: Annotated[int, AtLeastOne] = 32,
    rounds: Annotated[int, AtLeastOne] = 3,
    judge: JudgeOptions = JudgeOptions(),
    method: Literal["prefix_shared", "padded"] | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Measure scoring on this machine: pairs, tokens and FLOPs per second, useful shares, times and memory.

    Args:
        source: Pairs of any schema; random tokens if left out.
        model_config: Random weights of a config.json or of a shape such as qwen3-1.7b.
        length: Number of tokens of a sequence, or mix, the default. Repeat it for more.
        best_of: Also rank this number of responses. Repeat it for more.
        pairs: Number of pairs of each workload.
        rounds: Number of timed rounds, after one warm-up round.
        method: Scoring program; the default depends on the devices.
        as_json: Print one JSON object.
    """
    from gram_jax.plan.bench import MIX, BenchConfig, report_lines, report_rows, run_bench

    config = BenchConfig(
        model=model,
        model_config=model_config,
        source=source,
        lengths=tuple(length or [MIX]),
        best_of=tuple(best_of or []),
        pairs=pairs,
        rounds=rounds,
        method=method,
        **judge.arguments(),
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


def serve(
    model: Judge,
    /,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=65535))] = 8000,
    token_file: Path | None = None,
    compare_with: Literal["group", "neighbors"] | None = None,
    references: Path | None = None,
    policy: str | None = None,
    max_new_tokens: Annotated[int | None, AtLeastOne] = None,
    scale: Literal["probability", "log_odds", "normalized"] = "probability",
    max_queue: Annotated[int, AtLeastOne] = 1 << 22,
    max_requests: Annotated[int, AtLeastOne] = 512,
    max_connections: Annotated[int, AtLeastOne] = 2048,
    client_share: Annotated[float, Parameter(validator=validators.Number(gt=0, lte=1))] = 0.5,
    proxy: tuple[str, ...] = (),
    deadline: Annotated[float, Parameter(validator=seconds(0.1))] = 60,
    max_body_mb: Annotated[float, Parameter(validator=validators.Number(gte=0.01, lte=1024))] = 8,
    group_wait: Annotated[float, Parameter(validator=seconds(0))] = 2,
    grace: Annotated[int, AtLeastOne] = 60,
    judge: JudgeOptions = JudgeOptions(),
    think: ThinkOptions = ThinkOptions(),
) -> None:
    """Serve the judge over HTTP, in the protocols of OpenRLHF, LLaMA-Factory and others (docs/serve.md).

    Args:
        host: Address to listen on; 0.0.0.0 for every interface.
        port: Port to listen on.
        token_file: A file with the bearer token that requests must carry.
        compare_with: What a response without a reference is compared with; default group.
        references: A JSON list of texts that every response is compared with, instead of its group.
        policy: A model whose greedy response to the prompt every response is compared with.
        max_new_tokens: Maximum number of tokens of that greedy response; default 256.
        scale: Scale of rewards.
        max_queue: Maximum number of tokens that wait to be scored.
        max_requests: Maximum number of concurrent requests.
        max_connections: Maximum number of connections.
        client_share: Part of the queue, the requests and the connections that one address may use.
        proxy: Address of a reverse proxy whose X-Forwarded-For is trusted. Repeat it for more.
        deadline: Maximum time of a request in seconds.
        max_body_mb: Maximum size of a body in MiB.
        group_wait: Seconds that /compare waits for a group.
        grace: Seconds for open requests at shutdown.
    """
    from gram_jax.extras import needs_extra

    with needs_extra("serve"):
        from gram_jax.serve.app import make_app
        from gram_jax.serve.run import check_address, read_references, read_token
        from gram_jax.serve.run import serve as run
    from gram_jax.generation.generator import TextGenerator
    from gram_jax.generation.greedy import MAX_NEW_TOKENS, GreedyResponses
    from gram_jax.interop.models import model_config
    from gram_jax.rewards.forms import RewardForm
    from gram_jax.scoring.scalar import load_judge
    from gram_jax.serve.admission import Limits
    from gram_jax.serve.connections import ConnectionLimits

    token, texts = read_token(token_file), read_references(references)
    if sum(map(bool, (texts, policy, compare_with))) > 1 or (max_new_tokens and not policy):
        raise DataError(
            "--compare-with, --references and --policy exclude each other, and --max-new-tokens needs --policy"
        )
    check_address(host, port)
    model_config(model)  # raises, before the policy is loaded
    write = None
    if policy:
        generator = TextGenerator.load(policy, compute_dtype=judge.compute_dtype)
        write = GreedyResponses(generator, max_new_tokens=max_new_tokens or MAX_NEW_TOKENS)
    app = make_app(
        think.apply(load_judge(model, **judge.arguments())),
        model,
        form=RewardForm("reference" if texts or policy else compare_with or "group", scale, texts),
        write=write,
        limits=Limits(
            int(max_body_mb * 2**20),
            requests=max_requests,
            deadline=deadline,
            client_share=client_share,
        ),
        token=token,
        max_queue=max_queue,
        group_wait=group_wait,
    )
    Console().say(f"http://{host}:{port}: {model}" + ("" if token else ", without a token"))
    connections = ConnectionLimits(max_connections, max(1, int(client_share * max_connections)))
    run(app, host=host, port=port, grace=grace, connections=connections, proxies=proxy)


@contextmanager
def _writing_spec(path: Path) -> Iterator[None]:
    """Hold the lock of a specification, and that of the exported folder it is in."""
    from gram_jax.checkpoint.manifest import has_manifest
    from gram_jax.distributed.lock import file_lock, hold_lock

    with hold_lock(file_lock(path), error=JudgeError), ExitStack() as held:
        if has_manifest(path.parent):
            held.enter_context(hold_lock(file_lock(path.parent.absolute()), error=JudgeError))
        yield


def spec(
    out: Path,
    /,
    *,
    model: ModelOption,
    template: str | None = None,
    template_rows: str | None = None,
    card: Path | None = None,
    tail: str = "",
    pairs: str | None = None,
    labels: tuple[str, str] | None = None,
    system: str | None = None,
    max_length: Annotated[int | None, AtLeastOne] = None,
    rationale: str | None = None,
    stop: tuple[str, ...] = (),
    max_rationale: Annotated[int | None, AtLeastOne] = None,
    overwrite: bool = False,
) -> None:
    """Write a judge specification (judge.json): pass it with --spec, or put it into the folder of the model.

    Args:
        out: A .json file, or a folder for judge.json.
        template: "default", "from-dataset", "from-card", or a text file. By default a judge keeps its own template, and
            other models get "default".
        template_rows: Rendered GRAM rows, for --template from-dataset.
        card: Model card, for --template from-card; default the README.md next to the weights.
        tail: Text to append to the template of a card that lacks the request for a verdict. A backslash and n stand
            for a line break.
        pairs: Labeled pairs on which the templates of a card are compared; the most accurate one is selected.
        labels: The two verdicts; default A B, or those of the rows.
        system: System turn; an empty text removes the one of the chat template.
        max_length: Maximum number of tokens of a pair.
        rationale: Format of the text before the verdict (docs/thinking.md): think, none, from-template, or a text with
            {rationale}, in which a backslash and n stand for a line break. Default: from-template for a card that asks
            for a rationale, else none.
        stop: Text that ends a rationale. Repeat it for more. Default: the first line after {rationale}.
        max_rationale: Maximum number of tokens of a rationale; default 1024, or a quarter of the model's context.
        overwrite: Replace the file if it exists.
    """
    from gram_jax.checkpoint.manifest import renew_entry
    from gram_jax.data.reading import rendered_rows
    from gram_jax.interop.models import load_spec, load_tokenizer, model_config
    from gram_jax.judge.rationale import CLOSING_ROOM, DEFAULT_NEW_TOKENS, tagged_template
    from gram_jax.judge.spec import default_length, judge_file, make_spec, with_length

    if judge_file(out).exists() and not overwrite:
        raise JudgeError(f"{judge_file(out)} exists: give another file, or --overwrite")
    if (template == "from-dataset") != (template_rows is not None):
        raise JudgeError(
            "--template from-dataset and --template-rows go together: give both or neither"
        )
    if template != "from-card" and (card or tail or pairs):
        raise JudgeError(
            "--card, --tail and --pairs belong to --template from-card: give it, or leave them out"
        )
    with _writing_spec(judge_file(out)):
        tokenizer, context = load_tokenizer(model), model_config(model).context_length
        written = max_rationale or min(DEFAULT_NEW_TOKENS, context // 4)
        extra = 0 if rationale in (None, "none") else written + CLOSING_ROOM
        length = max_length or min(default_length(tokenizer), context - extra)
        if template == "from-card":
            from gram_jax.evals.card_templates import best_card_template

            options = {"labels": labels, "max_length": length, "system": system}
            found = best_card_template(
                model, tokenizer, card, tail.replace("\\n", "\n"), pairs, options
            )
            if any(row[-1] for row in found.rows):
                Console().table("templates of the card", found.columns, found.rows)
            template = found.template
            if rationale is None and tagged_template(template):
                rationale, extra = "from-template", written + CLOSING_ROOM
                length = max_length or min(length, context - extra)
        if rationale == "none":
            rationale = None
        own = load_spec(model) if template is None else None
        if own is not None:
            if labels is not None or system is not None or rationale is not None:
                raise JudgeError(
                    f"{model} is a judge and has a specification: --labels, --system and --rationale need --template"
                )
            made = with_length(own, tokenizer, max_length or own.max_length)
        else:
            made = make_spec(
                tokenizer,
                template=template or "default",
                labels=labels,
                max_length=length,
                system=system,
                rows=None if template_rows is None else rendered_rows(template_rows),
                rationale=None if rationale is None else rationale.replace("\\n", "\n"),
                stop=stop,
                max_rationale=written,
            )
        path = made.save(out)
        renew_entry(path.parent, path.name)  # in a folder that was exported with a manifest
        reads = (
            ""
            if made.rationale is None
            else f", a rationale of at most {made.rationale.max_new_tokens}"
        )
        Console().say(f"{path}: labels {made.labels}, {made.max_length} tokens{reads}, {made.hash}")
