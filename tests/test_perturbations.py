"""Harmless changes are harmless: code stays as it is to the letter, and prose goes on saying the same."""

import inspect
import json
import re
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_jax.attacks.perturbations import is_prose, reworded
from gram_jax.attacks.suite import attacks_of_kind, phrase_rules
from gram_jax.attacks.templates import AttackContext
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.spec import make_spec

SPEC = make_spec(tiny_tokenizer(), max_length=256)
CHANGES = {attack.name: attack.tested for attack in attacks_of_kind("harmless")}
TABLES = ("contracted", "written_out", "paraphrased")


def changed(name: str, text: str) -> set[str]:
    """What the templates of a harmless perturbation make of a text, the text itself not counted."""
    return {template(AttackContext("q", text, SPEC)) for template in CHANGES[name]} - {text}


def unchanged_by_all(text: str) -> bool:
    return not any(changed(name, text) for name in CHANGES)


# NAME, TEXT and NUMBER are drawn. Every line is recognised alone, and so in any company.
LINES = {
    "python": """from NAME import NAME
import NAME
def NAME(NAME):
def NAME(NAME: List[int], NAME: float) -> bool:
class NAME(NAME):
    return "TEXT"
return NAME
for NAME in NAME:
while NAME is not None:
NAME = "TEXT"
NAME += NUMBER
print("TEXT")
    # TEXT
@NAME
assert NAME == 'TEXT'
raise ValueError("TEXT")""",
    "c++": """#include <NAME>
using namespace std;
int NAME(vector<int> NAME) {
for (int i = 0; i < NUMBER; i++) {
  NAME += NAME[i];
if (NAME == "TEXT") {
} else {
return NAME;
// TEXT
std::cout << "TEXT" << std::endl;""",
    "go": """package main
import "NAME"
func NAME(NAME []int) (int, error) {
NAME := NUMBER
if NAME != nil {
for i := range NAME {
fmt.Println("TEXT")
}""",
    "java": """import java.util.NAME;
public class NAME {
private final String NAME = "TEXT";
public static int NAME(int NAME) {
@Override
System.out.println("TEXT");
/* TEXT */
return NUMBER;""",
    "javascript": """const NAME = (NAME) => {
let NAME = 'TEXT';
function NAME(NAME, NAME) {
import { NAME } from 'NAME';
console.log(`TEXT`)
module.exports = NAME
return NAME.filter(x => x > NUMBER)
});""",
    "rust": """fn NAME(NAME: &str) -> Vec<String> {
let mut NAME = Vec::new();
use std::NAME;
match NAME {
impl NAME for NAME {
println!("TEXT");""",
    "others": """SELECT NAME FROM NAME WHERE NAME
$ NAME TEXT
git commit -m "TEXT"
pip install NAME
<p>TEXT</p>
{"NAME": "TEXT"}
NAME: TEXT
| TEXT | NUMBER |
|---|---|
if [ -f NAME ]; then
echo "TEXT"
NUMBER + NUMBER = NUMBER
x - NUMBER < NUMBER
\\frac{NUMBER}{NUMBER}""",
}
TEXTS = [
    "it is",
    "do not",
    "don't",
    'For example, it\'s "one".',
    "Is it? Yes, that is. I have two.",
]
WORDS = {
    "NAME": st.from_regex(r"\A[a-z][a-z_0-9]{0,7}\Z"),
    "TEXT": st.sampled_from(TEXTS),
    "NUMBER": st.integers(0, 999).map(str),
}


@st.composite
def programs(draw) -> str:
    lines = LINES[draw(st.sampled_from(sorted(LINES)))].splitlines()
    chosen = draw(st.lists(st.sampled_from(lines), min_size=1, max_size=6))
    text = re.sub("NAME|TEXT|NUMBER", lambda word: draw(WORDS[word[0]]), "\n".join(chosen))
    return draw(st.sampled_from(["", "Here is the program.\n\n"])) + text


@settings(max_examples=400, deadline=None)
@given(programs())
def test_no_harmless_change_touches_a_program(program):
    assert unchanged_by_all(program)
    assert unchanged_by_all(program.replace("\n", "\r\n"))


@pytest.mark.parametrize(
    "module", ["argparse", "calendar", "fractions", "json.decoder", "shlex", "textwrap"]
)
def test_no_harmless_change_touches_functions_of_the_standard_library(module):
    found = __import__(module, fromlist=["_"])
    functions = [
        part
        for _, whole in inspect.getmembers(found)
        if inspect.getmodule(whole) is found
        and (inspect.isclass(whole) or inspect.isfunction(whole))
        for part in (whole, *(f for _, f in inspect.getmembers(whole, inspect.isfunction)))
        if inspect.getmodule(part) is found
    ]
    assert len(functions) > 3
    for function in functions:
        source = textwrap.dedent(inspect.getsource(function))
        body = textwrap.dedent(source.partition("\n")[2])  # as HumanEval's solutions come
        assert not is_prose(source), source
        assert not body.strip() or not is_prose(body), body


