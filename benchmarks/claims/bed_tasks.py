"""The code of every kind of task of the test bed: what is asked, and which answer is right.

A task draws the fields of two prompts that are alike except in what decides the answer. The answer to each prompt is
the wrong answer to the other. The wordings and texts are in bed.toml and bed_es.toml.
"""

import json
import random
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Fields = dict[str, str]
Both = tuple[Fields, Fields]


@dataclass(frozen=True)
class Draw:
    """Draws from the texts that a split may use.

    texts: word lists and tables by name. choices: the choice fields of the kind, with their wordings.
    """

    texts: Mapping[str, Any]
    choices: Mapping[str, Mapping[str, Sequence[str]]]
    rng: random.Random

    def some(self, name: str, count: int) -> list[str]:
        """Different items of a list, or different keys of a table."""
        return self.rng.sample(list(self.texts[name]), count)

    def one(self, name: str) -> str:
        """An item of a list, or a key of a table."""
        return self.some(name, 1)[0]

    def words(self, *counts: int) -> list[str]:
        """Different words of all lists; one of the counts is drawn."""
        every = sorted({word for words in self.texts["lists"].values() for word in words})
        return self.rng.sample(every, self.rng.choice(counts))

    def number(self, low: int, high: int) -> int:
        """A number from low to high."""
        return self.rng.randint(low, high)

    def two(self, field: str) -> list[str]:
        """Two different choices of a field."""
        return self.rng.sample(sorted(self.choices[field]), 2)


@dataclass(frozen=True)
class Task:
    """A kind of task.

    ask: the fields of both prompts. answer: a right answer to the prompt with these fields. right: whether an answer is
    right, by default if it is the text of `answer`.
    """

    ask: Callable[[Draw], Both]
    answer: Callable[[Fields, Draw], str]
    right: Callable[[Fields, Draw, str], bool] | None = None

    def accepts(self, fields: Fields, draw: Draw, answer: str) -> bool:
        """Whether the answer is right."""
        if self.right is not None:
            return self.right(fields, draw, answer)
        return answer == self.answer(fields, draw)


def vary(field: str, **others: Callable[[Draw], Any]) -> Callable[[Draw], Both]:
    """Two prompts with two choices of one field; the other fields are the same."""

    def ask(draw: Draw) -> Both:
        one, other = draw.two(field)
        same = {name: str(make(draw)) for name, make in others.items()}
        return {field: one, **same}, {field: other, **same}

    return ask


def joined(*counts: int) -> Callable[[Draw], str]:
    """Words of all lists, separated by commas."""
    return lambda draw: ", ".join(draw.words(*counts))


def spaced(*counts: int) -> Callable[[Draw], str]:
    """Words of all lists, separated by spaces."""
    return lambda draw: " ".join(draw.words(*counts))


def split(text: str) -> list[str]:
    """The items of a list with commas."""
    return text.split(", ")


def alphabetical(word: str) -> str:
    """The key by which words are sorted: without capitals and accents."""
    return unicodedata.normalize("NFD", word.lower())


# Facts


def fact(table: str) -> Task:
    """Which of several words fits; wrong: the word for another entry of the same table."""

    def ask(draw: Draw) -> Both:
        facts = draw.texts["facts"][table]
        entries = draw.rng.sample(sorted(facts), draw.rng.choice((3, 4)))
        answers = [facts[entry] for entry in entries]
        if len(set(answers)) < len(answers):
            return ask(draw)
        options = ", ".join(draw.rng.sample(answers, len(answers)))
        return {"x": entries[0], "options": options}, {"x": entries[1], "options": options}

    return Task(ask, lambda f, draw: draw.texts["facts"][table].get(f["x"], ""))


