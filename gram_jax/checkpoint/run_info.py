"""The files recipe.toml and run.json of a run (run/directory.py writes them)."""

from pathlib import Path
from typing import Any

from gram_jax.errors import CheckpointError
from gram_jax.files import read_json

RECIPE, INFO = "recipe.toml", "run.json"


def read_info(run: Path) -> dict[str, Any]:
    """Content of run.json, {} if the run has not begun. Raises CheckpointError if the file is damaged."""
    path = run / INFO
    if not path.exists():
        return {}
    try:
        info = read_json(path)
        if type(info.get("steps", 0)) is not int:
            raise CheckpointError(f"{path} is damaged: expected an integer number of steps")
        return info
    except CheckpointError as error:
        remedy = "Restore it from a copy, or give the run another folder"
        raise CheckpointError(f"{error}. {remedy}") from error
