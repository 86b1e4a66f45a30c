"""What `make docs` adds to docs/: the pages of other folders, the tutorials, and the API reference of the public names.

A hook of MkDocs. Links are written for a checkout (`../configs/x.toml`); here they are led to the page or the file that
the site has for it.
"""

import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Pages outside of docs/, under their own paths on the site.
PAGES = [
    "BUILD.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("launch/**/README.md"))),
]

# The API reference: title and names of every page. A test checks that every public name is on one page.
API = {
    "scoring": (
        "Scoring and ranking",
        [
            "Scorer",
            "load_judge",
            "RemoteScorer",
            "Think",
            "Thought",
            "PairScore",
            "score_pair",
            "PairBatch",
            "Sequences",
        ],
    ),
    "judges": (
        "Judges and models",
        [
            "JudgeSpec",
            "make_spec",
            "ModelConfig",
            "load_model",
            "load_tokenizer",
            "export_hf",
            "Execution",
            "Placement",
            "make_placement",
        ],
    ),
    "data": ("Data", ["read_records", "Comparison", "Candidates"]),
    "training": ("Training and adaptation", ["read_recipe", "train", "adapt", "AdaptConfig"]),
    "evaluation": ("Evaluation", ["evaluate", "evaluate_pairs", "evals.results"]),
    "rewards": (
        "Generation and rewards",
        [
            "TextGenerator",
            "SamplingConfig",
            "GreedyResponses",
            "RewardForm",
            "rewards.trl",
            "rewards.tunix",
            "rewards.verl",
            "rewards.openrlhf",
        ],
    ),
    "errors": (
        "Errors",
        [
            "GramError",
            *(
                f"errors.{name}Error"
                for name in (
                    "Data",
                    "Judge",
                    "Recipe",
                    "Layout",
                    "InUse",
                    "Checkpoint",
                    "DoesNotFit",
                    "NonFinite",
                    "Remote",
                    "Cluster",
                    "Stopped",
                    "MissingExtra",
                    "Report",
                )
            ),
            "errors.GramWarning",
            "adaptation.adapt.NotBetterError",
            "serve.run.StartError",
        ],
    ),
}

# Methods of base classes, shown with the class that users load.
INHERITED = {
    "Scorer": ["score", "score_many", "stream", "rank", "rank_many", "best", "compare"],
}


def api_page(title: str, names: list[str]) -> str:
    """Markdown that mkdocstrings fills with docstrings."""
    return "\n\n".join([f"# {title}", *map(_entry, names)]) + "\n"


def _entry(name: str) -> str:
    inherited = INHERITED.get(name)
    options = f"\n    options:\n      inherited_members: {inherited}" if inherited else ""
    return f"::: gram_jax.{name}{options}"


def tutorials() -> dict[str, str]:
    """Path and text of every tutorial; without outputs where docs/run_tutorials.py has not run."""
    from docs.run_tutorials import NAMES, page_of, read_tutorial

    pages = {name: ROOT / "build" / "tutorials" / f"{name}.md" for name in NAMES}
    return {
        f"tutorials/{name}.md": page.read_text("utf-8")
        if page.exists()
        else page_of(read_tutorial(name), name)
        for name, page in pages.items()
    }


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of other folders, the tutorials, the files that pages link to, and the API reference."""
    from mkdocs.structure.files import File

    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    texts |= {f"api/{name}.md": api_page(*page) for name, page in API.items()} | tutorials()
    inside = {
        file.src_uri: Path(file.abs_src_path).read_text(encoding="utf-8")
        for file in files.documentation_pages()
    }
    for uri, text in {**inside, **texts}.items():
        for link in LINK.findall(text):
            target = in_repository(uri, link.partition("#")[0])
            if target and is_linked_file(target):
                texts[target] = (ROOT / target).read_text(encoding="utf-8")
    texts |= {
        f"tutorials/{plot.name}": plot.read_text("utf-8")
        for plot in (ROOT / "build" / "tutorials").glob("*.svg")
    }
    for uri, text in texts.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead links to where the site has their target; leave out the marks of blocks that are not run."""

    def led(match: re.Match[str]) -> str:
        path, hash_sign, anchor = match[2].partition("#")
        uri = site_uri(in_repository(page.file.src_uri, path))
        if uri is None:
            return match[0] if not path or "://" in path or path.startswith("mailto:") else match[1]
        there = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return f"[{match[1]}]({there}{hash_sign}{anchor})"

    markdown = re.sub(r"^<!-- (needs|shows): .*-->\n\n?", "", markdown, flags=re.M)
    return re.sub(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", led, markdown)


LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def in_repository(uri: str, link: str) -> str | None:
    """The path from the root of the repository that a link of a page leads to; None for links elsewhere."""
    if not link or "://" in link or link.startswith("mailto:"):
        return None
    place = uri if uri in PAGES else f"docs/{uri}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(place), link))


def site_uri(target: str | None) -> str | None:
    """Where the site has a path of the repository; None if it does not have it."""
    if target is None:
        return None
    if target == "README.md":
        return "README.md"
    if target.startswith("docs/"):
        return re.sub(r"^(tutorials/.*)\.py$", r"\1.md", target.removeprefix("docs/"))
    if f"{target}/README.md" in PAGES:
        return f"{target}/README.md"
    return target if target in PAGES or is_linked_file(target) else None


def is_linked_file(target: str) -> bool:
    """Whether it is a file that is no page and is copied to the site because a page links to it."""
    outside = target not in PAGES and target != "README.md" and not target.startswith("docs/")
    return outside and (ROOT / target).is_file()


def on_startup(**_: Any) -> None:
    """Let the extension of docstrings be found."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
