"""Rows of files, folders, Hugging Face datasets and TensorFlow Datasets.

A source is a string: a file (.jsonl, .json, .csv, .tsv, each also with .gz, .parquet), a pattern of file names
("pairs-*.jsonl"), an address of fsspec ("gs://bucket/pairs-*.jsonl"), a folder (of such files, of
`Dataset.save_to_disk`, or of TensorFlow Datasets), "owner/name" or "owner/name/subset" on the Hugging Face hub, or
"tfds:name". Folders and datasets take a split after a colon, "folder:validation"; without one they must have a split
"train" (data/splits.py).
"""

import difflib
import glob
import hashlib
import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from gram_jax.data import csv_rows
from gram_jax.data.mapping import ColumnMap
from gram_jax.data.splits import explained, files_by_split, has_card, pick_split
from gram_jax.errors import DataError
from gram_jax.limits import MAX_LINE, MAX_LIST, open_limited, parse_json
from gram_jax.remote import is_remote, local_copies

FILE_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", *csv_rows.SUFFIXES, ".parquet")
PARQUET_ROWS = 1024  # rows held as Python objects at a time


@dataclass(frozen=True)
class SourceSpec:
    """A source with its settings.

    schema: a name in schemas.SCHEMAS; limit: maximum number of records; map: its columns for those of a schema
    (mapping.py).
    """

    path: str
    schema: str = "auto"
    split: str | None = None
    limit: int | None = None
    map: ColumnMap | None = None

    def schema_or(self, default: str) -> str:
        """The schema of the source, or `default` if it states none."""
        return default if self.schema == "auto" else self.schema


Source = str | Path | SourceSpec


class Row(NamedTuple):
    """One row and its place ("train.jsonl, line 12"). fault: the reason if the row has no fields, else None."""

    where: str
    fields: dict[str, Any]
    fault: str | None = None


def parse_source(source: Source) -> SourceSpec:
    """The source as a SourceSpec; a string may have a split after a colon.

    >>> parse_source("anthropic/hh-rlhf:test").split
    'test'
    """
    if isinstance(source, SourceSpec):
        if source.split is not None:
            return source
        named = parse_source(source.path)
        return replace(source, path=named.path, split=named.split)
    text = str(source)
    # A split is a word with an optional slice: "train[:10%]". One letter before the colon is a Windows drive.
    found = re.fullmatch(r"(tfds:.+?|(?!tfds:).{2,}?):([A-Za-z_][\w.-]*(?:\[[^\]]*\])?)", text)
    if found is None or Path(text).exists():
        return SourceSpec(text)
    return SourceSpec(found.group(1), split=found.group(2))


def read_rows(source: Source, *, keep_faulty: bool = False) -> Iterator[Row]:
    """Every row of a source, unchanged and in the order of the source.

    keep_faulty: yield a row that cannot be read (a broken line of JSON) with its fault; else it raises DataError, as
    does a missing, unreadable or empty source.
    """
    spec = parse_source(source)
    row = None
    try:
        for row in _open(spec):
            if row.fault is not None and not keep_faulty:
                raise DataError(f"{row.where}: {row.fault}")
            yield row
    except (OSError, EOFError, zlib.error) as error:
        found = f"cannot be read after {row.where}" if row else "cannot be read"
        raise DataError(f"{spec.path} {found}: {error}") from error
    if row is None:
        raise DataError(f"{spec.path} is empty: expected at least one row")


def _open(spec: SourceSpec) -> Iterator[Row]:
    path, config = _folder_and_config(Path(spec.path).expanduser())
    if path.is_dir():
        return _folder_rows(path, spec.split, config)
    if files := _named_files(spec):
        if spec.split is not None:
            raise DataError(f"{spec.path} is a file and has no split {spec.split!r}")
        return (row for file in files for row in _file_rows(file))
    if spec.path.startswith("tfds:"):
        return _tfds_rows(spec.path.removeprefix("tfds:"), spec.split)
    if _looks_like_a_file(spec.path):
        raise DataError(_missing(path))
    return _hub_rows(spec.path, spec.split)


def _folder_and_config(path: Path) -> tuple[Path, str | None]:
    """A path, or the folder and configuration of "folder/CONFIG"."""
    if path.exists() or path.suffix or not has_card(path.parent):
        return path, None
    return path.parent, path.name


def _named_files(spec: SourceSpec) -> list[Path]:
    """The files of a name, a pattern or an address, which are copied to this machine; [] if it is none."""
    if is_remote(spec.path):
        return list(local_copies(spec.path))
    path = Path(spec.path).expanduser()
    return [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))


def _is_dataset(path: Path) -> bool:
    return any(
        (path / name).exists() for name in ("dataset_dict.json", "state.json", "features.json")
    )


