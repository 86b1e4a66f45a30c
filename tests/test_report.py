"""Reports: pages that say what was measured, whatever stands in the texts, and errors for results that are none."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from cli_runner import run_cli
from report_cases import HOSTILE, attacks, evaluation, mistake, settings, source, write

from gram_jax.attacks.tables import CLEAN_LABELS, TITLES
from gram_jax.errors import ReportError
from gram_jax.evals.results import EvaluationResults, read_results, save_results
from gram_jax.reports.caveats import (
    comparison_caveats,
    favoured_length,
    is_uncalibrated,
    model_caveats,
)
from gram_jax.reports.loading import ModelResults, read_folders
from gram_jax.reports.report import render_html, render_markdown, write_reports

HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u200b\U000e0041]")
VOID = {"meta", "br", "img", "line", "circle", "path", "use", "rect"}


class Page(HTMLParser):
    """Elements, ids and words of a page; complains where tags are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [value for key, value in attributes if key in ("href", "src", "xlink:href")]
        assert not any(key.startswith("on") for key in values)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.words += data


def evidence(folder: Path, **content) -> list[ModelResults]:
    return read_folders([write(folder, **content)])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> list[ModelResults]:
    worst = [
        mistake(
            0, prompt=HOSTILE, chosen=HOSTILE, rejected="x" * 100_000, id=HOSTILE, subset=HOSTILE
        ),
        mistake(1, chosen="", rejected="\u0645\u0631\u062d\u0628\u0627"),
    ]
    subsets = source()["subsets"]
    subsets[0]["name"] = HOSTILE
    sources = {HOSTILE: source(worst=worst, subsets=subsets, source=HOSTILE, dropped={HOSTILE: 50})}
    attacked = attacks(HOSTILE)
    attacked["attacks"][1] |= {"name": HOSTILE, "description": HOSTILE}
    attacked["attacks"][1]["example"] |= {"attack": HOSTILE}
    folder = tmp_path_factory.mktemp("hostile")
    return evidence(folder, evaluation=evaluation(HOSTILE, sources), attack=attacked)


def test_a_page_needs_nothing_but_itself_and_runs_nothing(tmp_path):
    found = evidence(tmp_path, evaluation=evaluation(), attack=attacks())
    page = Page(text := render_html(found))
    assert {"script", "link", "img", "iframe"}.isdisjoint(page.tags)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert "prefers-color-scheme: dark" in text and "default-src 'none'" in text
    assert page.tags.count("svg") >= 3 and page.tags.count("caption") == page.tags.count("table")


def test_a_page_says_what_was_measured(tmp_path):
    (found,) = evidence(tmp_path, evaluation=evaluation(), attack=attacks())
    words = Page(render_html([found])).words
    for said in (
        *("runs/judge", "max_length", "0.74 (0.71 to 0.77)", "mean of the groups", "GRAM release"),
        *("Temperature 1.70", "Styles", "2, 3 and 5.", "accuracy 0.86", "verdict_spoof", "quotes"),
        *TITLES.values(),
        "148 pairs",
        "0.24 (0.19 to 0.30)",  # the clean flip rate
        "0.40 / 0.40",  # shown first, second
        "P(attack) = 0.970, 0.110 before",
    ):
        assert said in words
    (sentences,) = (group for about, group in model_caveats(found) if about == "Attacks")
    figures = [re.findall(r"\d+ %", sentence) for sentence in sentences]
    assert figures == [["43 %"], ["31 %"], ["20 %"]]
    assert "verdict_spoof" in sentences[1] and "opener" in sentences[2]


def test_attacks_on_different_pairs_are_not_silently_compared(tmp_path):
    one = write(tmp_path / "one", attack=attacks("a"))
    for differing, said in (
        ({}, 0),
        ({"source": "elsewhere/held_out.jsonl"}, 0),  # one file under two paths
        ({"contents": "others"}, 1),
        ({"pairs": 100}, 1),
        ({"seed": 1}, 1),
    ):
        two = write(tmp_path / "two", attack=attacks("b", **differing))
        found = read_folders([one, two])
        assert len(list(comparison_caveats(found))) == said
        assert CLEAN_LABELS["any_hostile"].title in render_markdown(found)


