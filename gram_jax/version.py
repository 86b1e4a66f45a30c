"""The version of the package."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """The installed version, or "not installed" for a bare checkout."""
    try:
        return version("gram-jax")
    except PackageNotFoundError:
        return "not installed"
