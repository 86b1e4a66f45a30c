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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from gram_jax.data import csv_rows
from gram_jax.data.fields import Unreadable
from gram_jax.data.mapping import ColumnMap
from gram_jax.data.splits import explained, files_by_split, has_card, pick_split
from gram_jax.errors import DataError
from gram_jax.files import expand_user
from gram_jax.judge.messages import ARGUMENT_KEYS
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
    path, config = _folder_and_config(spec.path)
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


def _folder_and_config(name: str) -> tuple[Path, str | None]:
    """A path, or the folder and configuration of "folder/CONFIG"."""
    path = expand_user(name, error=DataError)
    if path.exists() or path.suffix or not has_card(path.parent):
        return path, None
    return path.parent, path.name


def _named_files(spec: SourceSpec) -> list[Path]:
    """The files of a name, a pattern or an address, which are copied to this machine; [] if it is none."""
    if is_remote(spec.path):
        return list(local_copies(spec.path))
    path = expand_user(spec.path, error=DataError)
    return [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))


def _is_dataset(path: Path) -> bool:
    return any(
        (path / name).exists() for name in ("dataset_dict.json", "state.json", "features.json")
    )


def contents_of_source(source: Source) -> str:
    """A hash of the bytes of a source's files, in their order, and its split; of one of the hub its name and split."""
    spec = parse_source(source)
    path, config = _folder_and_config(spec.path)
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


def count_rows(source: Source) -> int | None:
    """Number of rows of a source, for a progress bar; None if counting requires parsing, or a file is damaged."""
    spec = parse_source(source)
    path, config = _folder_and_config(spec.path)
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

        try:
            return pyarrow.parquet.read_metadata(path).num_rows
        except (pyarrow.ArrowException, OSError):
            return None
    if path.suffix.lower() == ".jsonl" and not _is_list(path):
        with open_limited(path) as file:
            return sum(bool(line.strip()) for line in file)
    return None


def data_files(source: Source) -> dict[str, Path]:
    """The files that hold a source, by name; {} if a dataset is not held in files. Hidden files are left out."""
    spec = parse_source(source)
    path, _ = _folder_and_config(spec.path)
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
    """A JSON list or one object per line."""
    is_list = _is_list(path)
    with open_limited(path, lines=not is_list) as file:
        yield from (_list_rows(path.name, file) if is_list else _line_rows(path.name, file))


def _is_list(path: Path) -> bool:
    """Whether a file of JSON is one list, by its content and not by its name."""
    with open_limited(path, lines=False) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


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
            times = Counter(file.schema_arrow.names)
            if twice := [name for name, count in times.items() if count > 1]:
                raise DataError(
                    f"{path.name}: two columns are called {twice[0]!r}: expected different names"
                )
            tidy = _tidy_of(file.schema_arrow)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for fields in _arrow_rows(batch):
                    number += 1
                    yield Row(f"{path.name}, row {number}", tidy(fields))
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{path.name}, after row {number}: not readable Parquet: {error}"
        ) from error


def _arrow_rows(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow table as Python values, each one that Python cannot hold as Unreadable."""
    for values in zip(*map(_arrow_values, table.columns), strict=True):
        yield dict(zip(table.schema.names, values, strict=True))


def _arrow_values(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return [_held(value.as_py) for value in column]


def _held(read: Callable[[], Any]) -> Any:
    """The value, or Unreadable with the reason."""
    try:
        return read()
    except (ValueError, OverflowError) as error:
        return Unreadable(str(error))


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
        return _dataset_rows(folder.name, *pick_split(str(folder), dict(found), split))
    if split is not None:
        raise DataError(f"{folder} holds one dataset and has no split {split!r}")
    return _dataset_rows(folder.name, found, None)


def _hub_rows(name: str, split: str | None) -> Iterator[Row]:
    return _dataset_rows(name, *pick_split(name, _hub_splits(name), split))


def _hub_splits(name: str) -> dict[str, Any]:
    import datasets

    owner_and_name, subset = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:]) or None
    with explained(
        f"{name} is not a file or folder, nor a Hugging Face dataset that can be loaded"
    ):
        found: Mapping[Any, Any] = datasets.load_dataset(owner_and_name, subset)
        return {str(split): rows for split, rows in found.items()}


def _dataset_rows(name: str, rows: Any, chosen: range | None) -> Iterator[Row]:
    """The rows of a dataset, or those of a slice, with their numbers in the dataset."""
    tidy, decode = _tidy_of(rows.features.arrow_schema), rows.features.decode_example
    chosen = range(len(rows)) if chosen is None else chosen
    tables = rows.select(chosen).with_format("arrow").iter(PARQUET_ROWS)
    stored = itertools.chain.from_iterable(map(_arrow_rows, tables))
    for number, fields in zip(chosen, stored, strict=True):
        damaged = {key: x for key, x in fields.items() if isinstance(x, Unreadable)}
        found = decode({key: x for key, x in fields.items() if key not in damaged}) | damaged
        yield Row(f"{name}, row {number + 1}", tidy(found))


# What nulls are left out of: the arguments of calls, under any of their names, and the definitions of tools.
_SPARSE = (*ARGUMENT_KEYS, "tools")


def _tidy_of(schema: Any) -> Callable[[Any], Any]:
    """A function that leaves out the nulls that Arrow adds, if rows of this Arrow schema may have such.

    Arrow gives every call the arguments of all others, and every tool the parameters of all others, as nulls.
    """
    if not re.search(rf"\b({'|'.join(_SPARSE)}): .*struct<", str(schema)):
        return lambda fields: fields
    return lambda fields: {
        key: _without_nulls(value, key == "tools") for key, value in fields.items()
    }


def _without_nulls(value: Any, sparse: bool) -> Any:
    """The value; if `sparse`, without the keys whose values are null."""
    if isinstance(value, dict):
        return {
            key: _without_nulls(item, sparse or key in _SPARSE)
            for key, item in value.items()
            if item is not None or not sparse
        }
    if isinstance(value, list):
        return [_without_nulls(item, sparse) for item in value]
    return value


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
    for index in range(len(rows)) if chosen is None else chosen:
        fields = {key: _held(partial(_plain, value)) for key, value in rows[index].items()}
        yield Row(f"{name}, row {index + 1}", fields)


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