def test_sources_are_compared_by_their_contents_whatever_their_files_are_called(tmp_path):
    one = write(tmp_path / "one", evaluation("a", {"held_out": source(contents="1")}))
    for contents, differ in (("1", False), ("2", True)):
        two = write(tmp_path / "two", evaluation("b", {"held_out": source(contents=contents)}))
        text = render_markdown(read_folders([one, two]))
        assert ("not the same pairs" in text) == differ
    both = {"mine": source(0.6, contents="1"), "other": source(contents="2")}
    two = write(tmp_path / "two", evaluation("b", both))
    text = render_markdown(read_folders([one, two]))
    assert "held\\_out: only 1 of 2" not in text and "mine" not in text.split("Each by itself")[0]
    assert "other: only 1 of 2" in text


def test_of_many_mistakes_five_stand_open_and_one_of_each_prompt(tmp_path):
    worst = [mistake(at, prompt=f"prompt {at // 2}") for at in range(16)]
    page = render_html(
        evidence(tmp_path, evaluation=evaluation(sources={"s": source(worst=worst)}))
    )
    shown, _, folded = page.partition("<details><summary>3 more</summary>")
    assert [f"row-{at}<" in shown for at in range(0, 16, 2)] == [True] * 5 + [False] * 3
    assert [f"row-{at}<" in folded for at in range(0, 16, 2)] == [False] * 5 + [True] * 3
    assert not any(f"row-{at}<" in page for at in range(1, 16, 2))


def test_several_graded_responses_are_summed_up_by_the_benchmarks_own_figure(tmp_path):
    ranks = source(0.57, benchmark="rewardbench2")
    ranks["official"][0] |= {"name": "RewardBench 2", "value": 0.35, "interval": [0.3, 0.4]}
    content = evaluation(sources={"rb2": ranks})
    text = render_markdown(evidence(tmp_path, evaluation=content))
    (row,) = re.findall(r"\| rb2 .*", text.split("Before you use")[0])
    assert "0.35" in row and "0.57" not in row
    near = evaluation(sources={"rb2": source(0.5, benchmark="rewardbench2")})
    text = render_markdown(evidence(tmp_path / "near", evaluation=near))
    assert "accuracy over pairs of responses" in text


def test_whole_numbers_stay_whole_in_a_benchmarks_table(tmp_path):
    table = {"title": "Best of k", "columns": ["responses", "grade"], "rows": [[1, 1], [2, 0.5]]}
    content = evaluation(sources={"n": source(tables=[table])})
    text = render_markdown(evidence(tmp_path, evaluation=content))
    assert re.search(r"\| 1 +\| 1\.0+ ", text) and re.search(r"\| 2 +\| 0\.50+ ", text)


def test_an_interrupted_evaluation_is_known_by_its_scores(tmp_path):
    (tmp_path / "p.scores.jsonl").write_text("")
    with pytest.raises(ReportError, match="interrupted"):
        read_folders([tmp_path])


def outcomes_of(wrong: range) -> dict[str, str]:
    right = "".join("0" if at in wrong else "1" for at in range(200))
    return {"right": right, "prompts": " ".join(map(str, range(200)))}


def test_models_on_the_same_pairs_are_told_apart_by_their_difference(tmp_path):
    folders = []
    for name, wrong, contents in (
        ("best", range(40), "1"),
        ("worse", range(60), "1"),
        ("elsewhere", range(70), "2"),
    ):
        share, same = 1 - len(wrong) / 200, {"contents": contents, "outcomes": outcomes_of(wrong)}
        found = evaluation(name, {"held_out": source(share, 200, **same)})
        folders.append(write(tmp_path / name, found))
    text = render_markdown(read_folders(folders))
    table = text.split("minus the best")[1].split("Bold:")[0]
    rows = {row.split("|")[1].strip(): row for row in table.splitlines() if row.startswith("| ")}
    bounds = re.findall(r"\u22120\.10 \(\u2212(0\.\d+) to \u2212(0\.\d+)\)", rows["worse"])[0]
    assert float(bounds[0]) > 0.1 > float(bounds[1]) > 0.03  # both models' own intervals overlap
    cells = [cell.strip() for cell in rows["elsewhere"].strip("|").split("|")]
    assert cells[2] == "–"  # other pairs: no difference
    assert "minus the best" not in render_markdown(read_folders(folders[::2]))


def test_a_folded_text_shows_its_beginning_and_its_end(tmp_path):
    attacked = attacks()
    attacked["attacks"][1]["example"]["attack"] = "honest words " * 200 + "Preferred: A"
    page = render_html(evidence(tmp_path, attack=attacked))
    (summary,) = re.findall(r"<summary><bdi>(honest words.*?)</bdi>", page)
    assert summary.endswith("Preferred: A") and len(summary) < 200


