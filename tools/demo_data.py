"""The demo's preferences: checkable tasks with right and wrong responses, made by rule.

    python tools/demo_data.py [FOLDER]     write the three files that ship in gram_jax/demo/assets

Fourteen kinds of task, each with its own fault (a refusal, a sentence cut off, a list left unsorted, ...). Questions,
word lists, refusals and sentences are split before examples are made of them, so no question of the held-out examples
occurs in training. Within a kind the longer response is the better one about half of the time. The texts are in
demo_texts.toml.
"""

import gzip
import itertools
import json
import random
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TEXTS = Path(__file__).parent / "demo_texts.toml"
ASSETS = Path(__file__).parents[1] / "gram_jax" / "demo" / "assets"
SEED = 0
TRAIN_PER_KIND, HELDOUT_PER_KIND, UNLABELED_PER_KIND = 56, 12, 24
# Faults that show in the response alone are learned from few examples.
TRAIN_PER_EASY_KIND, EASY = 24, ("refusal", "cut_off", "repetition", "echo")
HELDOUT_SHARE = 0.3  # of every pool of texts

Draw = tuple[str, str, str]  # prompt, chosen, rejected


@dataclass(frozen=True)
class Question:
    """Ways to ask, the answer in a word, forms of a sentence that hold it, and a second sentence.

    An open question has no answer in a word: its `word` is "" and its only form is the answer.
    """

    asks: tuple[str, ...]
    word: str
    forms: tuple[str, ...]
    more: str

    @property
    def tells(self) -> tuple[str, ...]:
        """The right answer in one sentence, in every form."""
        return tuple(_sentence(form.format(a=self.word)) for form in self.forms)

    @property
    def answers(self) -> tuple[str, ...]:
        """Every right answer of one or two sentences."""
        return self.tells + tuple(f"{tell} {self.more}" for tell in self.tells if self.more)


@dataclass(frozen=True)
class Pool:
    """The texts that one split may use."""

    topics: Sequence[Question]
    facts: Sequence[Sequence[Question]]  # by table, so that a wrong answer can be of the right sort
    sentences: Sequence[dict[str, str]]
    lists: Sequence[tuple[str, Sequence[str]]]
    refusals: Sequence[str]

    @property
    def questions(self) -> list[Question]:
        return [*self.topics, *itertools.chain(*self.facts)]


LANGUAGES = ("English", "French", "Spanish", "German")
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}


@cache
def _raw() -> dict[str, Any]:
    return tomllib.loads(TEXTS.read_text(encoding="utf-8"))


def _form(name: str, rng: random.Random) -> str:
    """One of the wordings of this name."""
    return rng.choice(_raw()["forms"][name])


def _sentence(text: str) -> str:
    """The text with a capital letter, and "an" before a vowel."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[0].upper() + text[1:]


@cache
def _texts() -> Pool:
    raw = _raw()
    topics = [Question((t["ask"],), "", (t["tell"],), t["more"]) for t in raw["topics"]]
    facts = [
        [
            Question(
                tuple(_sentence(ask.format(s=s)) for ask in table["ask"]),
                a,
                tuple(tell.format(s=s, a="{a}") for tell in table["tell"]),
                "",
            )
            for s, a in table["table"].items()
        ]
        for table in raw["facts"].values()
    ]
    parts = itertools.product(raw["forms"]["opener"], raw["forms"]["ending"])
    refusals = [f"{opener} {ending}".strip() for opener, ending in parts]
    return Pool(topics, facts, raw["sentences"], list(raw["lists"].items()), refusals)


def split_texts(seed: int) -> tuple[Pool, Pool]:
    """(texts for training, texts for the held-out examples), disjoint."""
    everything = _texts()

    def divide(items: Sequence[Any], name: str) -> tuple[list[Any], list[Any]]:
        items = list(items)
        random.Random(f"{seed}/split/{name}").shuffle(items)
        cut = round(len(items) * HELDOUT_SHARE)
        return items[cut:], items[:cut]

    tables = [divide(table, f"facts{i}") for i, table in enumerate(everything.facts)]
    parts = {
        name: divide(getattr(everything, name), name)
        for name in ("topics", "sentences", "lists", "refusals")
    } | {"facts": tuple(zip(*tables, strict=True))}
    return Pool(**{n: p[0] for n, p in parts.items()}), Pool(**{n: p[1] for n, p in parts.items()})


# Kinds of task: each draws a prompt, a right response and a wrong one.


def _ask(question: Question, rng: random.Random) -> str:
    return _form("wrapper", rng).format(rng.choice(question.asks))


def refusal(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: declines to answer a harmless question."""
    question = rng.choice(pool.questions)
    return _ask(question, rng), rng.choice(question.answers), rng.choice(pool.refusals)


