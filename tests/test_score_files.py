"""Scoring a file: every row once, whatever interrupts it."""

import json
from pathlib import Path

import jax
import pytest

from gram_jax.console import Console
from gram_jax.errors import DataError
from gram_jax.scoring.files import score_file
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
    return score_file(judge, model, str(source), out, console=Console(quiet=True), **more)


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


def test_scores_of_another_model_are_not_mixed_in(judge: Scorer, source: Path, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    run(judge, source, out)
    with pytest.raises(DataError, match="model: 'm' there, 'other' now"):
        run(judge, source, out, model="other")
    assert run(judge, source, out, model="other", overwrite=True).written == 7


def test_a_changed_input_is_noticed(judge: Scorer, source: Path, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    run(judge, source, out)
    source.write_text(source.read_text().replace('"p3"', '"other"'))
    with pytest.raises(DataError, match=r"line 3 is the score of 'p3', the input has 'other'"):
        run(judge, source, out)


def test_a_foreign_file_is_not_overwritten(judge: Scorer, source: Path, tmp_path: Path):
    out = tmp_path / "notes.txt"
    out.write_text("precious\n")
    with pytest.raises(DataError, match="nothing says how it was made"):
        run(judge, source, out)
    assert out.read_text() == "precious\n"


def test_the_input_is_never_the_output(judge: Scorer, source: Path):
    with pytest.raises(DataError, match="is the input itself"):
        run(judge, source, source)


def test_unlabeled_pairs_and_candidates_have_their_own_columns(judge: Scorer, tmp_path: Path):
    pairs, candidates = tmp_path / "pairs.jsonl", tmp_path / "candidates.jsonl"
    pairs.write_text('{"prompt": "q", "response_a": "x", "response_b": "yy"}\n')
    candidates.write_text('{"prompt": "q", "responses": ["x", "yy", "z z"]}\n')
    run(judge, pairs, tmp_path / "1.jsonl")
    run(judge, candidates, tmp_path / "2.jsonl")
    assert json.loads((tmp_path / "1.jsonl").read_text()).keys() >= {"score_first", "score_second"}
    row = json.loads((tmp_path / "2.jsonl").read_text())
    assert sorted(row["ranking"]) == [0, 1, 2]
    best = max(range(3), key=lambda i: row["scores"][i])
    assert row["ranking"][0] == best


def test_a_label_does_not_change_the_score(judge: Scorer, source: Path, tmp_path: Path):
    exchanged = tmp_path / "exchanged.jsonl"
    swap = str.maketrans({})
    text = source.read_text().replace('"chosen"', '"_"').replace('"rejected"', '"chosen"')
    exchanged.write_text(text.replace('"_"', '"rejected"').translate(swap))
    run(judge, source, tmp_path / "1.jsonl")
    run(judge, exchanged, tmp_path / "2.jsonl")
    one, other = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("1.jsonl", "2.jsonl")
    )
    for a, b in zip(one, other, strict=True):
        assert a["score_chosen"] == b["score_rejected"]
