"""`gram-jax evaluate` from files of every benchmark to evaluation.json: known answers, resuming, bad files."""

import json
import logging
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import report_cases

from gram_jax import evaluate
from gram_jax.errors import DataError
from gram_jax.evals.datasets import HUB, read_dataset
from gram_jax.evals.evaluate import EvaluationFolder
from gram_jax.evals.measure import measure
from gram_jax.evals.results import EvaluationResults, JudgeResults, read_results
from gram_jax.evals.reward_bench import write_reward_bench
from gram_jax.evals.scores import OutputSink
from gram_jax.evals.tables import source_tables
from gram_jax.ranking.jobs import RankingJob
from gram_jax.reports.loading import read_folders
from gram_jax.reports.report import render_html
from gram_jax.scoring.pair import combine_orders
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement

MEMORY = OutputSink()


class Judge:
    """Log-odds by a rule of (first, second), the response shown first being the first one."""

    def __init__(self, rule):
        self.rule = rule

    def stream(self, comparisons, *, progress=None):
        for _, first, second in comparisons:
            yield combine_orders(self.rule(first, second), self.rule(second, first), False)

    def rank_many(self, items, config, *, progress):
        for prompt, responses in items:
            job = RankingJob(prompt, responses, config)
            while job.ranking is None:
                logit_diffs = [
                    self.rule(first, second) for _, first, second in job.pending_comparisons()
                ]
                job.update(np.array(logit_diffs), shortened=False)
            yield job.ranking


def by_quality(first: str, second: str) -> float:
    return 2.0 * (first.count("good") - second.count("good"))


POSITION = Judge(lambda first, second: 1.0)
GOOD = Judge(by_quality)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def judgebench(path: Path, label=lambda at: "A>B") -> str:
    row = {"response_A": "good one", "response_B": "bad one"}
    rows = [
        row | {"pair_id": str(at), "source": source, "question": f"q{at}", "label": label(at)}
        for at, source in enumerate(["mmlu-pro-law", "livebench-math", "livecodebench"] * 4)
    ]
    return write(path, rows)


def rm_bench_rows(count: int = 3) -> list[dict]:
    row = {"domain": "code", "subset": "humaneval"}  # as the rows of code have it
    for kind in ("chosen", "rejected"):
        row[kind] = [f"{kind} {style}" for style in ("short", "plain text", "**marked** text")]
    row["chosen"] = [f"good {text}" for text in row["chosen"]]
    return [row | {"id": str(at), "prompt": f"q{at}"} for at in range(count)]


def rm_bench(path: Path, count: int = 3) -> str:
    return write(path, rm_bench_rows(count))


PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def measured(judge, source: str, benchmark: str = "auto", **options) -> dict:
    data = read_dataset(source, benchmark, **options)
    return measure(judge, "m", data, MEMORY)[0].model_dump()


def figure(found: dict, name: str) -> float:
    return next(one["value"] for one in found["official"] if one["name"] == name)


def test_judgebench_is_recognised_and_a_right_judge_is_right(tmp_path):
    found = measured(GOOD, judgebench(tmp_path / "j.jsonl"))
    assert found["benchmark"] == "judgebench"
    assert figure(found, "JudgeBench macro") == figure(found, "JudgeBench micro") == 1
    assert found["pairs"]["consistency"] == 1 and found["worst"] == []
    assert [row["name"] for row in found["subsets"]] == sorted(
        ("mmlu-pro-law", "livebench-math", "livecodebench")
    )


def test_exchanged_labels_give_one_minus_the_accuracy(tmp_path):
    mixed = ["A>B" if at % 3 else "B>A" for at in range(12)]
    exchanged = [label[::-1].replace("<", ">") for label in mixed]
    straight = measured(GOOD, judgebench(tmp_path / "a.jsonl", lambda at: mixed[at]))
    other = measured(GOOD, judgebench(tmp_path / "b.jsonl", lambda at: exchanged[at]))
    for one, two in zip(straight["official"], other["official"], strict=True):
        assert two["value"] == pytest.approx(1 - one["value"])
    assert 0 < straight["pairs"]["accuracy"] < 1
    assert len(straight["worst"]) == 4 and straight["worst"][0]["probability"] < 0.5


