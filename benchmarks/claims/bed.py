"""The test bed of the claims: tasks whose answers are verified by code, without a surface that gives the answer away.

    python benchmarks/claims/bed.py DATA [--seed 0]

writes the data folder that run.py reads: preference_train and preference_valid (the labeled kinds), unlabeled_train
(the labeled and the unlabeled kinds), and eval/ with the kinds that only stage 1 sees, those that neither stage sees,
and Spanish.

Every item is two prompts and two responses: the right response to one prompt is the wrong one to the other. So every
response is chosen as often as it is rejected, in every split, and no function of the responses alone (length, format,
words, n-grams) can do better than 0.5, exactly. A response may share more words or letters with its prompt than the
other one has; items are rejected unless this favours the right response to one prompt and the wrong one to the other.
"""

import argparse
import functools
import itertools
import json
import random
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from bed_tasks import TASKS, Draw, Fields, Task

FOLDER = Path(__file__).resolve().parent
COMMON = FOLDER.parents[1] / "tools" / "demo_texts.toml"
LANGUAGES = {"English": FOLDER / "bed.toml", "Spanish": FOLDER / "bed_es.toml"}
# Share of the words, facts and texts that only tests use.
HELD_OUT = 0.4
# Never divided: their order matters, or all of them are needed to answer.
WHOLE = ("days", "months", "number_words", "openers")
ROLES = ("labeled", "unlabeled", "unseen", "far")
ATTEMPTS = 4000


class Item(NamedTuple):
    """Two prompts; responses[i] is right for prompts[i] and wrong for the other."""

    prompts: tuple[str, str]
    responses: tuple[str, str]


@dataclass(frozen=True)
class Split:
    """A file of the bed. roles: the kinds in it; pairs: the number of pairs of each kind (two for an item)."""

    name: str
    roles: Sequence[str]
    pairs: int
    test: bool
    labeled: bool = True