def contents_of_source(source: Source) -> str:
    """A hash of the bytes of a source's files, in their order, and its split; of one of the hub its name and split."""
    spec = parse_source(source)
    path, config = _folder_and_config(Path(spec.path).expanduser())
    if path.is_dir() and _is_dataset(path):
        files = list(data_files(source).values())
    elif path.is_dir():
        files = _pick_files(path, spec.split, config)[0].files
    else:
        files = _named_files(spec)
    digest = hashlib.sha256(f"{spec.split} {spec.limit}".encode())
    if not files:
        digest.update(spec.path.encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _looks_like_a_file(text: str) -> bool:
    return (
        text.lower().endswith(FILE_SUFFIXES)
        or text.startswith((".", "/", "~"))
        or not re.fullmatch(r"[\w.-]+(/[\w.-]+){0,2}", text)
        or ("/" in text and Path(text.split("/")[0]).is_dir())
    )


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        found = next(parent for parent in folder.parents if parent.is_dir())
        return f"{path} does not exist: there is no folder {folder} in {found}"
    names = [p.name for p in folder.iterdir() if p.is_dir() or p.name.endswith(FILE_SUFFIXES)]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4) or sorted(names)[:5]
    return f"{path} does not exist; {folder} holds {', '.join(near) or 'no data files'}"


TEMPLATE_ROWS = 64  # rendered rows from which template = "from-dataset" is recovered


def first_rows(source: Source, count: int) -> list[dict[str, Any]]:
    """The fields of the first rows of a source."""
    return [row.fields for row in itertools.islice(read_rows(source), count)]


def count_rows(source: Source) -> int | None:
    """Number of rows of a source, for a progress bar; None if counting requires parsing."""
    spec = parse_source(source)
    path, config = _folder_and_config(Path(spec.path).expanduser())
    if not path.is_dir():
        files, chosen = _named_files(spec), None
    elif _is_dataset(path):
        return None
    else:
        of_split, chosen = _pick_files(path, spec.split, config)
        files = of_split.files
    counts = [_count_lines(file) for file in files]
    known = bool(counts) and None not in counts
    return (
        (len(chosen) if chosen is not None else sum(count or 0 for count in counts))
        if known
        else None
    )


def _count_lines(path: Path) -> int | None:
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_metadata(path).num_rows
    if path.suffix.lower() == ".jsonl":
        with open_limited(path) as file:
            lines = (line.strip() for line in file)
            first = next(lines, b"")
            return None if first.startswith(b"[") else bool(first) + sum(map(bool, lines))
    return None


def data_files(source: Source) -> dict[str, Path]:
    """The files that hold a source, by name; {} if a dataset is not held in files. Hidden files are left out."""
    spec = parse_source(source)
    path, _ = _folder_and_config(Path(spec.path).expanduser())
    if not path.exists() and spec.path.startswith("tfds:"):
        path = Path(_tfds_builder(spec.path.removeprefix("tfds:")).data_dir)
    if path.is_dir():
        found = {str(p.relative_to(path)): p for p in sorted(path.rglob("*")) if p.is_file()}
        return {name: p for name, p in found.items() if not re.search(r"(^|/)\.", name)}
    if files := _named_files(spec):
        return {f"{number} {file.name}": file for number, file in enumerate(files)}
    if _looks_like_a_file(spec.path):
        raise DataError(_missing(path))
    rows, _ = pick_split(spec.path, _hub_splits(spec.path), spec.split)
    places = [Path(file["filename"]) for file in rows.cache_files]
    return {f"{number} {path.name}": path for number, path in enumerate(places)}


# Files


def _file_rows(path: Path) -> Iterator[Row]:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _parquet_rows(path)
    if name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        return _json_rows(path)
    if name.endswith(csv_rows.SUFFIXES):
        return _table_rows(path)
    raise DataError(f"{path}: expected a name that ends in one of {', '.join(FILE_SUFFIXES)}")


def _json_rows(path: Path) -> Iterator[Row]:
    """A JSON list or one object per line, detected by the content of the file and not by its name."""
    with open_limited(path, lines=False) as file:
        is_list = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    with open_limited(path, lines=not is_list) as file:
        yield from (_list_rows(path.name, file) if is_list else _line_rows(path.name, file))


def _line_rows(name: str, file: IO[bytes]) -> Iterator[Row]:
    # Lines of bytes end at "\n" only; str.splitlines also splits at U+2028 inside a string.
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            where = f"{name}, line {number}"
            try:
                yield _row(where, parse_json(line, MAX_LINE))
            except ValueError as error:
                yield Row(where, {}, str(error))


def _list_rows(name: str, file: IO[bytes]) -> Iterator[Row]:
    try:
        values = parse_json(file.read(MAX_LIST + 1), MAX_LIST)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    for number, value in enumerate(values, start=1):
        yield _row(f"{name}, row {number}", value)