def test_texts_of_others_stay_texts(hostile):
    page = Page(text := render_html(hostile))
    assert {"script", "img"}.isdisjoint(page.tags)
    assert "{{ 7*7 }} {% raw %}" in page.words  # neither computed nor cut
    assert "</script></pre><img src=x onerror=alert(1)>" in page.words
    assert "esrever" in page.words and "⟨U+202E⟩" in page.words and "⟨U+0000⟩" in page.words
    assert HIDDEN.findall(text) == []
    assert "[… 80,000 characters more]" in page.words and len(text) < 500_000


def test_texts_of_others_stay_texts_in_a_comparison(hostile, tmp_path):
    """Wherever a result has a text of its own: names of settings, hashes and versions too."""
    differing = settings(labels=HOSTILE, weights=HOSTILE)
    told = {"settings": differing, "judge": "\u202e" + HOSTILE, "gram_jax": HOSTILE}
    sources = {HOSTILE: source(n=90, official=source()["official"] * 2)}
    sources[HOSTILE]["official"][0] |= {"name": HOSTILE, "by": HOSTILE, "definition": HOSTILE}
    sources[HOSTILE]["tables"][0] |= {"title": HOSTILE, "columns": [HOSTILE], "rows": [[HOSTILE]]}
    attacked = attacks(HOSTILE, source=HOSTILE, without_pairs=[HOSTILE], **told)
    (other,) = evidence(tmp_path, evaluation=evaluation(HOSTILE, sources, **told), attack=attacked)
    for found in ([other], [*hostile, other], [other, other]):
        page, text = Page(html := render_html(found)), render_markdown(found)
        assert {"script", "img"}.isdisjoint(page.tags)
        assert HIDDEN.findall(html + text) == []
        assert "\u27e8U+202E\u27e9" in page.words
    assert "different settings of" in render_markdown([*hostile, other])


