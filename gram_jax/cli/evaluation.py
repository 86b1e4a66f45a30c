"""Commands that measure a judge and report the results. Each imports what it needs."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from gram_jax.cli.console import Console
from gram_jax.cli.options import (
    AtLeastOne,
    GroupOptions,
    Judge,
    JudgeOptions,
    RowOptions,
    Seed,
    ShardOptions,
    StopOptions,
    ThinkOptions,
    TwoOrMore,
    after_shard,
    thought_report,
)
from gram_jax.cli.training import job_session
from gram_jax.errors import DataError

if TYPE_CHECKING:
    from gram_jax.evals.tables import Table
    from gram_jax.scoring.text_scorer import TextScorer

MOST_ROWS = 40  # of a printed table
Share = Parameter(validator=validators.Number(gte=0, lte=1))


def evaluate(
    model: Judge,
    /,
    *sources: str,
    benchmark: str = "auto",
    out: Path | None = None,
    judge: JudgeOptions = JudgeOptions(),
    rows: RowOptions = RowOptions(),
    think: ThinkOptions = ThinkOptions(),
    shards: ShardOptions = ShardOptions(),
    group: GroupOptions = GroupOptions(),
    limit: Annotated[int | None, AtLeastOne] = None,
    overwrite: bool = False,
) -> None:
    """Evaluate on benchmarks as they define it, with bias, calibration, agreement and intervals.

    Args:
        sources: Benchmarks, labeled pairs or graded responses, of any schema.
        benchmark: pairs, rewardbench, rewardbench2, rmbench, judgebench or best_of_n; auto: recognised by the rows.
        out: A folder for figures and scores. The same command resumes in it.
        limit: Use only the first N rows of each source.
        overwrite: Score these sources again.
    """
    from gram_jax.evals.datasets import HUB, read_dataset
    from gram_jax.evals.evaluate import EvaluationFolder, make_folder, reserve_folder
    from gram_jax.evals.tables import rows_read, source_tables
    from gram_jax.interop.models import model_config
    from gram_jax.scoring.group import run_on_first_process

    place = shards.place(group)
    if not sources and benchmark not in HUB:
        known = ", ".join(HUB)
        raise DataError(f"no data: name a source, or give --benchmark with one of {known}")
    if place is not None and out is None:
        raise DataError("--shard writes parts of the scores: give a folder for them with --out")
    with job_session(group.job(), StopOptions()) as (process, console):
        model_config(model)  # raises, before the data are read
        datasets = []
        if process.index == 0:
            if out is not None:
                make_folder(out)
            datasets = [
                read_dataset(source, benchmark, limit=limit, **rows.arguments())
                for source in sources or [HUB[benchmark]]
            ]

        def run(scorer: "TextScorer") -> None:
            scorer = think.apply(scorer)
            folder = EvaluationFolder(
                out, scorer, model, overwrite=overwrite, progress=console.progress
            )
            for data in datasets:
                if place is not None:
                    done = folder.add_shard(data, place)
                    console.say(f"{data.source}: {done.to_text()}")
                    continue
                found, _ = folder.add(data)
                console.heading(f"{rows_read(found)} ({found.benchmark})")
                for table in source_tables(found):
                    _print_table(console, table)
            if thought := thought_report(scorer):
                console.say(thought.removeprefix("; "))

        with nullcontext() if process.index or out is None else reserve_folder(out, place):
            run_on_first_process(judge.load(model, process), run, process)
        if place is not None:
            console.say(f"{out}{after_shard(place, out)}")
        elif out is not None:
            console.say(
                f"{out}: evaluation.json and the scores; a page to read: gram-jax report {out}"
            )


def curate(
    source: str,
    out: Path,
    /,
    *,
    scores: list[Path],
    above: Annotated[float, Share] = 0.7,
    below: Annotated[float, Share] = 0.3,
    unanimous: Annotated[bool, Parameter(negative="--no-unanimous")] = True,
    suspected: Literal["keep", "drop", "flip", "reweigh"] = "drop",
    uncertain: Literal["keep", "drop", "reweigh"] = "keep",
    rows: RowOptions = RowOptions(),
    overwrite: bool = False,
) -> None:
    """Curate preferences by scores of judges: find suspected label errors, then keep, drop, flip or reweigh.

    Pairs without a label get the label of the judges (pseudo-labels) if all agree. Also writes OUT.curation.json
    (figures, suspected pairs, hashes) and OUT.card.md.

    Args:
        source: Pairs or preferences of any schema.
        out: The curated preferences as JSON lines.
        scores: A file that `gram-jax score` wrote for this source. Repeat it for more judges or seeds.
        above: Minimum mean P(chosen) of a confirmed pair.
        below: Maximum mean P(chosen) of a suspected pair.
        unanimous: Require that all judges agree in both orders.
        suspected: Action for suspected pairs; reweigh multiplies the weight by the mean P(chosen).
        uncertain: Action for pairs that are neither confirmed nor suspected.
        overwrite: Replace the output if it exists.
    """
    from gram_jax.data.reading import read_records
    from gram_jax.data.self_supervised import write_preferences
    from gram_jax.distributed.lock import hold_new_file
    from gram_jax.evals.curation import (
        CurationConfig,
        curate,
        curation_figures,
        provenance,
        read_judged,
    )
    from gram_jax.evals.curation_card import curation_table, write_curation

    config = CurationConfig(above, below, unanimous, suspected, uncertain)
    with hold_new_file(out, overwrite=overwrite, error=DataError):
        records, _ = read_records(source, "comparison", **rows.arguments())
        judged = read_judged(records, scores)
        figures, kept = curation_figures(judged, config), curate(judged, config)
        inputs = provenance(source, records, scores)
        places = write_curation(out, judged, figures, config, inputs, len(kept))
        write_preferences(out, kept)  # last: an interrupted command can be repeated
    console = Console()
    _print_table(console, curation_table(figures))
    console.say(f"{out}: {len(kept):,} of {len(judged):,} pairs; {places[0]}, {places[1]}")


def think(
    model: Judge,
    source: str,
    /,
    *,
    budget: Annotated[float, Parameter(validator=validators.Number(gt=0))],
    out: Path | None = None,
    judge: JudgeOptions = JudgeOptions(),
    rows: RowOptions = RowOptions(),
    think: ThinkOptions = ThinkOptions(votes=1),
    limit: Annotated[int | None, TwoOrMore] = None,
    seed: Seed = 0,
    overwrite: bool = False,
) -> None:
    """Measure accuracy against generated tokens, and fit the gate, with which only uncertain pairs get rationales.

    With --out, an interrupted command resumes.

    Args:
        source: Labeled pairs of any schema; half of the prompts fit the gate, the others give the figures.
        budget: Mean number of generated tokens of a pair, both orders and all votes together.
        out: A folder for thinking.json and the votes.
        limit: Use only the first N rows.
        seed: Seed of the two halves.
        overwrite: Sample the rationales again.
    """
    from gram_jax.data.reading import read_records
    from gram_jax.evals.evaluate import make_folder
    from gram_jax.evals.results import save_results
    from gram_jax.evals.thinking import measure_thinking
    from gram_jax.scoring.results import OutputSink, reserve
    from gram_jax.scoring.scorer import Scorer
    from gram_jax.scoring.think import rationale_counts

    console = Console()
    settings = think.settings()
    assert settings is not None  # votes have a default here
    records, _ = read_records(source, "preference", limit=limit, **rows.arguments())
    if out is not None:
        make_folder(out)
    sink = OutputSink(out and out / "votes.jsonl", overwrite, console.progress)
    with reserve(sink):
        scorer = Scorer.load(model, **judge.arguments()).thinking(settings)
        found = measure_thinking(
            scorer, records, model=model, source=source, budget=budget, seed=seed, sink=sink
        )
        if out is not None:
            save_results(out, found)
    columns = (
        "think if |margin| <",
        "pairs with thought",
        "tokens of a pair",
        "accuracy",
        "same in both orders",
    )
    rows_shown = [
        (
            "always" if point.below is None else f"{point.below:.3f}",
            f"{point.thought:.2f}",
            f"{point.tokens:.1f}",
            f"{point.accuracy:.3f} ({point.interval[0]:.3f} to {point.interval[1]:.3f})",
            f"{point.consistency:.3f}",
        )
        for point in (*found.curve, found.gate)
    ]
    console.table(
        f"{found.pairs} pairs; the last row is the gate for {budget:g} tokens", columns, rows_shown
    )
    outcomes = found.without_verdict
    counts = {"verdict": found.rationales - sum(outcomes.values())} | outcomes
    console.say(rationale_counts(counts, found.rationale_tokens))
    console.say(
        "--think-below "
        + (
            "is not needed: every pair fits the budget"
            if found.gate.below is None
            else f"{found.gate.below:.6g}"
        )
    )


def attack(
    model: Judge,
    source: str,
    /,
    *,
    out: Path,
    pairs: Annotated[int, AtLeastOne] = 100,
    only: str | None = None,
    seed: Seed = 0,
    judge: JudgeOptions = JudgeOptions(),
    rows: RowOptions = RowOptions(),
    shards: ShardOptions = ShardOptions(),
    group: GroupOptions = GroupOptions(),
    overwrite: bool = False,
) -> None:
    """Attack the judge with hostile responses and harmless changes. An interrupted command resumes.

    Every attack is scored on every pair: with all attacks a pair costs as much as about 30 pairs of `evaluate`.

    Args:
        source: Labeled pairs of any schema.
        out: A folder for attack.json and the scores.
        pairs: Maximum number of pairs, drawn by the seed.
        only: Names of attacks, or hostile or harmless, separated by commas.
        seed: Seed of the drawn pairs and of the attacks' texts.
        overwrite: Replace the results if they exist.
    """
    from gram_jax.attacks.evaluate import choose_pairs, run_attacks, write_attack_shard
    from gram_jax.attacks.suite import choose_attacks
    from gram_jax.attacks.tables import attack_tables, clean_table
    from gram_jax.data.reading import read_records
    from gram_jax.evals.evaluate import make_folder, reserve_folder
    from gram_jax.interop.models import model_config
    from gram_jax.scoring.group import run_on_first_process

    place = shards.place(group)
    attacks = choose_attacks(only if only is None else [name.strip() for name in only.split(",")])
    with job_session(group.job(), StopOptions()) as (process, console):
        model_config(model)  # raises, before the data are read
        chosen = []
        if process.index == 0:
            records, read = read_records(source, **rows.arguments())
            chosen = choose_pairs(records, pairs, seed=seed)
            make_folder(out)
            if read.dropped:
                console.say(f"{source}: {read.dropped_text} of {read.rows:,} rows left out")
            console.say(
                f"{len(chosen)} pairs, without and with {len(attacks)} attacks: up to "
                f"{len(chosen) * (len(attacks) + 1):,} comparisons. Fewer: --pairs N, --only hostile"
            )

        def run(scorer: "TextScorer") -> None:
            task, progress = (scorer, model, source, chosen, out, attacks), console.progress
            if place is not None:
                done = write_attack_shard(*task, place, seed=seed, progress=progress)
                console.say(f"{out}: {done.to_text()}{after_shard(place, out)}")
                return
            found = run_attacks(*task, seed=seed, overwrite=overwrite, progress=progress)
            console.heading(f"{model} on {found.pairs:,} pairs of {found.source}")
            for table in (clean_table(found), *attack_tables(found)):
                _print_table(console, table)

        with nullcontext() if process.index else reserve_folder(out, place):
            run_on_first_process(judge.load(model, process), run, process)


def _print_table(console: Console, table: "Table") -> None:
    """Print the first 40 rows of a table, without its column of explanations."""
    from gram_jax.reports.text import visible

    shown = [at for at in range(len(table.columns)) if at != table.explanation]
    rows = [
        [visible(str(getattr(row[at], "text", row[at]))) for at in shown]
        for row in table.rows[:MOST_ROWS]
    ]
    if len(table.rows) > MOST_ROWS:
        more = f"and {len(table.rows) - MOST_ROWS} more in the results file"
        rows.append([more, *[""] * (len(shown) - 1)])
    console.table(visible(table.caption), [visible(table.columns[at]) for at in shown], rows)


def report(
    *folders: Path,
    out: Path | None = None,
    markdown: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write one HTML page of a model's results, or a comparison of several models or checkpoints.

    Args:
        folders: Folders of evaluate --out and attack --out.
        out: The page; default report.html in the one folder, or comparison.html here for several.
        markdown: A file for the same as Markdown.
        overwrite: Replace files that are not reports.
    """
    from gram_jax.reports.report import write_reports

    for path in write_reports(list(folders), out=out, markdown=markdown, overwrite=overwrite):
        Console().say(str(path))


def card(
    folder: Path,
    /,
    *,
    evaluation: list[Path] | None = None,
    run: Path | None = None,
    license: str | None = None,
    base_model: str | None = None,
    dataset: list[str] | None = None,
    push: str | None = None,
    public: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the model card (README.md) of an exported judge, and upload the folder if asked.

    Args:
        folder: An exported model.
        evaluation: A folder of evaluate --out or attack --out. Repeat it for more.
        run: The exported run: recipe, data, base model, licence.
        license: The licence as the hub spells it; default that of the base model.
        base_model: The name of the base model on the hub.
        dataset: A data set of the hub that the model was trained on. Repeat it for more.
        push: OWNER/NAME: upload the folder to the Hugging Face hub.
        public: Make a new repository public.
        overwrite: Replace a card of another author.
    """
    import jax

    from gram_jax.reports.card import CardOptions, write_card

    # Weights are only compared with those that were evaluated.
    jax.config.update("jax_platforms", "cpu")
    evaluations, datasets = tuple(evaluation or ()), tuple(dataset or ())
    options = CardOptions(run, evaluations, license, base_model, datasets, push, public, overwrite)
    write_card(folder, options)
