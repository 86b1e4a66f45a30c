"""Untrusted files: one that is too large, too deep or without an end is an error that names the file."""

import copy
import datetime
import gzip
import json
import struct
import time
import tomllib
from pathlib import Path

import pytest
from families import FAMILIES, family_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gram_jax import limits
from gram_jax.data import csv_rows, sources
from gram_jax.errors import CheckpointError, DataError, JudgeError, RecipeError
from gram_jax.files import read_json
from gram_jax.interop.gguf import open_gguf
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.chat import chat_frame
from gram_jax.judge.chat_template import render_chat_template
from gram_jax.judge.tokenizer import wrap_tokenizer
from gram_jax.judge.tokens import text_encoder
from gram_jax.recipes.reading import read_recipe

DATE = datetime.date(2024, 7, 26)
ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.fixture
def small(monkeypatch):
    """Limits that small files exceed."""
    for module in (limits, sources, csv_rows):
        monkeypatch.setattr(module, "MAX_LINE", 2**21, raising=False)
    monkeypatch.setattr(sources, "MAX_LIST", 2**22)
    monkeypatch.setattr(limits, "MAX_VALUES", 10_000)
    monkeypatch.setattr(limits, "FREE_GZIP", 2**20)


def rows_of(path: Path, content: bytes) -> list[dict]:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return [row.fields for row in sources.read_rows(path)]


def test_rows_of_every_length_below_the_limits_are_read(tmp_path, small):
    rows = [ROW | {"prompt": "x" * n} for n in (1, 2**20 - 1, 2**20, 2**21 - 100)]
    text = "\n".join(map(json.dumps, rows)).encode()
    assert rows_of(tmp_path / "x.jsonl", text) == rows
    assert rows_of(tmp_path / "x.json", json.dumps(rows[:2]).encode()) == rows[:2]
    table = b"prompt,chosen,rejected\n" + b"\n".join(
        f'"{row["prompt"]}\n",a,b'.encode() for row in rows[:3]
    )
    assert len(rows_of(tmp_path / "x.csv", table)) == 3


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("x.jsonl", b"x" * 2**23, "GRAM_JAX_MAX_LINE_MB"),
        ("x.jsonl", b"[" + b"[]," * 10_000 + b"[]]", "GRAM_JAX_MAX_JSON_MILLION_VALUES"),
        ("x.jsonl", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "GRAM_JAX_MAX_JSON|deeply"),
        ("x.json", b"[" + b" " * 2**22 + b"]", "more than 4,194,304 bytes"),
        ("x.csv", b"x" * 2**23, "GRAM_JAX_MAX_LINE_MB"),
        ("x.csv", b"a,b\n" + b'"\n",' * 2**20, "a row of more than"),
        ("x.jsonl.gz", json.dumps(ROW).encode() + b"\n" * 2**23, "GRAM_JAX_MAX_GZIP_RATIO"),
        ("x.csv.gz", b"a,b\n" + b"1,2\n" * 2**21, "GRAM_JAX_MAX_GZIP_RATIO"),
    ],
)
def test_a_file_without_end_is_refused_by_the_limit(tmp_path, small, name, content, named):
    with pytest.raises(DataError, match=named):
        rows_of(tmp_path / name, content)


def test_a_config_that_is_too_large_or_too_deep_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        read_json(path)
    monkeypatch.setattr("gram_jax.files.MAX_CONFIG", 100)
    path.write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(CheckpointError, match="more than 100 bytes"):
        read_json(path)


def test_a_recipe_that_is_nested_without_end_is_refused(tmp_path):
    for text in (
        "a = " + "[" * 100_000,
        "a = " + "{a=" * 100_000,
        "[" + ".".join(["a"] * 5_000) + "]",
        "run." + ".".join(["a"] * 5_000) + " = 1",
        "a = " + "9" * 5_000,
        "run.seed = 0x" + "f" * 5_000,
    ):
        (tmp_path / "x.toml").write_text(text)
        with pytest.raises(RecipeError, match=r"x\.toml"):
            read_recipe(tmp_path / "x.toml")
    with pytest.raises(RecipeError, match="nested"):
        read_recipe("smollm2-135m-finetune", [".".join(["a"] * 5_000) + "=1"])
    assert tomllib.loads("a = [[1]]")


