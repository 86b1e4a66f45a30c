"""Whether evaluation.json and attack.json are of one judge: a folder of results, its page and its card are of one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gram_jax.errors import DataError

HELD = ("weights", "compute")  # settings that decide a fingerprint beside the weights themselves


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """In what they are not of the same judge, in words; None where they are, or where nothing speaks against it."""
    if one["judge"] != other["judge"]:
        return (
            f"models that are asked in different ways: {one['model']} (judge {one['judge'][:12]}) and {other['model']} "
            f"(judge {other['judge'][:12]})"
        )
    # Weights that are held in another number format have another fingerprint.
    alike = all(one["settings"].get(key) == other["settings"].get(key) for key in HELD)
    if alike and one["fingerprint"] != other["fingerprint"]:
        return (
            f"different weights: {one['model']} (fingerprint {one['fingerprint'][:12]}) and {other['model']} "
            f"({other['fingerprint'][:12]})"
        )
    if not alike and one["model"] != other["model"]:
        return f"different models: {one['model']} and {other['model']}"
    return None


def refuse_other_judge(path: Path, content: Mapping[str, Any]) -> None:
    """Raises DataError where this file is there and is of another judge than `content`; a damaged one says nothing."""
    try:
        found = difference(json.loads(path.read_text(encoding="utf-8")), content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if found:
        raise DataError(
            f"{path} and the results asked for are of {found}. Keep each model's results in a folder of its own"
        )