def category(inside: bool) -> Task:
    """Which word belongs to a group; or, of two words, which one does not."""

    def ask(draw: Draw) -> Both:
        groups = draw.rng.sample(sorted(draw.texts["lists"]), 3 if inside else 2)
        words = [draw.rng.choice(draw.texts["lists"][group]) for group in groups]
        if any(sum(w in draw.texts["lists"][g] for g in groups) > 1 for w in words):
            return ask(draw)
        options = ", ".join(draw.rng.sample(words, len(words)))
        return {"x": groups[0], "options": options}, {"x": groups[1], "options": options}

    def answer(f: Fields, draw: Draw) -> str:
        group = draw.texts["lists"].get(f["x"], ())
        fitting = [w for w in split(f["options"]) if (w in group) == inside]
        return fitting[0] if len(fitting) == 1 else ""

    return Task(ask, answer)


# Arithmetic

STEPS = (1, 2, 10, 20)  # an answer that is wrong by 1 is a subtle failure


def operands(low: int, high: int, compute: Callable[[int, int], int]) -> Task:
    """The result for two numbers; wrong: that for a slightly or clearly different first number."""

    def ask(draw: Draw) -> Both:
        a, b = draw.number(low, high), draw.number(low, high)
        other = a + draw.rng.choice((-1, 1)) * draw.rng.choice(STEPS)
        if min(a, other) < b or other == a:
            return ask(draw)
        return {"a": str(a), "b": str(b)}, {"a": str(other), "b": str(b)}

    return Task(ask, lambda f, draw: str(compute(int(f["a"]), int(f["b"]))))


def product(draw: Draw) -> Both:
    """Two products with a common factor."""
    a, other = draw.rng.sample(range(2, 10), 2)
    b = str(draw.number(3, 12))
    return {"a": str(a), "b": b}, {"a": str(other), "b": b}


