"""AdaptConfig: settings of an adaptation, which are also the options of `gram-jax adapt`."""

from dataclasses import dataclass
from typing import Literal

from gram_jax.errors import DataError

Method = Literal["lora", "full"]


@dataclass(frozen=True)
class AdaptConfig:
    """Settings of an adaptation. Raises DataError for values out of range.

    >>> AdaptConfig(method="full", num_train_epochs=2).label_smoothing
    0.1
    """

    method: Method = "lora"
    """The weights to train: LoRA matrices, or all."""
    num_train_epochs: int = 3
    """Maximum number of epochs; the best one is exported."""
    patience: int = 1
    """Number of epochs without improvement on the selection split after which training ends; 0: never."""
    learning_rate: float | None = None
    """Peak learning rate; default: 3e-5 for full, a function of the model's width for LoRA."""
    label_smoothing: float = 0.1
    """Label smoothing, as torch defines it."""
    lora_rank: int = 16
    """Rank of LoRA."""
    held_out: float = 0.2
    """Share of the prompts in the selection split; the test split has the same share."""
    batch_size: int | None = None
    """Rows per step, rounded up to a multiple of the devices; default: about 40 steps per epoch, at most 8 rows."""
    max_length: int = 1024
    """Tokens per row; raised to the judge's max_length if that is larger."""
    seed: int = 0
    """Seed of the splits and of shuffling."""

    def __post_init__(self) -> None:
        """Raises DataError for values out of range."""
        share = "a share above 0 and below 0.5; two splits have it"
        for name, valid, expected in (
            ("held_out", 0 < self.held_out < 0.5, share),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "a number from 0 to below 1"),
            ("num_train_epochs", self.num_train_epochs >= 1, "at least 1"),
            ("patience", self.patience >= 0, "0 or more"),
            ("batch_size", self.batch_size is None or self.batch_size >= 1, "at least 1"),
            ("seed", 0 <= self.seed < 2**32, "0 or more and less than 2^32"),
        ):
            if not valid:
                raise DataError(f"{name} = {getattr(self, name)}: expected {expected}")
