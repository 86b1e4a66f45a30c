"""The wheel: its files, metadata and dependencies; and an example for every public name."""

import ast
import doctest
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from email import message_from_bytes
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    packages_distributions,
)
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_layers import imported, modules

import gram_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Imported with the package that depends on them.
BROUGHT_BY = {"markupsafe": "jinja2", "pydantic-core": "pydantic", "starlette": "fastapi"}
# In the environments of trainers: one of them loads rewards/openrlhf.py.
NOT_OURS = {"torch"}


def files_of_the_package() -> set[str]:
    """The files of gram_jax/ and of configs/, by their names in the wheel."""
    folders = [ROOT / "gram_jax", ROOT / "configs"]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    names = [path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts]
    return {re.sub(r"^configs/", "gram_jax/configs/", name) for name in names}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> ZipFile:
    """Built from a copy, without files of earlier builds."""
    setuptools = pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("gram_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = f"from {setuptools.__name__} import build_meta; build_meta.build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return ZipFile(path)


def inside(wheel: ZipFile, ending: str) -> bytes:
    """The file of the wheel's metadata with this ending."""
    (name,) = (n for n in wheel.namelist() if ".dist-info/" in n and n.endswith(ending))
    return wheel.read(name)


def test_the_wheel_holds_what_the_package_holds_and_nothing_else(wheel: ZipFile):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files_of_the_package()
    for name in sorted(packed):
        path = ROOT / re.sub("^gram_jax/configs/", "configs/", name)
        assert wheel.read(name) == path.read_bytes(), name


def test_the_wheel_has_the_command_and_the_licence(wheel: ZipFile):
    assert b"gram-jax = gram_jax.cli:main" in inside(wheel, "entry_points.txt")
    metadata = message_from_bytes(inside(wheel, "METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert inside(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["Requires-Python"] == ">=3.11"
    assert (metadata["Name"], metadata["Version"]) == ("gram-jax", PROJECT["version"])


def test_version_and_licence_are_the_same_wherever_they_are_stated():
    cited = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", cited, re.M)[1] == PROJECT["version"]
    assert re.search(r"^license: (.*)$", cited, re.M)[1] == PROJECT["license"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


HELP = """
from gram_jax.cli import COMMANDS, run_command
for command in COMMANDS: assert run_command([command.__name__, "--help"]) == 0
"""


@pytest.mark.parametrize(
    ("code", "slow"),
    [
        ("import gram_jax", "numpy jax transformers cyclopts"),
        ("import gram_jax.checkpoint.manifest", "jax"),
        (HELP, "jax flax numpy transformers"),
    ],
)
def test_slow_imports_wait_until_they_are_needed(code: str, slow: str):
    code = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()[-1].split()
    assert "gram_jax" in loaded and not set(slow.split()) & set(loaded)


def named(requirement: str) -> str:
    """The distribution of a requirement."""
    return re.match(r"[\w-]+", requirement.replace("_", "-"))[0].lower()


def declared() -> set[str]:
    """Every distribution that the package or one of its extras for users requires."""
    extras = PROJECT["optional-dependencies"]
    lists = [PROJECT["dependencies"], *(extras[name] for name in extras if name != "dev")]
    return {named(requirement) for requirements in lists for requirement in requirements}


def test_every_import_has_a_dependency():
    installed = packages_distributions()
    needed = {}
    for module, path in modules().items():
        for name in imported(path):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top != "gram_jax":
                needed[named(installed.get(top, [top])[0])] = module
    needed = {name: m for name, m in needed.items() if name not in NOT_OURS}
    missing = {n: m for n, m in needed.items() if BROUGHT_BY.get(n, n) not in declared()}
    assert not missing


def test_the_build_notes_explain_each_dependency():
    notes = (ROOT / "BUILD.md").read_text()
    table = notes[notes.index("### Dependencies, and why") : notes.index("## How figures are made")]
    table = table.lower().replace("_", "-")
    extras = PROJECT["optional-dependencies"]
    wanted = declared() | {named(r) for r in extras["dev"]} | set(extras)
    unexplained = [n for n in wanted - {"gram-jax"} if not re.search(rf"\b{n}\b", table)]
    assert not unexplained


def brought(name: str, extra: str = "", seen: dict | None = None) -> dict[str, Distribution]:
    """Every installed distribution that one requires, directly or not: {name: it}."""
    seen = {} if seen is None else seen
    known = f"{canonicalize_name(name)}[{extra}]"
    if known in seen:
        return seen
    seen[known] = distribution(name)
    for text in seen[known].requires or []:
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            for part in ("", *needed.extras):
                brought(needed.name, part, seen)
    return seen


def licence_of(found: Distribution) -> str:
    """Its licence in its metadata: an expression, or the first line of a text with the classifiers."""
    about = found.metadata
    lines = (about.get("License") or "").strip().splitlines()
    kinds = [c for c in about.get_all("Classifier") or [] if c.startswith("License")]
    return about.get("License-Expression") or " ".join([*lines[:1], *kinds])


PERMISSIVE = r"\b(Apache|MIT|MIT-CMU|BSD|ISC|PSF|Python Software Foundation|0BSD|Zlib|CNRI)\b"
# Parts are under MPL-2.0, which concerns changes to their own files; they are used unchanged.
UNCHANGED = {"certifi", "tqdm"}


@pytest.mark.parametrize("extra", ["", "all"])
def test_dependencies_have_permissive_licences(extra: str):
    try:
        found = brought("gram-jax", extra)
    except PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    assert len(found) > 20
    for one in found.values():
        if (name := canonicalize_name(one.metadata["Name"])) not in UNCHANGED:
            licence = licence_of(one)
            assert re.search(PERMISSIVE, licence), (name, licence)
            assert not re.search("GPL|MPL", licence), (name, licence)


def test_type_checkers_are_shown_the_public_names():
    tree = ast.parse((ROOT / "gram_jax" / "__init__.py").read_text())
    shown = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert gram_jax.__all__ == sorted(shown)
    for name, module in shown.items():
        assert getattr(importlib.import_module(module), name) is getattr(gram_jax, name)


@pytest.mark.parametrize("name", gram_jax.__all__)
def test_every_public_name_has_an_example(name: str):
    """In its docstring; doctest, which the suite runs, checks the result."""
    examples = doctest.DocTestParser().get_examples(getattr(gram_jax, name).__doc__ or "")
    used = {
        node.id
        for example in examples
        for node in ast.walk(ast.parse(example.source))
        if isinstance(node, ast.Name)
    }
    assert name in used
    assert not any(doctest.SKIP in example.options for example in examples)
    assert any(example.want for example in examples)