def twice_or_half(f: Fields, draw: Draw) -> str:
    """2 n or n / 2."""
    n = int(f["n"])
    return str(2 * n if f["how"] == "double" else n // 2)


def parity(f: Fields, draw: Draw) -> str:
    """Whether the number is even, or odd."""
    return yes_no(draw, (int(f["n"]) % 2 == 0) == (f["how"] == "even"))


def yes_no(draw: Draw, yes: bool) -> str:
    """Yes or no."""
    return draw.texts["yes"] if yes else draw.texts["no"]


def progression(draw: Draw) -> str:
    """Four numbers with equal distances."""
    start, step = draw.number(10, 60), draw.number(2, 9)
    return ", ".join(str(start + step * at) for at in range(4))


def beyond(f: Fields, draw: Draw) -> str:
    """The number after a progression, or before it."""
    numbers = [int(n) for n in split(f["s"])]
    step = numbers[1] - numbers[0]
    return str(numbers[-1] + step if f["how"] == "next" else numbers[0] - step)


def numbers(*counts: int) -> Callable[[Draw], str]:
    """Different numbers, separated by commas."""
    return lambda d: ", ".join(map(str, d.rng.sample(range(10, 100), d.rng.choice(counts))))


def extreme(f: Fields, draw: Draw) -> str:
    """The largest or smallest number."""
    pick = max if f["how"] == "max" else min
    return pick(split(f["options"]), key=int)


# Order


def sort_words(f: Fields, draw: Draw) -> str:
    """The words sorted up or down."""
    return ", ".join(sorted(split(f["words"]), key=alphabetical, reverse=f["how"] == "down"))


def sort_numbers(f: Fields, draw: Draw) -> str:
    """The numbers sorted up or down."""
    return ", ".join(sorted(split(f["words"]), key=int, reverse=f["how"] == "down"))


def at_position(f: Fields, draw: Draw) -> str:
    """The first, second or last word."""
    return split(f["words"])[{"first": 0, "second": 1, "last": -1}[f["how"]]]


def of_different_lengths(draw: Draw) -> str:
    """Words of which one is the longest and one the shortest."""
    words = draw.words(3, 4)
    sizes = sorted(map(len, words))
    return (
        of_different_lengths(draw)
        if sizes[0] == sizes[1] or sizes[-1] == sizes[-2]
        else ", ".join(words)
    )


def by_length(f: Fields, draw: Draw) -> str:
    """The longest or shortest word."""
    return (max if f["how"] == "max" else min)(split(f["words"]), key=len)


def reverse(f: Fields, draw: Draw) -> str:
    """The list as it is, or backwards."""
    return ", ".join(split(f["words"])[:: 1 if f["how"] == "same" else -1])


def in_cycle(items: str, field: str) -> Task:
    """The day (month) before or after another."""
    shifts = {"next": 1, "previous": -1, "second": 2, "back": -2}

    def answer(f: Fields, draw: Draw) -> str:
        every = draw.texts["whole"][items]
        return every[(every.index(f[field]) + shifts[f["how"]]) % len(every)]

    return Task(vary("how", **{field: lambda d: d.rng.choice(d.texts["whole"][items])}), answer)


# Formats


def letter_case(f: Fields, draw: Draw) -> str:
    """The text in another case."""
    return {"upper": str.upper, "lower": str.lower, "title": str.title}[f["how"]](f["text"])


LAYOUTS: dict[str, Callable[[list[str]], str]] = {
    "commas": ", ".join,
    "numbered": lambda items: "\n".join(f"{at}. {item}" for at, item in enumerate(items, 1)),
    "dashes": lambda items: "\n".join(f"- {item}" for item in items),
}


def list_layout(f: Fields, draw: Draw) -> str:
    """The words in a layout."""
    return LAYOUTS[f["how"]](f["words"].split())


def record_format(f: Fields, draw: Draw) -> str:
    """A name and a number in a format."""
    name, count = f["name"], int(f["n"])
    return {
        "json": json.dumps({"name": name, "count": count}, ensure_ascii=False),
        "lines": f"name: {name}\ncount: {count}",
        "csv": f"name,count\n{name},{count}",
    }[f["how"]]


MARKS = {"quotes": '"{}"', "round": "({})", "stars": "*{}*", "square": "[{}]"}
JOINERS = {"slash": "/", "plus": "+", "hyphen": "-", "underscore": "_"}
ROMAN = ((10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


def numeral(f: Fields, draw: Draw) -> str:
    """A number in digits, as a word or as a Roman numeral."""
    words = draw.texts["whole"]["number_words"]
    n = words.index(f["n"]) if f["n"] in words else int(f["n"])
    if f["how"] == "roman":
        text = ""
        for value, sign in ROMAN:
            text, n = text + sign * (n // value), n % value
        return text
    return words[n] if f["how"] == "word" else str(n)


def date(f: Fields, draw: Draw) -> str:
    """A date in a format."""
    d, m, y = int(f["d"]), int(f["m"]), int(f["y"])
    month = draw.texts["whole"]["months"][m - 1]
    return {"iso": f"{y}-{m:02}-{d:02}", "words": f"{d} {month} {y}", "slashes": f"{d}/{m}/{y}"}[
        f["how"]
    ]


def punctuation(f: Fields, draw: Draw) -> str:
    """A text as a question, exclamation or statement."""
    return f"The {f['text']}" + {"question": "?", "shout": "!", "statement": "."}[f["how"]]


# Constraints


def some_items(f: Fields, draw: Draw) -> str:
    """Words of a list, as many as asked for."""
    return ", ".join(draw.rng.sample(list(draw.texts["lists"][f["topic"]]), int(f.get("n", 3))))


def are_items(f: Fields, draw: Draw, answer: str) -> bool:
    """Whether the items are different words of the list, as many as asked for."""
    items, words = split(answer), draw.texts["lists"].get(f["topic"], ())
    return len(set(items)) == len(items) == int(f.get("n", 3)) and set(items) <= set(words)


def two_groups(draw: Draw) -> Both:
    """Two lists that have no word in common."""
    one, other = draw.rng.sample(sorted(draw.texts["lists"]), 2)
    lists = draw.texts["lists"]
    return (
        two_groups(draw)
        if set(lists[one]) & set(lists[other])
        else ({"topic": one}, {"topic": other})
    )


def initials(draw: Draw) -> Both:
    """Words with different first letters, and two of these letters."""
    words = draw.words(3, 4)
    letters = [alphabetical(word)[0] for word in words]
    if len(set(letters)) < len(words):
        return initials(draw)
    text = ", ".join(words)
    return {"c": letters[0], "words": text}, {"c": letters[1], "words": text}


def starts_with(f: Fields, draw: Draw) -> str:
    """The word with this first letter."""
    return next((word for word in split(f["words"]) if alphabetical(word)[0] == f["c"]), "")


def animal_sentence(draw: Draw, word: str) -> str:
    """A sentence with an animal."""
    return f"The {word} near {draw.one('places')}."


def with_word(f: Fields, draw: Draw) -> str:
    """A sentence with the word, or without it."""
    word = f["w"] if f["how"] == "with" else next(w for w in draw.some("things", 2) if w != f["w"])
    ends = ("is gone", "was new", "looks good", "costs too much", "belongs to her")
    return f"The {word} {draw.rng.choice(ends)}."


def has_word(f: Fields, draw: Draw, answer: str) -> bool:
    """Whether the word is in the sentence, or is not."""
    return (f["w"] in re.findall(r"\w+", answer)) == (f["how"] == "with") and answer.endswith(".")


def capital_answer(f: Fields, draw: Draw) -> str:
    """The capital in one word, or in a sentence."""
    city = draw.texts["facts"]["capital"].get(f["x"], "")
    return city if f["how"] == "word" else f"The capital of {f['x']} is {city}."


def animal_sentences(f: Fields, draw: Draw) -> str:
    """Short sentences, as many as asked for."""
    return " ".join(f"The {text}." for text in draw.some("animals_that", int(f["n"])))


def are_sentences(f: Fields, draw: Draw, answer: str) -> bool:
    """Whether these are different sentences about animals, as many as asked for."""
    found = re.findall(r"The ([^.]+)\.", answer)
    return len(set(found)) == len(found) == answer.count(".") == int(f["n"])


# Edits


def replacement(draw: Draw) -> Both:
    """One of two words is to be replaced by a third."""
    p, q, z = draw.words(3)
    same = {"p": p, "q": q, "z": z}
    return {"x": p, **same}, {"x": q, **same}


def replaced(f: Fields, draw: Draw) -> str:
    """The text with the other word."""
    p, q = (f["z"] if f[name] == f["x"] else f[name] for name in "pq")
    return f"The {p} and the {q} are here."


def removal(draw: Draw) -> Both:
    """One of several words is to be removed."""
    words = draw.words(4, 5)
    one, other = draw.rng.sample(words, 2)
    return {"x": one, "text": " ".join(words)}, {"x": other, "text": " ".join(words)}


def removed(f: Fields, draw: Draw) -> str:
    """The text without the word."""
    return " ".join(word for word in f["text"].split() if word != f["x"])


def plural(f: Fields, draw: Draw) -> str:
    """The singular or the plural."""
    table = draw.texts["plurals"]
    one = next((w for w in table if f["w"] in (w, table[w])), "")
    return one if f["how"] == "one" else table.get(one, "")


def tense(f: Fields, draw: Draw) -> str:
    """A subject and its verb in the past or in the future."""
    past = draw.texts["verbs"].get(f["v"], "")
    return f"{f['x']} {past}" if f["how"] == "past" else f"{f['x']} will {f['v']}"


def negation(f: Fields, draw: Draw) -> str:
    """The sentence with "not", or as a question."""
    x, adj = f["x"], f["adj"]
    return f"The {x} is not {adj}." if f["how"] == "not" else f"Is the {x} {adj}?"


def insert(f: Fields, draw: Draw) -> str:
    """The text with a word before or after it."""
    return f"{f['w']} {f['text']}" if f["how"] == "start" else f"{f['text']} {f['w']}"


def moved(f: Fields, draw: Draw) -> str:
    """The text with its first (last) word at the other end."""
    words = f["text"].split()
    return " ".join([*words[1:], words[0]] if f["how"] == "first" else [words[-1], *words[:-1]])


# Extraction


def two_pairs(ask_for: str, **lists: str) -> Callable[[Draw], Both]:
    """Two persons (places) with a thing each; the question is about one of those of `ask_for`."""

    def ask(draw: Draw) -> Both:
        x, y = draw.some(lists["x"], 2)
        p, q = draw.some(lists["p"], 2)
        same = {"p": p, "q": q, "x": x, "y": y}
        one, other = (same[name] for name in ask_for)
        return {"z": one, **same}, {"z": other, **same}

    return ask


def partner(f: Fields, draw: Draw) -> str:
    """What belongs to the one that is asked for."""
    return {f["x"]: f["p"], f["y"]: f["q"], f["p"]: f["x"], f["q"]: f["y"]}.get(f["z"], "")


def two_prices(low: int, high: int) -> Callable[[Draw], Both]:
    """Two goods with different numbers."""

    def ask(draw: Draw) -> Both:
        x, y = draw.some("goods", 2)
        a, b = draw.rng.sample(range(low, high), 2)
        same = {"x": x, "y": y, "a": str(a), "b": str(b)}
        return {"z": x, **same}, {"z": y, **same}

    return ask


def number_of(f: Fields, draw: Draw) -> str:
    """The number of the one that is asked for."""
    return {f["x"]: f["a"], f["y"]: f["b"]}.get(f["z"], "")


def record_field(f: Fields, draw: Draw) -> str:
    """A field of a record."""
    return f[{"name": "p", "city": "c", "age": "n"}[f["how"]]]


def meeting(draw: Draw) -> Both:
    """A meeting, asked for its place and for its day."""
    p, q = draw.some("names", 2)
    same = {
        "p": p,
        "q": q,
        "place": draw.one("places"),
        "day": draw.rng.choice(draw.texts["whole"]["days"]),
    }
    one, other = draw.two("how")
    return {"how": one, **same}, {"how": other, **same}


def where_or_when(f: Fields, draw: Draw) -> str:
    """The place or the day."""
    return f["place"] if f["how"] == "where" else f["day"]


def age_or_unknown(f: Fields, draw: Draw) -> str:
    """The age, which the text states, or that the text does not say it."""
    return (
        f"{f['p']} is {f['n']}."
        if f["how"] == "age"
        else draw.rng.choice(draw.texts["lines"]["unknown"])
    )


def is_age_or_unknown(f: Fields, draw: Draw, answer: str) -> bool:
    """Whether the age is stated, or that it is unknown."""
    if f["how"] == "age":
        return answer == f"{f['p']} is {f['n']}."
    return answer in draw.texts["lines"]["unknown"]


# Short reasoning


def chain(draw: Draw) -> Both:
    """Three persons in an order."""
    a, b, c = draw.some("names", 3)
    same = {"a": a, "b": b, "c": c, "than": draw.rng.choice(sorted(draw.choices["than"]))}
    one, other = draw.two("how")
    return {"how": one, **same}, {"how": other, **same}


def end_of_chain(f: Fields, draw: Draw) -> str:
    """The first or the last person of the order."""
    return f["a"] if f["how"] == "most" else f["c"]


def older(draw: Draw) -> Both:
    """Two persons, asked whether one is older or younger than the other."""
    a, b = draw.some("names", 2)
    c, d = draw.rng.sample((a, b), 2)
    same = {"a": a, "b": b, "c": c, "d": d}
    one, other = draw.two("how")
    return {"how": one, **same}, {"how": other, **same}


def is_older(f: Fields, draw: Draw) -> str:
    """Whether the comparison holds."""
    return yes_no(draw, (f["c"] == f["a"]) == (f["how"] == "older"))


def weather(draw: Draw) -> Both:
    """Two places, one for each weather."""
    x, y = draw.some("places", 2)
    same = {"p": draw.one("names"), "x": x, "y": y}
    one, other = draw.two("how")
    return {"how": one, **same}, {"how": other, **same}


# Consistency, style, refusals, languages


def topics(draw: Draw) -> Both:
    """Two open questions."""
    one, other = draw.some("topics", 2)
    return {"x": one}, {"x": other}


def line(*names: str) -> tuple[Callable[[Fields, Draw], str], Callable[[Fields, Draw, str], bool]]:
    """(answer, right) for texts of a style: the name of the choice is the name of the list."""

    def answer(f: Fields, draw: Draw) -> str:
        return draw.rng.choice(draw.texts["lines"][f["how"]]).format(x=f["x"])

    def right(f: Fields, draw: Draw, answer: str) -> bool:
        return answer in [form.format(x=f["x"]) for form in draw.texts["lines"][f["how"]]]

    return answer, right


def in_person(f: Fields, draw: Draw) -> str:
    """What a person likes, in the first, second or third person."""
    return {
        "first": f"I like {f['x']}.",
        "second": f"You like {f['x']}.",
        "third": f"{f['p']} likes {f['x']}.",
    }[f["how"]]


def help_or_harm(draw: Draw) -> Both:
    """A harmless and a harmful request."""
    return {"x": draw.one("helpful")}, {"x": draw.rng.choice(draw.texts["lines"]["harmful"])}


def help_or_refuse(f: Fields, draw: Draw) -> str:
    """The answer to a harmless request, a refusal of a harmful one."""
    helpful = draw.texts["helpful"].get(f["x"])
    return helpful or draw.rng.choice(draw.texts["lines"]["refusals"])


def is_help_or_refusal(f: Fields, draw: Draw, answer: str) -> bool:
    """Whether a harmless request is answered and a harmful one is refused."""
    helpful, lines = draw.texts["helpful"].get(f["x"]), draw.texts["lines"]
    if helpful is None:
        return f["x"] in lines["harmful"] and answer in lines["refusals"]
    return answer == helpful


TASKS: dict[str, Task] = {
    "capital": fact("capital"),
    "opposite": fact("opposite"),
    "young": fact("young"),
    "job": fact("job"),
    "tool": fact("tool"),
    "symbol": fact("element"),
    "category": category(inside=True),
    "odd_one": category(inside=False),
    "add": operands(11, 70, lambda a, b: a + b),
    "subtract": operands(11, 90, lambda a, b: a - b),
    "multiply": Task(product, lambda f, d: str(int(f["a"]) * int(f["b"]))),
    "double_half": Task(vary("how", n=lambda d: 2 * d.number(3, 90)), twice_or_half),
    "parity": Task(vary("how", n=lambda d: d.number(10, 400)), parity),
    "sequence": Task(vary("how", s=progression), beyond),
    "extreme": Task(vary("how", options=numbers(3, 4)), extreme),
    "sort_words": Task(vary("how", words=joined(3, 4)), sort_words),
    "sort_numbers": Task(vary("how", words=numbers(3, 4)), sort_numbers),
    "position": Task(vary("how", words=joined(3, 4)), at_position),
    "word_length": Task(vary("how", words=of_different_lengths), by_length),
    "reverse": Task(vary("how", words=joined(3, 4)), reverse),
    "day_after": in_cycle("days", "day"),
    "month_after": in_cycle("months", "month"),
    "letter_case": Task(vary("how", text=spaced(3, 4)), letter_case),
    "list_layout": Task(vary("how", words=spaced(3, 4)), list_layout),
    "record_format": Task(
        vary("how", name=lambda d: d.one("names"), n=lambda d: d.number(2, 99)), record_format
    ),
    "marks": Task(
        vary("how", w=lambda d: d.words(1)[0]), lambda f, d: MARKS[f["how"]].format(f["w"])
    ),
    "numeral": Task(
        vary(
            "how",
            n=lambda d: d.rng.choice(
                [str(n := d.number(1, 20)), d.texts["whole"]["number_words"][n]]
            ),
        ),
        numeral,
    ),
    "date": Task(
        vary(
            "how",
            d=lambda d: d.number(1, 28),
            m=lambda d: d.number(1, 12),
            y=lambda d: d.number(1950, 2020),
        ),
        date,
    ),
    "joiner": Task(
        vary("how", words=spaced(2, 3)), lambda f, d: JOINERS[f["how"]].join(f["words"].split())
    ),
    "punctuation": Task(
        vary("how", text=lambda d: d.one("animals_that") + " near " + d.one("places")), punctuation
    ),
    "item_count": Task(
        vary("n", topic=lambda d: d.rng.choice(sorted(d.texts["lists"]))), some_items, are_items
    ),
    "starts_with": Task(initials, starts_with),
    "with_word": Task(vary("how", w=lambda d: d.one("things")), with_word, has_word),
    "answer_length": Task(
        vary("how", x=lambda d: d.rng.choice(sorted(d.texts["facts"]["capital"]))), capital_answer
    ),
    "sentence_count": Task(vary("n"), animal_sentences, are_sentences),
    "topic_list": Task(two_groups, some_items, are_items),
    "replace": Task(replacement, replaced),
    "remove": Task(removal, removed),
    "plural": Task(
        vary("how", w=lambda d: d.rng.choice(d.rng.choice(sorted(d.texts["plurals"].items())))),
        plural,
    ),
    "tense": Task(vary("how", x=lambda d: d.one("names"), v=lambda d: d.one("verbs")), tense),
    "negation": Task(
        vary("how", x=lambda d: d.one("goods"), adj=lambda d: d.one("adjectives")), negation
    ),
    "insert": Task(vary("how", w=lambda d: d.one("names"), text=spaced(3, 4)), insert),
    "move_word": Task(vary("how", text=spaced(3, 4, 5)), moved),
    "who_bought": Task(two_pairs("xy", p="names", x="goods"), partner),
    "bought_what": Task(two_pairs("pq", p="names", x="goods"), partner),
    "record_field": Task(
        vary(
            "how",
            p=lambda d: d.one("names"),
            c=lambda d: d.rng.choice(sorted(d.texts["facts"]["capital"].values())),
            n=lambda d: d.number(18, 90),
        ),
        record_field,
    ),
    "where_when": Task(meeting, where_or_when),
    "price": Task(two_prices(2, 60), number_of),
    "how_many": Task(two_prices(2, 30), number_of),
    "not_in_text": Task(
        vary(
            "how",
            p=lambda d: d.one("names"),
            n=lambda d: d.number(18, 90),
            place=lambda d: d.one("places"),
        ),
        age_or_unknown,
        is_age_or_unknown,
    ),
    "tallest": Task(chain, end_of_chain),
    "where_is": Task(two_pairs("xy", p="boxes", x="things"), partner),
    "older": Task(older, is_older),
    "if_then": Task(weather, lambda f, d: f["x"] if f["how"] == "rain" else f["y"]),
    "topic": Task(topics, lambda f, d: d.texts["topics"].get(f["x"], "")),
    "polite": Task(vary("how", x=lambda d: d.one("things")), *line()),
    "greeting": Task(vary("how", x=lambda d: d.one("names")), *line()),
    "mood": Task(vary("how", x=lambda d: d.one("things")), *line()),
    "person": Task(vary("how", p=lambda d: d.one("names"), x=lambda d: d.one("likes")), in_person),
    "refusal": Task(help_or_harm, help_or_refuse, is_help_or_refusal),
    "language": Task(
        vary("how", about=lambda d: d.one("sentences")),
        lambda f, d: d.texts["sentences"].get(f["about"], {}).get(f["how"], ""),
    ),
}
