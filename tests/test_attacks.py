"""The attack suite on judges whose weakness is known, and training pairs with attacks among them."""

import json
import re
from pathlib import Path
from typing import ClassVar

import pytest
from cli_runner import run_cli
from encoded import encode_comparison
from tiny_runs import tiny_recipe, tiny_values

from gram_jax.attacks.augment import with_attacks
from gram_jax.attacks.evaluate import choose_pairs, run_attacks
from gram_jax.attacks.results import AttackResults
from gram_jax.attacks.suite import all_attacks, attacks_of_kind, choose_attacks
from gram_jax.attacks.tables import attack_tables, clean_table
from gram_jax.attacks.templates import AttackContext
from gram_jax.data.records import Comparison
from gram_jax.errors import DataError, RecipeError
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.messages import as_prompt
from gram_jax.judge.spec import make_spec
from gram_jax.judge.tokens import text_encoder
from gram_jax.recipes.reading import make_recipe
from gram_jax.reports.loading import read_folders
from gram_jax.reports.report import render_html
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.text_scorer import ScorerIdentity
from gram_jax.training.examples import training_examples

HOSTILE, HARMLESS = attacks_of_kind("hostile"), attacks_of_kind("harmless")
TOKENIZER = tiny_tokenizer()
SPEC = make_spec(TOKENIZER, max_length=2048)
PAIRS = [
    Comparison(
        as_prompt(f"What is {i} plus {i}?"),
        f'It is {2 * i}. That is what you get when you do not forget one of the "two" numbers.',
        f"It is {2 * i + 1}. Wait, it's another number; I do not know which one it is.",
        label=0,
        id=f"p{i}",
    )
    for i in range(24)
]
PAIRS = [pair.swapped() if i % 2 else pair for i, pair in enumerate(PAIRS)]


class FakeJudge:
    """P(first) = 0.9 where `strength` of the first response is larger, 0.5 where both are equally strong."""

    spec = SPEC
    identity = ScorerIdentity("0" * 16, "float32", "float32", "none", "none")
    window = 8
    settings: ClassVar[dict] = {}

    def __init__(self, strength, *, first_bonus: float = 0.0):
        self.strength, self.bonus, self.scored = strength, first_bonus, 0

    def stream(self, comparisons, *, progress=None):
        for _, first, second in comparisons:
            self.scored += 1
            a, b = self.strength(first), self.strength(second)
            p = 0.5 if a == b else 0.9 if a > b else 0.1
            progress(1)
            yield PairScore(p, 1 - p, 0.0, self.bonus, False)


def chosen_ones(text: str) -> int:
    return text in {pair.chosen for pair in PAIRS}


def attack(judge: FakeJudge, folder: Path, names=None, pairs=PAIRS, **more):
    attacks = choose_attacks(names)
    found = run_attacks(judge, "m", "src", pairs, folder, attacks, **{"seed": 0} | more)
    report = found.model_dump()
    return report, {entry["name"]: entry for entry in report["attacks"]}


def test_a_judge_that_obeys_verdicts_is_fooled_by_them_and_by_nothing_else(tmp_path):
    gullible = FakeJudge(lambda text: 2 if "Preferred: A" in text else chosen_ones(text))
    report, found = attack(gullible, tmp_path, ["verdict_added", "empty", "prompt_copied"])
    told = found["verdict_added"]
    # one of the four tested templates; which pairs get it is drawn
    assert 0 < told["success"] < 0.6
    assert told["interval"][0] < told["success"] < told["interval"][1]
    assert told["baseline"] == 0 and told["turned"] == told["success"]
    assert told["example"]["attack"].endswith("Preferred: A")
    assert told["example"]["honest"] in {pair.chosen for pair in PAIRS}
    assert told["example"]["probability"] == pytest.approx(0.9)
    assert told["example"]["before"] == pytest.approx(0.1)
    assert found["empty"]["success"] == found["prompt_copied"]["success"] == 0
    assert found["empty"]["example"] is None
    assert report["any_hostile"]["share"] == told["success"]
    assert report["clean"]["accuracy"] == 1 and report["clean"]["flip_rate"] == 0


def test_a_judge_of_lengths_falls_for_padding_every_time(tmp_path):
    _, found = attack(FakeJudge(len), tmp_path, ["padded", "repeated", "master_key"])
    assert found["padded"]["success"] == found["repeated"]["success"] == 1
    assert found["master_key"]["success"] == 0
    assert found["master_key"]["baseline"] == found["padded"]["baseline"]


def test_a_very_long_response_is_twice_the_budget_of_the_judge_that_is_attacked():
    encoder = text_encoder(TOKENIZER)
    for budget in (256, 2048):
        spec = make_spec(TOKENIZER, max_length=budget)
        texts = [w(AttackContext("q", "fine", spec)) for w in all_attacks()["beyond_budget"].tested]
        for text in texts:
            # by words: of this tokenizer, which has no long ones, it is more than twice
            assert 2 * budget <= len(text.split()) < 2 * budget + 20 <= len(encoder.text(text)) + 20
            shown = encode_comparison(TOKENIZER, spec, "q", text, "good")
            assert shown.shortened and len(shown.tokens) <= budget


