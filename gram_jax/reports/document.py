"""A document as values: what a page says, before anything is decided about how it looks."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A share and its interval, to be drawn on a line from 0 to 1."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Cell:
    """A figure in a table. strong: among the best of its column or row."""

    text: str
    bar: Bar | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """rows: the first cell names the row. prose: numbers of the columns that hold words."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    note: str = ""
    prose: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A drawing with the table that says the same.

    draw: SVG for a page, given a name that makes its ids unique there. legend: a name for each series, if several.
    """

    caption: str
    draw: Callable[[str], str]
    table: Table
    legend: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """Figures side by side."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Paragraph:
    """Some sentences."""

    text: str


@dataclass(frozen=True)
class Concerns:
    """What a reader must know before using the figures: (about what, sentences); "" where it needs no saying."""

    groups: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Example:
    """Texts of other people to read: (name, text)."""

    title: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Examples:
    """Several of them. open: how many are shown; the reader opens the rest."""

    items: tuple[Example, ...]
    open: int = 5


@dataclass(frozen=True)
class Section:
    """A part with a heading. collapsed: opened by the reader."""

    title: str
    blocks: "tuple[Block, ...]"
    collapsed: bool = False


Block = Table | Figure | Gallery | Paragraph | Concerns | Examples | Section


@dataclass(frozen=True)
class Document:
    """A page. facts: (what, which) under its title."""

    title: str
    facts: tuple[tuple[str, str], ...]
    blocks: tuple[Block, ...]
