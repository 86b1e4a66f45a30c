"""Where a report goes: `gram-jax report`."""

from collections.abc import Sequence
from pathlib import Path

from gram_jax.errors import ReportError
from gram_jax.files import write_atomic
from gram_jax.reports.evidence import read_evidence
from gram_jax.reports.page import make_document
from gram_jax.reports.render import GENERATOR, render_html, render_markdown

PAGE = "report.html"
ENDINGS = {"html": (".html", ".htm"), "Markdown": (".md", ".markdown")}


def write_reports(
    folders: Sequence[str | Path],
    *,
    out: Path | None,
    markdown: Path | None,
    overwrite: bool,
) -> list[Path]:
    """The page of one folder's results, or the comparison of several; returns what was written.

    out: the page, by default report.html in the one folder; markdown: the same as Markdown, where wanted.
    Raises ReportError for results that cannot be read, and for files of others in the place of ours.
    """
    if out is None and len(folders) > 1:
        raise ReportError(
            "a comparison belongs to no one folder: say where it goes, --out FILE.html"
        )
    out = out or Path(folders[0]).expanduser() / PAGE
    wanted = [(out, "html", render_html)]
    if markdown is not None:
        wanted.append((markdown, "Markdown", render_markdown))
    for path, kind, _ in wanted:
        _check(path, kind, overwrite)
    document = make_document(read_evidence(folders))
    for path, _, render in wanted:
        write_atomic(path, render(document), error=ReportError)
    return [path for path, *_ in wanted]


def _check(path: Path, kind: str, overwrite: bool) -> None:
    if path.suffix.lower() not in ENDINGS[kind]:
        raise ReportError(f"{path}: expected a name that ends in {ENDINGS[kind][0]} for {kind}")
    if overwrite or not path.exists():
        return
    if not path.is_file() or GENERATOR not in path.read_text(encoding="utf-8", errors="replace"):
        raise ReportError(
            f"{path} exists and is no report of ours: give another name, or --overwrite"
        )