def test_a_judge_of_positions_scores_one_half_and_is_always_wrong(tmp_path):
    found = measured(POSITION, judgebench(tmp_path / "j.jsonl"))
    assert found["pairs"]["accuracy"] == 0 and found["pairs"]["ties"] == 1
    assert found["pairs"]["brier"] == 0.25 and found["worst"] == []
    assert found["pairs"]["consistency"] == 0 and found["pairs"]["position_bias"] > 0.2
    assert sum(found["positions"]["counts"]) == 12


def test_two_verdicts_count_as_votes_in_judgebench(tmp_path):
    leaning = Judge(lambda first, second: by_quality(first, second) / 2 + 1.0)  # a tie when second
    sure = Judge(lambda first, second: by_quality(first, second) + 1.0)
    tossing = Judge(lambda first, second: by_quality(first, second) / 2 + 1.5)
    source = judgebench(tmp_path / "j.jsonl")
    found = [
        (figure(one, "JudgeBench micro"), figure(one, "JudgeBench by two verdicts"))
        for one in (measured(judge, source) for judge in (sure, leaning, tossing, POSITION))
    ]
    assert found == [(1, 1), (1, 1), (1, 0), (0, 0)]


def test_results_of_rewardbench_agree_with_the_accuracy_where_all_are_ties(tmp_path):
    rows = [PAIR | {"prompt": f"q{at}", "subset": "donotanswer"} for at in range(3)]
    work = read_dataset(write(tmp_path / "rb.jsonl", rows))
    found, verdicts = measure(POSITION, "m", work, MEMORY)
    content = report_cases.evaluation("m")
    about = JudgeResults(**{name: content[name] for name in JudgeResults.model_fields})
    write_reward_bench(tmp_path / "out", about, work.records, verdicts, found)
    lines = (tmp_path / "out" / "m_outputs.jsonl").read_text().splitlines()
    assert [json.loads(line)["results"] for line in lines] == [0, 0, 0]
    assert json.loads((tmp_path / "out" / "m.json").read_text())["accuracy"] == 0


def test_rm_bench_is_nine_pairs_of_a_row_in_a_matrix(tmp_path):
    found = measured(GOOD, rm_bench(tmp_path / "rm.jsonl"))
    assert found["benchmark"] == "rmbench" and found["pairs"]["n"] == 27
    assert found["pairs"]["prompts"] == 3
    assert figure(found, "RM-Bench") == 1
    assert [row["name"] for row in found["subsets"]] == ["code"]
    limited = measured(GOOD, rm_bench(tmp_path / "rm.jsonl"), limit=2)
    assert limited["pairs"]["n"] == 18  # whole rows


def test_rm_bench_ids_may_have_brackets_of_their_own(tmp_path):
    rows = [row | {"id": f"x[{row['id']},1] [plain,plain]"} for row in rm_bench_rows()]
    found = measured(GOOD, write(tmp_path / "named.jsonl", rows))
    assert found["official"] == measured(GOOD, rm_bench(tmp_path / "rm.jsonl"))["official"]


def test_an_rm_bench_row_with_a_text_on_both_sides_can_be_skipped(tmp_path):
    rows = rm_bench_rows()
    rows[1] = rows[1] | {"rejected": [rows[1]["chosen"][0], *rows[1]["rejected"][1:]]}
    source = write(tmp_path / "both.jsonl", rows)
    found = measured(GOOD, source, on_bad="skip")
    assert found["dropped"] == {"a text both chosen and rejected": 1} and found["rows"] == 3
    assert found["pairs"]["n"] == 18 and figure(found, "RM-Bench") == 1
    with pytest.raises(DataError, match=r"8 of the 9 .*--on-bad skip"):
        read_dataset(source)
    with pytest.raises(DataError, match="nine pairs"):
        read_dataset(write(tmp_path / "one.jsonl", rows[1:2]), on_bad="skip")


def test_reward_bench_is_recognised_by_its_subsets(tmp_path):
    rows = [PAIR | {"subset": "llmbar-natural", "prompt": f"q{at}", "id": 1} for at in range(3)]
    found = measured(GOOD, write(tmp_path / "rb.jsonl", rows))
    assert found["benchmark"] == "rewardbench" and figure(found, "Chat Hard") == 1
    rows[0]["subset"] = "my own"
    plain = measured(GOOD, write(tmp_path / "own.jsonl", rows))
    assert plain["benchmark"] == "pairs"


