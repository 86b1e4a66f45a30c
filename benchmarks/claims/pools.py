"""Selection of training and test pairs, with the same rules for every set.

Draws are functions of hashes of (seed, id): a draw of 100 pairs is the beginning of the draw of 300.
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sizes import Size

from gram_jax.data.reading import read_records
from gram_jax.data.records import Comparison
from gram_jax.data.sources import FILE_SUFFIXES
from gram_jax.errors import DataError
from gram_jax.interop.models import load_tokenizer
from gram_jax.judge.encode import encode_fitting_items
from gram_jax.judge.spec import JudgeSpec, make_spec

TRAIN, VALID, UNLABELED = "preference_train", "preference_valid", "unlabeled_train"


@dataclass(frozen=True)
class Pools:
    """The pairs of the data folder at one size.

    unlabeled, labels: pairs to draw from. tests: pairs of every set for all judges, long: pairs of sets for the four
    main judges only; both by the name of the file. domain: pairs from which labels of the new domain are drawn.
    """

    size: Size
    spec: JudgeSpec
    unlabeled: list[Comparison]
    labels: list[Comparison]
    tests: dict[str, list[Comparison]]
    long: dict[str, list[Comparison]]
    domain: list[Comparison]

    @property
    def outside(self) -> list[str]:
        """Sets out of distribution that all judges are tested on."""
        return [name for name in self.tests if name != VALID]

    @cached_property
    def prompts(self) -> dict[str, np.ndarray]:
        """i [n] of every set: index of the prompt of each pair."""
        return {name: _number(pairs) for name, pairs in {**self.tests, **self.long}.items()}

    @cached_property
    def longer(self) -> dict[str, np.ndarray]:
        """-1, 0, 1 [n] of every set: sign of the length difference, chosen minus rejected."""
        return {
            name: np.array([np.sign(len(p.chosen) - len(p.rejected)) for p in pairs])
            for name, pairs in {**self.tests, **self.long}.items()
        }

    def draw(self, source: str, count: int, seed: int) -> list[Comparison]:
        """The first `count` pairs of "unlabeled", "labels" or "domain" in the order of a seed."""
        pool = self.pool(source)
        if source == "domain" and self.size.domain_train is not None:
            pool = [pool[i] for i in np.flatnonzero(~self.domain_test(seed))]
        return _shuffled(pool, seed, _item)[:count]

    def pool(self, source: str) -> Sequence[Comparison]:
        """The pairs from which `draw` draws, for every seed."""
        if source == "domain":
            return self.domain
        return self.unlabeled if source == "unlabeled" else self.labels

    def count(self, source: str, wanted: int) -> int:
        """Number of pairs in a draw of "unlabeled" or "labels"."""
        return min(wanted, len(self.pool(source)))

    def domain_test(self, seed: int) -> np.ndarray:
        """bool [n]: the pairs of the new domain for testing; pairs of one prompt are all in or all out."""
        pairs = self.tests[self.size.domain]
        if self.size.domain_train is None:
            return np.ones(len(pairs), bool)
        order = _shuffled({_text(pair) for pair in pairs}, seed, str)
        drawn = set(order[: round(self.size.domain_train * len(order))])
        return np.array([_text(pair) not in drawn for pair in pairs])


def read_pools(size: Size, data: Path, model: str, cache: Path) -> Pools:
    """Read the pools. cache: a file with the number of tokens of every pair.

    Raises DataError if a file of the folder is missing.
    """
    tokenizer = load_tokenizer(model)
    spec = make_spec(tokenizer, template=size.template, max_length=size.max_length, system="")
    measure = _Measure(tokenizer, spec, size.layout, cache)
    valid, train = (_clear(size, measure(data, name)) for name in (VALID, TRAIN))
    outside = {
        name: measure(data / "eval", name)
        for name in sorted({path.name.partition(".")[0] for path in (data / "eval").iterdir()})
    }
    if size.domain not in outside:
        raise DataError(
            f"{data / 'eval'} has no {size.domain}, the new domain of this size: found "
            f"{', '.join(outside) or 'nothing'}"
        )
    fitting = [pair for pair, length in train if length <= size.fit]
    held = set(_shuffled({_text(pair) for pair in fitting}, 0, str)[: size.held])
    sets = {VALID: valid + [item for item in train if _text(item[0]) in held], **outside}
    tests, long = {}, {}
    for name, pairs in sets.items():
        chosen = _tested(size, pairs)
        if len(chosen) >= size.least:
            tests[name] = chosen
        else:
            long[name] = _shortest(pairs, size.long_tokens)
    domain = tests[size.domain]
    if size.domain_train is None:
        tested = {_text(pair) for pair in domain}
        fitting_domain = [p for p, length in outside[size.domain] if length <= size.fit]
        domain = [pair for pair in fitting_domain if _text(pair) not in tested]
    known = held | {_text(pair) for pair, _ in valid}
    unlabeled = [p for p, length in measure(data, UNLABELED, "pair") if length <= size.fit]
    return Pools(
        size,
        spec,
        [pair for pair in unlabeled if _text(pair) not in known],
        [pair for pair in fitting if _text(pair) not in known],
        tests,
        long,
        domain,
    )


def digest(pairs: Iterable[Comparison]) -> str:
    """Hash (16 hex digits) of the texts and labels of pairs in their order, without their ids."""
    found = hashlib.sha256()
    for pair in pairs:
        found.update(json.dumps(_row(pair), sort_keys=True).encode())
    return found.hexdigest()[:16]


def write_pairs(path: Path, pairs: Iterable[Comparison]) -> None:
    """Write pairs as a source of a recipe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": p.id, **_row(p)}) + "\n" for p in pairs))


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically, also with several processes in one folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)


