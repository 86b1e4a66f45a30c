"""The sizes of the grid: amounts of data, lengths of pairs, batches."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

ALL = 10**9  # pairs: more than any set has
DEMO_TEMPLATE = "[Request]\n{prompt}\n\n[A]\n{first}\n\n[B]\n{second}\n\nWhich is better, A or B?"


@dataclass(frozen=True)
class Size:
    """The settings of a grid.

    fit, test_fit: maximum number of tokens of a pair as a comparison, for training and for testing.
    clear: minimum margin of the pairs of preference_train and preference_valid; least_fit: their minimum number of
      tokens, including the template.
    template: of the judge (judge.template of the recipe).
    test_pairs, per_prompt: maximum number of tested pairs of a set, and of one prompt of it.
    held: number of instructions of preference_train that are added to preference_valid and excluded from training.
    least, long_tokens: a set with fewer than `least` fitting pairs is tested with the four main judges only, on its
      shortest pairs, one per prompt, whose two orders have `long_tokens` tokens in total.
    layout: text of stage 1 (data.pretraining_layout). first_stages: uses of the unlabeled pairs that are compared
      (cells.FIRST_STAGES), none for ().
    unlabeled: number of pairs that are 100 % of stage 1. labels: numbers of pairs for stage 2; base: the default one.
    domain: the set under eval/ that is the new domain; domain_labels: numbers of its pairs for training; domain_train:
      share of its prompts from which these are drawn, separately for every seed; the others are for testing.
    orders: position augmentation of stage 2: "hash", one order; "both", both orders in one batch.
    rows, length; rank_rows, rank_length: batch of stages 1 and 2, and of the baseline, whose pair is two texts.
    rates: peak learning rate of each stage. save_every: steps between checkpoints.
    """

    fit: int
    test_fit: int
    max_length: int
    test_pairs: int
    unlabeled: int
    labels: tuple[int, ...]
    base: int
    domain: str
    domain_labels: tuple[int, ...]
    length: int
    rank_length: int
    rates: Mapping[str, float]
    save_every: int
    seeds: tuple[int, ...]
    clear: float = 0.0
    least_fit: int = 0
    template: str = "default"
    per_prompt: int = ALL
    held: int = 0
    least: int = 20
    long_tokens: int = 0
    layout: str = "judge"
    first_stages: tuple[str, ...] = ()
    domain_train: float | None = None
    epochs: int = 1
    orders: str = "both"
    rows: int = 1
    rank_rows: int = 1
    compute_dtype: str = "float32"


SIZES = {
    # All data, two epochs of labels as in the public release, 25 pairs per step.
    "full": Size(
        fit=2048,
        test_fit=2048,
        max_length=2048,
        test_pairs=ALL,
        least=0,
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
    # For CPUs: a cell takes 23 minutes on one core. Clear preferences between answers that are long enough to show a
    # style: 300 labels of other pairs taught the generative judge nothing, and a bag of words little more.
    "small": Size(
        fit=320,
        test_fit=320,
        clear=0.9,
        least_fit=200,
        max_length=1024,
        test_pairs=64,
        per_prompt=2,
        held=40,
        long_tokens=10_000,
        layout="gram",
        unlabeled=160,
        labels=(40, 120),
        base=120,
        domain="hh_harmless_first200",
        domain_labels=(20, 60),
        length=1024,
        rank_length=512,
        rates={"pretrain": 5e-5, "finetune": 7e-5, "bradley_terry": 7e-5},
        compute_dtype="bfloat16",
        save_every=100,
        seeds=(0, 1, 2, 3, 4),
    ),
    # The test bed (bed.py) on CPUs. Its pairs have about 100 tokens, so a row holds several in both orders.
    "bed": Size(
        fit=256,
        test_fit=256,
        max_length=512,
        test_pairs=240,
        per_prompt=1,
        first_stages=("pretrain", "gram", "corruptions", "consistency"),
        unlabeled=1200,
        labels=(300, 600, 1800),
        base=600,
        domain="unseen_kinds",
        domain_labels=(60, 240),
        length=1024,
        rank_length=1024,
        rates={"pretrain": 5e-5, "finetune": 5e-5, "bradley_terry": 5e-5},
        save_every=20,
        seeds=tuple(range(10)),
    ),
    # The test bed of faults (faults.py) on CPUs, with the demo's short template and one row of 512 tokens in a step.
    "faults": Size(
        fit=128,
        test_fit=128,
        max_length=256,
        template=DEMO_TEMPLATE,
        test_pairs=288,
        first_stages=("pretrain", "gram", "corruptions", "consistency"),
        unlabeled=330,
        labels=(200, 400),
        base=400,
        domain="unseen_kinds",
        domain_labels=(24, 72),
        domain_train=0.4,
        length=512,
        rank_length=512,
        rates={"pretrain": 3e-5, "finetune": 1e-4, "bradley_terry": 1e-4},
        save_every=40,
        seeds=tuple(range(10)),
    ),
    # Seconds per cell with the model "tiny-random", to test the benchmark.
    "tiny": Size(
        fit=192,
        test_fit=192,
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
        length=384,  # both orders of a pair fit in one row
        rank_length=192,
        rates={"pretrain": 1e-3, "finetune": 3e-3, "bradley_terry": 3e-3},
        save_every=1,
        seeds=(0, 1),
    ),
}
# Sizes and rates are chosen on seeds that no claim uses.
for name in ("bed", "faults"):
    SIZES[f"{name}_pilot"] = replace(SIZES[name], seeds=(100, 101))
