"""`evaluate`: measure a judge on benchmarks and labeled data, and write evaluation.json and the scores."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from gram_jax.data.mapping import ColumnMap
from gram_jax.data.reading import OnBad
from gram_jax.data.records import contents_of
from gram_jax.distributed.lock import folder_lock, hold_lock, reserve_lock
from gram_jax.errors import DataError, ReportError
from gram_jax.evals.datasets import EvalDataset, read_dataset, stem_of
from gram_jax.evals.identity import difference, judge_results, refuse_other_judge
from gram_jax.evals.measure import measure
from gram_jax.evals.pairwise import PairVerdicts
from gram_jax.evals.results import EvaluationResults, SourceResult, read_results, save_results
from gram_jax.evals.reward_bench import write_reward_bench
from gram_jax.evals.scores import write_scores
from gram_jax.progress import ProgressFactory, no_progress
from gram_jax.scoring.results import OutputSink, Shard, WriteSummary, hold_shard
from gram_jax.scoring.text_scorer import TextScorer

logger = logging.getLogger(__name__)

ATTACKS = "attack.json"  # of attacks/results.py; a folder has results of one judge only


def evaluate(
    scorer: TextScorer,
    sources: Sequence[str],
    *,
    model: str,
    benchmark: str = "auto",
    schema: str = "auto",
    on_bad: OnBad = "error",
    limit: int | None = None,
    map: ColumnMap | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: ProgressFactory = no_progress,
) -> EvaluationResults:
    """Evaluate a judge on benchmarks, labeled pairs or graded responses. Intervals are 95 %, clustered by prompt.

    model: name of the judge in the results. benchmark: benchmark of the sources; "auto" detects it. limit: maximum
    number of rows of each source. schema, on_bad, map: as for `read_records`. out: folder for evaluation.json and the
    scores. With it, an interrupted evaluation resumes, and the results include the earlier sources of the folder.
    overwrite: score these sources again.

    Raises DataError if data cannot be read, or if the folder has results of another judge.

    >>> import tempfile
    >>> from gram_jax import Scorer
    >>> pairs = Path(tempfile.mkdtemp()) / "pairs.jsonl"
    >>> _ = pairs.write_text('{"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}')
    >>> found = evaluate(Scorer.load("tiny-random"), [str(pairs)], model="tiny").sources["pairs"]
    >>> found.benchmark, found.pairs.n
    ('pairs', 1)
    """
    if not sources:
        raise DataError("there is nothing to evaluate on: expected at least one source")
    datasets = [
        read_dataset(source, benchmark, schema=schema, on_bad=on_bad, limit=limit, map=map)
        for source in sources
    ]
    with nullcontext() if out is None else open_folder(out):
        folder = EvaluationFolder(out, scorer, model, overwrite=overwrite, progress=progress)
        for data in datasets:
            folder.add(data)
        return folder.results()


class EvaluationFolder:
    """Results of one judge on several sources. New sources are added to those in the folder, which is to be locked.

    folder: None keeps results in memory. overwrite: score the added sources again; other results are kept if they are
    of the same judge. Raises DataError if the folder cannot be created, or has results of another judge.
    """

    def __init__(
        self,
        folder: Path | None,
        scorer: TextScorer,
        model: str,
        *,
        overwrite: bool = False,
        progress: ProgressFactory = no_progress,
    ):
        self.folder, self.scorer, self.model = folder, scorer, model
        self.overwrite, self.progress = overwrite, progress
        self.about = judge_results(scorer, model)
        self.sources: dict[str, SourceResult] = {}
        self._taken: set[str] = set()  # names of sources of which a shard was written
        if folder is not None:
            make_folder(folder)
            refuse_other_judge(folder / ATTACKS, self.about)
            self.sources = self._resume(folder)

    def results(self) -> EvaluationResults:
        """All sources."""
        return EvaluationResults(**dict(self.about), sources=self.sources)

    def add(self, data: EvalDataset) -> tuple[SourceResult, PairVerdicts]:
        """Score a data set and add its results; returns them with the verdicts on its pairs."""
        name, source = self._name(data)
        if data.source != source:
            logger.warning(
                f"{data.source} has the same rows as {source}: the results keep that name"
            )
        data = replace(data, source=source)
        file = None if self.folder is None else self.folder / f"{name}.scores.jsonl"
        sink = OutputSink(file, self.overwrite, self.progress)
        found, verdicts = measure(self.scorer, self.model, data, sink)
        self.sources[name] = found
        if self.folder is not None:
            save_results(self.folder, self.results())
            if data.benchmark == "rewardbench":
                place = self.folder / "rewardbench" / name
                write_reward_bench(place, self.about, data.records, verdicts, found)
        return found, verdicts

    def add_shard(self, data: EvalDataset, shard: Shard) -> WriteSummary:
        """Write a shard of the scores of a data set; `gram-jax merge` joins the shards, and then `add` finds them."""
        assert self.folder is not None
        name, source = self._name(data)
        self._taken.add(name)
        file = self.folder / f"{name}.scores.jsonl"
        sink = OutputSink(file, self.overwrite, self.progress, shard)
        return write_scores(self.scorer, self.model, source, data.records, sink, ranked=data.ranks)

    def _name(self, data: EvalDataset) -> tuple[str, str]:
        """Name and path of an earlier source with the same file or contents; else a new name from the file name."""
        contents = contents_of(data.records)
        for name, found in self.sources.items():
            same_file = os.path.realpath(found.source) == os.path.realpath(data.source)
            same = (found.contents, found.benchmark) == (contents, data.benchmark)
            if same_file or same:
                return name, found.source
        stem, number = stem_of(data.source), 1
        name = stem
        while name in self.sources or name in self._taken:
            number += 1
            name = f"{stem}-{number}"
        return name, data.source

    def _resume(self, folder: Path) -> dict[str, SourceResult]:
        """The sources in the folder; empty if `overwrite` replaces results of another judge or a damaged file."""
        try:
            there = read_results(folder, EvaluationResults)
        except ReportError as error:
            problem = str(error)
        else:
            if there is None:
                return {}
            same_settings = there.settings == self.about.settings
            if same_settings and not difference(there, self.about):
                return dict(there.sources)
            problem = (
                f"{folder} holds the evaluation of another judge, or with other settings: {there.model}, "
                f"{there.settings}; requested is {self.model}, {self.about.settings}"
            )
        if not self.overwrite:
            raise DataError(f"{problem}. Specify another folder, or --overwrite")
        logger.warning(f"{problem}. It is replaced")
        return {}


@contextmanager
def open_folder(folder: Path) -> Iterator[None]:
    """Make a folder of results and hold its lock. Raises InUseError if another process writes to it."""
    make_folder(folder)
    with hold_lock(folder_lock(folder), error=DataError):
        yield


def reserve_folder(folder: Path, shard: Shard | None = None) -> AbstractContextManager[None]:
    """Make a folder of results and reserve it, or one shard of its files, for the block, which loads a model.

    Raises InUseError if another process writes the folder or the shard.
    """
    make_folder(folder)
    if shard is not None:
        return hold_shard(folder, shard)
    return reserve_lock(folder_lock(folder), error=DataError)


def make_folder(folder: Path) -> None:
    """Create a folder. Raises DataError if a file has its name, or the parent folder does not exist."""
    if folder.is_file():
        raise DataError(f"{folder} is a file: --out takes a folder for the results")
    if not folder.parent.is_dir():
        raise DataError(f"{folder} cannot be made: there is no folder {folder.parent}")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror or error}") from error