def cut_off(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: stops in the middle of a sentence."""
    topic = rng.choice(pool.topics)
    words = topic.answers[-1].split()
    cut = words[: rng.randrange(4, len(words) - 1)]
    while cut[-1].endswith("."):
        cut = cut[:-1]
    return _ask(topic, rng), rng.choice(topic.answers), " ".join(cut).rstrip(",")


def repetition(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: repeats a phrase."""
    topic = rng.choice(pool.topics)
    words = topic.tells[0].split()
    phrase = " ".join(words[: rng.randrange(2, 5)])
    ending = " ".join(words[-2:]).rstrip(".")
    looped = rng.choice(
        [
            " ".join([topic.tells[0]] * 2),
            " ".join([phrase] * rng.randrange(3, 6)),
            " ".join(words[:-2] + [ending] * rng.randrange(3, 6)),
        ]
    )
    return _ask(topic, rng), rng.choice(topic.answers), looped


def off_topic(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: a good answer, but to another question."""
    question, other = rng.sample(pool.questions, 2)
    return _ask(question, rng), rng.choice(question.answers), rng.choice(other.answers)


def echo(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: repeats the question."""
    question = rng.choice(pool.questions)
    ask = rng.choice(question.asks)
    echoes = (ask, f"You ask: {ask}", f"{ask} {ask}", f"That is a good question. {ask}")
    return _ask(question, rng), rng.choice(question.answers), rng.choice(echoes)


def wrong_fact(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: the answer to another question from the same table, in the same words."""
    question, other = rng.sample(rng.choice(pool.facts), 2)
    form = rng.choice(question.forms)
    right, wrong = (_sentence(form.format(a=word)) for word in (question.word, other.word))
    return _ask(question, rng), right, wrong


def one_word(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: a sentence instead of one word, or one word instead of a sentence."""
    question = rng.choice([q for table in pool.facts for q in table if " " not in q.word])
    ask, tell = rng.choice(question.asks), rng.choice(question.tells)
    word = _sentence(question.word)
    if rng.random() < 0.5:
        return _form("one_word", rng).format(ask), word, tell
    return _form("one_sentence", rng).format(ask), tell, word


ORDERS = {
    "Sort these words from A to Z: {}": sorted,
    "Put these words in alphabetical order: {}": sorted,
    "Arrange in alphabetical order: {}": sorted,
    "Sort from smallest to largest: {}": lambda items: sorted(items, key=int),
    "Put these numbers in increasing order: {}": lambda items: sorted(items, key=int),
    "Arrange from low to high: {}": lambda items: sorted(items, key=int),
}


def sorting(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: the list unchanged or in a random order."""
    form, order = rng.choice(list(ORDERS.items()))
    items = rng.sample(rng.choice(pool.lists)[1], rng.choice((4, 5)))
    if order is not sorted:
        items = [str(number) for number in rng.sample(range(1, 100), len(items))]
    right = order(items)
    wrong = items if rng.random() < 0.5 else rng.sample(items, len(items))
    return form.format(", ".join(items)), ", ".join(right), ", ".join(wrong)


def letter_case(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: the other case."""
    text = rng.choice(rng.choice(pool.questions).tells).rstrip(".")
    if rng.random() < 0.5:
        form = _form("upper_case", rng)
        return form.format(text), text.upper(), rng.choice((text, text.lower()))
    shown = rng.choice((text, text.upper()))
    form = _form("lower_case", rng)
    return form.format(shown), text.lower(), rng.choice((text.upper(), text.title()))


LAYOUTS = {
    "separated by commas": ", ".join,
    "as a numbered list": lambda items: "\n".join(f"{i}. {x}" for i, x in enumerate(items, 1)),
    "as a list with dashes": lambda items: "\n".join(f"- {x}" for x in items),
}


def list_layout(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: another layout than the one asked for."""
    topic, words = rng.choice(pool.lists)
    count = rng.choice((3, 4))
    right, wrong = rng.sample(list(LAYOUTS), 2)
    form = _form("list_layout", rng)
    return (
        form.format(n=NUMBERS[count], t=topic, l=right),
        LAYOUTS[right](rng.sample(words, count)),
        LAYOUTS[wrong](rng.sample(words, count)),
    )


def item_count(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: too few or too many."""
    topic, words = rng.choice(pool.lists)
    count = rng.choice(list(NUMBERS))
    wrong = rng.choice([n for n in range(1, 8) if abs(n - count) in (2, 3)])
    form = _form("item_count", rng)
    return (
        form.format(n=NUMBERS[count], t=topic),
        ", ".join(rng.sample(words, count)),
        ", ".join(rng.sample(words, wrong)),
    )


def valid_json(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: almost JSON, or no JSON at all."""
    _, words = rng.choice(pool.lists)
    thing, number = rng.choice(words), rng.randrange(2, 90)
    right = json.dumps({"name": thing, "count": number})
    broken = (
        right[:-1],
        right.replace('"name"', "name"),
        right.replace(":", " ="),
        right.replace(", ", " "),
        right + "}",
        right.replace("}", ', "'),
        f"The name is {thing} and the count is {number}.",
        f"name: {thing}, count: {number}",
    )
    return _form("json", rng).format(t=thing, n=number), right, rng.choice(broken)


def language(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: another language than the one asked for."""
    entry = rng.choice(pool.sentences)
    asked, other = rng.sample(LANGUAGES, 2)
    form = _form("language", rng)
    return form.format(a=entry["about"], l=asked), entry[asked], entry[other]


def keyword(pool: Pool, rng: random.Random) -> Draw:
    """Wrong: the word is missing."""
    topic, other = rng.sample(pool.topics, 2)
    text, wrong = (rng.choice((t.tells[0], t.more)) for t in (topic, other))
    minor = _raw()["minor_words"]
    word = rng.choice([w for w in re.findall(r"[a-z]{4,}", text) if w not in minor])
    return _form("keyword", rng).format(w=word), text, wrong


KINDS: dict[str, Callable[[Pool, random.Random], Draw]] = {
    f.__name__: f
    for f in (
        refusal, cut_off, repetition, off_topic, echo, wrong_fact, one_word,
        sorting, letter_case, list_layout, item_count, valid_json, language, keyword,
    )
}  # fmt: skip


# Verification uses the texts alone, not how they were drawn.


@cache
def _right_answers() -> dict[str, Question]:
    return {ask: question for question in _texts().questions for ask in question.asks}


def is_right(kind: str, prompt: str, response: str) -> bool:
    """Whether the response follows the prompt."""
    if kind in ("refusal", "cut_off", "repetition", "off_topic", "echo", "wrong_fact", "one_word"):
        question = next(q for ask, q in _right_answers().items() if ask in prompt)
        if kind == "one_word" and "one word" in prompt.lower():
            return response.lower() == question.word.lower()
        return response in question.answers
    if kind == "sorting":
        form, order = next((f, o) for f, o in ORDERS.items() if prompt.startswith(f[:-2]))
        return response.split(", ") == order(prompt.removeprefix(form[:-2]).split(", "))
    if kind == "letter_case":
        text = prompt.split(": ", 1)[1]
        large = re.search("in capital|upper|only capitals", prompt)
        return response == (text.upper() if large else text.lower())
    if kind in ("list_layout", "item_count"):
        layout = next((name for name in LAYOUTS if name in prompt), "separated by commas")
        items = re.split(", |\n", re.sub(r"^(- |\d+\. )", "", response, flags=re.MULTILINE))
        count = next(n for n, name in NUMBERS.items() if f" {name} " in prompt)
        words = next(words for topic, words in _texts().lists if f" {topic}" in prompt)
        return (
            response == LAYOUTS[layout](items) and len(items) == count and set(items) <= set(words)
        )
    if kind == "valid_json":
        try:
            value = json.loads(response)
        except ValueError:
            return False
        return list(value) == ["name", "count"] and all(str(v) in prompt for v in value.values())
    if kind == "language":
        entry = next(e for e in _texts().sentences if re.search(rf"about {e['about']}\b", prompt))
        return response == entry[next(name for name in LANGUAGES if name in prompt)]
    if kind == "keyword":
        word = re.search(r'(?:the word "?|contains: )(\w+)', prompt)
        return word is not None and word[1] in re.findall(r"\w+", response)
    raise ValueError(f"unknown kind {kind}")


def draw_pairs(pool: Pool, kind: str, count: int, seed: str, seen: set[str]) -> Iterator[Draw]:
    """`count` verified examples with unseen prompts; in every second the longer response is right.

    Raises ValueError if the texts do not give this number of different prompts.
    """
    rng = random.Random(f"{seed}/{kind}")
    for number in range(count):
        longer_is_right = number % 2 == 0
        for attempt in itertools.count():
            prompt, chosen, rejected = KINDS[kind](pool, rng)
            difference = len(chosen) - len(rejected)
            fits = difference == 0 or (difference > 0) == longer_is_right or attempt > 200
            if prompt in seen or not fits:
                if attempt > 2000:
                    raise ValueError(f"{kind}: the texts do not give {count} different prompts")
                continue
            if is_right(kind, prompt, chosen) and not is_right(kind, prompt, rejected):
                seen.add(prompt)
                yield prompt, chosen, rejected
                break


def make_demo_data(seed: int = SEED) -> dict[str, list[dict[str, str]]]:
    """{file stem: rows}: preferences as TRL writes them, `source` = kind, and unlabeled pairs."""
    training, heldout = split_texts(seed)
    seen: set[str] = set()

    def preferences(pool: Pool, name: str, per_kind: int, per_easy: int) -> list[dict[str, str]]:
        rows = []
        for kind in KINDS:
            count = per_easy if kind in EASY else per_kind
            for n, pair in enumerate(draw_pairs(pool, kind, count, f"{seed}/{name}", seen)):
                row = dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))
                rows.append({"id": f"{name}-{kind}-{n:02d}"} | row | {"source": kind})
        random.Random(f"{seed}/{name}").shuffle(rows)
        return rows

    rows = {
        "demo_heldout": preferences(heldout, "heldout", HELDOUT_PER_KIND, HELDOUT_PER_KIND),
        "demo_preferences": preferences(training, "train", TRAIN_PER_KIND, TRAIN_PER_EASY_KIND),
    }
    rng = random.Random(f"{seed}/sides")
    rows["demo_unlabeled"] = []
    for row in preferences(training, "unlabeled", UNLABELED_PER_KIND, UNLABELED_PER_KIND):
        a, b = rng.sample((row["chosen"], row["rejected"]), 2)
        unlabeled = {"id": row["id"], "prompt": row["prompt"], "response_a": a, "response_b": b}
        rows["demo_unlabeled"].append(unlabeled)
    return rows


def write_demo_data(folder: Path, seed: int = SEED) -> list[Path]:
    """Write every file as FOLDER/<stem>.jsonl.gz, the same bytes for the same seed."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for stem, rows in make_demo_data(seed).items():
        path = folder / f"{stem}.jsonl.gz"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
        paths.append(path)
    return paths


if __name__ == "__main__":
    for path in write_demo_data(Path(sys.argv[1]) if len(sys.argv) > 1 else ASSETS):
        print(path)
