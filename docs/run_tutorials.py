"""Run the tutorials in docs/tutorials, and write each as a page with its outputs and plots.

    python docs/run_tutorials.py FOLDER [NAME ...]     FOLDER/NAME.md and its plots; default: all tutorials

A tutorial is a notebook as text, in jupytext's percent format: `# %% [markdown]` begins text, `# %%` begins code, and
`# %% language="bash"` begins shell commands. A cell with `needs="MODULE"` runs only if the module can be imported.
The tutorials share one working folder, in which the first one trains the judge of the others.
"""

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
NAMES = ("train", "evaluate", "rewards", "adapt", "tpu_pod")  # in the order in which they are read
CELL = re.compile(r'^# %%(?: \[(markdown)\])?(?: language="(bash)")?(?: needs="(\w+)")?$', re.M)


@dataclass(frozen=True)
class Cell:
    """kind: "markdown", "python" or "bash". needs: a module, or None. output: text and plots of a run, as Markdown."""

    kind: str
    text: str
    needs: str | None = None
    output: str = ""

    @property
    def markdown(self) -> str:
        if self.kind == "markdown":
            return self.text
        return f"```{self.kind}\n{self.text}\n```\n{self.output}"


def read_tutorial(name: str) -> list[Cell]:
    """The cells of a tutorial."""
    _, *parts = CELL.split((TUTORIALS / f"{name}.py").read_text(encoding="utf-8"))
    found = []
    for markdown, bash, needs, text in zip(*(parts[n::4] for n in range(4)), strict=True):
        kind = markdown or bash or "python"
        text = text.strip("\n")
        text = text if kind == "python" else re.sub(r"^# ?", "", text, flags=re.M)
        found.append(Cell(kind, text, needs))
    return found


def page_of(cells: list[Cell], name: str) -> str:
    """A page of Markdown."""
    source = f"*This page is the notebook `docs/tutorials/{name}.py` with its outputs.*"
    title, intro = cells[0].text.split("\n", 1)
    rest = (cell.markdown for cell in cells[1:])
    return "\n\n".join([title, source, intro.strip("\n"), *rest]) + "\n"


def run_tutorial(name: str, work: Path, out: Path) -> Path:
    """Run the cells in `work`, write the page OUT/NAME.md and the plots next to it, and return the page's path."""
    names: dict[str, Any] = {"__name__": "__main__"}
    done = []
    with contextlib.chdir(work):
        for cell in read_tutorial(name):
            if cell.needs and importlib.util.find_spec(cell.needs) is None:
                note = f"*Not executed for this page: `{cell.needs}` is not installed.*\n"
                cell = replace(cell, output=f"\n{note}")
            elif cell.kind == "bash":
                cell = replace(cell, output=_block(_run_commands(cell.text)))
            elif cell.kind == "python":
                text = _block(_run_python(cell.text, names))
                plots = _save_plots(out, f"{name}-{len(done)}")
                cell = replace(cell, output=text + plots)
            done.append(cell)
    page = out / f"{name}.md"
    page.write_text(page_of(done, name), encoding="utf-8")
    return page


def _run_python(code: str, names: dict[str, Any]) -> str:
    """What a cell prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "<tutorial>", "exec"), names)
    return printed.getvalue()


def _run_commands(commands: str) -> str:
    """Standard output of shell commands. Raises RuntimeError, with both streams, if one fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env=os.environ | {"PATH": path, "COLUMNS": "90"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{commands}\nstatus {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def _block(text: str) -> str:
    return f"\n```{{.text .output}}\n{text.rstrip()}\n```\n" if text.strip() else ""


def _save_plots(out: Path, stem: str) -> str:
    """Save the open figures and return the Markdown that shows them; a figure's title is its alternative text."""
    plt = sys.modules.get("matplotlib.pyplot")
    shown = ""
    for number in plt.get_fignums() if plt else ():
        figure = plt.figure(number)
        path = out / f"{stem}-{number}.svg"
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
        shown += f"\n![{figure.axes[0].get_title()}]({path.name})\n"
        plt.close(figure)
    return shown


def main(place: str, *names: str) -> None:
    """Run tutorials; the judge of the others is trained if the first one is not among them."""
    os.environ["MPLBACKEND"] = "svg"
    out = Path(place).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for folder in ("configs", "launch"):
            (Path(work) / folder).symlink_to(ROOT / folder)
        for name in dict.fromkeys((NAMES[0], *(names or NAMES))):
            print(run_tutorial(name, Path(work), out), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
