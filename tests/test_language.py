"""Documents, docstrings, comments, messages and help texts are in plain technical English."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("gram_jax", "docs", "launch", "configs", "benchmarks", "tools")
SUFFIXES = {".html", ".j2", ".md", ".py", ".sbatch", ".sh", ".toml"}
# Prompts and responses.
DATA = (
    "gram_jax/demo/assets",
    "gram_jax/attacks/assets",
    "tools/demo_texts",
    "benchmarks/claims/bed.toml",
)

# Patterns in lower case, with what to write instead. A blank also stands for a line break.
INSTEAD = {
    r"(?:at most|about|the first|for|of|on|after|every) so many": "N, the number of",
    r"go(?:es)? on": "resume, continue",
    r"went on|begun anew|started anew": "resumed, started again",
    r"raises \w*error\b[^.;`]{0,60} where": "raises X if",
    r"none where|nothing where|zero where": "None if",
    r"as (?:it|they) (?:came|comes|come)": "unchanged",
    r"of late|for nothing|for want of": "recent, unused, because there is no",
    r"(?:lies?|stands?) beside": "is next to",
    r"houses?|(?<!-)rooms?|doors?": "package, space, endpoint",
    r"in (?:any|another|other|random) company": "batch composition",
    r"dear(?:er|est)?|in vain|thence|whence|thither|hither": "costly, without effect, from there",
    r"nobody|somebody|whoever|who knows": "the user, the caller, no process",
    r"without a word|unasked|by heart": "silently, by default, memorised",
    r"(?:is|are|was|were|being) told": "receives, gets",
    r"(?:refused?|refuses|known|called) by name": "rejected, with its name",
    r"not to be told|to be told apart|cannot be told": "indistinguishable",
    r"comes? along": "ships with the package",
    r"at hand": "available",
    r"makes? of it|what is to be said": "result",
    r"reckons?|tires|mended|surest": "estimates, times out, fixed, most confident",
    r"made(?:-| )up|invented": "simulated, synthetic",
    r"bytes of one process": "byte-identical to the output of one process",
    r"for people|for a person|by a person|as a person": "for users",
    r"goes by|go by": "is decided by, follows",
    r"beside (?:it|them|this|the)": "next to, with, in addition to",
}  # fmt: skip
PATTERN = re.compile(
    rf"\b(?:{'|'.join(f'({words})' for words in INSTEAD)})\b".replace(" ", r"\s+(?:#\s+)?")
)


def texts() -> list[Path]:
    """Every file with texts of the project."""
    found = (path for place in PLACES for path in (ROOT / place).rglob("*"))
    return [
        path
        for path in [*ROOT.glob("*.md"), *found]
        if path.suffix in SUFFIXES and not str(path.relative_to(ROOT)).startswith(DATA)
    ]


def test_texts_are_plain_technical_english():
    assert PATTERN.search("a run goes\n    # on") and not PATTERN.search("head-room, gone on")
    offences = []
    for path in texts():
        text = path.read_text(encoding="utf-8").lower()
        for found in PATTERN.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            place, better = f"{path.relative_to(ROOT)}:{line}", list(INSTEAD.values())
            words = " ".join(found[0].split())
            offences.append(f"{place}: {words!r}, better: {better[found.lastindex - 1]}")
    assert not offences, "\n".join(["see CONTRIBUTING.md, Style:", *offences])
