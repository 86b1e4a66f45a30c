"""What a command left, in a form that two runs of it can be compared by."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from chaos import fingerprint as run_digest

from gram_jax.checkpoint.manifest import MANIFEST
from gram_jax.errors import GramError

VOLATILE = ("tokens_per_second", "checksum", "seconds", "model", "source", "sources", "policy")
LOCKS = ("lock.json",)


def digests(place: Path) -> dict[str, str]:
    """What a command left, by file: SHA-256 of the content without times and names of folders."""
    found: dict[str, str] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_dir() and (path / "recipe.toml").exists() and (path / "checkpoints").is_dir():
            found[name] = digest_of_run(path)
        inside_run = any((parent / "recipe.toml").exists() for parent in path.parents)
        if not path.is_file() or inside_run or path.name.endswith(LOCKS):
            continue
        if path.suffix in (".png", ".html") or path.name in ("template.txt",):
            continue
        data = path.read_bytes()
        if path.suffix in (".json", ".jsonl") and path.name != MANIFEST:
            with contextlib.suppress(ValueError):
                lines = data.splitlines() if path.suffix == ".jsonl" else [data]
                data = "\n".join(
                    json.dumps(plain(json.loads(line), str(place)), sort_keys=True)
                    for line in lines
                ).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def digest_of_run(path: Path) -> str:
    """The digest of a run's weights, state and metrics; the error if they are damaged."""
    try:
        return run_digest(path)
    except (GramError, RuntimeError) as error:
        return f"damaged: {error}"


def plain(value: Any, place: str) -> Any:
    """A JSON value without times, names of models and the path of `place`."""
    if isinstance(value, dict):
        return {
            key: plain(item, place)
            for key, item in value.items()
            if key not in VOLATILE or not isinstance(item, str | float | int)
        }
    if isinstance(value, list):
        return [plain(item, place) for item in value]
    return value.replace(place, "PLACE") if isinstance(value, str) else value