def test_a_subset_that_reward_bench_does_not_know_is_named(tmp_path, caplog):
    names = ("llmbar-natural", "do-not-answer", "donotanswer", "my own")
    rows = [PAIR | {"subset": name, "prompt": f"q to {name}"} for name in names]
    source = write(tmp_path / "rb.jsonl", rows)

    def warnings(source: str, *benchmark: str, **options) -> str:
        caplog.clear()
        read_dataset(source, *benchmark, **options)
        return caplog.text

    said = r"'do-not-answer' and 1 more, .* \(2 of 4 pairs\)"
    assert re.search(said, warnings(source))
    with pytest.raises(DataError, match=said):
        read_dataset(source, "rewardbench")
    assert not warnings(source, "pairs")
    for few in (rows[::2], rows[1::2]):  # all of them RewardBench's, and none
        assert not warnings(write(tmp_path / "few.jsonl", few))
    assert "(1 of 2 pairs)" in warnings(write(tmp_path / "none.jsonl", [PAIR, rows[0]]))
    assert "first 2 rows" in warnings(source, "pairs", limit=2)
    assert not warnings(source, "pairs", limit=5)


def test_graded_preferences_are_agreed_with(tmp_path):
    rows = [
        {"context": f"q{at}", "response1": "good " * size, "response2": "bad"}
        | {"overall_preference": -size}
        for at, size in enumerate((1, 2, 3, 1, 2, 3))
    ]
    found = measured(GOOD, write(tmp_path / "h.jsonl", rows))
    assert found["grades"] == {"n": 6, "kendall": pytest.approx(1), "pearson": pytest.approx(1)}


@pytest.mark.parametrize("given", [{"scores": [0.1, 0.9, 0.4]}, {"correct": [False, True, False]}])
def test_best_of_n_from_scores_or_correctness(tmp_path, given):
    rows = [{"prompt": f"q{at}", "responses": ["bad", "good", "x"], **given} for at in range(4)]
    found = measured(GOOD, write(tmp_path / "n.jsonl", rows))
    assert found["benchmark"] == "best_of_n"
    assert figure(found, "a best response is picked") == 1
    assert figure(found, "grade of the pick") == max(map(float, next(iter(given.values()))))
    assert found["pairs"]["n"] == (12 if "scores" in given else 8)


def test_reward_bench_2_is_the_best_of_four(tmp_path):
    row = {"chosen": ["good"], "rejected": ["a", "b", "c"], "subset": "Math"}
    rows = [row | {"prompt": f"q{at}", "id": str(at)} for at in range(3)]
    source = write(tmp_path / "rb2.jsonl", rows)
    assert figure(measured(GOOD, source), "RewardBench 2") == 1
    assert figure(measured(POSITION, source), "RewardBench 2") == 0.25  # all four are equal


def test_a_perfect_and_a_bad_judge_of_ties_have_a_report(tmp_path):
    right = ["good good good", "good good good x"]
    rows = [
        {"id": f"{kind}:{at}", "prompt": f"{kind} {at}", "chosen": right[:many]}
        | {"rejected": ["bad", "worse"], "subset": "Ties"}
        for at in range(3)
        for kind, many in (("ref", 1), ("tied", 2))
    ]
    source = write(tmp_path / "ties.jsonl", rows)
    nearly = Judge(lambda a, b: by_quality(a, b) + 0.01 * (a.count("x") - b.count("x")))
    worst = Judge(lambda a, b: -nearly.rule(a, b))
    for judge, low, high in ((nearly, 1.005, 1.01), (worst, -0.011, -0.005)):
        found = measured(judge, source)
        assert low < figure(found, "Ties") <= high
        one = next(one for one in found["official"] if one["name"] == "Ties")
        assert one["interval"] is None  # three equal scores, and no share
        content = report_cases.evaluation(sources={"ties": json.loads(json.dumps(found))})
        page = render_html(read_folders([report_cases.write(tmp_path / str(high), content)]))
        assert "Ties" in page


