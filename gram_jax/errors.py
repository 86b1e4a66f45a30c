"""Errors that a person meets: what was expected, what was found, what to try.

The command line prints the message of any `GramError` and exits with status 2; every other exception is a bug.
"""


class GramError(Exception):
    """Base of the errors that gram_jax raises on purpose."""


class RecipeError(GramError):
    """A recipe, or a value in it, cannot be used."""


class DataError(GramError):
    """A source of data, or a row in it, cannot be read as what it was said to be."""


class JudgeError(GramError):
    """A template, label or tokenizer does not make a usable judge, or two judges that should agree differ."""


class LayoutError(GramError):
    """Tensors and model do not fit each other: one error lists every tensor concerned."""


class CheckpointError(GramError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class DoesNotFitError(GramError):
    """The compiled program needs more memory than the device has."""


class NonFiniteError(GramError):
    """The loss or the gradient stopped being a number; the last good state was kept."""


class StoppedError(GramError):
    """A run was asked to stop and saved its state; the same command goes on from there."""
