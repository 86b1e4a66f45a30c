"""A document as one page of HTML that needs nothing else, and as Markdown. The only door to `jinja2`."""

import itertools
import re
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gram_jax.reports.document import Bar, Cell, Document
from gram_jax.reports.words import anchor, gist, shortened

ASSETS = "reports/assets"
# By it our own files are known.
GENERATOR = "gram_jax report"
LONG = 600  # characters from which on a text is folded
OF_MARKDOWN = 2_000  # characters of an example's text that Markdown shows
EXAMPLES_OF_MARKDOWN = 5
MARKS = "●■▲◆▼✚✖★"  # as plots.MARKERS, for legends


def render_html(document: Document) -> str:
    """The page: style and drawings inside, no scripts, nothing fetched."""
    style = files("gram_jax").joinpath(ASSETS, "report.css").read_text(encoding="utf-8")
    return _render("report.html.j2", document=document, style=Markup(style), names=Names())


def render_markdown(document: Document) -> str:
    """The same without drawings, whose tables are there."""
    text = _render("report.md.j2", document=document)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def render_card(**content: Any) -> str:
    """The text of a model card below its front matter."""
    text = _render("card.md.j2", **content)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


class Names:
    """Ids that are each used once in a page."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def take(self, title: str) -> str:
        """The title as an id, with a number behind it where it was used before."""
        start = anchor(title)
        wanted = itertools.chain([start], (f"{start}-{at}" for at in itertools.count(2)))
        name = next(name for name in wanted if name not in self._used)
        self._used.add(name)
        return name


@lru_cache(maxsize=1)
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("gram_jax", ASSETS),
        # Markdown escapes by itself, in each of the ways that a place needs.
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "kind": lambda block: type(block).__name__,
        "cell": lambda value: value if isinstance(value, Cell) else Cell(value),
        "shortened": shortened,
        "gist": gist,
        "place": _place,
        "md": markdown_line,
        "fenced": fenced,
        "drawn": lambda figure, name: Markup(figure.draw(name)),
    }
    made.globals |= {
        "long": LONG,
        "of_markdown": OF_MARKDOWN,
        "most": EXAMPLES_OF_MARKDOWN,
        "marks": MARKS,
        "generator": GENERATOR,
    }
    return made


def _render(template: str, **content: Any) -> str:
    return _environment().get_template(template).render(**content)


def _place(bar: Bar) -> dict[str, float]:
    """Where a bar's parts are drawn on a line of 100."""
    low, high = bar.interval or (bar.value, bar.value)
    return {
        "low": round(100 * max(0.0, low), 1),
        "high": round(100 * min(1.0, high), 1),
        "value": round(100 * bar.value, 1),
    }


def markdown_line(text: str) -> str:
    """The text on one line of Markdown, for a table or a heading, with nothing in it that means something there.

    >>> markdown_line("a|b *c*\\n<d> [e](f)")
    'a\\\\|b \\\\*c\\\\* &lt;d> \\\\[e\\\\](f)'
    """
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_|\[\]#~$])", r"\\\1", line)


def fenced(text: str) -> str:
    """The text between fences that are longer than any in it.

    >>> print(fenced("a ``` b"))
    ````text
    a ``` b
    ````
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