RB2 = {"id": "1", "prompt": "q", "chosen": ["good"], "rejected": ["b", "c", "d"]}
BEST = {"prompt": "q", "responses": ["a", "b"]}
JUDGED = {"pair_id": "1", "source": "mmlu-pro-law", "question": "q", "response_A": "a"}
RM = rm_bench_rows(1)[0] | {"prompt": "other"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([RB2 | {"subset": "Ties"}], "id '1': .* ref:NUMBER or tied:NUMBER"),
        ([RB2 | {"subset": "Ties", "id": "ref:1"}], "ref: and its tied: row"),
        (
            [
                RB2 | {"subset": "Ties", "id": name, "prompt": prompt}
                for name, prompt in (("ref:1", "x"), ("ref:1", "y"), ("tied:1", "z"))
            ],
            "first ref:1",
        ),
        ([RB2 | {"subset": "Facts"}], "'Facts': .*Factuality"),
        ([*rm_bench_rows(), RM | {"domain": "poetry"}], "'poetry'"),
        ([*rm_bench_rows(), RM | {"domain": None}], "'humaneval'"),
        ([*rm_bench_rows(), RM | {"chosen": ["good a", "good b"]}], "'chosen'"),
        ([*rm_bench_rows(), RM | {"id": None}], "column id"),
        ([*rm_bench_rows(), RM | {"prompt": None}], "'prompt'"),
        ([JUDGED | {"response_B": "b", "label": "A"}], "b>a.*, found str 'A'"),
        ([BEST | {"scores": [1]}], "2 values"),
        ([BEST | {"scores": [1, 1]}], r"bad.jsonl: .* 1 rows"),
        ([BEST], "scores or correct"),
    ],
)
def test_rows_without_a_benchmarks_figures_are_named_before_anything_is_scored(
    tmp_path, rows, said
):
    with pytest.raises(DataError, match=said):
        read_dataset(write(tmp_path / "bad.jsonl", rows))


def test_a_source_is_read_as_the_required_benchmark_or_refused(tmp_path):
    facts = write(tmp_path / "rb2.jsonl", [RB2 | {"subset": "Facts"}])
    assert read_dataset(facts, "pairs").benchmark == "pairs"
    (tmp_path / "broken.jsonl").write_text("{oops\n")
    with pytest.raises(DataError, match=r"broken.jsonl, line 1: .*JSON"):
        read_dataset(str(tmp_path / "broken.jsonl"))
    source = write(tmp_path / "p.jsonl", [PAIR])
    with pytest.raises(DataError, match=r"is not judgebench: .* trl-standard"):
        read_dataset(source, "judgebench")
    with pytest.raises(DataError, match="'rewardbench3'"):
        read_dataset(source, "rewardbench3")


@pytest.fixture(scope="module")
def tiny() -> Scorer:
    placement = make_placement({}, devices=jax.devices()[:1])
    with pytest.warns(UserWarning, match="no judge.json"):
        return Scorer.load("tiny-random", placement=placement, max_length=256)


def folder_of(tiny, out, **more) -> EvaluationFolder:
    return EvaluationFolder(out, tiny, "tiny", **more)


def sources_of(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "evaluation.json").read_text())["sources"]


