"""The judge specification: one-token labels, templates that keep texts apart, a hash that tells judges apart."""

import dataclasses
import errno
import json
from dataclasses import replace

import pytest
from cli_runner import run_cli
from encoded import chat_tokens, encode_comparison, rendered_message
from families import family_tokenizer

from gram_jax.errors import JudgeError
from gram_jax.interop.tiny import CHAT_TEMPLATE, tiny_tokenizer
from gram_jax.judge.encode import encode_fitting_items, encode_items
from gram_jax.judge.labels import find_label_ids
from gram_jax.judge.recover import recover_template, take_apart
from gram_jax.judge.spec import FILE_NAME, JudgeSpec, check_tokenizer, check_verdicts, make_spec

TOKENIZER = tiny_tokenizer()
SPEC = make_spec(TOKENIZER)


def write(folder, text: str):
    path = folder / "template.txt"
    path.write_text(text)
    return path


# --- saving, loading, telling apart


def test_a_specification_survives_json_and_files(tmp_path):
    assert JudgeSpec.from_json(SPEC.to_json()) == SPEC
    assert SPEC.save(tmp_path) == tmp_path / FILE_NAME
    assert SPEC.save(tmp_path / "other.json") == tmp_path / "other.json"
    assert len(list(tmp_path.iterdir())) == 2
    for again in (JudgeSpec.load(tmp_path), JudgeSpec.load(tmp_path / "other.json")):
        assert again == SPEC and again.hash == SPEC.hash and hash(again) == hash(SPEC)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(JudgeSpec)])
def test_every_field_changes_the_hash(field):
    value = getattr(SPEC, field)
    other = {
        str: lambda v: v + "x",
        tuple: lambda v: v[::-1],
        bool: lambda v: not v,
        int: lambda v: v + 1,
        type(None): lambda v: "Be fair.",
    }[type(value)](value)
    changed = dataclasses.replace(SPEC, **{field: other})
    assert changed.hash != SPEC.hash and changed != SPEC


def test_the_hash_is_that_of_a_known_specification():
    """A change of this number means that saved judges are no longer recognised."""
    assert SPEC.hash == "3fc2147ae4a36c0bbea6fa538d95e9404d015064ec5a430c0923252304779095"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.pop("end_of_turn"), "end_of_turn"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.update(format=1), "format 2"),
        (lambda d: d.update(label_ids=[1]), "label_ids"),
        (lambda d: d.update(label_ids=[1, True]), "label_ids"),
        (lambda d: d.update(labels="AB"), "labels"),
        (lambda d: d.update(template=None), "template"),
        (lambda d: d.update(max_length=1.5), "max_length"),
        (lambda d: d.update(template="{prompt}"), "exactly once"),
    ],
)
def test_a_damaged_specification_is_an_error_that_names_the_file(tmp_path, damage, message):
    state = json.loads(SPEC.to_json())
    damage(state)
    (tmp_path / FILE_NAME).write_text(json.dumps(state))
    with pytest.raises(JudgeError, match=message) as error:
        JudgeSpec.load(tmp_path)
    assert FILE_NAME in str(error.value)


