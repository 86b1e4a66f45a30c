"""The test bed of faults: the demo's kinds of task, divided into labeled, unlabeled and unseen kinds.

    python benchmarks/claims/faults.py DATA [--seed 0]

writes the data folder that run.py reads (`--size faults`), and prints how far rules that do not understand a response
get on every file. A pair is a right response and one with the fault of its kind (tools/demo_data.py): an answer that is
cut off, a list that is not sorted, a wrong fact, and so on. Which kinds have labels was chosen on other seeds
(docs/testbed.md). The test files use other questions, facts, words and sentences than the training files.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from demo_data import KINDS, Pool, draw_pairs, split_texts
from surface import Texts, controls

UNLABELED = ("wrong_fact", "sorting")  # stage 1 sees them
UNSEEN = ("list_layout", "language", "repetition")  # neither stage does
LABELED = tuple(kind for kind in KINDS if kind not in UNLABELED + UNSEEN)

Row = dict[str, str]


class Split(NamedTuple):
    """A file. pairs: of every kind."""

    name: str
    kinds: Sequence[str]
    pairs: int
    test: bool
    labeled: bool = True


# In the order in which they are drawn: kinds with the fewest texts first.
SPLITS = (
    Split("eval/unseen_kinds", UNSEEN, 60, test=True),
    Split("preference_valid", LABELED, 32, test=True),
    Split("eval/unlabeled_kinds", UNLABELED, 90, test=True),
    Split("preference_train", LABELED, 64, test=False),
    Split("unlabeled_train", LABELED + UNLABELED, 30, test=False, labeled=False),
)


def make_faults(seed: int = 0, splits: Sequence[Split] = SPLITS) -> dict[str, list[Row]]:
    """{name of the file: rows}, without a prompt in common. Raises ValueError if the texts do not give enough pairs."""
    training, heldout = split_texts(seed)
    seen: set[str] = set()
    return {
        split.name: _rows(split, heldout if split.test else training, seed, seen)
        for split in splits
    }


def _rows(split: Split, pool: Pool, seed: int, seen: set[str]) -> list[Row]:
    name, rows = Path(split.name).name, []
    for kind in split.kinds:
        for at, pair in enumerate(
            draw_pairs(pool, kind, split.pairs, f"{seed}/{split.name}", seen)
        ):
            rows.append({"id": f"{name}-{kind}-{at:03}", **_texts(split, pair, at), "source": kind})
    random.Random(f"{seed}/{split.name}").shuffle(rows)
    return rows


def _texts(split: Split, pair: Texts, at: int) -> Row:
    prompt, *responses = pair
    names = ("chosen", "rejected") if split.labeled else ("response_a", "response_b")
    # The longer response is right in every second pair; the sides change every second pair of these.
    sides = responses if split.labeled or at // 2 % 2 else responses[::-1]
    return {"prompt": prompt, **dict(zip(names, sides, strict=True))}


def write_faults(folder: Path, seed: int = 0) -> dict[str, list[Row]]:
    """Write every file, the same bytes for the same seed; returns the rows."""
    found = make_faults(seed)
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    for name, rows in found.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return found


def as_texts(rows: Sequence[Row]) -> Iterator[Texts]:
    """The texts of labeled rows."""
    return ((row["prompt"], row["chosen"], row["rejected"]) for row in rows)


def main() -> None:
    """Write the files, and print their sizes and the controls."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    files = write_faults(chosen.folder, chosen.seed)
    for name, rows in files.items():
        print(f"{name}: {len(rows)} pairs of {len({row['source'] for row in rows})} kinds")
    tests = {split.name: list(as_texts(files[split.name])) for split in SPLITS if split.test}
    for rule, shares in controls(list(as_texts(files["preference_train"])), tests).items():
        print(f"{rule}: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))


if __name__ == "__main__":
    main()