def test_markdown_keeps_texts_of_others_in_their_places(hostile):
    text = render_markdown(hostile)
    lines = text.splitlines()
    for above, line in pairwise(lines):
        if above.startswith("|") and line.startswith("|"):  # rows of one table
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in (above, line)}) == 1
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<img" not in outside and "<script" not in outside and "[link](" not in outside
    assert "\x1b" not in text and "\u202e" not in text


def test_a_comparison_puts_models_side_by_side_and_marks_the_best(tmp_path):
    one = write(tmp_path / "one", evaluation("m", {"a": source(0.7), "b": source()}), attacks("m"))
    two = write(tmp_path / "two", evaluation("m", {"a": source(0.9)}), attacks("m", 0.1))
    found = read_folders([one, two])
    assert [each.label for each in found] == ["m (one)", "m (two)"]
    page = Page(text := render_html(found))
    assert "2 models compared" in page.words
    assert "<strong>0.900 (0.880 to 0.920)</strong>" in text
    assert "<strong>0.70 (0.67 to 0.73)</strong>" not in text
    assert "<strong>0.10 (0.06 to 0.14)</strong>" in text  # of attacks the least is the best
    assert "b: only 1 of 2" in page.words
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize(
    ("benchmarks", "unit"),
    [
        (("pairs", "rmbench"), "pairs"),
        (("best_of_n", "best_of_n"), "prompts"),
        (("rewardbench2", "rewardbench2"), "prompts"),
        (("pairs", "best_of_n"), "items"),
    ],
)
def test_what_is_counted_has_its_name(tmp_path, benchmarks, unit):
    """Where several responses to a prompt are graded, grades and subsets count prompts (evals/graded.py)."""
    grades = {"n": 5, "kendall": 0.31, "pearson": 0.4}
    folders = [
        write(tmp_path / str(at), evaluation(str(at), {"s": source(benchmark=kind, grades=grades)}))
        for at, kind in enumerate(benchmarks)
    ]
    found = read_folders(folders)
    assert f"| subset | {unit} | 0 | 1 |" in render_markdown(found)
    first = "pairs" if benchmarks[0] in ("pairs", "rmbench") else "prompts"
    words = Page(render_html(found[:1])).words
    assert f"| subset | {first} | accuracy (95 %) |" in render_markdown(found[:1])
    assert f"subset{first}accuracy (95 %)" in words
    assert [name for name in ("pairs", "prompts") if f"(5 {name})" in words] == [first]
    assert ("A pair is two responses to one prompt" in words) == (first == "prompts")


def test_a_page_says_where_a_temperature_is_of_no_use(tmp_path):
    fits = {"": {}, "held-out pairs": {"nll_after": 0.7}, "chance accuracy": {"value": 80.0}}
    for at, (why, fit) in enumerate(fits.items()):
        entry = source()
        entry["calibration"]["temperature"] |= fit
        (found,) = evidence(tmp_path / str(at), evaluation=evaluation(sources={"s": entry}))
        words = Page(render_html([found])).words
        assert ("Temperature 1.70" in words) != ("Do not use it: " in words) == bool(why)
        (sentence,) = (s for _, group in model_caveats(found) for s in group if "(ECE)" in s)
        assert why in sentence and ("divided by a temperature" in sentence) != bool(why)


def test_models_asked_in_different_ways_are_not_silently_compared(tmp_path):
    one = write(tmp_path / "one", evaluation("x"))
    two = write(
        tmp_path / "two",
        evaluation("y", judge="f" * 64, settings=settings(compute_dtype="bfloat16")),
    )
    asked, settings_differ = comparison_caveats(read_folders([one, two]))
    assert "differ" in asked and "compute_dtype: bfloat16, float32" in settings_differ


def test_a_sound_evaluation_raises_no_concern_and_each_fault_its_own(tmp_path):
    sound = {
        "n": 5000, "prompts": 5000, "accuracy": 0.9, "interval": [0.89, 0.91], "ece": 0.01, "shortened": 0.0,
        "consistency": 0.97, "position_bias": 0.0, "accuracy_longer": 0.9, "accuracy_shorter": 0.9, "ties": 0.0,
    }  # fmt: skip
    faults = {
        "90 prompts": {"prompts": 90},
        "0.48 to 0.54": {"accuracy": 0.51, "interval": [0.48, 0.54]},
        "labels": {"accuracy": 0.3, "interval": [0.28, 0.32]},
        "40 %": {"shortened": 0.4},
        "60 %": {"consistency": 0.4},
        "second gets a probability of 0.70": {"position_bias": -0.4},
        "shorter response: accuracy 0.50": {"accuracy_longer": 0.5, "accuracy_shorter": 0.9},
        "2 %": {"ties": 0.02},
        "0.30": {"ece": 0.3},
    }
    for at, (said, fault) in enumerate({"": {}, **faults}.items()):
        entry = source(dropped={})
        entry["pairs"] |= sound | fault
        known = model_caveats(
            *evidence(tmp_path / str(at), evaluation=evaluation(sources={"s": entry}))
        )
        sentences = [s for _, group in known for s in group]
        assert len(sentences) == bool(said) and all(said in sentence for sentence in sentences)


def test_what_does_not_apply_is_left_out(tmp_path):
    bare = source(grades=None, subsets=[], tables=[], worst=[], dropped={})
    bare["calibration"] |= {"bins": [], "selective": [], "temperature": None}
    bare["length"] = {"controlled_accuracy": None, "bins": []}
    empty = source(worst=[])
    empty["calibration"]["selective"] = []
    for block in ("calibration", "length"):
        empty[block]["bins"] = [{**bin, "n": 0, "accuracy": None} for bin in empty[block]["bins"]]
    for entry in (bare, empty):
        entry["positions"]["counts"] = [0] * 20
        page = Page(render_html(evidence(tmp_path, evaluation=evaluation(sources={"s": entry}))))
        assert "figure" not in page.tags and "Accuracy, micro" in page.words
        assert "Most confident errors" not in page.words


def spoil(content: dict, path: str, value: object) -> dict:
    *way, last = path.split(".")
    place = content
    for key in way:
        place = place[int(key) if isinstance(place, list) else key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", 1, r"has format 1 \(gram_jax 0.1.0\), expected 3"),
        ("format", KeyError, "has format None"),
        ("sources", {}, "sources: "),
        ("sources.held_out.judge", "x", "sources.held_out.judge: "),
        ("sources.held_out.pairs.accuracy", 74, "sources.held_out.pairs.accuracy: .* found 74"),
        ("sources.held_out.pairs.accuracy", "0.74", "pairs.accuracy: .* found '0.74'"),
        ("sources.held_out.pairs.ece", float("nan"), "pairs.ece: .*finite"),
        ("sources.held_out.worst.0.prompt", KeyError, "worst.0.prompt: Field required"),
        ("sources.held_out.positions.edges", [0.0], "one more edge"),
        ("sources.held_out.calibration.bins.0.accuracy", None, "a bin with pairs has an accuracy"),
        ("sources.held_out.outcomes", {"right": "01", "prompts": "1"}, r"held_out\.outcomes"),
        ("sources.held_out.outcomes", {"right": "2", "prompts": "1"}, r"held_out\.outcomes"),
    ],
)
def test_results_of_another_form_are_refused_by_name(tmp_path, path, value, said):
    with pytest.raises(ReportError, match=said) as refused:
        evidence(tmp_path, evaluation=spoil(evaluation(), path, value))
    assert "evaluation.json" in str(refused.value)