def test_a_missing_unreadable_or_unwritable_specification_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(JudgeError, match=r"judge\.json.* --model"):
        JudgeSpec.load(tmp_path)
    for content in (b"{", b"\xff\xfe"):
        (tmp_path / FILE_NAME).write_bytes(content)
        with pytest.raises(JudgeError, match=r"judge\.json"):
            JudgeSpec.load(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(JudgeError, match=r"judge\.json cannot be written: No space left"):
        SPEC.save(tmp_path)


@pytest.mark.parametrize("change", ["template", "max_length", "system", "hash"])
def test_one_changed_character_of_a_saved_specification_is_noticed(tmp_path, change):
    path = SPEC.save(tmp_path)
    state = json.loads(path.read_text())
    new = {"template": state["template"] + "?", "max_length": 2047, "system": "?"}
    path.write_text(json.dumps(state | {change: new.get(change, "0" * 64)}))
    with pytest.raises(JudgeError, match=r"judge\.json.*damaged or edited"):
        JudgeSpec.load(tmp_path)


def test_a_specification_that_was_edited_on_purpose_is_accepted(tmp_path):
    path = SPEC.save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 512}))
    assert run_cli("verify", path)[0] == 2
    assert run_cli("verify", path, "--accept")[0] == 0
    assert run_cli("verify", path)[0] == 0
    assert JudgeSpec.load(path) == replace(SPEC, max_length=512)
    without = {k: v for k, v in json.loads(path.read_text()).items() if k != "hash"}
    path.write_text(json.dumps(without | {"max_length": 1024}))
    assert JudgeSpec.load(path) == replace(SPEC, max_length=1024)


def test_a_tokenizer_that_does_not_belong_to_the_judge_is_noticed():
    check_tokenizer(SPEC, tiny_tokenizer())
    with pytest.raises(JudgeError, match="fingerprint"):
        check_tokenizer(SPEC, family_tokenizer("qwen3"))


@pytest.mark.parametrize(
    "change", [{"labels": ("B", "A")}, {"label_ids": (36, 35)}, {"label_ids": (70, 71)}]
)
def test_labels_that_contradict_their_ids_are_refused(change):
    with pytest.raises(JudgeError, match=r"35.*36|36.*35"):
        check_verdicts(replace(SPEC, **change), tiny_tokenizer())


def test_the_specification_alone_decides_the_tokens_not_the_tokenizers_chat_template():
    other = tiny_tokenizer(chat_template="{{ 'changed' }}" + CHAT_TEMPLATE)
    one = encode_comparison(TOKENIZER, SPEC, "p", "f", "s")
    assert encode_comparison(other, SPEC, "p", "f", "s").tokens.tolist() == one.tokens.tolist()


# --- labels


def test_a_two_token_label_is_an_error_that_names_tokenizer_label_and_tokens():
    with pytest.raises(JudgeError) as error:
        make_spec(TOKENIZER, labels=("AA", "B"))
    message = str(error.value)
    assert "'AA'" in message and "'tiny'" in message and "2 token(s): 'A' (35), 'A' (35)" in message
    assert "Labels that work here: 'A' and 'B'" in message


def test_trap_11_labels_belong_to_the_specification_and_blanks_count():
    with pytest.raises(JudgeError, match="2 token"):
        make_spec(TOKENIZER, labels=(" A", " B"))  # two tokens in this vocabulary
    spec = make_spec(TOKENIZER, labels=("1", "2"))
    assert spec.labels == ("1", "2") and "[Response 1]" in spec.template
    assert spec.label_ids == tuple(TOKENIZER.convert_tokens_to_ids(["1", "2"]))
    assert spec.hash != SPEC.hash


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("A", "A"), "same token as 'A'"),
        (("A", ""), "two labels"),
        (("A",), "two labels"),
        (("A", "<|im_end|>"), "control token"),
    ],
)
def test_labels_that_cannot_be_told_apart_or_are_none_are_errors(labels, message):
    with pytest.raises(JudgeError, match=message):
        make_spec(TOKENIZER, labels=labels)


def test_a_label_that_changes_the_tail_is_an_error():
    with pytest.raises(JudgeError, match="'wer' changes"):
        find_label_ids(family_tokenizer("qwen3"), "the ans", ("wer", "B"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('no') }}", "'user'.*: no"),
        ("x", "0 times"),
    ],
)
def test_a_tokenizer_without_a_usable_chat_template_is_an_error(template, message):
    with pytest.raises(JudgeError, match=message):
        make_spec(tiny_tokenizer(chat_template=template))


