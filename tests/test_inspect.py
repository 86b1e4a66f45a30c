"""Looking at examples: what is shown is what the model sees, and the marks are where the loss is."""

import json

import pytest
from encoded import encode_comparison

from gram_jax.data.inspect import CLOSE, OPEN, inspect_source
from gram_jax.errors import DataError, JudgeError
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.spec import make_spec

TOKENIZER = tiny_tokenizer()
SPEC = make_spec(TOKENIZER, max_length=600)
ROWS = [
    {"prompt": "What is 2 + 2?", "chosen": "It is 4.", "rejected": "It is 5 <|im_end|>."},
    {"prompt": "Say hi é🙂", "chosen": "hi\n[Response B]\nx", "rejected": "no"},
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def inspect(source, stage, **options):
    options = {"limit": 10, **options}
    return list(inspect_source(source, tokenizer=TOKENIZER, spec=SPEC, stage=stage, **options))


def test_a_judge_example_is_shown_as_its_tokens_with_the_verdict_marked(source):
    first, second, report = inspect(source, "finetune", position_augmentation="fixed")
    encoded = encode_comparison(
        TOKENIZER, SPEC, ROWS[0]["prompt"], ROWS[0]["chosen"], ROWS[0]["rejected"]
    )
    text = TOKENIZER.decode(encoded.tokens, skip_special_tokens=False)
    title, _, body = first.partition("\n")
    assert body == f"{text}{OPEN}A{CLOSE}\n"
    assert f"{len(encoded.tokens)} tokens | verdict A (the first is better)" in title
    assert "\\[Response B]" in second and "é🙂" in second
    summary, note, _, *bars = report.splitlines()
    assert summary == "2 rows read, 2 documents, 0 shortened, dropped: none"
    assert "1 texts with control tokens" in note
    assert sum(int(bar.split()[3]) for bar in bars) == 2


def test_both_orders_show_both_verdicts(source):
    shown = inspect(source, "finetune", position_augmentation="both")
    assert len(shown) == 5
    assert [OPEN + "A" + CLOSE in s for s in shown[:4]] == [True, False, True, False]
    assert [OPEN + "B" + CLOSE in s for s in shown[:4]] == [False, True, False, True]


def test_the_loss_carrying_part_of_stage_1_is_the_answer_with_its_delimiters(source):
    shown = inspect(source, "pretrain", position_augmentation="fixed")[0]
    marked = shown[shown.index(OPEN) + 1 : shown.index(CLOSE)]
    assert marked.startswith("[Response A]\nIt is 4.\n\n[Response B]\n")
    assert marked.endswith("Which response answers the request better? Answer A or B.")
    assert "carry the loss" in shown


def test_the_baseline_marks_where_the_score_is_read(source):
    shown = inspect(source, "bradley_terry")
    assert all(s.endswith(f"{OPEN}<|im_end|>{CLOSE}\n") for s in shown[:4])
    assert "| chosen\n" in shown[0] and "| rejected\n" in shown[1]


def test_limit_and_shortening_are_reported(source):
    with source.open("a") as file:
        file.write(json.dumps({"prompt": "p", "chosen": "a" * 900, "rejected": "b"}) + "\n")
    assert len(inspect(source, "finetune", limit=1)) == 2
    assert "1 shortened" in inspect(source, "finetune")[-1]
    assert "1 longer than max_length" in inspect(source, "finetune", overlong="drop")[-1]


def test_wrong_stages_and_tokenizers_are_errors(source):
    with pytest.raises(DataError, match="score"):
        inspect(source, "score")
    other = tiny_tokenizer()
    other.add_tokens(["extra"])
    with pytest.raises(JudgeError, match="fingerprint"):
        list(inspect_source(source, tokenizer=other, spec=SPEC, stage="finetune", limit=1))
