"""`gram-jax verify`: every file of a run or of an exported folder against its manifest."""

import time
from pathlib import Path

from gram_jax.checkpoint.integrity import (
    MANIFEST,
    find_damage,
    has_manifest,
    list_files,
    refusal,
    write_manifest,
)
from gram_jax.checkpoint.orbax import complete_steps, step_name
from gram_jax.console import Console, format_bytes, format_seconds
from gram_jax.errors import CheckpointError


def audit(folder: Path, console: Console) -> None:
    """A line for each step and for the model's files. Raises CheckpointError that lists all damage,
    or where there is nothing to verify.
    """
    checkpoints, model = folder / "checkpoints", folder / "model"
    steps = complete_steps(checkpoints)
    parts = [(checkpoints / str(step), step_name(step)) for step in steps]
    parts += [(place, None) for place in (model, folder) if has_manifest(place)]
    if not parts:
        raise CheckpointError(
            f"{folder} has nothing to verify: expected a run with checkpoints, or a folder with a "
            f"{MANIFEST}"
        )
    damage = []
    for place, of in parts:
        start = time.perf_counter()
        # Other files beside an exported model (a README.md) are nobody's fault.
        problems = find_damage(place, of=of, exact=of is not None)
        label = place.relative_to(folder).as_posix()
        damage += [f"{label}/{line}" if label != "." else line for line in problems]
        names = list_files(place)
        size = sum((place / name).stat().st_size for name in names)
        console.say(
            f"{of or place}: "
            + (f"{len(problems)} damaged" if problems else "good")
            + f" ({len(names)} files, {format_bytes(size)}, "
            + f"{format_seconds(time.perf_counter() - start)})"
        )
    if damage:
        again = (
            "start the run's `gram-jax train` command again, which puts damaged steps aside and goes "
            "on from the newest good one"
            if steps
            else "export the model again. If they were changed on purpose: gram-jax verify "
            f"{folder} --accept"
        )
        raise refusal(folder, damage, f"Restore them from a copy; or {again}")


def accept_changes(folder: Path, console: Console) -> None:
    """Write the manifest of an exported folder for the files as they are now."""
    if complete_steps(folder / "checkpoints") or complete_steps(folder):
        raise CheckpointError(
            f"{folder} holds checkpoints: nobody changes those on purpose, so their manifests stay. "
            "--accept is for exported folders"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no exported folder: it has no config.json")
    manifest = write_manifest(folder)
    console.say(f"{folder / MANIFEST}: {len(manifest.files)} files as they are now")
