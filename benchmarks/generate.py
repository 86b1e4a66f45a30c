"""Generation of 16 samples of one prompt with SmolLM2-135M against transformers, alternating.

python benchmarks/generate.py [--rounds N] [--dtype float32 bfloat16]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import torch
import transformers
from common import exported_judge

from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.model.execution import inference_execution
from gram_jax.model.generate import SamplingConfig, generate
from gram_jax.sharding import make_placement

SAMPLES, NEW_TOKENS = 16, 64
PROMPT = "Compare two responses to a request. Which one is better, and why? " * 8


def ours(folder: str, prompt: list[int], dtype: str) -> Callable[[int], int]:
    """A function from a seed to the number of tokens that it generated."""
    execution = inference_execution(dtype, make_placement({}, devices=jax.devices()[:1]))
    cfg, params = load_model(folder, execution.placement, dtype)

    def run(seed: int) -> int:
        sampling = SamplingConfig(NEW_TOKENS, temperature=1.0, seed=seed)
        found = generate(params, cfg, [prompt] * SAMPLES, execution, sampling, batch_size=SAMPLES)
        return int(found.lengths.sum())

    return run


def theirs(folder: str, prompt: list[int], dtype: str) -> Callable[[int], int]:
    """As `ours`, of transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    tokens = torch.tensor([prompt])

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.inference_mode():
            found = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                top_k=0,
                num_return_sequences=SAMPLES,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=0,
            )
        return int(found[:, len(prompt) :].numel())

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    folder = exported_judge()
    prompt = load_tokenizer(folder).encode(PROMPT)
    print(f"{SAMPLES} samples of a prompt of {len(prompt)} tokens, {NEW_TOKENS} new tokens each")
    versions = (f"{module.__name__} {module.__version__}" for module in (jax, transformers, torch))
    print(f"{', '.join(versions)}; {os.cpu_count()} cores")
    for dtype in options.dtype:
        sides = {
            "gram_jax": ours(folder, prompt, dtype),
            "transformers": theirs(folder, prompt, dtype),
        }
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(options.rounds + 1):  # the first one compiles
            for name, run in sides.items():
                start = time.perf_counter()
                tokens = run(number)
                if number:
                    speeds[name].append(tokens / (time.perf_counter() - start))
        medians = {name: statistics.median(found) for name, found in speeds.items()}
        shown = ", ".join(f"{name} {speed:.0f}" for name, speed in medians.items())
        print(
            f"{dtype}: tokens a second: {shown}; ratio {medians['gram_jax'] / medians['transformers']:.2f}"
        )


if __name__ == "__main__":
    main()
