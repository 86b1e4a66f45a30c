"""Every tutorial runs, and its page has the outputs of its cells."""

import os
import re
import subprocess
import sys

import pytest
from documents import ROOT
from quick_programs import FLAGS

sys.path.insert(0, str(ROOT / "docs"))
from run_tutorials import NAMES, TUTORIALS, page_of, read_tutorial


def test_every_tutorial_has_a_name_and_is_in_the_navigation_and_the_index():
    assert {path.stem for path in TUTORIALS.glob("*.py")} == set(NAMES)
    for name in NAMES:
        assert f" tutorials/{name}.md\n" in (ROOT / "mkdocs.yml").read_text()
        assert f"(tutorials/{name}.py)" in (ROOT / "docs" / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_has_a_title_and_uses_public_names_only(name):
    cells = read_tutorial(name)
    assert cells[0].kind == "markdown" and cells[0].text.startswith("# ")
    modules = set(re.findall(r"^from (gram_jax\S*)", page_of(cells, name), flags=re.M))
    assert modules <= {"gram_jax", "gram_jax.rewards.trl"}
    for target in re.findall(r"\]\(([^)\s#]+)", page_of(cells, name)):
        assert (TUTORIALS / target).exists(), target


@pytest.mark.slow
def test_the_tutorials_run(tmp_path):
    """The first one, whose judge the others use, and then the others from last to first: none needs another's files."""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, ROOT / "docs" / "run_tutorials.py", tmp_path, *reversed(NAMES)]
    subprocess.run(command, env=kept | {"XLA_FLAGS": FLAGS}, check=True)
    for name in NAMES:
        page = (tmp_path / f"{name}.md").read_text()
        assert page.count("{.text .output}") >= 3
        plots = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
        assert plots and all((tmp_path / plot).stat().st_size > 1000 for plot in plots)
