"""The short form of benchmarks/model_folders.py: damaged and contradictory folders are rejected by name."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "model_folders.py"


@pytest.mark.slow
def test_no_damaged_folder_is_loaded_as_another_model():
    spec = importlib.util.spec_from_file_location("model_folders", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    outcomes = module.run(120, seed=1)
    assert outcomes.keys() == {"error", "same"}, outcomes
    assert outcomes["error"] > 80
