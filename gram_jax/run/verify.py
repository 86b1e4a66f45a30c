"""`gram-jax verify`: every file of a run, of one checkpoint or of an exported folder against its manifest."""

import time
from pathlib import Path

from gram_jax.checkpoint.manifest import (
    MANIFEST,
    find_damage,
    has_manifest,
    list_files,
    refusal,
    write_manifest,
)
from gram_jax.checkpoint.orbax import complete_steps, step_name
from gram_jax.checkpoint.run_info import INFO, RECIPE, read_info
from gram_jax.console import Console
from gram_jax.errors import CheckpointError, RecipeError
from gram_jax.formatting import format_bytes, format_seconds
from gram_jax.interop.hf_files import CONFIG
from gram_jax.recipes.reading import read_recipe

CHECKPOINTS = "checkpoints"  # the folder of a run's steps


def audit(folder: Path, console: Console) -> None:
    """A line for each step and for the model's files. Raises CheckpointError that lists all damage,
    or where there is nothing to verify.
    """
    folder = folder.absolute()
    parts = _parts(folder)
    damage = _damage_of_notes(folder)
    if not parts and not damage:
        raise CheckpointError(
            f"{folder} has nothing to verify: expected a run with checkpoints, one of its checkpoints, or a folder "
            f"with a {MANIFEST}"
        )
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
        of_a_run = (folder / RECIPE).exists() or any(of is not None for _, of in parts)
        again = (
            f"where nothing but {CHECKPOINTS}/ and model/ is damaged, start the run's `gram-jax train` command again, "
            "which goes on from the newest good step and writes the rest anew"
            if of_a_run
            else "export the model again. If they were changed on purpose: gram-jax verify "
            f"{folder} --accept"
        )
        raise refusal(folder, damage, f"Restore them from a copy; or {again}")


def _parts(folder: Path) -> list[tuple[Path, str | None]]:
    """The folders that must have a manifest, with what that must say that they are."""
    if folder.name.isdecimal() and not (folder / CONFIG).exists():
        return [(folder, step_name(folder.name))]  # one checkpoint
    checkpoints = folder if folder.name == CHECKPOINTS else folder / CHECKPOINTS
    model, steps = folder / "model", complete_steps(checkpoints)
    parts: list[tuple[Path, str | None]] = [
        (checkpoints / str(step), step_name(step)) for step in steps
    ]
    # A run writes its model's folder before its first checkpoint.
    if has_manifest(model) or (steps and (model.exists() or (folder / RECIPE).exists())):
        parts.append((model, None))
    if has_manifest(folder):
        parts.append((folder, None))
    return parts


def _damage_of_notes(folder: Path) -> list[str]:
    """A line for each file of a run that no manifest covers, because it changes, and that cannot be read."""
    problems = []
    try:
        info = read_info(folder)
        steps, final = complete_steps(folder / CHECKPOINTS), info.get("steps")
        if info.get("finished") and final not in steps:
            problems.append(f"{CHECKPOINTS}/{final}: missing, the last step of this finished run")
        elif not info and steps and (folder / RECIPE).exists():
            problems.append(f"{INFO}: missing")
    except CheckpointError as error:
        problems.append(str(error))
    try:
        if (folder / RECIPE).exists():
            read_recipe(folder / RECIPE)
        elif (folder / INFO).exists():
            problems.append(f"{RECIPE}: missing")
    except RecipeError as error:
        problems.append(str(error))
    return problems


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