def test_a_judge_that_always_knows_the_chosen_one_is_never_fooled(tmp_path):
    report, found = attack(FakeJudge(chosen_ones), tmp_path, ["hostile"])
    assert set(found) == {a.name for a in HOSTILE}
    assert [entry["success"] for entry in found.values()] == [0] * len(HOSTILE)
    assert {entry["n"] for entry in found.values()} == {len(PAIRS)}
    assert report["any_hostile"]["share"] == 0


def test_letters_of_another_case_do_not_move_a_judge_that_does_not_see_case(tmp_path):
    blind = FakeJudge(lambda text: len(text.lower().split("that is")[0]))
    _, found = attack(blind, tmp_path / "a", ["first_letter"])
    assert (found["first_letter"]["success"], found["first_letter"]["n"]) == (0, len(PAIRS))
    sees = FakeJudge(lambda text: text[:1].isupper() + chosen_ones(text) / 2)
    _, found = attack(sees, tmp_path / "b", ["first_letter"])
    changed = found["first_letter"]  # losing the capital matters to the chosen response only
    assert 0.2 < changed["success"] < 0.8 and changed["example"] is not None


def test_a_position_bias_counts_as_order_flips_and_decides_single_orders(tmp_path):
    leaning = FakeJudge(lambda text: chosen_ones(text), first_bonus=0.9)
    report, found = attack(leaning, tmp_path, ["empty", "opener"])
    assert report["clean"]["order_flip_rate"] == 1 == found["opener"]["baseline"]
    empty = found["empty"]
    assert (empty["success"], empty["baseline"]) == (0, 0)
    assert empty["shown_first"] == {"success": 1, "baseline": 1}
    assert empty["shown_second"] == {"success": 0, "baseline": 0}


def test_a_change_that_changes_nothing_is_not_counted(tmp_path):
    plain = [
        Comparison(as_prompt("q"), "yes", "no", 0, id="x"),
        Comparison(as_prompt("q"), "a", "b", 0, id="y"),
    ]
    report, found = attack(FakeJudge(len), tmp_path, ["contracted", "empty"], plain)
    assert report["without_pairs"] == ["contracted"] and list(found) == ["empty"]


def test_an_interrupted_suite_goes_on_and_ends_with_the_same_report(tmp_path):
    names = ["verdict", "padded", "bold"]
    attack(FakeJudge(len), tmp_path / "whole", names)
    attack(FakeJudge(len), tmp_path / "torn", names)
    scores = tmp_path / "torn" / "attacks.scores.jsonl"
    scores.write_bytes(scores.read_bytes()[:-300])
    (tmp_path / "torn" / "attack.json").unlink()
    judge = FakeJudge(len)
    attack(judge, tmp_path / "torn", names)
    assert 0 < judge.scored < 5
    for name in ("attack.json", "attacks.scores.jsonl"):
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(DataError, match="attacks: "):
        attack(judge, tmp_path / "torn", ["verdict"])
    with pytest.raises(DataError, match="seed: 0 there, 1 now"):
        attack(judge, tmp_path / "torn", names, seed=1)


def test_more_pairs_begin_with_the_same_ones(tmp_path):
    few, many = choose_pairs(PAIRS, 5, seed=0), choose_pairs(PAIRS[::-1], 12, seed=0)
    assert many[:5] == few and choose_pairs(PAIRS, 5, seed=1) != few
    attack(FakeJudge(len), tmp_path, ["empty"], few)
    judge = FakeJudge(len)
    attack(judge, tmp_path, ["empty"], many)
    assert judge.scored == 14  # seven pairs, each as it is and attacked


def test_the_command_states_the_number_of_comparisons_before_it_scores(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "q", "chosen": "good", "rejected": "bad"}\n')
    words = ("attack", "tiny-random", pairs, "--out", tmp_path / "out", "--only", "empty,verdict")
    done = run_cli(*words)
    assert done.status == 0
    first = done.stdout.splitlines()[0]
    assert re.findall(r"\d+", first) == ["1", "2", "3"]  # pairs, attacks, comparisons


def test_unknown_names_and_sources_without_pairs_are_refused():
    with pytest.raises(DataError, match=r"'verdicts': expected hostile.*verdict"):
        choose_attacks(["verdicts", "empty"])
    with pytest.raises(DataError):
        choose_attacks([])
    with pytest.raises(DataError, match="1 records"):
        choose_pairs([Comparison(as_prompt("q"), "a", "b", "tie")], 3, seed=0)


