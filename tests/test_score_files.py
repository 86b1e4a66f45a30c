"""Scoring a file: every row once, whatever interrupts it."""

import errno
import json
from contextlib import nullcontext
from pathlib import Path

import jax
import pytest

from gram_jax.data.comparison import Candidates
from gram_jax.data.sources import count_rows
from gram_jax.errors import DataError
from gram_jax.judge.messages import as_prompt
from gram_jax.progress import no_progress
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.scoring.files import check_files, score_file
from gram_jax.scoring.results import RowTask, write_rows
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement


@pytest.fixture(scope="module")
def judge() -> Scorer:
    placement = make_placement({}, devices=jax.devices()[:1])
    with pytest.warns(UserWarning, match="no judge.json"):
        return Scorer.load("tiny-random", placement=placement)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"id": f"p{i}", "prompt": "q", "chosen": "a" * i, "rejected": "b"} for i in range(1, 8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(judge: Scorer, source: Path, out: Path, model: str = "m", **more):
    return score_file(judge, model, str(source), out, **more)


def test_every_row_is_scored_in_order(judge: Scorer, source: Path, tmp_path: Path):
    done = run(judge, source, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(1, 8)]
    assert all(row["score_chosen"] + row["score_rejected"] == pytest.approx(1) for row in rows)
    assert (done.written, done.before) == (7, 0)


def test_an_interrupted_file_ends_with_the_bytes_of_an_undisturbed_one(judge, source, tmp_path):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    run(judge, source, whole)
    run(judge, source, torn)
    torn.write_bytes(torn.read_bytes()[:-40])  # killed in the middle of the last line
    done = run(judge, source, torn)
    assert (done.before, done.written) == (6, 1)
    assert torn.read_bytes() == whole.read_bytes()


def test_a_complete_file_is_left_alone(judge: Scorer, source: Path, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    run(judge, source, out)
    assert run(judge, source, out).written == 0


def test_scores_of_other_weights_are_not_mixed_in(judge, source, tmp_path, monkeypatch):
    """The weights count, not their name: a run that was trained further is another judge."""
    out = tmp_path / "out.jsonl"
    run(judge, source, out)
    assert run(judge, source, out, model="another/path/to/m").written == 0
    heavier = jax.tree.map(lambda w: w * 1.01, judge.params)
    monkeypatch.setattr(judge.engine, "params", heavier)
    before = out.read_bytes()
    with pytest.raises(DataError, match="weights: "):
        run(judge, source, out)
    assert out.read_bytes() == before
    assert run(judge, source, out, overwrite=True).written == 7


def test_damaged_metadata_is_an_error(judge, source, tmp_path):
    out = tmp_path / "out.jsonl"
    run(judge, source, out)
    for text in ("[]", "{}", "{", ""):
        (tmp_path / "out.jsonl.meta.json").write_text(text)
        with pytest.raises(DataError, match="missing or damaged"):
            run(judge, source, out)


@pytest.mark.parametrize("line", ["{}", "[1]", "", "not json"])
def test_a_row_that_is_no_score_is_named(judge, source, tmp_path, line):
    out = tmp_path / "out.jsonl"
    run(judge, source, out)
    rows = out.read_text().splitlines()
    out.write_text("\n".join([*rows[:2], line, *rows[3:]]) + "\n")
    with pytest.raises(DataError, match="line 3 is no row of results"):
        run(judge, source, out)


def test_an_input_that_became_shorter_is_noticed(judge, source, tmp_path):
    out = tmp_path / "out.jsonl"
    run(judge, source, out)
    source.write_text("".join(source.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(DataError, match=r"line 5 .* the input ends before it"):
        run(judge, source, out)


def test_an_input_that_grew_is_resumed(judge, source, tmp_path):
    out = tmp_path / "out.jsonl"
    run(judge, source, out)
    with source.open("a") as file:
        file.write('{"id": "new", "prompt": "q", "chosen": "a", "rejected": "b"}\n')
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
    judge, source, tmp_path, monkeypatch, error, expected, message
):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(judge, source, whole)
    monkeypatch.setattr(judge, "window", 3)

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
    assert out.read_bytes() == whole.read_bytes()


def test_a_changed_input_is_noticed(judge: Scorer, source: Path, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    run(judge, source, out)
    source.write_text(source.read_text().replace('"p3"', '"other"'))
    with pytest.raises(DataError, match=r"line 3 is the row of 'p3', the input has 'other'"):
        run(judge, source, out)


def test_a_foreign_file_is_not_overwritten(judge: Scorer, source: Path, tmp_path: Path):
    out = tmp_path / "notes.txt"
    out.write_text("precious\n")
    with pytest.raises(DataError, match="missing or damaged"):
        run(judge, source, out)
    assert out.read_text() == "precious\n"


def test_an_impossible_output_is_refused_before_a_model_is_needed(source: Path, tmp_path: Path):
    for out, message in [
        (source, "is the input itself"),
        (tmp_path, "is a folder"),
        (tmp_path / "missing" / "out.jsonl", "there is no folder"),
    ]:
        with pytest.raises(DataError, match=message):
            check_files(str(source), out)
    with pytest.raises(DataError, match="is inside the folder"):
        check_files(str(tmp_path), tmp_path / "out.jsonl")
    assert check_files(str(source), tmp_path / "out.jsonl") == "preference"


def test_unlabeled_pairs_have_their_own_columns(judge: Scorer, tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "q", "response_a": "x", "response_b": "yy"}\n'
    )
    run(judge, tmp_path / "pairs.jsonl", tmp_path / "1.jsonl")
    assert json.loads((tmp_path / "1.jsonl").read_text()).keys() >= {"score_first", "score_second"}


def rank(judge: Scorer, source: Path, out: Path, config: RankingConfig | None = None, **more):
    return score_file(judge, "m", str(source), out, ranking=config or RankingConfig(), **more)


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    path = tmp_path / "candidates.jsonl"
    rows = [
        {"id": f"c{n}", "prompt": "q", "responses": ["x" * k for k in range(n)]} for n in (3, 6, 2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_candidates_are_ranked_as_the_scorer_ranks_them(judge, candidates, tmp_path):
    out = tmp_path / "out.jsonl"
    done = rank(judge, candidates, out)
    assert (done.written, done.before, done.dropped) == (3, 0, {})
    for line, given in zip(
        out.read_text().splitlines(), candidates.read_text().splitlines(), strict=True
    ):
        row, expected = json.loads(line), judge.rank("q", json.loads(given)["responses"])
        assert row["ranking"] == expected.order
        assert row["scores"] == expected.strengths.tolist()
        assert row["comparisons"] == expected.comparisons


def test_an_interrupted_ranking_is_resumed_and_another_method_is_refused(
    judge, candidates, tmp_path
):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    fit = RankingConfig("bradley_terry")
    rank(judge, candidates, whole, fit)
    rank(judge, candidates, torn, fit)
    torn.write_bytes(torn.read_bytes()[:-40])
    assert rank(judge, candidates, torn, fit).written == 1
    assert torn.read_bytes() == whole.read_bytes()
    with pytest.raises(DataError, match=r"ranking: .*bradley_terry.* there, .*knockout.* now"):
        rank(judge, candidates, torn, RankingConfig("knockout"))


def test_scores_and_rankings_do_not_mix(judge, source, candidates, tmp_path):
    out = tmp_path / "out.jsonl"
    run(judge, source, out)
    with pytest.raises(DataError, match="kind: 'preference' there, 'candidates' now"):
        rank(judge, source, out)
    assert rank(judge, source, tmp_path / "2.jsonl").written == 7  # a pair is two candidates
    with pytest.raises(DataError, match="lists of candidates: rank them, gram-jax rank"):
        run(judge, candidates, tmp_path / "3.jsonl")


def test_every_row_says_where_it_comes_from(judge: Scorer, tmp_path: Path):
    source, out = tmp_path / "rm.jsonl", tmp_path / "out.jsonl"
    row = {"prompt": "q", "chosen": ["x", "y", "z"], "rejected": ["u", "v", "w"], "domain": "code"}
    source.write_text("broken\n" + json.dumps(row) + "\n" + json.dumps(row | {"id": "b"}) + "\n")
    run(judge, source, out, on_bad="skip")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["row"] for row in rows] == [2] * 9 + [3] * 9
    assert {row["source"] for row in rows} == {"code"}


def test_a_tie_has_neutral_columns(judge: Scorer, tmp_path: Path):
    source, out = tmp_path / "ties.jsonl", tmp_path / "out.jsonl"
    row = {"context": "q", "response1": "x", "response2": "yy z", "overall_preference": 0}
    source.write_text(json.dumps(row) + "\n")
    run(judge, source, out)
    found, expected = json.loads(out.read_text()), judge.score("q", "x", "yy z")
    assert found["tie"] is True and "score_chosen" not in found
    assert (found["score_first"], found["score_second"]) == (expected.first, expected.second)


def test_a_window_is_filled_by_work(tmp_path: Path):
    records = [Candidates(as_prompt("q"), ("x",) * n, id=str(n)) for n in (5, 2, 2, 6, 2)]
    windows = []

    def rows(window, bar):
        windows.append([record.id for _, record in window])
        return [{"id": record.id, "shortened": False} for _, record in window]

    task = RowTask(rows, lambda record: len(record.responses), max_cost=8)
    write_rows(
        tmp_path / "out.jsonl",
        {"format": 1},
        iter(enumerate(records, start=1)),
        task,
        total=None,
        label="",
        unit="",
        overwrite=False,
        progress=no_progress,
    )
    assert windows == [["5", "2", "2"], ["6", "2"]]


def test_a_label_does_not_change_the_score(judge: Scorer, source: Path, tmp_path: Path):
    exchanged = tmp_path / "exchanged.jsonl"
    text = source.read_text().replace('"chosen"', '"_"').replace('"rejected"', '"chosen"')
    exchanged.write_text(text.replace('"_"', '"rejected"'))
    run(judge, source, tmp_path / "1.jsonl")
    run(judge, exchanged, tmp_path / "2.jsonl")
    one, other = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("1.jsonl", "2.jsonl")
    )
    for a, b in zip(one, other, strict=True):
        assert (a["score_chosen"], a["margin"]) == (b["score_rejected"], -b["margin"])
        assert a["position_bias"] == b["position_bias"]


def test_a_response_that_the_source_shows_second_keeps_its_own_score(judge, tmp_path):
    source, out = tmp_path / "judged.jsonl", tmp_path / "out.jsonl"
    row = {"pair_id": "j", "source": "s", "question": "q", "response_A": "x", "response_B": "yy z"}
    rows = [row | {"label": label} for label in ("A>B", "B>A")]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(judge, source, out)
    one, other = (json.loads(line) for line in out.read_text().splitlines())
    expected = judge.score("q", "x", "yy z")
    assert (one["score_chosen"], one["margin"]) == (expected.first, expected.margin)
    assert (other["score_chosen"], other["margin"]) == (expected.second, -expected.margin)


def test_odd_texts_and_ids_survive_the_way_through_a_file(judge, tmp_path):
    source, out = tmp_path / "odd.jsonl", tmp_path / "out.jsonl"
    ids = ["a\u2028b", "é🙂", 'a"b\\', "<|im_end|>"]
    rows = [{"id": i, "prompt": i, "chosen": i + "x", "rejected": i} for i in ids]
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    run(judge, source, out)
    found = [json.loads(line)["id"] for line in out.read_bytes().splitlines()]  # not of text
    assert found == ids
    assert run(judge, source, out).before == len(ids)


def test_the_progress_bar_knows_its_end(source: Path, tmp_path: Path):
    assert count_rows(source) == 7
    (tmp_path / "list.jsonl").write_text("[{}]")
    assert count_rows(tmp_path / "list.jsonl") is None
    assert count_rows("owner/name") is None


def test_a_full_disk_is_said_plainly(judge: Scorer, source: Path, tmp_path: Path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "out.jsonl").symlink_to(full)
    with pytest.raises(DataError, match="is full"):
        run(judge, source, tmp_path / "out.jsonl")