class _Measure:
    """Number of tokens of the pairs of a file, in the layout in which they are read."""

    def __init__(self, tokenizer: Any, spec: JudgeSpec, layout: str, cache: Path):
        self.tokenizer, self.spec, self.cache = tokenizer, spec, cache
        self.pretraining = spec.pretraining if layout == "judge" else spec.gram_pretraining
        self.of_layout = b"judge" if layout == "judge" else b""  # lengths were GRAM's at first
        self.known = json.loads(cache.read_text()) if cache.exists() else {}

    def __call__(
        self, folder: Path, name: str, kind: str = "preference"
    ) -> list[tuple[Comparison, int]]:
        path = next((p for s in FILE_SUFFIXES if (p := folder / (name + s)).is_file()), None)
        if path is None:
            raise DataError(f"{folder} has no file {name} ({', '.join(FILE_SUFFIXES)})")
        pairs = [p for p in read_records(path, kind)[0] if kind == "pair" or p.has_preference]
        of_layout = self.of_layout if kind == "pair" else b""
        content = self.spec.hash.encode() + of_layout + path.read_bytes()
        key = hashlib.sha256(content).hexdigest()[:16]
        if key not in self.known:
            spec = self.spec
            layout = spec.comparison if kind == "preference" else self.pretraining
            items = [(pair.prompt, pair.first, pair.second) for pair in pairs]
            # A pair that exceeds max_length exceeds every limit.
            encoded = encode_fitting_items(self.tokenizer, layout, items, spec.max_length)
            self.known[key] = [len(e.tokens) if e is not None else 10**6 for e in encoded]
            write_whole(self.cache, json.dumps(self.known))
        return list(zip(pairs, self.known[key], strict=True))


def _clear(size: Size, pairs: Sequence[tuple[Comparison, int]]) -> list[tuple[Comparison, int]]:
    return [
        (pair, length)
        for pair, length in pairs
        if length >= size.least_fit and (pair.margin is None or pair.margin >= size.clear)
    ]


def _tested(size: Size, pairs: Sequence[tuple[Comparison, int]]) -> list[Comparison]:
    by_prompt = defaultdict(list)
    for pair, length in pairs:
        if length <= size.test_fit:
            by_prompt[_text(pair)].append(pair)
    few = [_shuffled(of, 0, _item)[: size.per_prompt] for of in by_prompt.values()]
    return _shuffled([p for of in few for p in of], 0, _item)[: size.test_pairs]


def _shortest(pairs: Sequence[tuple[Comparison, int]], tokens: int) -> list[Comparison]:
    found: dict[str, Comparison] = {}
    for pair, length in sorted(pairs, key=lambda item: (item[1], item[0].id)):
        if _text(pair) in found:
            continue
        if (tokens := tokens - 2 * length) < 0:
            break
        found[_text(pair)] = pair
    return list(found.values())


def _item(pair: Comparison) -> str:
    """The id, without the letter of the pair in an item of the test bed (bed.py), so that items are drawn whole."""
    return re.sub(r"(-(clear|middle|subtle))-[ab]$", r"\1", pair.id)


def _shuffled(items: Iterable[Any], seed: int, name: Callable[[Any], str]) -> list[Any]:
    return sorted(
        items, key=lambda item: hashlib.blake2b(f"{seed}\0{name(item)}".encode()).digest()
    )


def _text(pair: Comparison) -> str:
    return json.dumps([[message.role, message.content] for message in pair.prompt])


def _row(pair: Comparison) -> dict[str, Any]:
    prompt = [{"role": message.role, "content": message.content} for message in pair.prompt]
    if pair.has_preference:
        return {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    return {"prompt": prompt, "response_a": pair.first, "response_b": pair.second}


def _number(pairs: Sequence[Comparison]) -> np.ndarray:
    return np.unique([_text(pair) for pair in pairs], return_inverse=True)[1]