def _row(where: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(where, value)
    return Row(where, {}, f"expected an object with named fields, found {value!r:.60}")


def _table_rows(path: Path) -> Iterator[Row]:
    with open_limited(path) as file:
        try:
            for line, cells, fault in csv_rows.csv_rows(file, tabs=".tsv" in path.name.lower()):
                yield Row(f"{path.name}, line {line}", cells, fault)
        except ValueError as error:
            raise DataError(f"{path.name}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            tidy = _tidy_of(file.schema_arrow)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name}, row {number}", tidy(fields))
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{path.name}, after row {number}: not readable Parquet: {error}"
        ) from error


# Folders


def _folder_rows(folder: Path, split: str | None, config: str | None = None) -> Iterator[Row]:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _saved_rows(folder, split)
    if (folder / "features.json").exists():
        return _tfds_rows(folder, split)
    files, chosen = _pick_files(folder, split, config)
    return iter(files) if chosen is None else itertools.islice(files, chosen.start, chosen.stop)


def _pick_files(
    folder: Path, split: str | None, config: str | None
) -> tuple["_SplitFiles", range | None]:
    """The files of a split of a folder, and the rows of its slice."""
    splits = {
        name: _SplitFiles(files)
        for name, files in files_by_split(folder, FILE_SUFFIXES, config).items()
    }
    return pick_split(str(folder), splits, split)


class _SplitFiles:
    """The rows of the files of a split; their number is counted only for a slice."""

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __iter__(self) -> Iterator[Row]:
        return (row for file in self.files for row in _file_rows(file))

    def __len__(self) -> int:
        return sum(1 for _ in self)


# Hugging Face datasets


def _saved_rows(folder: Path, split: str | None) -> Iterator[Row]:
    import datasets

    with explained(f"{folder} cannot be read as a saved Hugging Face dataset"):
        found = datasets.load_from_disk(str(folder))
    if isinstance(found, datasets.DatasetDict):
        found, chosen = pick_split(str(folder), dict(found), split)
        found = found if chosen is None else found.select(chosen)
    elif split is not None:
        raise DataError(f"{folder} holds one dataset and has no split {split!r}")
    return _number(folder.name, found)


def _hub_rows(name: str, split: str | None) -> Iterator[Row]:
    rows, chosen = pick_split(name, _hub_splits(name), split)
    return _number(name, rows if chosen is None else rows.select(chosen))


def _hub_splits(name: str) -> dict[str, Any]:
    import datasets

    owner_and_name, subset = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:]) or None
    with explained(
        f"{name} is not a file or folder, nor a Hugging Face dataset that can be loaded"
    ):
        found: Mapping[Any, Any] = datasets.load_dataset(owner_and_name, subset)
        return {str(split): rows for split, rows in found.items()}


def _number(name: str, rows: Any) -> Iterator[Row]:
    tidy = _tidy_of(rows.features.arrow_schema)
    for number, fields in enumerate(rows, start=1):
        yield Row(f"{name}, row {number}", tidy(fields))


def _tidy_of(schema: Any) -> Callable[[Any], Any]:
    """A function that leaves out the nulls of arguments of calls, if rows of this Arrow schema have such.

    Arrow gives every call the arguments of all others, as nulls.
    """
    return _without_nulls if "arguments: struct<" in str(schema) else lambda fields: fields


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: {name: x for name, x in item.items() if x is not None}
            if key == "arguments" and isinstance(item, dict)
            else _without_nulls(item)
            for key, item in value.items()
        }
    return list(map(_without_nulls, value)) if isinstance(value, list) else value


# TensorFlow Datasets


def _tfds_rows(source: str | Path, split: str | None) -> Iterator[Row]:
    """Rows of `as_data_source`, which does not need TensorFlow."""
    is_folder = isinstance(source, Path)
    with explained(f"{source} cannot be opened with TensorFlow Datasets"):
        builder = _tfds_builder(source)
        form = builder.info.file_format
        if form is not None and form.value not in ("array_record", "parquet"):
            raise DataError(
                f"{source} is stored as {form.value}, which only TensorFlow reads; "
                "store it again with file_format='array_record' or 'parquet'"
            )
        splits = cast(Any, builder.as_data_source())  # declared as any tree; a dict by split
    rows, chosen = pick_split(str(source), dict(splits), split)
    name = source.name if is_folder else source
    for number, index in enumerate(range(len(rows)) if chosen is None else chosen, start=1):
        where = f"{name}, row {number}"
        try:
            yield Row(where, _plain(rows[index]))
        except UnicodeDecodeError as error:
            yield Row(where, {}, f"expected UTF-8 text, found {error}")


def _tfds_builder(source: str | Path) -> Any:
    """The builder of a prepared dataset: a folder, or a name, which is downloaded and prepared first."""
    import tensorflow_datasets as tfds

    if isinstance(source, Path):
        return tfds.builder_from_directory(str(source))
    builder = tfds.builder(source, file_format="array_record")
    builder.download_and_prepare()
    return builder


def _plain(value: Any) -> Any:
    """TFDS values as Python values: bytes are UTF-8 text, arrays are lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
