"""A run that lost something says what, and training again makes it whole."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from damage import flip, truncate
from tiny_runs import compiled_programs, tiny_recipe, train  # noqa: F401

from gram_jax.checkpoint.manifest import MANIFEST
from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.errors import CheckpointError, RecipeError
from gram_jax.interop.hf_files import hf_config
from gram_jax.interop.models import load_model, load_spec, load_tokenizer
from gram_jax.recipes.tables import Recipe
from gram_jax.run.metrics import read_metrics
from gram_jax.run.verify import verify_folder
from gram_jax.sharding import make_placement

pytestmark = pytest.mark.slow


@pytest.fixture
def warnings(caplog) -> Callable[[Recipe], list[str]]:
    """Trains and returns what was warned of."""

    def train_and_read(recipe: Recipe) -> list[str]:
        caplog.clear()
        train(recipe)
        return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]

    return train_and_read


def last_state(run: Path) -> list[bytes]:
    """The arrays of step 6 as Orbax has them, by path."""
    with Checkpoints(run / "checkpoints", keep=None) as checkpoints:
        shapes = checkpoints.params_shapes(6)
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes
        )
        found = checkpoints.restore_params(6, abstract)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(found)]


def test_a_run_with_a_damaged_step_goes_on_from_the_one_before_and_ends_the_same(
    tmp_path, warnings
):
    recipe = tiny_recipe(
        "finetune", tmp_path / "run", checkpoint__save_steps=2, checkpoint__max_to_keep=3
    )
    run = tmp_path / "run"
    assert not warnings(recipe)
    expected, figures = last_state(run), read_metrics(run / "metrics.jsonl")
    for damaged in ([6], [6, 4]):
        for step in damaged:
            shards = (run / "checkpoints" / str(step) / "params").rglob("d/*")
            truncate(max(shards, key=lambda path: path.stat().st_size))
        with pytest.raises(CheckpointError, match=r"/6 is damaged.*\n.*truncated: .*\n.*copy"):
            load_model(run, make_placement({}, devices=jax.devices()[:1]), None)
        # The run was complete; it computes again what is damaged.
        said = warnings(recipe)
        assert f"{run} was complete and is damaged" in said.pop(0)
        assert len(said) == len(damaged)
        assert all("truncated" in text and "moved to" in text for text in said)
        assert last_state(run) == expected
        for before, after in zip(figures, read_metrics(run / "metrics.jsonl"), strict=True):
            assert {**before, "tokens_per_second": 0} == {**after, "tokens_per_second": 0}
    names = sorted(p.name for p in (run / "checkpoints" / "damaged").iterdir())
    assert names == ["4-1", "6-1", "6-2"]
    assert not warnings(recipe)  # complete again

    # What belongs to the model besides its weights is covered, too.
    flip(run / "model" / "config.json")
    for read in (hf_config, load_tokenizer):
        with pytest.raises(CheckpointError, match=r"config\.json: damaged"):
            read(run / "model" if read is hf_config else run)
    flip(run / "model" / "config.json")
    flip(run / "model" / "judge.json")
    with pytest.raises(CheckpointError, match=r"judge\.json: damaged"):
        load_spec(run)
    flip(run / "model" / "judge.json")
    (run / "model" / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=rf"{MANIFEST}: missing"):
        load_model(run, make_placement({}, devices=jax.devices()[:1]), None)


def test_a_finished_run_that_lost_something_is_not_complete(tmp_path, warnings):
    recipe = tiny_recipe(
        "finetune", tmp_path / "run", checkpoint__save_steps=2, checkpoint__max_to_keep=3
    )
    run = tmp_path / "run"
    checkpoints, one = run / "checkpoints", make_placement({}, devices=jax.devices()[:1])
    warnings(recipe)
    expected = last_state(run)

    def lost(what: str, names: str) -> None:
        """Verify and train name what is missing; after it the run is whole, and the same."""
        with pytest.raises(CheckpointError, match=names) as error:
            verify_folder(run)
        assert "`gram-jax train` command again" in str(error.value), what
        assert re.search(names, warnings(recipe)[0]), what
        verify_folder(run)
        assert last_state(run) == expected, what

    shutil.rmtree(checkpoints / "6")
    with pytest.raises(CheckpointError, match=r"finished with step 6, .* is step 4"):
        load_model(run, one, None)
    with pytest.warns(UserWarning, match="is not finished: this is step 4 of 6"):
        info = (run / "run.json").read_text()
        (run / "run.json").write_text(info.replace('"finished": true', '"finished": false'))
        load_model(run, one, None)
    (run / "run.json").write_text(info)
    lost("the last step", "checkpoints/6: missing")
    shutil.rmtree(checkpoints)
    lost("all steps", "checkpoints/6: missing|checkpoints/: missing")
    truncate(checkpoints / "6" / "rest" / "_METADATA")
    lost("the optimizer's state", r"checkpoints/6/rest/_METADATA: truncated")
    flip(run / "model" / "judge.json")
    lost("the judge", r"model/judge\.json: damaged")
    (run / "model" / MANIFEST).unlink()
    lost("the manifest of the model", rf"model/{MANIFEST}: missing")
    assert not warnings(recipe)  # complete again

    for name, text, said in (
        ("run.json", "[]", "run.json"),
        ("run.json", "{", "run.json cannot be read"),
        ("recipe.toml", "stage =", "recipe.toml is not a TOML file"),
    ):
        before = (run / name).read_text()
        (run / name).write_text(text)
        with pytest.raises(CheckpointError, match=said):
            verify_folder(run)
        with pytest.raises((CheckpointError, RecipeError), match=said):
            warnings(recipe)
        (run / name).write_text(before)
