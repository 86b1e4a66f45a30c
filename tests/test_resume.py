"""A run that was interrupted and went on equals one that never stopped, bit for bit."""

import json
import signal

import jax
import numpy as np
import pytest
from tiny_runs import compiled_programs, tiny_recipe, train, write_pairs  # noqa: F401

import gram_jax.training.evaluation as evaluation
import gram_jax.training.loop as loop
from gram_jax.errors import RecipeError, StoppedError
from gram_jax.run.metrics import read_metrics
from gram_jax.sharding import make_placement

pytestmark = pytest.mark.slow

FINAL = 6


@pytest.fixture
def final_states(monkeypatch):
    """Every state that is saved as the last of a run, on the host."""
    states = []
    save = loop.Checkpoints.save

    def note(self, step, state, *arguments, **settings):
        if step == FINAL:
            states.append(jax.tree.map(np.asarray, state))
        return save(self, step, state, *arguments, **settings)

    monkeypatch.setattr(loop.Checkpoints, "save", note)
    return states


def interrupt(monkeypatch, after: int, kind: signal.Signals | type[BaseException]):
    """A signal or an exception comes while the metrics of step `after` are read."""
    log_step = loop.log_step

    def stop(outputs, watch, recipe, averages, step, *rest, **more):
        found = log_step(outputs, watch, recipe, averages, step, *rest, **more)
        if step == after:
            if not isinstance(kind, signal.Signals):
                raise kind
            signal.raise_signal(kind)
        return found

    monkeypatch.setattr(loop, "log_step", stop)


def assert_same(states):
    first, second = states
    jax.tree.map(np.testing.assert_array_equal, first, second)


def figures(folder):
    """Lines of metrics without those that measure time."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


@pytest.mark.parametrize(
    ("stage", "pack", "microbatches", "kind"),
    [("finetune", False, 2, signal.SIGTERM), ("pretrain", True, 1, signal.SIGINT)],
)
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    stage, pack, microbatches, kind, tmp_path, monkeypatch, final_states
):
    # 8 pairs, 2 of them a step where nothing is packed: the second epoch begins at step 4
    write_pairs(tmp_path / "train.jsonl", 8)
    changes = {
        "batch__packing": pack,
        "batch__gradient_accumulation_steps": microbatches,
        "data__valid": [str(write_pairs(tmp_path / "valid.jsonl", 4, seed=1))],
        "evaluate__eval_steps": 2,
    }
    whole = tiny_recipe(stage, tmp_path / "whole", **changes)
    train(whole)

    broken = tiny_recipe(stage, tmp_path / "broken", **changes)
    with monkeypatch.context() as patch:
        interrupt(patch, after=2, kind=kind)
        with pytest.raises(StoppedError, match=r"step \d of 6 is saved.*gram-jax train"):
            train(broken)
    stopped_at = read_metrics(tmp_path / "broken" / "metrics.jsonl")[-1]["step"]
    assert stopped_at in (2, 3)
    train(broken)

    assert_same(final_states)
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")


def test_a_run_in_parts_is_the_run_in_one(tmp_path, final_states):
    source = [str(write_pairs(tmp_path / "valid.jsonl", 4, seed=1))]
    changes = {"data__valid": source, "evaluate__eval_steps": 2}
    write_pairs(tmp_path / "train.jsonl", 8)
    train(tiny_recipe("finetune", tmp_path / "whole", **changes))
    parts = tiny_recipe("finetune", tmp_path / "parts", **changes)
    for until, done in [(3, 3), (2, 3), (5, 5), (100, FINAL)]:
        assert train(parts, stop_at_step=until).steps == done
        finished = json.loads((tmp_path / "parts" / "run.json").read_text()).get("finished", False)
        assert finished is (done == FINAL)

    assert_same(final_states)
    assert figures(tmp_path / "parts")[-1] == figures(tmp_path / "whole")[-1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("int8", "factored"),
        pytest.param("int8", "int8", marks=pytest.mark.slow),
        pytest.param("bfloat16", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_run_with_compact_moments_is_saved_and_resumed(first, second, tmp_path, final_states):
    write_pairs(tmp_path / "train.jsonl", 8)
    moments = {"optimizer__first_moment_dtype": first, "optimizer__second_moment_dtype": second}
    train(tiny_recipe("finetune", tmp_path / "whole", **moments))
    parts = tiny_recipe("finetune", tmp_path / "parts", **moments)
    assert train(parts, stop_at_step=3).steps == 3
    assert train(parts).steps == FINAL
    assert_same(final_states)
    assert all(x.size for x in jax.tree.leaves(final_states[0]))


def test_a_run_that_is_stopped_in_an_evaluation_saves_at_once_and_begins_with_it(
    tmp_path, monkeypatch, final_states
):
    valid = str(write_pairs(tmp_path / "valid.jsonl", 16, seed=1))
    changes = {"data__valid": [valid], "evaluate__eval_steps": 3, "log__logging_steps": 2}
    train(tiny_recipe("finetune", tmp_path / "whole", **changes))
    broken = tiny_recipe("finetune", tmp_path / "broken", **changes)
    evaluate, calls = evaluation.held_out_metrics, []

    def stopped_at_the_second_batch(*arguments):
        *others, between = arguments
        calls.append(0)

        def ask_to_stop():
            calls[-1] += 1
            if calls[-1] == 2:
                signal.raise_signal(signal.SIGTERM)
            between()

        return evaluate(*others, ask_to_stop if len(calls) % 2 else between)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "held_out_metrics", stopped_at_the_second_batch)
        for step in (0, 3, 6):
            with pytest.raises(StoppedError, match=f"step {step} of 6 is saved"):
                train(broken)
    assert calls == [2, 0, 2, 0, 2]
    train(broken)
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")
    assert_same(final_states[:2])


def test_a_killed_run_goes_on_from_its_last_checkpoint_without_repeating_a_line(
    tmp_path, monkeypatch, final_states
):
    changes = {"checkpoint__save_steps": 2, "checkpoint__max_to_keep": 9}
    train(tiny_recipe("finetune", tmp_path / "whole", **changes))
    broken = tiny_recipe("finetune", tmp_path / "broken", **changes)

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, after=3, kind=Killed)
        train(broken)
    assert read_metrics(tmp_path / "broken" / "metrics.jsonl")[-1]["step"] == 3  # after step 2
    train(broken)
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")
    assert_same(final_states)


def test_a_run_can_go_on_over_other_devices(tmp_path, monkeypatch, final_states):
    changes = {"batch__batch_size": 4}
    train(tiny_recipe("finetune", tmp_path / "whole", **changes))
    broken = tiny_recipe("finetune", tmp_path / "broken", **changes)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        interrupt(patch, after=2, kind=signal.SIGTERM)
        train(broken)
    mesh = make_placement({"fsdp": 2}, devices=jax.devices()[:2])
    loop.train(broken, placement=mesh)
    first, second = final_states
    for x, y in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4)


def test_other_data_under_the_same_name_is_refused_on_resume(tmp_path, monkeypatch):
    recipe = tiny_recipe("finetune", tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        interrupt(patch, after=1, kind=signal.SIGTERM)
        train(recipe)
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    row = json.loads(rows[0])
    rows[0] = json.dumps({**row, "chosen": row["chosen"] + " more"})
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    with pytest.raises(RecipeError, match="not those that the run"):
        train(recipe)
