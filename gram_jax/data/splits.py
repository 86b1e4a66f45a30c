"""The splits of folders and datasets, by the rules of Hugging Face's `datasets`.

A folder is resolved by `datasets.load_dataset_builder` itself: split names in file and directory names, shards,
configurations in the YAML of a README.md, hidden files and metadata files ignored.
"""

import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gram_jax.errors import DataError

logger = logging.getLogger(__name__)

# Names of held-out data. `datasets` recognises some of them, in lower case and between separators.
_HELD_OUT = re.compile(
    r"(?<![a-z])(?:test|testing|eval|evaluation|val|valid|validation|dev|hold_?out|held_?out|unseen)"
    r"(?:_?sets?)?(?![a-z])"
)


@contextmanager
def explained(failure: str) -> Iterator[None]:
    """Raises DataError with `failure` for any other error: libraries, hub and network raise many kinds."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{failure}: {type(error).__name__}: {error}") from error


def files_by_split(
    folder: Path, suffixes: Sequence[str], config: str | None = None
) -> dict[str, list[Path]]:
    """The data files of each split of a folder, in the order of `datasets`. config: one of those in its README.md.

    Files that belong to no split are logged. Raises DataError if a file belongs to two splits, or is training data by
    these rules and held-out data by its name, and if a split has files that do not end in one of the suffixes.
    """
    import datasets
    from datasets.data_files import FILES_TO_IGNORE

    readable = [
        path
        for path in sorted(folder.rglob("*"))
        if path.name.lower().endswith(tuple(suffixes))
        and path.name not in FILES_TO_IGNORE
        and not _is_hidden(path.relative_to(folder))
    ]
    if not readable:
        raise DataError(f"{folder} holds no file that ends in {', '.join(suffixes)}")
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with (
            explained(f"{folder}: the splits cannot be found"),
            tempfile.TemporaryDirectory() as cache,
        ):
            # absolute, because some relative names are those of formats
            builder = datasets.load_dataset_builder(str(folder.resolve()), config, cache_dir=cache)
    finally:
        if shown:
            datasets.enable_progress_bars()
    found: Mapping[Any, Sequence[str]] = builder.config.data_files or {}
    splits = {str(split): [Path(file) for file in files] for split, files in found.items() if files}
    _check_files(folder, splits, suffixes)
    taken = {file for files in splits.values() for file in files}
    # The files are named below the resolved folder; a file that is a link is not resolved.
    root = folder.resolve()
    if left := [path for path in readable if root / path.relative_to(folder) not in taken]:
        names = ", ".join(str(path.relative_to(folder)) for path in left[:5])
        logger.warning(
            "%s: %d files belong to no split by the rules of Hugging Face datasets and are not read: %s%s",
            folder, len(left), names, " ..." if len(left) > 5 else "",
        )  # fmt: skip
    return splits


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _check_files(folder: Path, splits: Mapping[str, list[Path]], suffixes: Sequence[str]) -> None:
    root = folder.resolve()
    times = Counter(file for files in splits.values() for file in files)
    advice = "Rename it, or name the files of each split in the YAML of a README.md (docs/data.md)"
    for split, files in splits.items():
        for file in files:
            name = file.relative_to(root)
            if not file.name.lower().endswith(tuple(suffixes)):
                raise DataError(
                    f"{folder}: {name} of split {split!r} has none of the forms {', '.join(suffixes)}"
                )
            if times[file] > 1:
                named = [other for other, members in splits.items() if file in members]
                raise DataError(
                    f"{folder}: by its name {name} is {times[file]} times in the splits {', '.join(named)}. {advice}"
                )
            plain = re.sub(r"[^a-z]+", "_", str(name).lower())
            if split == "train" and (held := _HELD_OUT.search(plain)) and not has_card(root):
                raise DataError(
                    f"{folder}: {name} belongs to the split train by the rules of Hugging Face datasets, and its name "
                    f"({held[0]}) is that of held-out data. {advice}"
                )


def has_card(folder: Path) -> bool:
    """Whether the README.md of a folder has configurations."""
    card = folder / "README.md"
    return (
        card.is_file()
        and re.search(r"^configs:", card.read_text("utf-8", "replace"), re.M) is not None
    )


def pick_split(name: str, splits: Mapping[Any, Any], split: str | None) -> tuple[Any, range | None]:
    """(the data of a split, the rows of its slice, None for all rows). The default split is "train".

    Raises DataError with the names of the splits if there is no such split.
    """
    base, _, piece = (split or "train").partition("[")
    if base not in splits:
        found = ", ".join(map(str, splits))
        if split is None:
            raise DataError(
                f"{name} has no split 'train', it has {found}: name one after a colon, {name}:{next(iter(splits))}"
            )
        raise DataError(f"{name} has no split {base!r}; it has {found}")
    if not piece:
        return splits[base], None
    rows = len(splits[base])
    slice_ = re.fullmatch(r"(\d*)(%?):(\d*)(%?)\]", piece)
    if slice_ is None:
        raise DataError(f"{name}: expected a slice such as [:10%] or [100:200], found [{piece}")

    def place(number: str, percent: str, default: int) -> int:
        if not number:
            return default
        return min(rows, int(number) * rows // 100 if percent else int(number))

    start, start_share, stop, stop_share = slice_.groups()
    return splits[base], range(place(start, start_share, 0), place(stop, stop_share, rows))
