"""Check the files of a run, a checkpoint or an exported model against their manifests."""

import logging
import time
from pathlib import Path

from gram_jax.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    find_damage,
    has_manifest,
    list_files,
    refusal,
    write_manifest,
)
from gram_jax.checkpoint.orbax import complete_steps, step_name
from gram_jax.checkpoint.run_info import INFO, RECIPE, read_info
from gram_jax.distributed.lock import file_lock, folder_lock, hold_lock
from gram_jax.errors import CheckpointError, RecipeError
from gram_jax.formatting import format_bytes, format_seconds
from gram_jax.interop.hf_files import CONFIG
from gram_jax.judge.spec import FILE_NAME as JUDGE_FILE
from gram_jax.judge.spec import JudgeSpec, accept_spec
from gram_jax.recipes.reading import read_recipe_of_run
from gram_jax.run.metrics import FILE_NAME as METRICS
from gram_jax.run.metrics import accept_metrics, read_metrics
from gram_jax.scoring.results import accept_rows, read_rows

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # the folder of a run's steps


def verify_folder(folder: Path) -> None:
    """Check every part of a folder and log a line for each.

    Raises CheckpointError with a list of all damage, or if the folder has nothing to verify.
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
        label = place.relative_to(folder).as_posix()
        problems = _verify_part(place, of)
        damage += [f"{label}/{line}" if label != "." else line for line in problems]
    if damage:
        remedy = f"export the model again. If they were changed on purpose: gram-jax verify {folder} --accept"
        if (folder / RECIPE).exists() or any(of is not None for _, of in parts):
            remedy = (
                f"if only {CHECKPOINTS}/ and model/ are damaged, start the run's `gram-jax train` command again: it "
                "resumes from the newest good step and writes the rest again"
            )
        raise refusal(folder, damage, f"Restore them from a copy; or {remedy}")


def _verify_part(place: Path, of: str | None) -> list[str]:
    start = time.perf_counter()
    # An exported folder may hold other files, such as a README.md.
    problems = find_damage(place, of=of, exact=of is not None)
    names = list_files(place)
    size = sum((place / name).stat().st_size for name in names)
    logger.info(
        "%s: %s (%d files, %s, %s)",
        of or place,
        f"{len(problems)} damaged" if problems else "good",
        len(names),
        format_bytes(size),
        format_seconds(time.perf_counter() - start),
    )
    return problems


def _parts(folder: Path) -> list[tuple[Path, str | None]]:
    """(folder with a manifest, the step that the manifest must name or None), for every part."""
    if folder.name.isdecimal() and not (folder / CONFIG).exists():
        return [(folder, step_name(folder.name))]  # one checkpoint
    checkpoints = folder if folder.name == CHECKPOINTS else folder / CHECKPOINTS
    model, steps = folder / "model", complete_steps(checkpoints)
    parts: list[tuple[Path, str | None]] = [
        (checkpoints / str(step), step_name(step)) for step in steps
    ]
    # A run writes model/ before its first checkpoint.
    if has_manifest(model) or (steps and (model.exists() or (folder / RECIPE).exists())):
        parts.append((model, None))
    if has_manifest(folder):
        parts.append((folder, None))
    return parts


def _damage_of_notes(folder: Path) -> list[str]:
    """A line for each damaged file of a run that is not in a manifest."""
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
            read_recipe_of_run(folder / RECIPE)
        elif (folder / INFO).exists():
            problems.append(f"{RECIPE}: missing")
    except RecipeError as error:
        problems.append(str(error))
    try:
        rows, steps = read_metrics(folder / METRICS), complete_steps(folder / CHECKPOINTS)
        if (folder / RECIPE).exists() and (lost := set(steps) - {row["step"] for row in rows}):
            problems.append(f"{METRICS}: the lines of step {min(lost)} are missing")
    except CheckpointError as error:
        problems.append(str(error))
    return problems


def verify_file(path: Path) -> str:
    """Check the rows of a file of results, or the hash of a judge.json; returns what was found, as text.

    Raises DataError for a damaged row, JudgeError for a damaged judge.json.
    """
    if path.suffix == ".json":
        return f"{path}: {JudgeSpec.load(path).hash}, good"
    return f"{path}: {sum(1 for _ in read_rows(path)):,} rows, good"


def accept_file(path: Path) -> str:
    """Accept the rows of a file, or a judge.json, that were changed on purpose; returns what was accepted, as text.

    Raises DataError or JudgeError if it is neither, InUseError if a command writes it.
    """
    with hold_lock(file_lock(path), error=CheckpointError):
        if path.suffix == ".json":
            return f"{path}: {accept_spec(path).hash} was accepted"
        return f"{path}: {accept_rows(path):,} rows were changed"


def accept_changes(folder: Path) -> str:
    """Accept the current files of an exported folder, or the metrics of a run; returns what was accepted, as text.

    Raises InUseError if a command writes the folder.
    """
    folder = folder.absolute()
    if (folder / RECIPE).is_file() and (folder / CHECKPOINTS).is_dir():
        with hold_lock(folder_lock(folder), error=CheckpointError):
            steps = complete_steps(folder / CHECKPOINTS)
            count = accept_metrics(folder, max(steps, default=None))
        return f"{folder / METRICS}: {count} lines"
    with hold_lock(file_lock(folder), error=CheckpointError):
        return f"{folder / MANIFEST}: {len(_accept_export(folder).files)} files"


def _accept_export(folder: Path) -> Manifest:
    if complete_steps(folder / CHECKPOINTS) or complete_steps(folder):
        raise CheckpointError(
            f"{folder} holds checkpoints, whose manifests are never replaced: --accept is for exported folders"
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is not an exported folder: it has no {CONFIG}")
    if (folder / JUDGE_FILE).is_file():
        accept_spec(folder / JUDGE_FILE)
    return write_manifest(folder)
