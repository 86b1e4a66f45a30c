"""Scoring real pairs with SmolLM2-135M in float32 against transformers and PyTorch, from text to score, alternating.

    python benchmarks/score.py SOURCE... [--pairs 12] [--rounds 3] [--best-of 8 16]

SOURCE: files of pairs, of any schema, from each of which --pairs are drawn. --best-of: rank this number of responses
from the source's pairs, all against all, to its first prompt, and compare with scoring the same pairs one by one. The
model is not trained to judge, so its scores are near 0.5: measured are time and agreement.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import exported_judge
from duel import duel, report

from gram_jax.data.reading import read_records
from gram_jax.judge.encode import encode_items
from gram_jax.judge.spec import JudgeSpec
from gram_jax.judge.tokenizer import folder_tokenizer

SIDES = {
    "gram_jax": "prefix_shared",
    "gram_jax, padded": "padded",
    "PyTorch, as people write it": "torch",
    "PyTorch, at its best": "torch-best",
}
RANKING = {
    "gram_jax": "compare",
    "pairs one by one": "compare",
    "the same, padded rows": "compare-padded",
}
RIVAL_CHARACTERS = (300, 1500)  # of a response that is ranked


def draw(sources: list[str], count: int) -> list[list[Any]]:
    """[prompt, first, second] of `count` pairs of each source, in random order."""
    found = []
    for source in sources:
        records, _ = read_records(source, "pair")
        chosen = np.random.default_rng(0).choice(len(records), count, replace=False)
        found += [_texts(records[at]) for at in chosen]
    return [found[at] for at in np.random.default_rng(1).permutation(len(found))]


def rivals(source: str, count: int) -> list[Any]:
    """One prompt and `count` responses."""
    records, _ = read_records(source, "pair", limit=50 * count)
    low, high = RIVAL_CHARACTERS
    responses = [r.first for r in records if low <= len(r.first) <= high]
    return [_texts(records[0])[0], list(dict.fromkeys(responses))[:count]]


def _texts(record: Any) -> list[Any]:
    prompt = [{"role": turn.role, "content": turn.content} for turn in record.prompt]
    return [prompt, record.first, record.second]


def lengths(folder: str, pairs: list[list[Any]]) -> str:
    """Number and lengths of the texts, for the report."""
    shown = [order for p, a, b in pairs for order in ((p, a, b), (p, b, a))]
    spec = JudgeSpec.load(folder)
    texts = encode_items(folder_tokenizer(folder), spec.comparison, shown, spec.max_length)
    sizes = [len(text.tokens) for text in texts]
    cut = sum(text.shortened for text in texts)
    return (
        f"{len(pairs)} pairs, {sum(sizes):,} tokens in both orders; {min(sizes)} to {max(sizes)}, median "
        f"{np.median(sizes):.0f}; {cut} shortened"
    )


def agreement(found: dict[str, dict[str, Any]], first: str) -> str:
    """Differences of the sides from the first one's scores."""
    ours = np.array(found[first]["scores"])
    lines = []
    for name, side in found.items():
        theirs = np.array(side["scores"])
        same = int(((ours > 0.5) == (theirs > 0.5)).sum())
        lines.append(f"{name}: {same} of {len(ours)} decisions, {np.abs(ours - theirs).max():.1e}")
    return "same decisions and largest difference of a score: " + "; ".join(lines[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--best-of", type=int, nargs="*", default=[])
    options = parser.parse_args()
    folder = exported_judge()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "pairs.json"

        def turns(title: str, sides: dict[str, str], pairs: Any, given: dict[str, Any]) -> None:
            workers = {}
            for name, side in sides.items():
                path = file.with_name(f"{side}.json")
                path.write_text(json.dumps(given.get(side, pairs)))
                workers[name] = [side, folder, str(path)]
            found = duel("score_worker.py", workers, rounds=options.rounds, warm_up=0, settle=False)
            print(f"{lengths(folder, pairs)}\n")
            print("\n".join(report(title, found, "gram_jax")))
            print(f"\n{agreement(found, 'gram_jax')}\n", flush=True)

        if options.pairs:
            turns("text to score", SIDES, draw(options.sources, options.pairs), {})
        for count in options.best_of:
            prompt, responses = rivals(options.sources[-1], count)
            pairs = [[prompt, a, b] for a, b in itertools.combinations(responses, 2)]
            turns(f"best of {count}", RANKING, pairs, {"compare": [prompt, responses]})


if __name__ == "__main__":
    main()
