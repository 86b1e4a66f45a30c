"""CSV and TSV files in the dialects of spreadsheets and data frames."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from gram_jax.limits import MAX_LINE

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
DELIMITERS = ",;\t|"  # the most frequent one in the header is used
NUMBERS = (
    "margin",
    "weight",
    "score_chosen",
    "score_rejected",
    "overall_preference",
    "preference_strength",
    "score_ratio",
)
# Columns that are also recognised in another spelling: "Response A", "PROMPT".
KNOWN = frozenset(
    ("id", "source", "prompt", "question", "instruction", "system", "chosen", "rejected", "response_a", "response_b",
     "label", "winner", "preference", "completion", *NUMBERS)
)  # fmt: skip
UNNAMED = "Unnamed: "


def csv_rows(file: IO[bytes], *, tabs: bool) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """(first line, cells by column, error or None) of every row that is not blank.

    The first row has the names of the columns; the first is "Unnamed: 0" if it has none, as in pandas. Empty cells of
    such columns are omitted. Raises ValueError if the file is not such a table.
    """
    csv.field_size_limit(MAX_LINE)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        head = next((line for line in text if line.strip()), "")
        text.seek(0)
        rows = _rows(text, "\t" if tabs else max(DELIMITERS, key=head.count))
        names = _names(next((row for _, row in rows), []))
        for line, row in rows:
            yield line, *_cells(names, row)
    except UnicodeDecodeError as error:
        found = "UTF-16" if error.object.startswith((b"\xff\xfe", b"\xfe\xff")) else str(error)
        other = "UTF-16" if found == "UTF-16" else "WINDOWS-1252"
        raise ValueError(
            f'expected UTF-8 text, found {found}; in a spreadsheet save it as "CSV UTF-8", or: '
            f"iconv -f {other} -t UTF-8 OLD.csv > NEW.csv"
        ) from error
    finally:
        text.detach()


def _rows(text: io.TextIOWrapper, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells) of every row that is not blank."""
    size = 0  # characters of the row that is read

    def lines() -> Iterator[str]:
        nonlocal size
        for line in text:
            size += len(line)
            if size > MAX_LINE:
                raise csv.Error(f"a row of more than {MAX_LINE:,} characters")
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    begin = 1
    try:
        for row in reader:
            size = 0
            if any(map(str.strip, row)):
                yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        ends = f", a row that ends in line {reader.line_num}" if reader.line_num > begin else ""
        raise ValueError(
            f"line {begin}{ends}: {error}; expected quotes around a text with commas, quotes or line "
            'breaks, and a quote inside it as ""'
        ) from error


def _names(head: list[str]) -> list[str]:
    names = []
    for at, cell in enumerate(head):
        plain = "_".join(cell.split()).lower()
        names.append(plain if plain in KNOWN else cell.strip() or f"{UNNAMED}{at}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"two columns are called {twice[0]!r}: expected different names")
    return names


def _cells(names: list[str], row: list[str]) -> tuple[dict[str, Any], str | None]:
    if len(row) < len(names) or any(map(str.strip, row[len(names) :])):
        fault = f"expected {len(names)} cells, found {len(row)}"
        return {}, f"{fault}: a text with a separator must be quoted"
    cells: dict[str, Any] = {
        name: cell
        for name, cell in zip(names, row, strict=False)
        if cell.strip() or not name.startswith(UNNAMED)
    }
    for name in NUMBERS:
        if name in cells:
            cells[name] = _number(cells[name])
    return cells, None


def _number(cell: str) -> Any:
    """The cell as a number, None if it is empty, its text if it is not a number (the parser reports it)."""
    try:
        return float(cell) if cell.strip() else None
    except ValueError:
        return cell