@pytest.mark.slow
def test_a_folder_holds_figures_and_scores_and_goes_on_where_it_stopped(tiny, tmp_path):
    rows = [
        {"prompt": f"q{at}", "chosen": "x" * at, "rejected": "y", "subset": "donotanswer"}
        for at in range(2, 8)
    ]
    source = write(tmp_path / "rb.jsonl", rows)
    best = {"prompt": "q", "responses": ["a", "bb", "a"], "scores": [1, 2, 3]}
    out, again = tmp_path / "one", tmp_path / "two"
    first = folder_of(tiny, out)
    for name in (source, write(tmp_path / "n.jsonl", [best])):
        in_file, _ = first.add(read_dataset(name))
        in_memory = measure(tiny, "tiny", read_dataset(name), MEMORY)[0]
        assert in_file == in_memory  # the file holds the very floats
    content = json.loads((out / "evaluation.json").read_text())
    assert list(content["sources"]) == ["rb", "n"] and content["format"] == 3
    place = out / "rewardbench" / "rb"
    summary = json.loads((place / "tiny.json").read_text())
    assert list(summary) == [
        *("accuracy", "num_prompts", "model", "ref_model", "tokenizer", "chat_template"),
        "extra_results",
    ]  # as rewardbench 0.1.4 writes them
    lines = (place / "tiny_outputs.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert np.mean([row["results"] for row in rows]) == summary["accuracy"]
    row = rows[0]
    assert row["scores_chosen"] + row["scores_rejected"] == 1 and row["text_chosen"] == "xx"

    folder_of(tiny, again).add(read_dataset(source))
    scores = again / "rb.scores.jsonl"
    whole = scores.read_bytes()
    scores.write_bytes(whole[:-50])  # killed in the middle of a line
    (again / "evaluation.json").unlink()
    folder_of(tiny, again).add(read_dataset(source))
    assert scores.read_bytes() == whole
    assert sources_of(again)["rb"] == content["sources"]["rb"]


def test_each_reward_bench_source_has_result_files_of_its_own(tiny, tmp_path):
    out = tmp_path / "out"
    for name, subset in (("one", "donotanswer"), ("two", "hep-go"), ("sub/one", "hep-go")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        rows = [{"prompt": name, "chosen": "x", "rejected": "y", "subset": subset}]
        source = write(tmp_path / f"{name}.jsonl", rows)
        folder_of(tiny, out).add(read_dataset(source))
    found = {
        path.parent.name: list(json.loads(path.read_text())["extra_results"])
        for path in (out / "rewardbench").glob("*/tiny.json")
    }
    assert found == {"one": ["donotanswer"], "two": ["hep-go"], "one-2": ["hep-go"]}


def test_contents_are_those_of_texts_and_labels_whatever_the_file(tmp_path):
    straight = judgebench(tmp_path / "a.jsonl")
    lines = Path(straight).read_text().splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_text("".join(reversed(lines)))
    other = judgebench(tmp_path / "c.jsonl", lambda at: "B>A")
    hashes = [
        measured(GOOD, source)["contents"]
        for source in (straight, str(tmp_path / "b.jsonl"), other)
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    row = {"prompt": "q", "responses": ["good", "bad"]}
    graded = [write(tmp_path / f"{x}.jsonl", [row | {"scores": [x, 0]}]) for x in (1, 2)]
    one, two = (measured(GOOD, source)["contents"] for source in graded)
    assert one != two


def test_an_id_may_have_a_line_separator_of_unicode(tiny, tmp_path):
    rows = [
        {"prompt": f"q{at}", "chosen": "x", "rejected": "y", "id": f"{at}\u2028\u0085"}
        for at in (1, 2)
    ]
    source = write(tmp_path / "p.jsonl", rows)
    for _ in range(2):  # scored, and then read
        found, _ = folder_of(tiny, tmp_path / "out").add(read_dataset(source))
        assert found.pairs.n == 2


def test_scores_of_other_texts_or_labels_under_the_same_ids_are_not_taken(tiny, tmp_path):
    source = judgebench(tmp_path / "j.jsonl")
    folder_of(tiny, tmp_path / "out").add(read_dataset(source))
    judgebench(tmp_path / "j.jsonl", lambda at: "B>A")  # the labels exchanged
    with pytest.raises(DataError, match=r"line 1: the texts of '0'"):
        folder_of(tiny, tmp_path / "out").add(read_dataset(source))
    rows = [{"id": "1", "prompt": "q", "responses": ["a", "bb"], "scores": [1, 2]}]
    lists = write(tmp_path / "n.jsonl", rows)
    folder_of(tiny, tmp_path / "out").add(read_dataset(lists))
    write(tmp_path / "n.jsonl", [rows[0] | {"responses": ["a", "bc"]}])
    with pytest.raises(DataError, match="line 1: the texts of '1'"):
        folder_of(tiny, tmp_path / "out").add(read_dataset(lists))


def test_later_sources_join_and_another_judge_is_refused(tiny, tmp_path):
    out = tmp_path / "out"
    folder_of(tiny, out).add(read_dataset(judgebench(tmp_path / "j.jsonl")))
    folder_of(tiny, out).add(read_dataset(rm_bench(tmp_path / "rm.jsonl", 1)))
    assert list(sources_of(out)) == ["j", "rm"]
    (tmp_path / "sub").mkdir()
    folder_of(tiny, out).add(
        read_dataset(judgebench(tmp_path / "sub" / "j.jsonl", lambda at: "B>A"))
    )
    for same in (tmp_path / "sub" / ".." / "j.jsonl", tmp_path / "j.jsonl"):  # not scored again
        assert list(sources_of(out)) == ["j", "rm", "j-2"]
        folder_of(tiny, out).add(read_dataset(str(same)))
    assert list(sources_of(out)) == ["j", "rm", "j-2"]
    file = out / "evaluation.json"
    content = json.loads(file.read_text()) | {"judge": "other"}
    del content["checksum"]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="another judge"):
        folder_of(tiny, out)
    assert folder_of(tiny, out, overwrite=True).sources == {}
    file.write_text("{")
    with pytest.raises(DataError, match="JSON"):
        folder_of(tiny, out)


def test_overwriting_a_source_keeps_the_others(tiny, tmp_path):
    out = tmp_path / "out"
    folder_of(tiny, out).add(read_dataset(judgebench(tmp_path / "j.jsonl")))
    folder_of(tiny, out).add(read_dataset(rm_bench(tmp_path / "rm.jsonl", 1)))
    changed = read_dataset(judgebench(tmp_path / "j.jsonl", lambda at: "B>A"))
    folder_of(tiny, out, overwrite=True).add(changed)
    assert list(sources_of(out)) == ["j", "rm"]
    alone = measure(tiny, "tiny", changed, MEMORY)[0]
    assert sources_of(out)["j"] == json.loads(json.dumps(alone.model_dump()))


def test_the_same_pairs_in_another_file_are_not_scored_again(tiny, tmp_path, caplog):
    source = Path(judgebench(tmp_path / "j.jsonl"))
    folder_of(tiny, tmp_path / "out").add(read_dataset(str(source)))
    moved = tmp_path / "moved.jsonl"
    source.rename(moved)
    found = folder_of(tiny, tmp_path / "out")
    with caplog.at_level(logging.WARNING, logger="gram_jax"):
        found.add(read_dataset(str(moved)))
    assert list(found.sources) == ["j"]
    assert "moved.jsonl" in caplog.text and "j.jsonl" in caplog.text


def test_a_folder_with_attacks_on_another_model_is_refused(tiny, tmp_path):
    out = tmp_path / "out"
    folder_of(tiny, out).add(read_dataset(judgebench(tmp_path / "j.jsonl")))
    about = json.loads((out / "evaluation.json").read_text()) | {"model": "another"}
    (out / "attack.json").write_text(json.dumps(about))
    folder_of(tiny, out)  # another name of the same weights
    (out / "attack.json").write_text(json.dumps(about | {"fingerprint": "0" * 16}))
    with pytest.raises(DataError, match=r"attack.json .* different weights: another"):
        folder_of(tiny, out)
    (out / "attack.json").write_text("{")  # the report says what is wrong with it
    folder_of(tiny, out)


def test_a_folder_that_cannot_be_made_is_named(tiny, tmp_path, monkeypatch):
    def fail(self, **kind):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(DataError, match="out cannot be made: Read-only file system"):
        folder_of(tiny, tmp_path / "out")


def test_every_figure_has_a_label_and_every_row_as_many_cells_as_columns(tmp_path):
    data = read_dataset(rm_bench(tmp_path / "rm.jsonl"))
    tables = source_tables(measure(GOOD, "m", data, MEMORY)[0])
    assert "RM-Bench, code" in [table.caption for table in tables]
    for table in tables:
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_evaluate_returns_what_evaluation_json_holds(tiny, tmp_path):
    source = judgebench(tmp_path / "j.jsonl")
    found = evaluate(tiny, [source], model="tiny", out=tmp_path / "out")
    assert read_results(tmp_path / "out", EvaluationResults) == found
    assert evaluate(tiny, [source], model="tiny").sources == found.sources
    with pytest.raises(DataError, match="nothing to evaluate on"):
        evaluate(tiny, [], model="tiny")


def test_benchmarks_of_the_hub_are_the_splits_that_published_figures_are_of():
    """350 pairs of JudgeBench are by GPT-4o; the split claude has 270 others."""
    assert HUB["judgebench"].endswith(":gpt")
    assert HUB["rewardbench"].endswith(":filtered")  # 2,985 pairs
