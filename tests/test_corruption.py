"""The short form of benchmarks/corruption.py: random damage is rejected by name, and runs resume."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from tiny_runs import compiled_programs  # noqa: F401

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "corruption.py"


@pytest.fixture(scope="module")
def corruption():
    spec = importlib.util.spec_from_file_location("corruption", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up the module of their annotations.
    importlib.util.sys.modules["corruption"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def subjects(corruption, tmp_path_factory, compiled_programs):  # noqa: F811
    return corruption.make_subjects(tmp_path_factory.mktemp("subjects"), stages=("finetune",))


# In the control Orbax leaves failed reads unfinished.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_random_damage_is_rejected_by_name_and_the_run_resumes(corruption, subjects, tmp_path):
    table = corruption.run_trials(subjects, 24, 7, tmp_path / "trial", resume_every=2)
    total = sum(table.values(), Counter())
    assert total["trials"] == total["refused"] == 24
    assert total["fell back"] >= 5 and total["resumed"] >= 1
    # Without hashes some of the damage would load. Counted in exports, where a seed always does the same damage.
    exports = sum((c for (name, _), c in table.items() if name.startswith("export")), Counter())
    assert exports[corruption.WRONG] >= 2


def test_the_trials_fail_without_verification(corruption, subjects, tmp_path, monkeypatch):
    import gram_jax.checkpoint.orbax as orbax
    import gram_jax.interop.hf_files as hf_files

    for module in (hf_files, orbax):
        monkeypatch.setattr(module, "find_damage", lambda *_, **__: [])
    with pytest.raises(AssertionError, match=r"not refused|is not named"):
        corruption.run_trials(subjects, 24, 7, tmp_path / "trial")