def test_a_slow_tokenizer_is_an_error():
    with pytest.raises(JudgeError, match="expected a fast tokenizer"):
        find_label_ids(object.__new__(type("Slow", (), {})), "x", ("A", "B"))


def test_a_budget_without_room_for_texts_is_an_error():
    for max_length in (0, 64):
        with pytest.raises(JudgeError, match=f"max_length = {max_length} "):
            make_spec(TOKENIZER, max_length=max_length)
    for encode in (encode_items, encode_fitting_items):
        with pytest.raises(JudgeError, match="max_length = 64 "):
            encode(TOKENIZER, SPEC.comparison, [("p", "f", "s")], 64)


def test_the_default_budget_is_the_context_or_2048():
    assert make_spec(tiny_tokenizer(context=700)).max_length == 700
    assert make_spec(tiny_tokenizer(context=10**30)).max_length == 2048


# --- templates


def test_a_template_file_replaces_the_default(tmp_path):
    text = 'Weigh {"json": [1]}.\n<q>\n{prompt}\n</q>\n<1>\n{first}\n<2>\n{second}\n</2>\nAnswer.'
    spec = make_spec(TOKENIZER, template=write(tmp_path, text + "\n"))
    assert spec.template == text
    encoded = encode_comparison(TOKENIZER, spec, "{first}", "{second}", "{prompt}")
    shown = TOKENIZER.decode(encoded.tokens, skip_special_tokens=False)
    assert "<q>\n{first}\n</q>\n<1>\n{second}\n<2>\n{prompt}\n</2>" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{prompt}\n1\n{first}\n", "field {second} exactly once; found it 0"),
        ("{prompt}\n1\n{first}\n2\n{second}\n{prompt}", "field {prompt} exactly once; found it 2"),
        ("{first}\n1\n{prompt}\n2\n{second}", "found first, prompt, second"),
        ("{prompt}\n1\n{second}\n2\n{first}", "found prompt, second, first"),
        ("{prompt}\n1\n{first} {second}", "separated by ' ' only"),
        ("{prompt}\n1\n{first}\n\n{second}", "separated by '\\n\\n' only"),
        ("{prompt}\n1\n{first}ab\nab\n{second}", "could complete it"),
        ("{prompt}\n\\1\n{first}\n2\n{second}", "backslash"),
        ("{prompt}\n[user turn]\n{first}\n2\n{second}", "own mark"),
        ("{prompt}\n[us{first}\n2\n{second}", "own mark"),
        ("{prompt}\n[…]\n{first}\n2\n{second}", "own mark"),
    ],
)
def test_a_template_that_cannot_keep_texts_apart_is_an_error(tmp_path, text, message):
    with pytest.raises(JudgeError) as error:
        make_spec(TOKENIZER, template=write(tmp_path, text))
    assert message in str(error.value)


def test_a_template_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("nowhere.txt", "binary"):
        with pytest.raises(JudgeError, match=f'{name}.* Expected "default", "from-dataset"'):
            make_spec(TOKENIZER, template=tmp_path / name)


# --- recovering a template from rendered rows

GRAM_LIKE = (
    "You see a question and two answers.\nSay which one is better.\n\n[User Question]\n{prompt}\n\n"
    "[The Start of Assistant A's Answer]\n{first}\n[The End of Assistant A's Answer]\n\n"
    "[The Start of Assistant B's Answer]\n{second}\n[The End of Assistant B's Answer]\n\n#Preferred: "
)
TEXTS = [
    ("What is 2 + 2?", "It is 4.\n\n```\n4\n```", "It is 5."),
    ("Where is Rome?\nBe brief.", "Italy.", "Sure!\n\n```\nItaly\n```\nIn Italy."),
    ("Write {prompt}.", "Sure!\n\nHere {x}.", "No."),
]


def rows_of(template: str, texts=TEXTS, labels=("A", "B")) -> list[dict[str, str]]:
    rendered = [rendered_message(template, *fields) for fields in texts]
    return [
        {"instruction": text, "input": "", "output": labels[at % 2]}
        for at, text in enumerate(rendered)
    ]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("labels", [("A", "B"), ("1", "2")])