@pytest.mark.parametrize(
    "text",
    [
        "N is even and N is odd, so n != N.",
        "x - 1 is the answer that we look for.",
        "The area is πr^2, and so A = πr^2 for all of them.",
        "nums",
        "True",
        "B",
        "Use `it is` here and it will do what you ask for.",
        "Name   Age\nAnna   31\nBertram   40",
    ],
)
def test_formulas_short_answers_and_columns_stay_as_they_are(text):
    assert unchanged_by_all(text)


# What says another thing in other words, or nothing at all.
KEPT = {
    "contracted": """It is what it is.
I have two dogs. Yes, that is.
Yes, you are. They are what we are.
Is it not that you do not?
Do not you dare.
He acts of his own free will not being forced.
He said "we do not know" and left.
Let us go; this will let us see.""",
    "written_out": """It's been fixed. That's got worse.
There's been a change, and here's looking at you.
Why don't you try it?
Isn't it great! It's nice, isn't it.
Why aren't dogs green?
She'd gone where he'd like to go.
We watched Don't Look Up together.
The sign said "don't walk" all day.""",
    "first_letter": """N is even and so is every other one.
DNA is a molecule that holds genes.
A is the right option of the four.
iPhone cases are sold here and there.
C++ is a language for programs.
I think that it is the right one.""",
    "opener": """No, it is not the right one.
I'm sorry, but I will not do this.
Unfortunately there is none of them left.
While I understand this, I cannot help you with it.
Sure! This is how it is done.
- one of them is red
# A heading of some words
1. This one comes before the others.""",
    "closer": """The first one is red and the
- one of them is red""",
    "quotes": """He is 5'10" tall and 2" wide, they say.
The derivative f' of this one is large.""",
    "paraphrased": """The more numerous of the two, and too many parking lots of them.
To begin with, they work hard to be the best.
She wrote "for example" and "in order to" there.
That was in order to win.
A variety of grape was grown there.
The rent is due to be paid.
There are many of them who left.
However you do it, it is such as it is.
Their data types and blood types of all kinds are known.
It was a commonly known set of frequently asked questions.""",
}
CHANGED = {
    ("contracted", "You do not know, and it is not hard."): "You don't know, and it isn't hard.",
    ("contracted", "Do not worry. I will not and cannot."): "Don't worry. I won't and can't.",
    (
        "written_out",
        "I'm sure it's the one that doesn’t fit.",
    ): "I am sure it is the one that does not fit.",
    ("written_out", "Don't worry, you're right."): "Do not worry, you are right.",
    ("first_letter", "The door is open now."): "the door is open now.",
    ("quotes", "It's \"red\" as the dogs' ones."): "It’s “red” as the dogs' ones.",
    ("paraphrased", "For example, use it in order to win."): "For instance, use it to win.",
    ("paraphrased", "However, I utilize it each day."): "But I use it every day.",
    ("paraphrased", "Reds, such as this and a variety of pale reds."): (
        "Reds, like this and a range of pale reds."
    ),
    ("bullets", "The first one.\nThe other one."): "- The first one.\n- The other one.",
    ("closer", "This is how."): "This is how. I hope this helps!",
    ("opener", "This is how it is done."): "Sure! This is how it is done.",
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in KEPT.items() for text in texts.splitlines()]
)
def test_what_a_change_would_make_say_something_else_is_kept(name, text):
    assert not changed(name, text)


@pytest.mark.parametrize(("name", "text"), CHANGED)
def test_ordinary_prose_is_changed(name, text):
    assert CHANGED[name, text] in changed(name, text)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["They", "Some of them", "Anna and Bert"]),
            st.sampled_from(["do", "did", "are", "were", "have", "had", "could", "can", "will"]),
            st.sampled_from(["red", "mostly useful", "often seen", "gone"]),
            st.sampled_from([".", "!", "; yes."]),
        ),
        min_size=1,
    )
)
def test_contracting_and_writing_out_again_gives_the_same_text(parts):
    text = " ".join(
        f"{who} {'cannot' if verb == 'can' else f'{verb} not'} {rest}{end}"
        for who, verb, rest, end in parts
    )
    short = reworded(phrase_rules("contracted"))(text)
    assert " not " not in short and "cannot" not in short
    assert reworded(phrase_rules("written_out"))(short) == text


@pytest.mark.parametrize("name", TABLES)
def test_rules_have_no_groups_and_say_something_else(name):
    rules = phrase_rules(name)
    assert len({phrase for phrase, _ in rules}) == len(rules)
    for phrase, other in rules:
        assert re.compile(phrase).groups == 0 and phrase != other == other.strip()


def test_real_code_is_known_as_code_and_most_real_prose_has_a_paraphrase(shared_data):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    rows = json.loads((shared_data / "eval" / "rm_bench_code.json").read_text())
    assert not any(is_prose(text) for row in rows for text in row["chosen"])
    table = pyarrow.read_table(shared_data / "preference_valid.parquet")
    texts = {text for name in ("chosen", "rejected") for text in table[name].to_pylist()}
    prose = [text for text in texts if is_prose(text)]
    assert len(prose) > 0.65 * len(texts)  # 518 of 752
    assert sum(bool(changed("paraphrased", text)) for text in prose) > 0.6 * len(prose)  # 329