MODELS = {
    "a word list without an unknown word": {
        "type": "WordLevel",
        "vocab": {"a": 0},
        "unk_token": "?",
    },
    "pieces without an unknown one": {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None},
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_tokenizer_that_cannot_encode_a_text_is_refused(model):
    state = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    broken = wrap_tokenizer(Tokenizer.from_str(json.dumps(state | {"model": model})))
    with pytest.raises(JudgeError, match=r"tokenizer .* fails"):
        text_encoder(broken)


def test_a_panic_of_the_tokenizers_library_is_an_error_of_the_tokenizer(tmp_path):
    """A panic is a BaseException."""
    state = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    state["pre_tokenizer"] = {"type": "FixedLength", "length": 0}
    with pytest.raises(JudgeError, match=r"tokenizer .* fails"):
        text_encoder(wrap_tokenizer(Tokenizer.from_str(json.dumps(state))))


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf_array(path: Path, kind: int, content: bytes) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_text("a") + struct.pack("<I", kind)
    path.write_bytes(head + content)
    return path


def test_a_gguf_file_with_nested_or_endless_arrays_is_refused(tmp_path, monkeypatch):
    nested = struct.pack("<IQ", 9, 1) * 20_000 + struct.pack("<IQB", 0, 1, 1)
    with pytest.raises(CheckpointError, match=r"deep\.gguf"):
        open_gguf(gguf_array(tmp_path / "deep.gguf", 9, nested))
    monkeypatch.setattr("gram_jax.interop.gguf.MAX_ELEMENTS", 1000)
    many = struct.pack("<IQ", 0, 2000) + b"\0" * 2000
    with pytest.raises(CheckpointError, match="more than 1,000 elements"):
        open_gguf(gguf_array(tmp_path / "many.gguf", 9, many))


# --- chat templates

HOSTILE = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) if i < 0 %}{% endfor %}" * 3,
    "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'a' * 10**9 }}",
    "{{ 9**9**9 }}",
    "{{ 'a'|center(1000000000) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "{% set s = 'a' * 100000 %}{{ s.replace('a', s) }}",
    "{% set s = 'a' * 100000 %}{{ ([s] * 100000)|join }}",
    "{% set s = 'a' * 100000 %}{% for i in range(9999) %}{{ s }}{% endfor %}",
    "{% set s = 'a' * 100000 %}{% for i in range(99999) %}{% if 'b' in s %}{% endif %}{% endfor %}",
    "{% set s = 'a' * 100000 %}{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
    "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x|tojson }}",
    "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "{% set x %}{% for i in range(99999) %}" + "y" * 9999 + "{% endfor %}{% endset %}",
    "{{ lipsum(n=99999) }}",
    "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "{{ ''.__class__.__mro__ }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{% include 'x' %}",
    "x" * (2**20 + 1),
]


@pytest.mark.parametrize("template", HOSTILE, ids=range(len(HOSTILE)))
def test_a_chat_template_without_end_is_refused_within_seconds(template):
    tokenizer = copy.copy(family_tokenizer("qwen3"))
    tokenizer.chat_template = template
    began = time.process_time()
    with pytest.raises(JudgeError, match="chat template"):
        chat_frame(tokenizer, system=None, thinking=False)
    assert time.process_time() - began < 20  # usually below 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", [True, False])
def test_templates_of_the_families_are_rendered_as_by_transformers(family, prompt):
    tokenizer = family_tokenizer(family)
    chat = [
        {"role": "user", "content": "Hi {{ 1 }} <b>"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "é\n"},
    ]
    fixed = {"date_string": "26 Jul 2024", "add_generation_prompt": prompt}
    found = render_chat_template(
        tokenizer.get_chat_template(), chat, DATE, **fixed, **tokenizer.special_tokens_map
    )
    theirs = tokenizer.apply_chat_template(chat, tokenize=False, **fixed)
    if "strftime_now" in tokenizer.get_chat_template():
        theirs = theirs.replace(datetime.datetime.now().strftime("%d %b %Y"), "26 Jul 2024")
    assert found == theirs


EXPRESSIONS = st.sampled_from(
    [
        "m.role",
        "m['content']",
        "m.content|trim",
        "m.content.split('a')[-1].lstrip('\\n')",
        "loop.index0 ~ ':' ~ loop.length ~ loop.last",
        "m|tojson",
        "m|tojson(indent=2)",
        "m.content * 2",
        "'%s-%d' % (m.role, loop.index)",
        "'{}'.format(m.content)",
        "messages[loop.index0 - 1].role",
        "(m.content if 'a' in m.content else missing)",
        "messages|selectattr('role', 'equalto', 'user')|list|length",
        "messages|map(attribute='content')|join(', ')",
        "ns.x + 1",
        "dict(a=1)",
        "m.tool_calls is defined",
        "range(3)|list",
        "m.content[::-1]",
        "eos",
        "f(m.role)",
    ]
)
STATEMENTS = st.one_of(
    EXPRESSIONS.map(lambda e: "{{ " + e + " }}"),
    EXPRESSIONS.map(lambda e: "{%- set ns.x = (" + e + ")|string|length %}\n"),
    EXPRESSIONS.map(lambda e: "  {%- if " + e + " %}yes{% else %}no{% endif %}\n"),
    EXPRESSIONS.map(lambda e: "{% generation %}{{ " + e + " }}{% endgeneration %}"),
    st.sampled_from(["{% if loop.index > 1 %}{% break %}{% endif %}", " text\n", "{# note #}\n"]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(STATEMENTS, max_size=6),
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=9)}
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_any_template_is_rendered_as_by_transformers(statements, messages):
    tokenizer = family_tokenizer("qwen3")
    template = (
        "{% set ns = namespace(x=0) %}{% macro f(x) %}<{{ x }}>{% endmacro %}"
        "{% for m in messages %}" + "".join(statements) + "{% endfor %}{{ ns.x }}"
    )

    def result(render) -> str:
        try:
            return render()
        except Exception as error:
            return type(error).__name__

    assert result(lambda: render_chat_template(template, messages, DATE, eos="</s>")) == result(
        lambda: tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, eos="</s>"
        )
    )
