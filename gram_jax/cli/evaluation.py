"""Commands that measure a judge and report the results. Each imports what it needs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gram_jax.cli.console import Console
from gram_jax.cli.options import (
    AtLeastOne,
    Judge,
    JudgeOptions,
    NotNegative,
    RowOptions,
    ShardOptions,
    after_shard,
)
from gram_jax.errors import DataError

if TYPE_CHECKING:
    from gram_jax.evals.tables import Table

MOST_ROWS = 40  # of a printed table


def evaluate(
    model: Judge,
    /,
    *sources: str,
    benchmark: str = "auto",
    out: Path | None = None,
    judge: JudgeOptions = JudgeOptions(),
    rows: RowOptions = RowOptions(),
    shards: ShardOptions = ShardOptions(),
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
    from contextlib import nullcontext

    from gram_jax.evals.datasets import HUB, read_dataset
    from gram_jax.evals.evaluate import EvaluationFolder, make_folder, open_folder
    from gram_jax.evals.tables import rows_read, source_tables
    from gram_jax.interop.models import model_config

    console, place = Console(), shards.place()
    if not sources and benchmark not in HUB:
        known = ", ".join(HUB)
        raise DataError(f"no data: name a source, or give --benchmark with one of {known}")
    if place is not None and out is None:
        raise DataError("--shard writes parts of the scores: give a folder for them with --out")
    if out is not None:
        make_folder(out)
    model_config(model)  # raises, before the data are read
    datasets = [
        read_dataset(source, benchmark, limit=limit, **rows.arguments())
        for source in sources or [HUB[benchmark]]
    ]
    with nullcontext() if out is None or place is not None else open_folder(out):
        folder = EvaluationFolder(
            out, judge.load(model), model, overwrite=overwrite, progress=console.progress
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
    if place is not None:
        console.say(f"{out}{after_shard(place, out)}")
    elif out is not None:
        console.say(f"{out}: evaluation.json and the scores; a page to read: gram-jax report {out}")


def attack(
    model: Judge,
    source: str,
    /,
    *,
    out: Path,
    pairs: Annotated[int, AtLeastOne] = 100,
    only: str | None = None,
    seed: Annotated[int, NotNegative] = 0,
    judge: JudgeOptions = JudgeOptions(),
    rows: RowOptions = RowOptions(),
    shards: ShardOptions = ShardOptions(),
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
    from gram_jax.evals.evaluate import make_folder
    from gram_jax.interop.models import model_config

    console = Console()
    model_config(model)  # raises, before the data are read
    attacks = choose_attacks(only if only is None else [name.strip() for name in only.split(",")])
    records, read = read_records(source, **rows.arguments())
    chosen = choose_pairs(records, pairs, seed=seed)
    make_folder(out)
    if read.dropped:
        console.say(f"{source}: {read.dropped_text} of {read.rows:,} rows left out")
    console.say(
        f"{len(chosen)} pairs, without and with {len(attacks)} attacks: up to "
        f"{len(chosen) * (len(attacks) + 1):,} comparisons. Fewer: --pairs N, --only hostile"
    )
    scorer, progress = judge.load(model), console.progress
    task = (scorer, model, source, chosen, out, attacks)
    if (place := shards.place()) is not None:
        done = write_attack_shard(*task, place, seed=seed, progress=progress)
        console.say(f"{out}: {done.to_text()}{after_shard(place, out)}")
        return
    found = run_attacks(*task, seed=seed, overwrite=overwrite, progress=progress)
    console.heading(f"{model} on {found.pairs:,} pairs of {found.source}")
    for table in (clean_table(found), *attack_tables(found)):
        _print_table(console, table)


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
