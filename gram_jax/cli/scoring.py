"""Commands that score a file: score, rank, rationales, merge. Each imports what it needs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from gram_jax.cli.console import Console
from gram_jax.cli.options import (
    AtLeastOne,
    GroupOptions,
    Judge,
    JudgeOption,
    JudgeOptions,
    NotNegative,
    RowOptions,
    ShardOptions,
    StopOptions,
    ThinkOptions,
    after_shard,
    thought_report,
)
from gram_jax.cli.training import job_session
from gram_jax.errors import DataError

if TYPE_CHECKING:
    from gram_jax.scoring.text_scorer import TextScorer

Method = Literal["groups", "round_robin", "bradley_terry", "knockout", "linear", "reference"]


def score(
    source: str,
    out: str,
    /,
    *,
    model: JudgeOption,
    judge: JudgeOptions = JudgeOptions(),
    rows: RowOptions = RowOptions(),
    think: ThinkOptions = ThinkOptions(),
    shards: ShardOptions = ShardOptions(),
    group: GroupOptions = GroupOptions(),
    overwrite: bool = False,
) -> None:
    """Score every pair of a file in both orders. An interrupted command resumes; `rank` is for lists of candidates.

    Args:
        source: Pairs, preferences or candidates of any schema: a file, pattern, folder, dataset or address.
        out: Scores as JSON lines; a file, or an address such as gs://bucket/scores.jsonl.
        overwrite: Replace the output if it exists.
    """
    from gram_jax.scoring.files import check_files, score_file
    from gram_jax.scoring.group import run_on_first_process
    from gram_jax.scoring.results import OutputSink, reserve

    place, given = shards.place(group), rows.arguments()
    with job_session(group.job(), StopOptions()) as (process, console):
        if process.index == 0:
            check_files(source, out, schema=rows.schema, map=given["map"])
        sink = OutputSink(None if process.index else out, overwrite, console.progress, place)

        def run(scorer: "TextScorer") -> None:
            scorer = think.apply(scorer)
            done = score_file(scorer, model, source, sink, **given)
            console.say(f"{out}: {done.to_text()}{thought_report(scorer)}{after_shard(place, out)}")

        with reserve(sink):
            run_on_first_process(judge.load(model, process), run, process)


def rank(
    source: str,
    out: str,
    /,
    *,
    model: JudgeOption,
    method: Method | None = None,
    order_mode: Literal["both", "one"] = "both",
    references: Annotated[int, NotNegative] = 0,
    judge: JudgeOptions = JudgeOptions(),
    rows: RowOptions = RowOptions(),
    think: ThinkOptions = ThinkOptions(),
    shards: ShardOptions = ShardOptions(),
    group: GroupOptions = GroupOptions(),
    overwrite: bool = False,
) -> None:
    """Rank the responses of every row, best first. An interrupted command resumes.

    Args:
        source: Rows with a prompt and responses; a pair is two responses. A file, pattern, folder, dataset or address.
        out: Rankings as JSON lines; a file, or an address such as gs://bucket/rankings.jsonl.
        method: Default: groups for 5 or more responses, else round_robin (docs/ranking.md).
        order_mode: Orders in which a pair is shown; one costs half.
        references: With --method reference: number of responses that all others are compared with.
        overwrite: Replace the output if it exists.
    """
    from gram_jax.ranking.jobs import RankingConfig
    from gram_jax.scoring.files import check_files, score_file
    from gram_jax.scoring.group import run_on_first_process
    from gram_jax.scoring.results import OutputSink, reserve

    place, given = shards.place(group), rows.arguments()
    config = RankingConfig(method, order_mode, references)
    with job_session(group.job(), StopOptions()) as (process, console):
        if process.index == 0:
            check_files(source, out, schema=rows.schema, map=given["map"], ranked=True)
        sink = OutputSink(None if process.index else out, overwrite, console.progress, place)

        def run(scorer: "TextScorer") -> None:
            scorer = think.apply(scorer)
            done = score_file(scorer, model, source, sink, ranking=config, **given)
            console.say(f"{out}: {done.to_text()}{thought_report(scorer)}{after_shard(place, out)}")

        with reserve(sink):
            run_on_first_process(judge.load(model, process), run, process)


def rationales(
    model: Judge,
    source: str,
    out: Path,
    /,
    *,
    accept: Literal["label", "agreement", "all"] = "label",
    agreement: float = 1.0,
    keep: Annotated[int, AtLeastOne] = 1,
    prove: str | None = None,
    judge: JudgeOptions = JudgeOptions(),
    think: ThinkOptions = ThinkOptions(votes=4),
    rows: RowOptions = RowOptions(),
    shards: ShardOptions = ShardOptions(),
    limit: Annotated[int | None, AtLeastOne] = None,
    overwrite: bool = False,
) -> None:
    """Sample rationales for pairs and write those that are accepted, as data of stage "rationale".

    All rationales are in a file beside OUT that ends in .votes.jsonl, from which an interrupted command resumes.

    Args:
        source: Labeled pairs of any schema; with --accept agreement, pairs without labels.
        out: Labeled pairs with a column `rationale`, as JSON lines.
        accept: label: rationales whose verdict is the label. all: those with a verdict. agreement: no labels are used;
            those with the verdict on which the votes of both orders agree, which becomes the label.
        agreement: Share of the votes of each order that have to agree, above 0.5.
        keep: Maximum number of rationales of a pair in one order.
        prove: Text with {label} before each rationale, which states the better response; a backslash and n stand for a
            line break. The verdict after the rationale is read without it.
        limit: Use only the first N rows.
        overwrite: Sample again, and replace the output if it exists.
    """
    from gram_jax.data.reading import read_records
    from gram_jax.distributed.lock import file_lock, hold_lock
    from gram_jax.scoring.rationales import Selection, write_accepted
    from gram_jax.scoring.results import OutputSink, reserve
    from gram_jax.scoring.scorer import Scorer
    from gram_jax.scoring.votes import read_votes, write_votes

    selection = Selection(accept, agreement, keep)
    if prove is not None and accept == "agreement":
        raise DataError("--prove states the label of a pair: leave it out with --accept agreement")
    votes = out.with_name(f"{out.name.removesuffix('.jsonl')}.votes.jsonl")
    if out.exists() and not votes.exists() and not overwrite:
        raise DataError(f"{out} exists: give another file, or --overwrite")
    console, settings, place = Console(), think.settings(), shards.place(GroupOptions())
    assert settings is not None  # votes have a default here
    kind = "comparison" if accept == "agreement" else "preference"
    records, _ = read_records(source, kind, limit=limit, **rows.arguments())
    if accept != "agreement":
        records = [record for record in records if record.has_preference]
    sink = OutputSink(votes, overwrite, console.progress, place)
    with reserve(sink):
        scorer = Scorer.load(model, **judge.arguments()).thinking(settings)
        text = (prove or "").replace("\\n", "\n")
        written = write_votes(scorer, model, source, records, sink, prove=text)
        console.say(f"{votes}: {written.to_text()}{after_shard(place, votes)}")
        if place is None:
            with hold_lock(file_lock(out.absolute()), error=DataError):
                done = write_accepted(records, read_votes(votes), out, selection)
            console.say(f"{out}: {done.to_text()}")


def merge(place: str, /, *, overwrite: bool = False) -> None:
    """Check the parts that --shard wrote, and join them to the file that one process writes.

    Args:
        place: The output of `score` or `rank`, or the folder of `evaluate`, `attack` or `bon`.
        overwrite: Replace the output if it exists with another content.
    """
    from gram_jax.scoring.merging import merge_parts
    from gram_jax.scoring.part_folder import parts_in

    console = Console()
    for out in parts_in(place):
        done = merge_parts(out, overwrite=overwrite, progress=console.progress)
        console.say(f"{out}: {done.to_text()}")
    if Path(place).is_dir():
        console.say("the same command without --shard computes the figures")