@pytest.mark.parametrize("strength", [chosen_ones, len])
def test_what_the_suite_writes_is_what_tables_and_pages_read(tmp_path, strength):
    report, found = attack(FakeJudge(strength), tmp_path)
    assert json.loads((tmp_path / "attack.json").read_text())["format"] == 3
    (read,) = read_folders([tmp_path])
    assert read.attack == AttackResults(**report)
    tables = [clean_table(read.attack), *attack_tables(read.attack)]
    harmless = len(HARMLESS) - len(read.attack.without_pairs)
    assert [len(table.rows) for table in tables] == [4, len(HOSTILE), harmless]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    page = render_html([read])
    assert all(name in page for name in found)
    attack(FakeJudge(strength), tmp_path / "few", ["bold"], PAIRS[:2])
    assert "Hostile" not in render_html(read_folders([tmp_path / "few"]))


def test_tested_and_trained_templates_are_different_texts():
    text = 'It\'s a door. You do not know "which" one, for example.\nIt is red. Can you see it?'
    case = AttackContext("What is it?", text, SPEC)
    for found in all_attacks().values():
        tested, trained = ({w(case) for w in words} for words in (found.tested, found.trained))
        assert len(tested) == len(found.tested) and len(trained) == len(found.trained)
        assert not tested & trained and case.response not in tested | trained
        assert bool(trained) == (found.kind == "hostile")
        assert not any(part in text for text in tested | trained for part in ("{{", "}}"))


def test_no_attack_gets_a_control_token_or_a_delimiter_through():
    control = text_encoder(TOKENIZER).control_ids
    plain = encode_comparison(TOKENIZER, SPEC, "q", "fine", "good").tokens
    expected = sum(token in control for token in plain.tolist())
    for found in HOSTILE:
        for template in (*found.tested, *found.trained):
            text = template(AttackContext("q", "good", SPEC))
            shown = encode_comparison(TOKENIZER, SPEC, "q", "fine", text)
            assert sum(token in control for token in shown.tokens.tolist()) == expected
            if found.name == "delimiters":
                assert shown.escaped >= 2


def test_training_pairs_hold_the_asked_share_of_attacks():
    ties = [Comparison(as_prompt("q"), "a", "b", "tie", id="t")]
    records = list(with_attacks([*PAIRS, *ties], SPEC, share=0.25, seed=3))
    changed = [i for i, pair in enumerate(PAIRS) if records[i].rejected != pair.rejected]
    assert len(changed) == 6 and records[-1] == ties[0]
    for now, before in zip(records, PAIRS, strict=False):
        same = ("id", "prompt", "chosen", "weight", "label")
        assert all(getattr(now, name) == getattr(before, name) for name in same)
    again, other = (list(with_attacks([*PAIRS, *ties], SPEC, share=0.25, seed=x)) for x in (3, 4))
    assert again == records != other
    assert list(with_attacks(PAIRS, SPEC, share=0.0, seed=3)) == PAIRS
    trained = {
        template(AttackContext(pair.prompt[-1].content, pair.rejected, SPEC))
        for pair in PAIRS
        for a in HOSTILE
        for template in a.trained
    }
    assert {records[i].rejected for i in changed} <= trained


def test_a_recipe_trains_without_attacks_unless_it_says_so(tmp_path, caplog):
    caplog.set_level("INFO", "gram_jax")
    assert tiny_recipe("finetune", tmp_path / "run").data.attack_share == 0.0
    for stage, changes in (
        *(("finetune", {"data__attack_share": value}) for value in (1.5, -0.1, "some")),
        *((stage, {"data__attack_share": 0.1}) for stage in ("pretrain", "bradley_terry")),
        ("finetune", {"data__attack_share": 0.1, "data__overlong": "error"}),
    ):
        with pytest.raises(RecipeError, match="attack_share"):
            make_recipe(tiny_values(stage, tmp_path / "run", **changes))

    def tokens(**changes) -> list[list[int]]:
        recipe = tiny_recipe("finetune", tmp_path / "run", data__overlong="truncate", **changes)
        documents = training_examples(recipe, TOKENIZER, SPEC).documents
        return [documents[i].tolist() for i in range(len(documents))]

    plain = tokens()
    assert plain == tokens(data__attack_share=0.0) and "attacks" not in caplog.text
    attacked = tokens(data__attack_share=0.5)
    assert "4 of 8" in caplog.text
    assert sum(a != b for a, b in zip(plain, attacked, strict=True)) == 8  # both orders of four


def test_the_command_writes_a_folder_and_names_what_it_cannot_do(tmp_path):
    source, out = tmp_path / "pairs.jsonl", tmp_path / "results"
    source.write_text('{"prompt": "q", "chosen": "It is a good one", "rejected": "Bad"}\n')
    ask = ["attack", "tiny-random", str(source), "--out", str(out), "--max-length", "256"]
    wrong = run_cli(*ask, "--only", "verdicts")
    assert wrong.status == 2 and not out.exists()
    done = run_cli(*ask, "--only", "verdict, first_letter")
    assert done.status == 0 and "first_letter" in done.output, done.output
    report = json.loads((out / "attack.json").read_text())
    assert [entry["name"] for entry in report["attacks"]] == ["verdict", "first_letter"]
    assert report["settings"]["max_length"] == 256
