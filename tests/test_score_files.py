"""Scoring a file: every row once, whatever interrupts it."""

import errno
import json
from contextlib import nullcontext
from pathlib import Path

import jax
import pytest

from gram_jax.data.records import Candidates
from gram_jax.data.sources import count_rows
from gram_jax.errors import DataError
from gram_jax.judge.messages import as_prompt
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.scoring import files
from gram_jax.scoring.files import check_files, score_file
from gram_jax.scoring.results import OutputSink, RowTask, list_source, write_rows
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement


@pytest.fixture(scope="module")
def judge() -> Scorer:
    placement = make_placement({}, devices=jax.devices()[:1])
    with pytest.warns(UserWarning, match="no judge.json"):
        return Scorer.load("tiny-random", placement=placement)


def write_lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]  # not of text


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"id": f"p{i}", "prompt": "q", "chosen": "a" * i, "rejected": "b"} for i in range(1, 8)]
    return write_lines(tmp_path / "pairs.jsonl", *rows)


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    rows = [
        {"id": f"c{n}", "prompt": "q", "responses": ["x" * k for k in range(n)]} for n in (3, 6, 2)
    ]
    return write_lines(tmp_path / "candidates.jsonl", *rows)  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def run(judge: Scorer, source: Path, out: Path, model: str = "m", **more):
    sink = {name: more.pop(name) for name in ("overwrite", "progress", "shard") if name in more}
    return score_file(judge, model, str(source), OutputSink(out, **sink), **more)


def score_rows(judge: Scorer, folder: Path, *rows: dict, **more) -> list[dict]:
    """The rows of the scores of these rows."""
    run(judge, write_lines(folder / "in.jsonl", *rows), folder / "out.jsonl", **more)
    return read_lines(folder / "out.jsonl")


def test_every_row_is_scored_in_order(judge, source, out):
    done = run(judge, source, out)
    rows = read_lines(out)
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(1, 8)]
    assert all(row["score_chosen"] + row["score_rejected"] == pytest.approx(1) for row in rows)
    assert (done.written, done.before) == (7, 0)
    before = out.read_bytes()
    assert run(judge, source, out).written == 0 and out.read_bytes() == before


def test_candidates_are_ranked_as_the_scorer_ranks_them(judge, candidates, out):
    done = run(judge, candidates, out, ranking=RankingConfig())
    assert (done.written, done.before, done.dropped) == (3, 0, {})
    for row, given in zip(read_lines(out), read_lines(candidates), strict=True):
        expected = judge.rank("q", given["responses"])
        assert row["ranking"] == expected.order
        assert row["scores"] == expected.strengths.tolist()
        assert row["comparisons"] == expected.comparisons


@pytest.mark.parametrize("ranking", [None, RankingConfig("bradley_terry")])
def test_an_interrupted_file_ends_with_the_bytes_of_an_undisturbed_one(
    judge, source, candidates, tmp_path, ranking
):
    read = candidates if ranking else source
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    total = run(judge, read, whole, ranking=ranking).written
    torn.write_bytes(whole.read_bytes()[:-40])  # killed in the middle of the last line
    meta = tmp_path / "whole.jsonl.meta.json"
    (tmp_path / "torn.jsonl.meta.json").write_bytes(meta.read_bytes())
    done = run(judge, read, torn, ranking=ranking)
    assert (done.before, done.written) == (total - 1, 1)
    assert torn.read_bytes() == whole.read_bytes()


def test_scores_of_other_weights_are_not_mixed_in(judge, source, out, monkeypatch):
    """The weights count, not their name: a run that was trained further is another judge."""
    run(judge, source, out)
    assert run(judge, source, out, model="another/path/to/m").written == 0
    heavier = jax.tree.map(lambda w: w * 1.01, judge.params)
    monkeypatch.setattr(judge.engine, "params", heavier)
    before = out.read_bytes()
    with pytest.raises(DataError, match="weights: "):
        run(judge, source, out)
    assert out.read_bytes() == before
    assert run(judge, source, out, overwrite=True).written == 7


def test_rankings_of_another_method_and_scores_are_not_mixed_in(judge, source, candidates, out):
    run(judge, source, out)
    with pytest.raises(DataError, match="kind: 'preference' there, 'candidates' now"):
        run(judge, source, out, ranking=RankingConfig())
    pairs = run(judge, source, out, ranking=RankingConfig("bradley_terry"), overwrite=True)
    assert pairs.written == 7  # a pair is two candidates
    with pytest.raises(DataError, match=r"ranking: .*bradley_terry.* there, .*knockout.* now"):
        run(judge, source, out, ranking=RankingConfig("knockout"))
    with pytest.raises(DataError, match="lists of candidates: rank them, gram-jax rank"):
        run(judge, candidates, out)


@pytest.mark.parametrize("text", ["[]", "{}", "{", "", None])
def test_damaged_or_missing_metadata_is_an_error_and_nothing_is_overwritten(
    judge, source, out, text
):
    out.write_text("precious\n")
    if text is not None:
        out.with_name("out.jsonl.meta.json").write_text(text)
    with pytest.raises(DataError, match="missing or damaged"):
        run(judge, source, out)
    assert out.read_text() == "precious\n"


@pytest.mark.parametrize("line", ["{}", "[1]", "", "not json"])
def test_a_row_that_is_no_score_is_named(judge, source, out, line):
    run(judge, source, out)
    rows = out.read_text().splitlines()
    out.write_text("\n".join([*rows[:2], line, *rows[3:]]) + "\n")
    with pytest.raises(DataError, match="line 3 is not a row of results"):
        run(judge, source, out)


