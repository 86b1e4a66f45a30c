"""Scoring SmolLM2-135M in float32 against transformers and PyTorch, in turns: python benchmarks/score.py [ROUNDS]"""

import sys

from common import exported_judge
from duel import duel, report

SHAPES = ((2, 1024), (4, 512))  # rows (both orders of a pair are two), tokens
SIDES = {
    "gram_jax": "jax",
    "PyTorch, as people write it": "torch",
    "PyTorch, last position": "torch-last",
}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    folder = exported_judge()
    for rows, length in SHAPES:
        workers = {n: [side, "score", folder, str(rows), str(length)] for n, side in SIDES.items()}
        found = duel(workers, rounds=rounds)
        print("\n".join(report(f"score {rows} x {length}", found, "gram_jax")))
        ours = found["gram_jax"]["scores"]
        worst = max(
            abs(a - b) for side in found.values() for a, b in zip(ours, side["scores"], strict=True)
        )
        print(f"\nlargest difference of a score: {worst:.1e}\n", flush=True)


if __name__ == "__main__":
    main()