def test_a_template_is_recovered_from_rendered_rows(count, labels):
    rows = rows_of(GRAM_LIKE, labels=labels)[:count]
    assert recover_template(rows) == (GRAM_LIKE, labels)
    for row, texts in zip(rows, TEXTS, strict=False):
        assert take_apart(GRAM_LIKE, row["instruction"]) == texts


def test_a_recovered_judge_renders_every_row_exactly_as_it_was():
    tokenizer = family_tokenizer("qwen3")
    spec = make_spec(tokenizer, template="from-dataset", rows=rows_of(GRAM_LIKE))
    assert spec.labels == ("A", "B")
    found = encode_items(tokenizer, spec.comparison, TEXTS, spec.max_length)
    for texts, encoded in zip(TEXTS, found, strict=True):
        assert encoded.tokens.tolist() == chat_tokens(tokenizer, spec, *texts)


def test_a_recovered_judge_has_no_date_header_as_in_the_reference_training():
    tokenizer = family_tokenizer("llama3")
    spec = make_spec(tokenizer, template="from-dataset", rows=rows_of(GRAM_LIKE))
    header = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    assert (spec.chat_prefix, spec.template) == (header, GRAM_LIKE)
    assert "Today Date" in make_spec(tokenizer).chat_prefix


def test_instruction_and_input_are_one_message():
    rows = rows_of(GRAM_LIKE)
    for row in rows:
        row["instruction"], _, row["input"] = row["instruction"].partition("\n")
    assert recover_template(rows)[0] == GRAM_LIKE


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_of(GRAM_LIKE)[:1], "at least two rows"),
        (rows_of(GRAM_LIKE)[::2], "two labels; found 1"),
        (rows_of("{prompt}\n--\n{first}\n--\n{second}"), "do not begin with a common line"),
        (rows_of("Judge.\n{prompt}\n--\n{first}\n==\n{second}"), "do not end with a common line"),
        (rows_of("Judge.\n{prompt}\n--\n{first}\n{second}\nEnd"), "the 3 rows share 1"),
        (rows_of(GRAM_LIKE, [(p, "yes", s) for p, _, s in TEXTS]), "share 1"),
        (rows_of(GRAM_LIKE, [("same", f, s) for _, f, s in TEXTS]), "share 1"),
        (
            rows_of(GRAM_LIKE, [(p, f"{f}\n[Note]\n{f}", s) for p, f, s in TEXTS]),
            "the 3 rows share 3",
        ),
        ([{"instruction": "x", "output": None}] * 2, "expected text in 'output'"),
        ([{"prompt": "x"}] * 2, "expected text in 'instruction'"),
    ],
)
def test_rows_that_leave_the_template_open_are_an_error_that_says_why(rows, message):
    with pytest.raises(JudgeError, match=message) as error:
        recover_template(rows)
    assert "--template" in str(error.value) and "judge.template" in str(error.value)


def test_a_row_that_holds_a_delimiter_is_named():
    delimiter = "[The End of Assistant A's Answer]"
    rows = rows_of(GRAM_LIKE, [*TEXTS, ("p", f"x\n{delimiter}\ny", "z")])
    with pytest.raises(JudgeError, match=r"row 3 .* 2 times"):
        recover_template(rows)
    # Once, and in its own place: the row is rendered as it was, but the delimiter is in a text.
    rows = rows_of(GRAM_LIKE, [*TEXTS, ("p", "x", "z\n[User Question]\nw")])
    with pytest.raises(JudgeError, match="row 3 "):
        recover_template(rows)


def test_from_dataset_without_rows_is_an_error():
    with pytest.raises(JudgeError, match="rendered rows"):
        make_spec(TOKENIZER, template="from-dataset")
