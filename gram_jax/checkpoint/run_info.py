"""What a run says of itself in its folder: recipe.toml and run.json (run/directory.py writes them)."""

import json
from pathlib import Path
from typing import Any

from gram_jax.errors import CheckpointError

RECIPE, INFO = "recipe.toml", "run.json"


def read_info(run: Path) -> dict[str, Any]:
    """What run.json says; nothing before the run has begun. Raises CheckpointError for a damaged one."""
    path = run / INFO
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Restore it from a copy, or give the run another folder"
        ) from error
    if not isinstance(info, dict) or type(info.get("steps", 0)) is not int:
        raise CheckpointError(
            f"{path} is damaged: expected a JSON object with a number of steps. Restore it from a copy, or give the "
            "run another folder"
        )
    return info
