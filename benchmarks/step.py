"""A training step of SmolLM2-135M in float32 against PyTorch, alternating: python benchmarks/step.py [ROUNDS]"""

import sys

from common import exported_judge
from duel import duel, report

ROWS, LENGTH = 2, 512
SIDES = {
    "gram_jax": "jax",
    "PyTorch, as people write it": "torch",
    "PyTorch, last position": "torch-last",
}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    folder = exported_judge()
    workers = {n: [side, folder, str(ROWS), str(LENGTH)] for n, side in SIDES.items()}
    found = duel("step_worker.py", workers, rounds=rounds)
    print("\n".join(report(f"step {ROWS} x {LENGTH}, AdamW, all weights", found, "gram_jax")))
    losses = {name: side["loss"] for name, side in found.items()}
    print(f"\nloss after {rounds + 1} steps: {losses}")


if __name__ == "__main__":
    main()
