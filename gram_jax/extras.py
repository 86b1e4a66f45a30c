"""Optional packages: the error for a missing one names the extra that installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from gram_jax.errors import MissingExtraError


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Import optional packages inside this block.

    Raises MissingExtraError if one of them is not installed.

    >>> with needs_extra("plots"):
    ...     import a_package_that_is_not_there
    Traceback (most recent call last):
    gram_jax.errors.MissingExtraError: ...
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "gram_jax"):
            raise
        raise MissingExtraError(
            f"the package {package} is not installed; it comes with the extra {extra!r}. In the checkout of gram_jax: "
            f'pip install -e ".[{extra}]"'
        ) from error
