"""The blocks of the documents, and the marks that say which of them are not run (document_runs.py runs the others).

A block is run unless a comment directly above it, which the rendered page does not show, says why not:

    <!-- needs: Slurm -->                 the block is not run
    <!-- needs: Slurm (sbatch) -->        its lines that hold the word in brackets are not run, the others are
    <!-- shows: output -->                it is no command
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")),
    "launch/README.md",
    "benchmarks/README.md",
    "CONTRIBUTING.md",
]

# All that a block may need, and which tests do what can be done of it here.
NEEDS = {
    "a package index": "test_package.py",  # builds what is installed from one
    "minutes": "test_chaos.py",  # and other short forms of the benchmarks
    "Slurm": "test_launch_slurm.py",  # under a stand-in
    "several machines": "test_jobs.py",  # several processes
    "the hub": "test_evaluation.py",  # the same from files
    "a GPU compiler": "test_plan.py",  # where JAX's plug-in for CUDA is installed
    "TRL": "test_trl.py",  # these four where the library is installed
    "Tunix": "test_nnx_tunix.py",
    "verl": "test_rewards_loaders.py",
    "OpenRLHF": "test_rewards_loaders.py",
}
SHOWS = {"output", "a formula"}
SHELLS = {"bash", "sh", "console"}
DATA = {
    "mermaid",
    "toml",
    "json",
    "yaml",
    "text",
}  # fences that say themselves that they are no commands

FENCE = re.compile(r"^```(\w*)\s*$")
MARK = re.compile(r"^<!--\s*(needs|shows):\s*(.*?)\s*-->$")
HOW = (
    "run it (tests/document_runs.py has the stand-ins and small forms), or put a mark directly above it: "
    f"<!-- needs: ... --> with one of {', '.join(NEEDS)}, or <!-- shows: ... --> with one of {', '.join(sorted(SHOWS))}"
)


class BlockError(AssertionError):
    """A block that nobody could run, or a mark that says nothing; the message says what to do."""


@dataclass(frozen=True)
class Block:
    """Code of a page. kind: "shell", "python" or "data". needs: (what, the word of the lines or None for all)."""

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
        """Whether something of it is."""
        return self.kind != "data" and self.shows is None and bool(self.commands)

    @property
    def commands(self) -> str:
        """What is left to run without the lines that are marked; a line that goes on is one line."""
        if any(word is None for _, word in self.needs):
            return ""
        lines = re.findall(r"(?:.*\\\n)*.*(?:\n|$)", self.text)
        words = [word for _, word in self.needs if word]
        return "".join(line for line in lines if not any(word in line for word in words)).strip(
            "\n"
        )


def blocks_of(page: str, text: str | None = None) -> list[Block]:
    """All blocks of a page: fences, and what stands four spaces in. Raises BlockError for what is neither."""
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
        return Block(block.page, block.line, block.kind, block.text, shows=mark[2])
    needs = []
    for one in mark[2].split(", "):
        what, _, word = one.partition(" (")
        word = word.removesuffix(")") or None
        if what not in NEEDS:
            raise BlockError(f"{block.place}: needs {what!r}: expected one of {sorted(NEEDS)}")
        if word and word not in block.text:
            raise BlockError(
                f"{block.place}: no line holds {word!r}, of which the mark says that it needs {what}"
            )
        needs.append((what, word))
    return Block(block.page, block.line, block.kind, block.text, needs=tuple(needs))
