"""Every command and every Python block of the documents is run, or has a mark that states what it needs.

A page is run in a folder of its own, block by block, on tiny stand-ins (document_runs.py).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from document_runs import GRANTED, SMALL, Folder, form_of, form_of_comment
from documents import NEEDS, PAGES, ROOT, SHOWS, Block, BlockError, blocks_of
from quick_programs import FLAGS

pytestmark = pytest.mark.slow

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = [page for page in PAGES if any(block.page == page and block.is_run for block in BLOCKS)]


class Pages:
    """The process that runs pages, which share its imports and compiled programs."""

    def __init__(self, place: Path):
        dropped = ("XLA_FLAGS", "GRAM_JAX", "JAX_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        # one device, as at the terminal
        self.output = place / "output.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "tests" / "document_runs.py"],
                env=kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, "PYTHONPATH": str(ROOT)},
                cwd=place,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )

    def ask(self, function: str, *words: str | Path) -> None:
        self.process.stdin.write(json.dumps([function, [str(word) for word in words]]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the process ended:\n{self.output.read_text()[-6000:]}"
        assert not (failed := json.loads(answer)), failed


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory):
    pages = Pages(tmp_path_factory.mktemp("pages"))
    with pages.process:
        yield pages


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, pages: Pages) -> Path:
    place = tmp_path_factory.mktemp("stand-ins")
    pages.ask("make_stand_ins", place, place / ".tools")
    return place


@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run_one_after_the_other(page, pages, stand_ins, tmp_path):
    if any("gram-jax serve" in b.commands for b in BLOCKS if b.page == page):
        pytest.importorskip("uvicorn", reason="needs the extra serve")
        pytest.importorskip("fastapi", reason="needs the extra serve")
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
    place = tmp_path / "page"
    shutil.copytree(stand_ins, place, symlinks=True)
    for name, source in GRANTED.get(page, {}).items():
        shutil.copytree(stand_ins / source, place / name)
    pages.ask("run_page", page, place, tmp_path / "tools")


# What is not run


def test_every_need_belongs_to_a_block_and_names_a_test():
    assert {what for block in BLOCKS for what, _ in block.needs} == set(NEEDS)
    assert {block.shows for block in BLOCKS} <= SHOWS | {None}
    assert all((ROOT / "tests" / name).is_file() for name in NEEDS.values())


def test_most_blocks_are_run():
    code = [block for block in BLOCKS if block.kind != "data" and block.shows is None]
    assert sum(block.is_run for block in code) > len(code) / 2


def test_every_small_form_and_everything_granted_belongs_to_a_command_of_a_page():
    lines = [
        set(line.split())
        for block in BLOCKS
        if block.kind == "shell"
        for line in block.commands.replace("\\\n", " ").splitlines()
    ]
    for begin, change in SMALL:
        old, arrow, _ = change.partition(" -> ")
        words = {*begin.split(), *(old.split() if arrow else ())}
        assert any(words <= line for line in lines), (begin, change)
    assert set(GRANTED) <= set(RUN)


def test_make_knows_the_targets_of_the_documents():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = {target for block in BLOCKS for target in re.findall(r"^make (\w+)", block.text, re.M)}
    assert {"demo", "test"} <= named <= targets


# The marks and the runner

MARKED = "text\n\n<!-- {mark} -->\n\n    sbatch x\n    gram-jax version\n"


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("text\n\n    sbatch x\n", "sbatch x"),
        (MARKED.format(mark="needs: Slurm"), ""),
        (MARKED.format(mark="needs: Slurm (sbatch)"), "gram-jax version"),
        ("<!-- needs: Slurm (sbatch) -->\n\n    sbatch \\\n      x\n    echo y\n", "echo y"),
        ("<!-- shows: output -->\n```bash\n0.5\n```\n", None),
    ],
)
def test_a_mark_holds_for_the_block_or_for_the_lines_that_it_names(text, commands):
    (block,) = blocks_of("a.md", text)
    assert block.is_run is bool(commands)
    assert commands is None or block.commands == commands


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MARKED.format(mark="needs: patience"), r"a\.md:5: .*'patience'"),
        (MARKED.format(mark="needs: Slurm (srun)"), r"a\.md:5: .*'srun'"),
        (MARKED.format(mark="shows: promise"), r"a\.md:5: .*'promise'"),
        ("```\ngram-jax version\n```\n", r"a\.md:1: .*no language"),
        ("```perl\n1\n```\n", r"a\.md:1: .*'perl'"),
    ],
)
def test_an_unknown_mark_or_language_is_rejected(text, message):
    with pytest.raises(BlockError, match=message):
        blocks_of("a.md", text)


@pytest.fixture
def empty(tmp_path) -> Folder:
    folder = Folder(tmp_path, tools=tmp_path / "tools")
    folder.names["judge"] = None
    return folder


@pytest.mark.parametrize(
    "commands",
    [
        "gram-jax recipe no-such-recipe",
        "gram-jax evaluate --no-such-option",
        "pip install gram-jax",
        "make demo",
        "no-such-program",
        "python -m gram_jax",
        "false\necho the last one is fine",
        "false | cat",
        "echo $NOT_SET",
    ],
)
def test_a_command_that_fails_or_cannot_be_run_fails_with_its_place(empty, commands):
    with pytest.raises(BlockError, match=r"a\.md:3"):
        empty.run(Block("a.md", 3, "shell", commands))


def test_what_a_command_prints_can_be_used(empty):
    empty.run(Block("a.md", 1, "shell", "gram-jax recipe smollm2-135m-rl > my.toml"))
    shipped = ROOT / "configs" / "smollm2-135m-rl.toml"
    assert (empty.place / "my.toml").read_text() == shipped.read_text()


@pytest.mark.parametrize(
    "code",
    [
        "undefined",
        "from gram_jax import Scrorer",
        "print(0.5)  # 1 2",
        "print(0.5, 0.25)  # 0.58 0.42 0.1: too many",
        "[1.0, 2.0]  # [1, 0], best first",
        "[[1.0]]  # [n] log-odds",
    ],
)
def test_python_that_fails_or_gives_another_form_than_its_comment_fails(empty, code):
    with pytest.raises(BlockError, match=r"a\.md:3"):
        empty.run(Block("a.md", 3, "python", code))


def test_python_keeps_its_names_and_values_of_the_right_form_pass(empty):
    empty.run(Block("a.md", 1, "python", "a = [2, 1]  # a list\nprint(0.5, 0.2)  # 0.58 0.42: two"))
    empty.run(Block("a.md", 5, "python", "a  # [1, 0], best first\n[a, a]  # [n, n] numbers"))
    assert form_of("0.25 0.5", form_of_comment("0.58 0.42: probabilities")) == (float, float)