SPLITS = (
    Split("preference_valid", ("labeled",), 40, test=True),
    Split("eval/unlabeled_kinds", ("unlabeled",), 60, test=True),
    Split("eval/unseen_kinds", ("unseen",), 60, test=True),
    Split("eval/spanish", ("far",), 60, test=True),
    Split("preference_train", ("labeled",), 100, test=False),
    Split("unlabeled_train", ("labeled", "unlabeled"), 60, test=False, labeled=False),
)


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of task in one language, with its wordings."""

    name: str
    role: str
    forms: tuple[str, ...]
    say: tuple[str, ...]
    choices: Mapping[str, Mapping[str, Sequence[str]]]
    task: Task


@dataclass(frozen=True)
class Language:
    """The kinds and the texts of one language."""

    kinds: Mapping[str, Kind]
    texts: Mapping[str, Any]
    seed: int

    def draw(self, kind: Kind, test: bool | None, rng: random.Random) -> Draw:
        """Draws from the texts for tests, for training, or (None) from all."""
        texts = self.texts if test is None else _part(self.texts, test, self.seed)
        return Draw(_with_whole(texts, self.texts), kind.choices, rng)


@functools.cache
def language(name: str, seed: int) -> Language:
    """The language of this name; the seed divides its texts."""
    raw = tomllib.loads(LANGUAGES[name].read_text(encoding="utf-8"))
    kinds = {kind: _kind(kind, values) for kind, values in raw.pop("kinds").items()}
    if name == "English":
        common = tomllib.loads(COMMON.read_text(encoding="utf-8"))
        raw["lists"] = common["lists"]
        raw["facts"] = common["facts"]
        raw["topics"] = {topic["ask"]: topic["more"] for topic in common["topics"]}
        raw["sentences"] = {one["about"]: one for one in common["sentences"]}
        raw |= {"yes": "Yes", "no": "No"}
    raw["facts"] = {table: values["table"] for table, values in raw["facts"].items()}
    return Language(kinds, raw, seed)


def _kind(name: str, values: Mapping[str, Any]) -> Kind:
    choices = {field: found for field, found in values.items() if isinstance(found, dict)}
    say = tuple(values.get("say", ("{}",)))
    return Kind(name, values["role"], tuple(values["forms"]), say, choices, TASKS[name])


def _part(texts: Any, test: bool, seed: int, path: str = "") -> Any:
    """The items of every list, and the keys of every table of texts, for tests or for training."""
    if isinstance(texts, str) or path in WHOLE:
        return texts
    divided = isinstance(texts, list) or all(isinstance(x, str) for x in texts.values())
    if path in ("", "lines") or not (divided or path == "sentences"):
        return {name: _part(found, test, seed, name) for name, found in texts.items()}
    order = sorted(texts)
    random.Random(f"{seed}/{path}").shuffle(order)
    cut = round(len(order) * HELD_OUT)
    kept = set(order[:cut] if test else order[cut:])
    if isinstance(texts, list):
        return [text for text in texts if text in kept]
    return {key: value for key, value in texts.items() if key in kept}


def _with_whole(texts: Mapping[str, Any], everything: Mapping[str, Any]) -> dict[str, Any]:
    return {**texts, "whole": everything}


# Items


def items(lang: Language, kind: Kind, split: Split, seen: set[str]) -> Iterator[Item]:
    """Verified and balanced items whose prompts are not in `seen`, to which they are added.

    Raises ValueError if the texts do not give enough of them.
    """
    rng = random.Random(f"{lang.seed}/{split.name}/{kind.name}")
    draw, everything = lang.draw(kind, split.test, rng), lang.draw(kind, None, rng)
    for _ in range(split.pairs // 2):
        for attempt in itertools.count():
            if attempt > ATTEMPTS:
                raise ValueError(
                    f"{kind.name}: the texts do not give {split.pairs} pairs of {split.name}"
                )
            item = draw_item(kind, draw)
            new = len({*item.prompts} - seen) == 2
            if new and is_verified(kind, everything, item) and is_balanced(item):
                break
        seen.update(item.prompts)
        yield item


def draw_item(kind: Kind, draw: Draw) -> Item:
    """An item in one wording, not yet verified."""
    both = kind.task.ask(draw)
    form, say = draw.rng.choice(kind.forms), draw.rng.choice(kind.say)
    opener = draw.rng.choice(draw.texts["openers"])
    prompts = tuple(opener + _prompt(form, kind, fields, draw.rng) for fields in both)
    said = tuple(say.format(kind.task.answer(fields, draw)) for fields in both)
    return Item((prompts[0], prompts[1]), (said[0], said[1]))


def _prompt(form: str, kind: Kind, fields: Fields, rng: random.Random) -> str:
    shown = {
        n: rng.choice(kind.choices[n][v]) if n in kind.choices else v for n, v in fields.items()
    }
    text = form.format(**shown)
    own = (
        form.startswith("{") and form[1 : form.index("}")] not in kind.choices
    )  # drawn text stays as it is
    return text if own else text[0].upper() + text[1:]


def is_right(kind: Kind, everything: Draw, prompt: str, response: str) -> bool:
    """Whether a response follows the prompt, from the texts alone."""
    opener = max(filter(prompt.startswith, everything.texts["openers"]), key=len)
    answers = [answer for say in kind.say for answer in _said(say, response)]
    return any(
        kind.task.accepts(fields, everything, answer)
        for fields in parsed(kind, prompt.removeprefix(opener))
        for answer in answers
    )


def parsed(kind: Kind, prompt: str) -> Iterator[Fields]:
    """The fields of a prompt, for every wording that fits."""
    for form in kind.forms:
        if match := re.fullmatch(_pattern(form, kind), prompt, re.DOTALL | re.IGNORECASE):
            yield {name: _choice(kind, name, text) for name, text in match.groupdict().items()}


@functools.cache
def _pattern(form: str, kind: Kind) -> str:
    """A wording as a regular expression; a field that occurs again is the same text."""
    pattern, known = "", {""}
    for text, field in re.findall(r"([^{]*)(?:\{(\w*)\})?", form):
        pattern += re.escape(text)
        if field and field in known:
            pattern += f"(?P={field})"
        elif field:
            many = itertools.chain.from_iterable(kind.choices.get(field, {}).values())
            phrases = sorted(many, key=len, reverse=True)
            pattern += f"(?P<{field}>{'|'.join(map(re.escape, phrases)) or '.+?'})"
        known.add(field)
    return pattern


def _said(say: str, response: str) -> Iterator[str]:
    """The answer inside its frame, if the response has this frame."""
    before, after = say.split("{}")
    if (
        response.startswith(before)
        and response.endswith(after)
        and len(response) > len(before + after)
    ):
        yield response[len(before) : len(response) - len(after)]


def _choice(kind: Kind, field: str, text: str) -> str:
    """The name of the choice that is worded so; the text itself for other fields."""
    options = kind.choices.get(field, {})
    return next(
        (name for name, many in options.items() if text.lower() in map(str.lower, many)), text
    )


def is_verified(kind: Kind, everything: Draw, item: Item) -> bool:
    """Whether each response is right for its own prompt and wrong for the other."""
    return all(
        is_right(kind, everything, prompt, response) == (at == to)
        for at, prompt in enumerate(item.prompts)
        for to, response in enumerate(item.responses)
    )


# Balance


def is_balanced(item: Item) -> bool:
    """Whether shared words and letters favour the right response to one prompt and the wrong one to the other."""
    return all(_lead(item, 0, share) == -_lead(item, 1, share) for share in SHARED)


def _lead(item: Item, at: int, share: Any) -> int:
    right, wrong = (share(item.prompts[at], item.responses[to]) for to in (at, 1 - at))
    return (right > wrong) - (right < wrong)


def shared_words(prompt: str, response: str) -> float:
    """Share of the words of the response that the prompt has."""
    words = re.findall(r"\w+", response.lower())
    return sum(word in set(re.findall(r"\w+", prompt.lower())) for word in words) / max(
        1, len(words)
    )


def shared_letters(prompt: str, response: str) -> int:
    """Number of sequences of three letters that both have."""
    return len(_trigrams(prompt) & _trigrams(response))


def _trigrams(text: str) -> set[str]:
    return {text[at : at + 3].lower() for at in range(len(text) - 2)}


SHARED = (shared_words, shared_letters)


def strength(item: Item) -> str:
    """How wrong the wrong response is: "subtle", "middle" or "clear", by the letters that both responses share."""
    ratio = SequenceMatcher(None, *item.responses, autojunk=False).ratio()
    return "subtle" if ratio >= 0.8 else "middle" if ratio >= 0.5 else "clear"


# Rows


def make_bed(seed: int = 0, splits: Sequence[Split] = SPLITS) -> dict[str, list[dict[str, str]]]:
    """{name of the file: rows}. The two rows of an item follow each other and show the responses in one order."""
    seen: set[str] = set()
    return {split.name: list(_rows(split, seed, seen)) for split in splits}


def _rows(split: Split, seed: int, seen: set[str]) -> Iterator[dict[str, str]]:
    rows = []
    for name in LANGUAGES:
        lang = language(name, seed)
        for kind in lang.kinds.values():
            if kind.role in split.roles:
                found = items(lang, kind, split, seen)
                rows += [_pair(split, kind, at, item) for at, item in enumerate(found)]
    random.Random(f"{seed}/{split.name}").shuffle(rows)
    return itertools.chain.from_iterable(rows)


def _pair(split: Split, kind: Kind, number: int, item: Item) -> list[dict[str, str]]:
    name = f"{Path(split.name).name}-{kind.name}-{number:03}-{strength(item)}"
    rows = []
    for at, prompt in enumerate(item.prompts):
        row = {"id": f"{name}-{'ab'[at]}", "prompt": prompt}
        right, wrong = item.responses[at], item.responses[1 - at]
        if split.labeled:
            row |= {"chosen": right, "rejected": wrong}
        else:
            row |= {"response_a": item.responses[0], "response_b": item.responses[1]}
        rows.append(row | {"source": kind.name})
    return rows


def flips(count: int, share: float, seed: int) -> set[int]:
    """The numbers of this share of `count` pairs, whose labels are exchanged, by seed."""
    return set(random.Random(f"{seed}/flips").sample(range(count), round(share * count)))


def write_bed(folder: Path, seed: int = 0) -> dict[str, int]:
    """Write every file, the same bytes for the same seed; returns the numbers of rows."""
    bed = make_bed(seed)
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    for name, rows in bed.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: len(rows) for name, rows in bed.items()}


def main() -> None:
    """Write the bed and print its sizes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    for name, count in write_bed(chosen.folder, chosen.seed).items():
        rows = [json.loads(line) for line in (chosen.folder / f"{name}.jsonl").open()]
        kinds = Counter(row["source"] for row in rows)
        degrees = Counter(row["id"].split("-")[-2] for row in rows)
        print(f"{name}: {count} pairs of {len(kinds)} kinds; {dict(degrees)}")


if __name__ == "__main__":
    main()
