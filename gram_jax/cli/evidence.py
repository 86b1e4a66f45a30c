"""Commands that measure a judge and write it down. Imports wait for the command that needs them."""

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
        int | None, typer.Option(min=1, help="at most the first so many rows of each source")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="score these sources anew")] = False,
) -> None:
    """Accuracy on benchmarks as they define it, and bias, calibration and agreement beside it, with intervals."""
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
    """Raises DataError where options are given that mean nothing there."""
    if options:
        raise DataError(
            f"{model} is a run of the discriminative baseline, which is rated as it was trained: leave out "
            f"{', '.join(options)}"
        )


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
    folders: Annotated[list[Path], typer.Argument(help="of evaluate --out and attack --out")],
    out: Annotated[
        Path | None, typer.Option(help="the page; default report.html in the one folder")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="the same as Markdown")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace files that are no reports")] = False,
) -> None:
    """One page of HTML from the results of a model, or a comparison of several models or checkpoints."""
    from gram_jax.reports.report import write_reports

    for path in write_reports(folders, out=out, markdown=markdown, overwrite=overwrite):
        Console().say(str(path))


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
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Data set of the hub that it was trained on; repeatable"),
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="OWNER/NAME: upload the folder to the Hugging Face hub")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="a new repository is for everyone to see")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="replace a card that is not ours")] = False,
) -> None:
    """Write the model card (README.md) of an exported judge, and push it where credentials are."""
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
