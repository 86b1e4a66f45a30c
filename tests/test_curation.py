"""Curation by scores: label errors are found, acted on, and reported with the hashes of what they were found with."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from cli_runner import run_cli
from fake_judge import FakeJudge

from gram_jax.data.reading import read_records
from gram_jax.data.records import Comparison, contents_of
from gram_jax.errors import DataError
from gram_jax.evals.curation import (
    CurationConfig,
    JudgedPair,
    curate,
    curation_figures,
    judge_agreement,
    read_judged,
    suspects,
)
from gram_jax.evals.curation_card import curation_table
from gram_jax.hashing import stable_hash
from gram_jax.judge.messages import as_prompt
from gram_jax.scoring.files import score_file
from gram_jax.scoring.results import OutputSink


class NoisyJudge(FakeJudge):
    """Prefers responses that begin with "good", with noise by response; the order shown matters a little."""

    def __init__(self, seed: int, noise: float = 1.0):
        super().__init__(lean=0.2)
        self.seed, self.noise = seed, noise

    def diff(self, first: str, second: str) -> float:
        quality, other = map(self.quality, (first, second))
        return quality - other + self.lean

    def quality(self, text: str) -> float:
        draw = random.Random(stable_hash(self.seed, text)).gauss(0, self.noise)
        return 3.0 * text.startswith("good") + draw


def write(path, share: float, count: int = 200, labeled: bool = True) -> set[str]:
    """Preferences of two kinds, a share of them with the wrong label; returns the ids of those."""
    wrong = set(random.Random(0).sample(range(count), round(share * count)))
    rows = []
    for at in range(count):
        texts = [f"good {at}", f"bad {at}"]
        one, other = texts[::-1] if at in wrong else texts
        names = ("chosen", "rejected") if labeled else ("response_a", "response_b")
        row = {"id": f"n{at}", "prompt": f"p{at}", names[0]: one, names[1]: other}
        rows.append(row | {"source": ("easy", "hard")[at % 2]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {f"n{at}" for at in wrong}


def scored(source, *judges: FakeJudge):
    """Files of scores of these judges."""
    files = []
    for at, judge in enumerate(judges):
        files.append(source.with_name(f"scores{at}.jsonl"))
        score_file(judge, f"judge {at}", str(source), OutputSink(files[-1]))
    return files


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_flipped_labels_are_found_and_repaired(share, tmp_path):
    source = tmp_path / "pairs.jsonl"
    wrong = write(source, share)
    records = read_records(str(source))[0]
    judged = read_judged(records, scored(source, NoisyJudge(0), NoisyJudge(1)))
    found = {judged.pair.id for judged in suspects(judged, CurationConfig())}
    assert len(found & wrong) >= 0.8 * len(wrong) and len(found & wrong) >= 0.95 * len(found)
    for action, most in (("drop", 0.3), ("flip", 0.3)):
        kept = curate(judged, CurationConfig(suspected=action))
        errors = sum(pair.chosen.startswith("bad") for pair in kept)
        assert errors <= most * len(wrong)
        assert len(kept) == len(records) - (len(found) if action == "drop" else 0)
    figures = curation_figures(judged, CurationConfig())
    assert figures.all.suspected == len(found)
    assert figures.by_source["easy"].pairs + figures.by_source["hard"].pairs == 200
    assert figures.all.pairs == 200 and figures.all.agreement == pytest.approx(1 - share, abs=0.06)


def judged_pair(*p: float, bias: float = 0.0, labeled: bool = True, label: int = 0) -> JudgedPair:
    values = np.array(p)
    sides = np.sign(np.stack([values + bias / 2, values - bias / 2], 1) - 0.5)
    pair = Comparison(as_prompt("q"), "a", "b", label, id="x", weight=2.0)
    return JudgedPair(pair, labeled, values, sides)


def test_a_source_may_have_any_name_and_does_not_replace_the_figures_of_all_pairs():
    pairs = [judged_pair(p) for p in (0.9, 0.1, 0.1)]
    sources = ("all", "web", "")
    pairs = [
        replace(one, pair=replace(one.pair, source=source))
        for one, source in zip(pairs, sources, strict=True)
    ]
    figures = curation_figures(pairs, CurationConfig())
    assert (figures.all.pairs, figures.all.suspected) == (3, 2)
    assert {name: one.pairs for name, one in figures.by_source.items()} == {"all": 1, "web": 1}
    assert [row[:2] for row in curation_table(figures).rows] == [
        ("all", "3"),
        ("all", "1"),
        ("web", "1"),
    ]


def test_verdicts_follow_from_thresholds_and_unanimity():
    config = CurationConfig(above=0.7, below=0.3)
    assert judged_pair(0.8, 0.7).verdict(config) == "confirmed"
    assert judged_pair(0.1, 0.3).verdict(config) == "suspected"
    assert judged_pair(0.6, 0.7).verdict(config) == "uncertain"
    assert judged_pair(0.99, 0.49).verdict(config) == "uncertain"  # a judge disagrees
    assert judged_pair(0.2, bias=0.7).verdict(config) == "uncertain"  # the orders disagree
    loose = replace(config, unanimous=False)
    assert judged_pair(0.99, 0.49).verdict(loose) == "confirmed"
    assert judged_pair(0.2, bias=0.7).verdict(loose) == "suspected"
    with pytest.raises(DataError, match="below"):
        CurationConfig(above=0.4, below=0.5)


@pytest.mark.parametrize("label", [0, 1])
def test_actions(label):
    bad, unsure = judged_pair(0.1, label=label), judged_pair(0.6, label=label)
    assert curate([bad, unsure], CurationConfig()) == [unsure.pair]
    flipped = curate([bad], CurationConfig(suspected="flip"))
    assert [pair.label for pair in flipped] == [1 - label] and flipped[0].weight == 2
    weights = CurationConfig(suspected="reweigh", uncertain="reweigh")
    assert [p.weight for p in curate([bad, unsure], weights)] == pytest.approx([0.2, 1.2])
    assert curate([bad, unsure], CurationConfig(suspected="keep", uncertain="drop")) == [bad.pair]


def test_unlabeled_pairs_get_the_label_of_judges_that_agree(tmp_path):
    source = tmp_path / "pairs.jsonl"
    turned = write(source, 0.5, labeled=False)
    records = read_records(str(source), "comparison")[0]
    judged = read_judged(records, scored(source, NoisyJudge(0), NoisyJudge(1)))
    made = curate(judged, CurationConfig(above=0.8, below=0.2))
    assert len(made) > 80 and {pair.id for pair in made} & turned
    assert np.mean([pair.chosen.startswith("good") for pair in made]) > 0.97
    assert not suspects(judged, CurationConfig())  # there is no label to suspect


def test_two_judges_agree_with_themselves_and_less_with_each_other(tmp_path):
    source = tmp_path / "pairs.jsonl"
    write(source, 0.0)
    files = scored(source, NoisyJudge(0, noise=3.0), NoisyJudge(1, noise=3.0))
    table = judge_agreement(read_judged(read_records(str(source))[0], files))
    assert table[0][0] == table[1][1] == 1 and table[0][1] == table[1][0] < 0.9


def test_scores_of_other_labels_are_refused(tmp_path):
    source = tmp_path / "pairs.jsonl"
    write(source, 0.0, count=4)
    files = scored(source, NoisyJudge(0))
    write(source, 0.5, count=4)
    with pytest.raises(DataError, match="has no score of the record"):
        read_judged(read_records(str(source))[0], files)
    (tmp_path / "scores0.jsonl.meta.json").unlink()
    with pytest.raises(DataError, match="meta"):
        read_judged(read_records(str(source))[0], files)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("scores0.jsonl.meta.json", lambda data: data.replace(b'"weights": "', b'"weights": "1')),
        ("scores0.jsonl.meta.json", lambda data: data + b"\xe8"),
        ("scores0.jsonl", None),
    ],
)
def test_damaged_or_missing_files_of_scores_are_refused_by_name(tmp_path, name, damage):
    source, path = tmp_path / "pairs.jsonl", tmp_path / name
    write(source, 0.0, count=4)
    files = scored(source, NoisyJudge(0))
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=name):
        read_judged(read_records(str(source))[0], files)


def test_the_command_writes_pairs_figures_and_a_card_with_hashes(tmp_path):
    source, out = tmp_path / "pairs.jsonl", tmp_path / "clean.jsonl"
    write(source, 0.2)
    one, two = scored(source, NoisyJudge(0), NoisyJudge(1))
    words = ("curate", source, out, "--scores", one, "--scores", two, "--suspected", "flip")
    done = run_cli(*words)
    assert done.status == 0, done.output
    records, report = read_records(str(out))
    assert report.kept == 200 and {record.source for record in records} == {"easy", "hard"}
    found = json.loads((tmp_path / "clean.jsonl.curation.json").read_text())
    assert found["inputs"]["contents"] == contents_of(read_records(str(source))[0])
    assert [len(file["sha256"]) for file in found["inputs"]["scores"]] == [64, 64]
    assert found["all"]["suspected"] == len(found["suspects"]) > 30
    assert sum(one["pairs"] for one in found["by_source"].values()) == found["all"]["pairs"] == 200
    card = (tmp_path / "clean.jsonl.card.md").read_text()
    assert found["inputs"]["scores"][0]["sha256"] in card and found["suspects"][0]["id"] in card
    before = out.read_bytes()
    assert run_cli(*words).status != 0  # the output exists
    out.unlink()  # an interrupted command: the pairs are written last
    assert run_cli(*words).status == 0 and out.read_bytes() == before
    assert run_cli(*words, "--overwrite").status == 0 and out.read_bytes() == before
