"""The sizes of the grid: how much data, how long a pair may be, how a step is filled."""

from collections.abc import Mapping
from dataclasses import dataclass

ALL = 10**9  # pairs: as many as there are


@dataclass(frozen=True)
class Size:
    """What a grid is made of.

    fit, test_fit: tokens that a pair may have as a comparison, for training and for testing; the same for every set.
    clear: least margin of the pairs of preference_train and preference_valid, for training and for testing; least_fit:
      fewest tokens of these, the template's among them.
    test_pairs, per_prompt: at most so many tested pairs of a set, and of one prompt of it.
    held: instructions of preference_train that are kept out of all training and added to preference_valid.
    least, long_tokens: a set with fewer fitting pairs than `least` is asked of the main four judges only, and of it
      the shortest pairs, one a prompt, whose two orders have so many tokens together.
    unlabeled: pairs that are 100 % for stage 1. labels: pairs for stage 2; base: those of every other table.
    domain: the set under eval/ that stands for a new domain; domain_labels: pairs of it to train on; domain_train: part
      of its prompts that those are drawn from, anew for every seed; the others are for testing.
    orders: how stage 2 shows a pair: "hash", in one order; "both", in both of them side by side.
    rows, length; rank_rows, rank_length: of a step, for stages 1 and 2 and for the baseline, whose pair is two texts.
    rates: peak learning rate of each stage. save_every: steps between checkpoints.
    """

    fit: int
    test_fit: int
    clear: float
    least_fit: int
    max_length: int
    test_pairs: int
    per_prompt: int
    held: int
    least: int
    long_tokens: int
    unlabeled: int
    labels: tuple[int, ...]
    base: int
    domain: str
    domain_labels: tuple[int, ...]
    domain_train: float | None
    epochs: int
    orders: str
    rows: int
    length: int
    rank_rows: int
    rank_length: int
    rates: Mapping[str, float]
    compute_dtype: str
    save_every: int
    seeds: tuple[int, ...]


SIZES = {
    # Everything there is, two epochs of labels as in the public release, 25 pairs a step.
    "full": Size(
        fit=2048,
        test_fit=2048,
        clear=0.0,
        least_fit=0,
        max_length=2048,
        test_pairs=ALL,
        per_prompt=ALL,
        held=0,
        least=0,
        long_tokens=0,
        unlabeled=ALL,
        labels=(1000, 3000, 10_000, ALL),
        base=ALL,
        domain="rm_bench_code",
        domain_labels=(100, 300, 1000),
        domain_train=0.55,
        epochs=2,
        orders="hash",
        rows=8,
        length=2048,
        rank_rows=4,
        rank_length=4096,
        rates={"pretrain": 2e-5, "finetune": 5e-5, "bradley_terry": 5e-5},
        compute_dtype="bfloat16",
        save_every=200,
        seeds=(0, 1, 2, 3, 4),
    ),
    # Without an accelerator: a cell takes 23 minutes of one core. Clear preferences between answers that are long
    # enough to show a style: of others, 300 labels taught the generative judge nothing, a bag of words little more.
    "small": Size(
        fit=320,
        test_fit=320,
        clear=0.9,
        least_fit=200,
        max_length=1024,
        test_pairs=64,
        per_prompt=2,
        held=40,
        least=20,
        long_tokens=10_000,
        unlabeled=160,
        labels=(40, 120),
        base=120,
        domain="hh_harmless_first200",
        domain_labels=(20, 60),
        domain_train=None,
        epochs=1,
        orders="both",
        rows=1,
        length=1024,
        rank_rows=1,
        rank_length=512,
        rates={"pretrain": 5e-5, "finetune": 7e-5, "bradley_terry": 7e-5},
        compute_dtype="bfloat16",
        save_every=100,
        seeds=(0, 1, 2, 3, 4),
    ),
    # Seconds a cell with the model "tiny-random": for trying the benchmark out.
    "tiny": Size(
        fit=192,
        test_fit=192,
        clear=0.0,
        least_fit=0,
        max_length=256,
        test_pairs=8,
        per_prompt=2,
        held=2,
        least=4,
        long_tokens=1500,
        unlabeled=8,
        labels=(8, 16),
        base=16,
        domain="harmless",
        domain_labels=(6,),
        domain_train=0.5,
        epochs=1,
        orders="both",
        rows=1,
        length=384,  # both orders of a pair lie in one row
        rank_rows=1,
        rank_length=192,
        rates={"pretrain": 1e-3, "finetune": 3e-3, "bradley_terry": 3e-3},
        compute_dtype="float32",
        save_every=1,
        seeds=(0, 1),
    ),
}
