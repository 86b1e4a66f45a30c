"""The core works without the packages of extras, and an error names the extra that is missing."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gram_jax.errors import MissingExtraError
from gram_jax.extras import needs_extra

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Packages that no core command may need, without those that several distributions bring.
OPTIONAL = ("gguf", "matplotlib", "tensorboardX", "fastapi", "uvicorn", "prometheus_client")

WITHOUT = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def run_without_extras(code: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + code], cwd=folder, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_core_scores_without_any_extra(tmp_path: Path):
    code = (
        "from gram_jax import Scorer\n"
        "score = Scorer.load('tiny-random').score('Name a prime.', 'Seven.', 'Nine.')\n"
        "assert abs(score.first + score.second - 1) < 1e-6\n"
    )
    done = run_without_extras(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("from gram_jax.interop import gguf", "gguf"),
        (
            "from gram_jax.plots import plot_curves; plot_curves([{'loss': 1}], '', title='')",
            "plots",
        ),
        ("from gram_jax.cli import app; app(['serve', 'tiny-random'])", "serve"),
    ],
)
def test_a_missing_extra_is_named(code: str, extra: str, tmp_path: Path):
    done = run_without_extras(code, tmp_path)
    assert "MissingExtraError: " in done.stderr and f".[{extra}]" in done.stderr
    assert extra in EXTRAS


def test_a_missing_module_of_gram_jax_is_not_a_missing_extra():
    with pytest.raises(ModuleNotFoundError), needs_extra("plots"):
        import gram_jax.not_there  # noqa: F401


def test_a_missing_extra_is_a_user_error():
    with pytest.raises(MissingExtraError) as caught, needs_extra("plots"):
        import a_package_that_is_not_there  # noqa: F401
    assert caught.value.status == 2
