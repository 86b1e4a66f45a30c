"""The commands evaluate, attack, report and card. Each imports what it needs when it runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gram_jax.cli.options import (
    MODEL_HELP,
    Compute,
    JudgeOption,
    MaxLength,
    OnBad,
    Schema,
    TokensPerCall,
    Weights,
    load_scorer,
)
from gram_jax.console import Console
from gram_jax.errors import DataError


def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Benchmarks, labeled pairs or graded responses, of any schema"),
    ] = None,
    benchmark: Annotated[
        str,
        typer.Option(
            help="pairs, rewardbench, rewardbench2, rmbench, judgebench, best_of_n, or auto: by the rows"
        ),
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for figures and scores, in which an interrupted command resumes"),
    ] = None,
    compute: Compute = "auto",
    weights: Weights = "auto",
    judge: JudgeOption = None,
    max_length: MaxLength = None,
    tokens_per_call: TokensPerCall = None,
    schema: Schema = "auto",
    on_bad: OnBad = "error",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first N rows of each source")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Score these sources again")] = False,
) -> None:
    """Evaluate a judge on benchmarks as they define it, with bias, calibration and agreement, and intervals."""
    from gram_jax.cli.tables import print_table
    from gram_jax.evals.datasets import HUB, read_datasets
    from gram_jax.evals.evaluate import EvaluationFolder, make_folder
    from gram_jax.evals.tables import rows_read, source_tables
    from gram_jax.scoring.scalar import ScalarRewardModel, is_baseline

    console = Console()
    if not sources and benchmark not in HUB:
        known = ", ".join(HUB)
        raise DataError(
            f"there is nothing to evaluate on: name a source, or --benchmark with one of {known}"
        )
    chosen = sources or [HUB[benchmark]]
    if out is not None:
        make_folder(out)
    datasets = read_datasets(chosen, benchmark, schema=schema, on_bad=on_bad, limit=limit)
    if is_baseline(model):
        asked = {
            "--weights": weights != "auto",
            "--judge": judge,
            "--max-length": max_length,
            "--tokens-per-call": tokens_per_call,
        }
        _refuse_for_baseline(model, [option for option, value in asked.items() if value])
        scorer = ScalarRewardModel.load(model, compute=compute)
    else:
        scorer = load_scorer(model, compute, weights, judge, max_length, tokens_per_call)
    folder = EvaluationFolder(out, scorer, model, overwrite=overwrite, progress=console.progress)
    for data in datasets:
        found, _ = folder.add(data)
        console.heading(f"{rows_read(found)} ({found.benchmark})")
        for table in source_tables(found):
            print_table(console, table)
    if out is not None:
        console.say(f"{out}: evaluation.json and the scores; a page to read: gram-jax report {out}")


def _refuse_for_baseline(model: str, options: Sequence[str]) -> None:
    """Raises DataError if an option is given that a baseline does not have."""
    if options:
        raise DataError(
            f"{model} is a run of the discriminative baseline, which is rated as it was trained: leave out "
            f"{', '.join(options)}"
        )


def attack(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    source: Annotated[str, typer.Argument(help="Labeled pairs of any schema")],
    out: Annotated[Path, typer.Option(help="Folder for attack.json and the scores")],
    pairs: Annotated[
        int, typer.Option(min=1, help="Maximum number of pairs, drawn by the seed")
    ] = 100,
    only: Annotated[
        str | None,
        typer.Option(help="Names of attacks, or hostile or harmless, separated by commas"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed for drawing pairs and templates")] = 0,
    compute: Compute = "auto",
    weights: Weights = "auto",
    judge: JudgeOption = None,
    max_length: MaxLength = None,
    tokens_per_call: TokensPerCall = None,
    schema: Schema = "auto",
    on_bad: OnBad = "error",
    overwrite: Annotated[bool, typer.Option(help="Replace existing results")] = False,
) -> None:
    """Attack a judge with hostile responses and harmless perturbations; an interrupted run resumes."""
    from gram_jax.attacks.evaluate import choose_pairs, run_attacks
    from gram_jax.attacks.suite import choose_attacks
    from gram_jax.attacks.tables import attack_tables, clean_table
    from gram_jax.cli.tables import print_table
    from gram_jax.data.records import read_records
    from gram_jax.evals.evaluate import make_folder

    console = Console()
    attacks = choose_attacks(only if only is None else [name.strip() for name in only.split(",")])
    chosen = choose_pairs(read_records(source, schema=schema, on_bad=on_bad)[0], pairs, seed=seed)
    make_folder(out)
    found = run_attacks(
        load_scorer(model, compute, weights, judge, max_length, tokens_per_call),
        model,
        source,
        chosen,
        out,
        attacks,
        seed=seed,
        overwrite=overwrite,
        progress=console.progress,
    )
    console.heading(f"{model} on {found.pairs:,} pairs of {found.source}")
    for table in (clean_table(found), *attack_tables(found)):
        print_table(console, table)


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of evaluate --out and attack --out")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; default report.html in the one folder")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="The same as Markdown")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace files that are not reports")] = False,
) -> None:
    """Write one page of HTML from the results of a model, or a comparison of several models."""
    from gram_jax.reports.report import write_reports

    for path in write_reports(folders, out=out, markdown=markdown, overwrite=overwrite):
        Console().say(str(path))


def card(
    folder: Annotated[Path, typer.Argument(help="An exported model")],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of evaluate --out or attack --out; repeatable"),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="The run that was exported, for its recipe, data, base and licence"),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="Name of the licence on the hub; default that of the base"),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base-model", help="Name of the base model on the hub")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Data set of the hub that it was trained on; repeatable"),
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="OWNER/NAME: upload the folder to the Hugging Face hub")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public")] = False,
    overwrite: Annotated[
        bool, typer.Option(help="Replace a card that gram_jax did not write")
    ] = False,
) -> None:
    """Write the model card (README.md) of an exported judge, and push it to the hub if asked."""
    import jax

    from gram_jax.reports.card import CardOptions, write_card

    # Weights are only compared with those that were evaluated.
    jax.config.update("jax_platforms", "cpu")
    options = CardOptions(
        run,
        tuple(evaluation or ()),
        license_,
        base,
        tuple(dataset or ()),
        push,
        public,
        overwrite,
    )
    write_card(folder, options)
