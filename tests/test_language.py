"""The texts that people read: documents, docstrings, comments, messages and help texts keep to plain technical English."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("gram_jax", "docs", "launch", "configs", "benchmarks", "tools")
SUFFIXES = {".py", ".md", ".toml", ".sh", ".sbatch", ".html", ".yaml"}
DATA = {"gram_jax/demo/assets", "gram_jax/attacks/assets"}  # prompts and responses, not our texts

# Regular expressions over lower-case text, with what to write instead.
WORDS = {
    r"so (?:many|much) (?:\w+ )?(?:as|at|of|rows|pairs|tokens|steps)": "N, the number of",
    r"(?:that|at most|about|the first|of|for|after|every) so many": "N, the number of",
    r"go(?:es)? on": "resume, continue",
    r"w(?:ent|as begun) (?:on|anew)": "resumed, started again",
    r"raises \w*error\b[^.;`\n]{0,60} where": "raises X if",
    r"as (?:it|they) (?:came|comes|come|stands?|lies?)": "unchanged",
    r"of late": "recent",
    r"for nothing": "warm-up; free of charge",
    r"for want of": "because there is no",
    r"lies? beside|stands? beside|lie side by side": "is next to, is in the same folder as",
    r"(?:house|room|rooms|door|doors|company)": "architecture, package, space, endpoint, batch composition",
    r"dear": "costly",
    r"(?:nobody|somebody|somebody else|whoever|who knows)": "name the caller, process or user",
    r"without a word|unasked|by heart": "silently; by default; memorised",
    r"(?:is|are|was|were|being) told": "receives, is set, gets",
    r"(?:refused?|refuses|known|called|listed) by name": "rejected, with its name",
    r"not to be told|to be told apart|cannot be told": "indistinguishable",
    r"come[s]? along": "ship with the package",
    r"at hand": "available",
    r"makes? of it": "result",
    r"thence|thither|hence it": "from there",
    r"reckons?": "estimates",
    r"surest": "most confident",
    r"mended": "fixed",
    r"for people|a person|by a human": "user",
    r"in turns": "alternately",
    r"has its say|have their say": "",
}  # fmt: skip
PATTERN = re.compile(
    r"\b(?:" + "|".join(word.replace(" ", r"(?:\s+#)?\s+") for word in WORDS) + r")\b"
)


def texts() -> list[Path]:
    """Every file of ours with text; generated pages are found in their sources."""
    found = [path for place in PLACES for path in (ROOT / place).rglob("*")]
    return [
        path
        for path in [*ROOT.glob("*.md"), *found]
        if path.suffix in SUFFIXES
        and not any(str(path.relative_to(ROOT)).startswith(folder) for folder in DATA)
    ]


def test_the_texts_are_plain_technical_english():
    offences = []
    for path in texts():
        text = path.read_text(encoding="utf-8").lower()
        for match in PATTERN.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            offences.append(f"{path.relative_to(ROOT)}:{line}: {' '.join(match[0].split())}")
    assert not offences, "CONTRIBUTING.md, Style\n" + "\n".join(offences)