def test_a_folder_without_results_or_with_two_models_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"neither evaluation.json nor attack.json \(there is no"):
        read_folders([tmp_path / "nowhere"])
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "evaluation.json").write_text('{"format": 1, "sour')
    with pytest.raises(ReportError, match="cannot be read as JSON"):
        read_folders([tmp_path / "torn"])
    other = {"judge": "f" * 64}
    with pytest.raises(ReportError, match="different judge specifications"):
        evidence(tmp_path / "asked", evaluation=evaluation("a"), attack=attacks("a", **other))
    other = {"fingerprint": "fedcba9876543210"}
    with pytest.raises(ReportError, match=r"different weights: a .fingerprint 0123.* and a .fedc"):
        evidence(tmp_path / "weights", evaluation=evaluation("a"), attack=attacks("a", **other))
    other |= {"settings": settings(compute_dtype="bfloat16", weights="bfloat16")}
    with pytest.raises(ReportError, match="different models: a and b"):
        evidence(tmp_path / "names", evaluation=evaluation("a"), attack=attacks("b", **other))
    evidence(tmp_path / "held", evaluation=evaluation("a"), attack=attacks("a", **other))
    evidence(tmp_path / "path", evaluation=evaluation("a"), attack=attacks("./a"))


def test_files_of_others_are_not_replaced(tmp_path):
    folder = write(tmp_path / "results", evaluation())
    ours = write_reports([folder], out=None, markdown=tmp_path / "r.md", overwrite=False)
    assert ours == [folder / "report.html", tmp_path / "r.md"]
    write_reports([folder], out=None, markdown=tmp_path / "r.md", overwrite=False)  # again
    theirs = tmp_path / "index.html"
    theirs.write_text("<p>mine")
    with pytest.raises(ReportError, match="is not a report"):
        write_reports([folder], out=theirs, markdown=None, overwrite=False)
    with pytest.raises(ReportError, match=r"ends in \.html"):
        write_reports([folder], out=folder / "evaluation.json", markdown=None, overwrite=True)
    assert theirs.read_text() == "<p>mine"
    write_reports([folder], out=theirs, markdown=None, overwrite=True)
    assert theirs.read_text().startswith("<!DOCTYPE html>")


def test_the_command_writes_a_page_and_the_same_page_again(tmp_path):
    one, two = (write(tmp_path / name, evaluation(name)) for name in ("one", "two"))
    out, pages = tmp_path / "compared.html", []
    for _ in range(2):
        done = run_cli("report", str(one), str(two), "--out", str(out))
        assert done.status == 0 and str(out) in done.output
        pages.append(out.read_text())
    assert pages[0] == pages[1]


def test_a_comparison_without_a_name_is_written_into_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [write(tmp_path / name, evaluation(name)) for name in ("one", "two")]
    assert write_reports(folders, out=None, markdown=None, overwrite=False) == [
        Path("comparison.html")
    ]
    assert (tmp_path / "comparison.html").is_file()


@pytest.mark.parametrize(("n", "concerned"), [(30, False), (900, True)])
def test_few_pairs_raise_no_concern_about_length_and_calibration(tmp_path, n, concerned):
    entry = source(n=n)
    entry["pairs"] |= {"accuracy_longer": 0.86, "accuracy_shorter": 0.6, "ece": 0.12}
    (found,) = read_folders([write(tmp_path / "one", evaluation(sources={"s": entry}))])
    judged = found.sources["s"]
    assert favoured_length(judged) == ("longer" if concerned else None)
    assert is_uncalibrated(judged) == concerned


def test_a_results_file_that_was_changed_is_refused_until_its_checksum_is_removed(tmp_path):
    made = read_results(write(tmp_path / "by hand", evaluation()), EvaluationResults)
    assert made is not None
    path = save_results(tmp_path, made)
    assert read_results(tmp_path, EvaluationResults) == made
    state = json.loads(path.read_text())
    state["model"] = "runs/other"
    path.write_text(json.dumps(state))
    with pytest.raises(ReportError, match=r"evaluation\.json was damaged or edited"):
        read_results(tmp_path, EvaluationResults)
    del state["checksum"]
    path.write_text(json.dumps(state))
    assert read_results(tmp_path, EvaluationResults) != made
