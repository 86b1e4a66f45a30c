"""The documents say what is so: references as in the code, links that lead somewhere, commands and names that exist."""

import ast
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

import gram_jax
from gram_jax import cli, read_records
from gram_jax.data.schemas import SCHEMAS, detect_schema

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from make_reference import references  # noqa: E402
from site_pages import API  # noqa: E402

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "launch/README.md",
        ROOT / "benchmarks/README.md",
    ]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose_of(name: str) -> str:
    """Without blocks of code."""
    text = re.sub(r"^```.*?^```", "", text_of(name), flags=re.M | re.S)
    return re.sub(r"^(?: {4}.*\n)+", "", text, flags=re.M)


def anchors_of(page: Path) -> set[str]:
    """Of its headings, as they are made on GitHub."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head) for head in heads]
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in plain}


@pytest.mark.parametrize("name", references())
def test_a_reference_is_what_the_code_says(name):
    assert text_of(f"docs/{name}") == references()[name], "run python docs/make_reference.py"


@pytest.mark.parametrize("name", references())
def test_every_key_and_option_says_what_it_means(name):
    bare = [line for line in references()[name].splitlines() if re.search(r"\|\s*\|$", line)]
    assert not bare


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
    """The part of a page below a heading, up to the next one that is as high."""
    lines = page.read_text(encoding="utf-8").splitlines()
    levels = [len(re.match("#*", line)[0]) for line in lines]
    start = next(
        at
        for at, line in enumerate(lines)
        if levels[at] and re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") == anchor
    )
    rest = range(start + 1, len(lines))
    end = next((at for at in rest if 0 < levels[at] <= levels[start]), len(lines))
    return "\n".join(lines[start:end])


def figures_of_the_readme() -> list[str]:
    """Rows of the table of figures, below its head."""
    table = section(ROOT / "README.md", "figures")
    return [line for line in table.splitlines() if re.match(r"\| \w", line)][1:]


@pytest.mark.parametrize("row", figures_of_the_readme(), ids=lambda row: row[2:40])
def test_a_figure_of_the_readme_stands_where_it_links_to(row):
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


def test_every_document_is_in_the_navigation_of_the_site():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    missing = [page.name for page in ROOT.glob("docs/*.md") if f" {page.name}\n" not in nav]
    assert not missing


FORMATS = re.findall(
    r"^### (\S+)\n.*?^```json\n(.*?)^```", text_of("docs/formats.md"), flags=re.M | re.S
)


def test_every_format_has_an_example():
    assert {name for name, _ in FORMATS} == {schema.name for schema in SCHEMAS.values()}


@pytest.mark.parametrize(("name", "example"), FORMATS)
def test_the_example_of_a_format_is_recognised_and_read(name, example, tmp_path):
    row = json.loads(example)
    assert detect_schema("auto", name, [row]).name == name
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    kind = "graded" if name == "candidates" else "pair"
    records, report = read_records(tmp_path / "rows.jsonl", kind=kind)
    assert records and report.rows == 1


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
    commands[("data", "inspect")] = cli.data_app["inspect"]
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
            continue  # `gram-jax ...` in general
        key = tuple(words[:2]) if words[:2] == ["data", "inspect"] else (words[0],)
        assert key in known, words
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in known[key], (word, words)


def python_blocks() -> list[tuple[str, str]]:
    found = []
    for name in NAMES:
        found += [
            (name, code)
            for code in re.findall(r"^```python\n(.*?)^```", text_of(name), flags=re.M | re.S)
        ]
    return found


@pytest.mark.parametrize(("name", "code"), python_blocks())
def test_what_python_blocks_import_from_us_exists(name, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "gram_jax":
            module = importlib.import_module(node.module)
            for one in node.names:
                assert hasattr(module, one.name) or importlib.import_module(
                    f"{node.module}.{one.name}"
                )
