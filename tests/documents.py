"""The blocks of the documents, and the marks of those that are not run (document_runs.py runs the others).

A block is run unless a comment directly above it, which the rendered page does not show, gives a reason:

    <!-- needs: Slurm -->                 the block is not run
    <!-- needs: Slurm (sbatch) -->        its lines with the word in brackets are not run
    <!-- shows: output -->                it is not a command
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")),
    "launch/README.md",
    "benchmarks/README.md",
    "CONTRIBUTING.md",
]

# What a block may need, and the test that covers it here.
NEEDS = {
    "a package index": "test_package.py",  # builds what is installed from one
    "minutes": "test_chaos.py",  # and other short forms of the benchmarks
    "Slurm": "test_launch_slurm.py",  # under a stand-in
    "several machines": "test_jobs.py",  # several processes
    "the hub": "test_evaluation.py",  # the same from files
    "GPUs": "test_scorer.py",  # scores do not depend on the batch, on fake devices
    "a GPU compiler": "test_plan.py",  # if JAX's plug-in for CUDA is installed
    "TRL": "test_trl.py",  # these four if the library is installed
    "Tunix": "test_nnx_tunix.py",
    "verl": "test_rewards_loaders.py",
    "OpenRLHF": "test_rewards_loaders.py",
}
SHOWS = {"output", "a formula"}
SHELLS = {"bash", "sh", "console"}
DATA = {"mermaid", "toml", "json", "yaml", "text"}  # not commands

FENCE = re.compile(r"^```(\w*)\s*$")
MARK = re.compile(r"^<!--\s*(needs|shows):\s*(.*?)\s*-->$")
HOW = (
    "run it (tests/document_runs.py has the stand-ins and small forms), or put a mark directly above it: "
    f"<!-- needs: ... --> with one of {', '.join(NEEDS)}, or <!-- shows: ... --> with one of {', '.join(sorted(SHOWS))}"
)


class BlockError(AssertionError):
    """A block that cannot be run, or an unknown mark."""


@dataclass(frozen=True)
class Block:
    """Code of a page. kind: "shell", "python" or "data". needs: (what, a word of its lines or None for all)."""

    page: str
    line: int
    kind: str
    text: str
    needs: tuple[tuple[str, str | None], ...] = ()
    shows: str | None = None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether some of its lines are run."""
        return self.kind != "data" and self.shows is None and bool(self.commands)

    @property
    def commands(self) -> str:
        """The lines that are run; a continued line is one line."""
        words = [word or "" for _, word in self.needs]
        lines = re.findall(r"(?:.*\\\n)*.*(?:\n|$)", self.text)
        kept = [line for line in lines if not any(word in line for word in words)]
        return "".join(kept).strip("\n")


def blocks_of(page: str, text: str | None = None) -> list[Block]:
    """All blocks of a page: fences and indented blocks. Raises BlockError for an unknown language or mark."""
    lines = (text if text is not None else (ROOT / page).read_text(encoding="utf-8")).splitlines()
    found, at = [], 0
    while at < len(lines):
        fence, start = FENCE.match(lines[at]), at
        if fence:
            at = next(n for n in range(at + 1, len(lines)) if lines[n].rstrip() == "```")
            body, at = "\n".join(lines[start + 1 : at]), at + 1
            kind = _kind(fence[1], f"{page}:{start + 1}")
        elif lines[at].startswith("    ") and (
            at == 0 or not lines[at - 1].strip() or _mark(lines, at)
        ):
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            body, kind = "\n".join(line[4:] for line in lines[start:at]).rstrip(), "shell"
        else:
            at += 1
            continue
        found.append(_marked(Block(page, start + 1, kind, body), _mark(lines, start)))
    return found


def _kind(language: str, place: str) -> str:
    if language in SHELLS:
        return "shell"
    if language == "python":
        return "python"
    if language in DATA:
        return "data"
    raise BlockError(
        f"{place}: a block in {language or 'no language'!r}: expected python, bash or one of {DATA}"
    )


def _mark(lines: list[str], at: int) -> re.Match[str] | None:
    """The mark above a line, one empty line between them allowed."""
    above = at - 2 if at >= 2 and not lines[at - 1].strip() else at - 1
    return MARK.match(lines[above].strip()) if above >= 0 else None


def _marked(block: Block, mark: re.Match[str] | None) -> Block:
    if mark is None:
        return block
    if mark[1] == "shows":
        if mark[2] not in SHOWS:
            raise BlockError(f"{block.place}: shows {mark[2]!r}: expected one of {sorted(SHOWS)}")
        return replace(block, shows=mark[2])
    needs = []
    for one in mark[2].split(", "):
        what, _, word = one.partition(" (")
        word = word.removesuffix(")") or None
        if what not in NEEDS:
            raise BlockError(f"{block.place}: needs {what!r}: expected one of {sorted(NEEDS)}")
        if word and word not in block.text:
            raise BlockError(f"{block.place}: needs {what} ({word}): no line has {word!r}")
        needs.append((what, word))
    return replace(block, needs=tuple(needs))
