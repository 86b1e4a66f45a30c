"""The documents agree with the code: references, links, commands and names."""

import ast
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from documents import PAGES as RUN_PAGES
from documents import ROOT, blocks_of

import gram_jax
from gram_jax import cli, read_records
from gram_jax.data.detection import detect_schema
from gram_jax.data.schemas import SCHEMAS

sys.path.insert(0, str(ROOT / "docs"))
from make_reference import references
from site_pages import API

NAMES = sorted({*RUN_PAGES, *(page.name for page in ROOT.glob("*.md"))})


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose_of(name: str) -> str:
    """Without blocks of code."""
    text = re.sub(r"^```.*?^```", "", text_of(name), flags=re.M | re.S)
    return re.sub(r"^(?: {4}.*\n)+", "", text, flags=re.M)


def anchor_of(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")


def anchors_of(page: Path) -> set[str]:
    return {anchor_of(head) for head in re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)}


@pytest.mark.parametrize("name", references())
def test_a_reference_agrees_with_the_code_and_explains_every_key(name):
    text = references()[name]
    assert text_of(f"docs/{name}") == text, "run python docs/make_reference.py"
    assert not [line for line in text.splitlines() if re.search(r"\|\s*\|$", line)]
    assert not re.findall(r"^\* `[^`]*`:\s*(?:\*.*)?$", text, re.M), "an option without a help text"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(name)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), target
        assert not anchor or anchor in anchors_of(page), target


def section(page: Path, anchor: str) -> str:
    """The part of a page below a heading, up to the next one of its level."""
    lines = page.read_text(encoding="utf-8").splitlines()
    levels = [len(re.match("#*", line)[0]) for line in lines]
    start = next(at for at, n in enumerate(levels) if n and anchor_of(lines[at]) == anchor)
    rest = range(start + 1, len(lines))
    end = next((at for at in rest if 0 < levels[at] <= levels[start]), len(lines))
    return "\n".join(lines[start:end])


def figures_of_the_readme() -> list[str]:
    """Rows of the table of figures, below its head."""
    table = section(ROOT / "README.md", "figures")
    return [line for line in table.splitlines() if re.match(r"\| \w", line)][1:]


@pytest.mark.parametrize("row", figures_of_the_readme(), ids=lambda row: row[2:40])
def test_a_figure_of_the_readme_is_on_the_linked_page(row):
    (link,) = re.findall(r"\]\((\S+?)\)", row)
    name, _, anchor = link.partition("#")
    there = section(ROOT / name, anchor) if anchor else text_of(name)
    number = r"\d+(?:[.,]\d+)*(?:e-\d+)?"
    known = set(re.findall(number, there))
    assert not [found for found in re.findall(number, row.replace(link, "")) if found not in known]


def test_the_readme_has_figures_of_quality_speed_and_reliability():
    rows = " ".join(figures_of_the_readme())
    assert all(word in rows for word in ("accuracy", "PyTorch", "killed"))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("docs/")])
def test_every_document_is_in_the_index(name):
    assert name == "docs/README.md" or f"({Path(name).name})" in text_of("docs/README.md")


def test_every_public_name_is_on_one_page_of_the_api_reference():
    names = [name for _, names in API.values() for name in names]
    assert sorted(name for name in names if name in gram_jax.__all__) == gram_jax.__all__


def test_every_name_of_the_api_reference_exists():
    for name in (name for _, names in API.values() for name in names):
        place, _, last = f"gram_jax.{name}".rpartition(".")
        is_module = (ROOT / "gram_jax" / f"{name.replace('.', '/')}.py").is_file()
        assert is_module or hasattr(importlib.import_module(place), last), name


def test_every_document_is_in_the_navigation_of_the_site():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    missing = [page.name for page in ROOT.glob("docs/*.md") if f" {page.name}\n" not in nav]
    assert not missing


def test_every_error_has_its_cause_and_cure_in_troubleshooting_and_its_place_in_the_api_reference():
    found = set()
    for module in ROOT.glob("gram_jax/**/*.py"):
        found |= set(re.findall(r"^class (\w+)\(GramError\)", module.read_text(), flags=re.M))
    heads = set(re.findall(r"^### (\w+)$", text_of("docs/troubleshooting.md"), flags=re.M))
    assert heads == found
    assert {name.split(".")[-1] for name in API["errors"][1]} == found | {
        "GramError",
        "GramWarning",
    }


FORMATS = re.findall(
    r"^### (\S+)\n.*?^```json\n(.*?)^```", text_of("docs/formats.md"), flags=re.M | re.S
)


def test_every_format_has_an_example():
    assert {name for name, _ in FORMATS} == {schema.name for schema in SCHEMAS.values()}


@pytest.mark.parametrize(("name", "example"), FORMATS)
def test_the_example_of_a_format_is_recognised_and_read(name, example, tmp_path):
    rows = json.loads("[" + re.sub(r"\}\n\{", "},{", example) + "]")
    assert detect_schema("auto", name, rows).name == name
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = "graded" if name == "candidates" else "pair"
    records, report = read_records(tmp_path / "rows.jsonl", kind=kind)
    assert records and report.rows == len(rows)


def commands_of(text: str) -> list[list[str]]:
    """Words of every gram-jax command in blocks and in `code`."""
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, flags=re.M | re.S)
    blocks += re.findall(r"(?:^ {4}.*\n?)+", text, flags=re.M)
    spans = re.findall(r"`([^`\n]*gram-jax [^`\n]*)`", text)
    found = []
    for piece in [*blocks, *spans]:
        for line in piece.replace("\\\n", " ").splitlines():
            at = re.search(r"(?:^|[\s;=(])gram-jax (.*)", line.split(" # ")[0])
            if at:
                found.append(shlex.split(re.split(r"[;|>]|&&", at.group(1))[0], posix=True))
    return found


def known_commands() -> dict[tuple[str, ...], set[str]]:
    """Options of every command, by its words."""
    commands = {(one.__name__,): cli.app[one.__name__] for one in cli.COMMANDS}
    commands |= {("data", name): cli.data_app[name] for name in ("inspect", "pairs", "prepare")}
    commands[("data",)] = commands[("data", "inspect")]
    return {
        words: {
            name for argument in command.assemble_argument_collection() for name in argument.names
        }
        | {"-h", "--help"}
        for words, command in commands.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_their_options_exist(name):
    known = known_commands()
    for words in commands_of(text_of(name)):
        if not words or not re.fullmatch(r"[a-z]+", words[0]):
            continue  # `gram-jax ...`
        key = tuple(words[:2]) if tuple(words[:2]) in known else (words[0],)
        assert key in known, words
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in known[key], (word, words)


PYTHON = [block for page in RUN_PAGES for block in blocks_of(page) if block.kind == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_what_python_blocks_import_from_gram_jax_exists(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "gram_jax":
            module = importlib.import_module(node.module)
            for one in node.names:
                path = f"{node.module}.{one.name}"
                assert hasattr(module, one.name) or importlib.import_module(path)


PACKAGES = {path.parent.name for path in ROOT.glob("gram_jax/*/__init__.py")}


@pytest.mark.parametrize("name", NAMES)
def test_modules_that_a_page_names_exist(name):
    for path, package, suffix in re.findall(
        r"`(?:gram_jax/)?((\w+)/[\w/]*\w)(\.\w+)?", text_of(name)
    ):
        if package in PACKAGES and suffix not in (".parquet", ".jsonl"):
            module = ROOT / "gram_jax" / path
            assert module.exists() or list(module.parent.glob(f"{module.name}.*")), path
