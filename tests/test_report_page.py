"""Report pages in a real browser. Skipped where chromium and its driver are not installed."""

from pathlib import Path

import pytest
from browser import Page, needs_browser, started_driver
from report_cases import HOSTILE, attacks, evaluation, mistake, source, write

from gram_jax.reports.report import write_reports

pytestmark = [needs_browser, pytest.mark.slow]

# Of every drawing: its size, texts that go beyond it, and pairs of texts that touch each other.
DRAWINGS = """
const box = one => one.getBoundingClientRect();
return [...document.querySelectorAll("svg.plot")].map(plot => {
  const all = box(plot), texts = [...plot.querySelectorAll("text")];
  const beyond = texts.filter(one => box(one).left < all.left - 1 || box(one).right > all.right + 1 ||
    box(one).top < all.top - 1 || box(one).bottom > all.bottom + 1);
  const touching = [];
  texts.forEach((one, at) => texts.slice(at + 1).forEach(other => {
    const a = box(one), b = box(other);
    if (a.left < b.right + 1 && b.left < a.right + 1 && a.top < b.bottom && b.top < a.bottom)
      touching.push(one.textContent + " | " + other.textContent);
  }));
  return {width: all.width, height: all.height, texts: texts.length,
          beyond: beyond.map(one => one.textContent), touching};
});
"""


# Explanations next to a name and a value, and those of them that the window cuts.
EXPLANATIONS = """
const cells = Array.from(document.querySelectorAll("td.prose:nth-child(3):last-child"));
const seen = cells.filter(one => one.getBoundingClientRect().width > 0);
const width = document.documentElement.clientWidth;
const cut = seen.filter(one => one.getBoundingClientRect().right > width);
return {seen: seen.length, cut: cut.map(one => one.textContent)};
"""


@pytest.fixture
def driver():
    with started_driver() as url:
        yield url


def look(driver: str, folder: Path, page: Path, width: int) -> tuple[list[dict], int, str]:
    """The drawings of a page in a window of this width, how wide the page becomes in it, and what can be read."""
    browser = Page(driver, str(folder / "profile"), page.resolve().as_uri())
    try:
        browser.width(width)
        wide = browser.run("return document.documentElement.scrollWidth")
        return browser.run(DRAWINGS), wide, browser.run("return document.body.innerText")
    finally:
        browser.close()


def test_a_phone_shows_every_explanation_of_a_figure_whole(driver, tmp_path):
    folder = write(tmp_path / "a", evaluation("a"), attacks("a"))
    (page,) = write_reports([folder], out=tmp_path / "p.html", markdown=None, overwrite=False)
    browser = Page(driver, str(tmp_path / "profile"), page.resolve().as_uri())
    try:
        browser.width(390)
        found = browser.run(EXPLANATIONS)
    finally:
        browser.close()
    assert found["seen"] > 10 and found["cut"] == []


@pytest.mark.parametrize("width", [1280, 390])
def test_drawings_can_be_read_and_nothing_goes_beyond_the_window(driver, tmp_path, width):
    hostile = {"held_out": source(worst=[mistake(0, prompt=HOSTILE, chosen=HOSTILE)])}
    one = write(tmp_path / "a", evaluation("a", hostile), attacks("a"))
    others = [
        write(
            tmp_path / str(at),
            evaluation(f"runs/{'long-name-' * 9}{at}", {"held_out": source(0.6)}),
        )
        for at in range(3)
    ]
    for folders, drawings in (([one], 3), ([one, *others], 3)):
        (page,) = write_reports(folders, out=tmp_path / "page.html", markdown=None, overwrite=False)
        found, wide, words = look(driver, tmp_path, page, width)
        assert len(found) >= drawings and wide <= width
        assert "Reliability" in words and "Position bias" in words
        for plot in found:
            assert plot["width"] > 250 and plot["height"] > 150 and plot["texts"] > 5
            assert plot["beyond"] == [] and plot["touching"] == []