def test_a_changed_input_is_an_error_unless_it_grew(judge, source, out):
    run(judge, source, out)
    text = source.read_text()
    source.write_text("".join(text.splitlines(keepends=True)[:4]))
    with pytest.raises(DataError, match=r"line 5 .* the input ends before it"):
        run(judge, source, out)
    source.write_text(text.replace('"p3"', '"other"'))
    with pytest.raises(DataError, match=r"line 3 is the row of 'p3', the input has 'other'"):
        run(judge, source, out)
    source.write_text(text.replace('"aaa"', '"aab"'))
    with pytest.raises(DataError, match=r"line 3: the texts of 'p3'"):
        run(judge, source, out)
    source.write_text(text + '{"id": "new", "prompt": "q", "chosen": "a", "rejected": "b"}\n')
    done = run(judge, source, out)
    assert (done.before, done.written) == (7, 1)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(errno.ENOSPC, "No space left on device"), DataError, "disk of .* is full"),
        (OSError(errno.EACCES, "Permission denied"), DataError, "Permission denied"),
    ],
)
def test_an_error_in_a_run_leaves_a_file_that_can_be_resumed(
    judge, source, tmp_path, out, monkeypatch, error, expected, message
):
    run(judge, source, tmp_path / "whole.jsonl")
    monkeypatch.setattr(judge, "window", 3)
    monkeypatch.setattr(files, "WINDOWS", 1)

    class FailingBar:
        calls = 0

        def update(self, count: int = 1, **_) -> None:
            self.calls += 1
            if self.calls == 2:  # in the second window
                raise error

    with pytest.raises(expected, match=message):
        run(judge, source, out, progress=lambda total, **_: nullcontext(FailingBar()))
    done = run(judge, source, out)
    assert (done.before, done.written) == (3, 4)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_full_disk_is_an_error_of_its_own(judge, source, out):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    out.symlink_to(full)
    with pytest.raises(DataError, match="is full"):
        run(judge, source, out)


def test_an_impossible_output_is_refused_before_a_model_is_needed(source, tmp_path, out):
    for read, written, message in [
        (source, source, "is the input itself"),
        (source, tmp_path, "is a folder"),
        (source, tmp_path / "missing" / "out.jsonl", "there is no folder"),
        (tmp_path, out, "is inside the folder"),
    ]:
        with pytest.raises(DataError, match=message):
            check_files(str(read), written)
    assert check_files(str(source), out) == "preference"


def test_every_row_says_where_it_comes_from(judge, source, tmp_path, out):
    row = {"prompt": "q", "chosen": ["x", "y", "z"], "rejected": ["u", "v", "w"], "domain": "code"}
    source.write_text("broken\n" + json.dumps(row) + "\n" + json.dumps(row | {"id": "b"}) + "\n")
    run(judge, source, out, on_bad="skip")
    rows = read_lines(out)
    assert [row["row"] for row in rows] == [2] * 9 + [3] * 9
    assert {row["source"] for row in rows} == {"code"}


@pytest.mark.parametrize(
    ("row", "tie"),
    [
        ({"prompt": "q", "response_a": "x", "response_b": "yy z"}, None),
        ({"context": "q", "response1": "x", "response2": "yy z", "overall_preference": 0}, True),
    ],
)
def test_unlabeled_pairs_and_ties_have_neutral_columns(judge, tmp_path, row, tie):
    (found,) = score_rows(judge, tmp_path, row)
    expected = judge.score("q", "x", "yy z")
    assert found.get("tie") is tie and "score_chosen" not in found
    assert (found["score_first"], found["score_second"]) == (expected.first, expected.second)


def test_a_label_does_not_change_the_score(judge, tmp_path):
    """Whichever response is chosen, and whichever is shown first."""
    row = {"pair_id": "j", "source": "s", "question": "q", "response_A": "x", "response_B": "yy z"}
    one, other = score_rows(judge, tmp_path, row | {"label": "A>B"}, row | {"label": "B>A"})
    expected = judge.score("q", "x", "yy z")
    assert (one["score_chosen"], one["margin"]) == (expected.first, expected.margin)
    assert (other["score_chosen"], other["margin"]) == (expected.second, -expected.margin)
    assert one["position_bias"] == other["position_bias"] == expected.position_bias


def test_odd_texts_and_ids_survive_a_file(judge, tmp_path):
    ids = ["a\u2028b", "é🙂", 'a"b\\', "<|im_end|>"]
    rows = [{"id": i, "prompt": i, "chosen": i + "x", "rejected": i} for i in ids]
    assert [row["id"] for row in score_rows(judge, tmp_path, *rows)] == ids
    assert run(judge, tmp_path / "in.jsonl", tmp_path / "out.jsonl").before == len(ids)


def test_a_window_is_filled_by_work(out):
    records = [Candidates(as_prompt("q"), ("x",) * n, id=str(n)) for n in (5, 2, 2, 6, 2)]
    windows = []

    def rows(window, bar):
        windows.append([record.id for _, record in window])
        return [{"id": record.id, "shortened": False} for _, record in window]

    task = RowTask(rows, lambda record: len(record.responses), max_cost=8)
    source = list_source(list(enumerate(records, start=1)))
    write_rows(OutputSink(out), {"format": 1}, source, task)
    assert windows == [["5", "2", "2"], ["6", "2"]]


def test_the_number_of_rows_is_known_for_lines_alone(source, tmp_path):
    assert count_rows(source) == 7
    (tmp_path / "list.jsonl").write_text("[{}]")
    assert count_rows(tmp_path / "list.jsonl") is None
    assert count_rows("owner/name") is None
    (tmp_path / "list.jsonl").write_bytes(b"\xef\xbb\xbf\n[\n{}\n]")
    assert count_rows(tmp_path / "list.jsonl") is None
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1junk")
    assert count_rows(tmp_path / "damaged.parquet") is None
