"""`gram-jax report`: a report on one model, or a comparison of several models, as HTML and Markdown."""

import itertools
import re
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gram_jax.attacks.results import AttackMetrics
from gram_jax.attacks.tables import attack_tables, clean_table
from gram_jax.distributed.lock import file_lock, hold_lock
from gram_jax.errors import ReportError
from gram_jax.evals import tables
from gram_jax.evals.results import Mistake
from gram_jax.evals.tables import Cell, Table
from gram_jax.files import expand_user, write_atomic
from gram_jax.formatting import format_figure
from gram_jax.reports import comparison
from gram_jax.reports.caveats import comparison_caveats, model_caveats
from gram_jax.reports.charts import charts
from gram_jax.reports.loading import ModelResults, aligned, read_folders
from gram_jax.reports.text import anchor, fenced, gist, markdown_line, truncate, visible

PAGE, COMPARISON = "report.html", "comparison.html"
ENDINGS = {"html": (".html", ".htm"), "Markdown": (".md", ".markdown")}
ASSETS = "reports/assets"
GENERATOR = "gram_jax report"  # marks the files of this module


def write_reports(
    folders: Sequence[str | Path],
    *,
    out: Path | None,
    markdown: Path | None,
    overwrite: bool,
) -> list[Path]:
    """Write the report on one folder, or the comparison of several folders; returns the files written.

    out: the HTML file, default: report.html in the folder, or comparison.html in the working directory for several.
    markdown: file for the same report as Markdown, or None.
    Raises ReportError if results cannot be read, or if an existing file is not a report, InUseError if another process
    writes one of the files.
    """
    if out is None and len(folders) > 1:
        out = Path(COMPARISON)
    out = out or expand_user(folders[0], error=ReportError) / PAGE
    wanted = [(out, "html", render_html)]
    if markdown is not None:
        wanted.append((markdown, "Markdown", render_markdown))
    with ExitStack() as held:
        for path, kind, _ in wanted:
            _check(path, kind, overwrite)
            held.enter_context(hold_lock(file_lock(path), error=ReportError))
        found = read_folders(folders)
        for path, _, render in wanted:
            write_atomic(path, render(found), error=ReportError)
    return [path for path, *_ in wanted]


def _check(path: Path, kind: str, overwrite: bool) -> None:
    if path.suffix.lower() not in ENDINGS[kind]:
        raise ReportError(f"{path}: expected a name that ends in {ENDINGS[kind][0]} for {kind}")
    if overwrite or not path.exists():
        return
    if not path.is_file() or GENERATOR not in path.read_text(encoding="utf-8", errors="replace"):
        raise ReportError(
            f"{path} exists and is not a report: specify another name, or --overwrite"
        )


def render_html(found: Sequence[ModelResults]) -> str:
    """The report as HTML, with inline styles and charts, without scripts and external files."""
    style = files("gram_jax").joinpath(ASSETS, "report.css").read_text(encoding="utf-8")
    return _render_report(found, "html.j2", style=Markup(style))


def render_markdown(found: Sequence[ModelResults]) -> str:
    """The report as Markdown, with tables instead of charts."""
    return tidy(_render_report(found, "md.j2"))


def tidy(markdown: str) -> str:
    """Markdown with one blank line between blocks."""
    return re.sub(r"\n{3,}", "\n\n", markdown).strip() + "\n"


def _render_report(found: Sequence[ModelResults], format: str, **content: Any) -> str:
    if len(found) > 1:
        found = aligned(found)
    return render("report.j2", found=found, format=format, headings=Headings(), **content)


def render(template: str, **content: Any) -> str:
    """Render a template of assets/ with these values."""
    return _environment().get_template(template).render(**content)


class Headings:
    """Unique ids of a page, and the sections of its navigation."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self.top: list[tuple[str, str]] = []

    def take(self, title: str, depth: int | None = None) -> str:
        """A unique id from a title, numbered if it repeats. depth: of a heading; depth 2 is added to `top`."""
        start = anchor(title)
        wanted = itertools.chain([start], (f"{start}-{at}" for at in itertools.count(2)))
        name = next(name for name in wanted if name not in self._used)
        self._used.add(name)
        if depth == 2:
            self.top.append((name, title))
        return name


class Example(NamedTuple):
    """Prompts and responses of an example, as (name, text)."""

    title: str
    texts: tuple[tuple[str, str], ...]


def mistake_examples(worst: Sequence[Mistake]) -> list[Example]:
    """The mistakes with the highest confidence, one per prompt."""
    first: dict[str, Mistake] = {}
    for one in worst:
        first.setdefault(one.prompt, one)
    return [
        Example(
            f"P(chosen) = {format_figure(one.probability)}, position bias "
            f"{format_figure(one.position_bias, 2, sign=True)}, {one.subset}, {one.id}",
            (
                ("prompt", one.prompt),
                ("chosen", one.chosen),
                ("rejected, preferred by the judge", one.rejected),
            ),
        )
        for one in first.values()
    ]


def attack_examples(attacks: Sequence[AttackMetrics]) -> list[Example]:
    """The most confident success of each attack."""
    names = {"harmless": ("before", "changed"), "hostile": ("honest", "attack")}
    return [
        Example(
            f"{one.name}: P({changed}) = {format_figure(found.probability)}, {format_figure(found.before)} before",
            (("prompt", found.prompt), (honest, found.honest), (changed, found.attack)),
        )
        for one in attacks
        if (found := one.example) is not None
        for honest, changed in [names[one.kind]]
    ]


def settings_table(found: Sequence[ModelResults]) -> Table:
    """The settings of each evaluation."""
    rows = []
    for one in found:
        start = f"{one.label}: " if len(found) > 1 else ""
        about = one.about
        settings = {"model": about.model, "judge": about.judge, **about.settings.model_dump()}
        settings |= {"gram_jax": about.gram_jax}
        rows += [(start + name, str(value)) for name, value in settings.items()]
    return Table("As evaluated", ("setting", "value"), tuple(rows), prose=frozenset({1}))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("gram_jax", ASSETS),
        # Filters escape Markdown, because the escaping depends on the context.
        autoescape=lambda name: name == "html.j2",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "cell": lambda value: value if isinstance(value, Cell) else Cell(value),
        "visible": visible,
        "truncate": truncate,
        "gist": gist,
        "md": markdown_line,
        "fenced": fenced,
        "drawn": lambda chart, name: Markup(chart.draw(name)),
    }
    made.globals |= {
        "generator": GENERATOR,
        "tables": tables,
        "comparison": comparison,
        "charts": charts,
        "model_caveats": model_caveats,
        "comparison_caveats": comparison_caveats,
        "clean_table": clean_table,
        "attack_tables": attack_tables,
        "attack_examples": attack_examples,
        "mistake_examples": mistake_examples,
        "settings_table": settings_table,
    }
    return made
