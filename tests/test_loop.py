"""Whole runs of a tiny model: what they leave behind, what they learn, how they stop."""

import errno
import json
import math
import shutil
import sys
import types
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny_config
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tiny_runs import (  # noqa: F401
    compiled_programs,
    tiny_recipe,
    tiny_values,
    train,
    write_pairs,
)

import gram_jax.training.evaluation as evaluation
import gram_jax.training.loop as loop
from gram_jax import tree
from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.data.batches import BatchPlan
from gram_jax.data.records import Comparison
from gram_jax.errors import (
    CheckpointError,
    DataError,
    DoesNotFitError,
    GramWarning,
    MissingExtraError,
    NonFiniteError,
    RecipeError,
)
from gram_jax.interop.classifier import as_classifier
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_spec, load_tokenizer
from gram_jax.judge.messages import as_prompt
from gram_jax.judge.spec import make_spec
from gram_jax.model.specs import param_specs
from gram_jax.recipes.reading import make_recipe, read_recipe, recipe_values
from gram_jax.run.directory import RunDirectory
from gram_jax.run.lifecycle import open_checkpoints, open_run
from gram_jax.run.metrics import MetricsWriter, accept_metrics, read_metrics, truncate
from gram_jax.sharding import check_divides, make_placement
from gram_jax.training.compiling import compile_step, explain_step_memory
from gram_jax.training.setup import set_up


@pytest.fixture(scope="module")
def judge_run(tmp_path_factory):
    """A finished run of stage 2 with held-out data."""
    folder = tmp_path_factory.mktemp("judge") / "run"
    train_file = write_pairs(folder.parent / "train.jsonl", 64)
    recipe = tiny_recipe(
        "finetune",
        folder,
        run__max_steps=40,
        data__train=[str(train_file)],
        data__valid=[str(write_pairs(folder.parent / "valid.jsonl", 16, seed=1))],
        batch__batch_size=8,
        evaluate__eval_steps=20,
        checkpoint__save_steps=16,
        log__tensorboard=True,
    )
    return recipe, train(recipe, curves=True)


def saved_state(result):
    """Trained weights of the newest checkpoint, on one device."""
    placement = make_placement({}, devices=jax.devices()[:1])
    return tree.flatten(load_model(result.folder, placement, None)[1])


@pytest.mark.slow
def test_a_judge_learns_what_can_be_learned(judge_run):
    _, result = judge_run
    rows = read_metrics(result.folder / "metrics.jsonl")
    assert rows[0]["step"] == 0
    assert rows[0]["valid_accuracy"] < 0.8
    assert result.metrics["valid_accuracy"] == 1.0
    assert result.metrics["valid_pair_accuracy"] == 1.0
    # the minimum of the loss at smoothing 0.1 is 0.1985
    assert 0.198 < result.metrics["valid_loss"] < 0.25


def test_a_run_leaves_everything_that_belongs_to_it(judge_run):
    recipe, result = judge_run
    folder = result.folder
    assert read_recipe(folder / "recipe.toml") == recipe
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard").iterdir())
    assert json.loads((folder / "run.json").read_text())["finished"]
    assert load_spec(folder).max_length == 192
    assert load_tokenizer(folder).encode("A") == load_tokenizer("tiny-random").encode("A")
    with Checkpoints(folder / "checkpoints", keep=None) as checkpoints:
        assert checkpoints.all_steps() == [32, 40]


def test_metrics_hold_every_step_once_and_the_names_that_people_chart(judge_run):
    _, result = judge_run
    rows = read_metrics(result.folder / "metrics.jsonl")
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, 41))
    names = {"loss", "accuracy", "margin", "learning_rate", "grad_norm", "num_tokens"}
    names |= {"tokens_per_second"}
    assert names <= rows[-3].keys() | rows[1].keys()
    tokens = [row["num_tokens"] for row in rows if "num_tokens" in row]
    assert tokens == sorted(set(tokens))
    assert [row["step"] for row in rows if "valid_loss" in row] == [0, 20, 40]


def test_a_finished_run_does_nothing(judge_run):
    recipe, result = judge_run
    before = (result.folder / "metrics.jsonl").read_bytes()
    again = train(recipe)
    assert again == result
    assert (result.folder / "metrics.jsonl").read_bytes() == before


def test_a_run_of_another_recipe_is_left_alone(judge_run):
    recipe, result = judge_run
    values = recipe_values(recipe)
    values["optimizer"]["learning_rate"] = 1e-3
    with pytest.raises(RecipeError, match=r"optimizer.learning_rate: 0.003 -> 0.001"):
        train(make_recipe(values))
    values = recipe_values(recipe)
    values["log"]["logging_steps"] = 5  # changes no result
    assert train(make_recipe(values)).steps == result.steps


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "bradley_terry"])
def test_the_other_stages_run_to_their_end_and_can_be_loaded(stage, tmp_path):
    valid = str(write_pairs(tmp_path / "valid.jsonl", 4, seed=1))
    recipe = tiny_recipe(stage, tmp_path / "run", data__valid=[valid], batch__packing=True)
    result = train(recipe)
    losses = [row["loss"] for row in read_metrics(result.folder / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < losses[0]
    assert result.metrics["valid_loss"] < losses[0]
    weights = saved_state(result)
    assert ("score" in weights) == (stage == "bradley_terry")
    assert result.steps == 6


@pytest.mark.slow
def test_stage_two_trains_on_labeled_and_unlabeled_pairs_with_order_consistency(tmp_path):
    plain = write_pairs(tmp_path / "plain.jsonl", 8, seed=3)
    rows = [json.loads(line) for line in plain.read_text().splitlines()]
    plain.write_text(
        "".join(
            json.dumps(
                {"prompt": r["prompt"], "response_a": r["chosen"], "response_b": r["rejected"]}
            )
            + "\n"
            for r in rows
        )
    )
    labeled = write_pairs(tmp_path / "labeled.jsonl", 8, seed=4)
    recipe = tiny_recipe(
        "finetune",
        tmp_path / "run",
        data__train=[str(labeled), str(plain)],
        loss__order_consistency=1.0,
        batch__packing=True,
        batch__batch_size=2,
        batch__max_length=640,
        run__max_steps=10,
    )
    result = train(recipe)
    rows = read_metrics(result.folder / "metrics.jsonl")
    assert all(row["order_divergence"] >= 0 for row in rows)
    losses = [
        row["verdict_loss"] for row in rows if "verdict_loss" in row
    ]  # of batches with labels
    assert losses[-1] < losses[0]
    with pytest.raises(RecipeError, match="both"):
        values = tiny_values("finetune", tmp_path / "x", loss__order_consistency=1.0)
        make_recipe(values | {"data": values["data"] | {"position_augmentation": "hash"}})


def test_held_out_pairs_without_labels_have_the_metrics_of_the_objective_alone(
    tmp_path, monkeypatch
):
    recipe = tiny_recipe("finetune", tmp_path / "run", loss__order_consistency=0.1)
    pairs = [Comparison(as_prompt(f"{n}?"), "one", "two", label=None) for n in range(3)]
    setup = types.SimpleNamespace(
        recipe=recipe, valid_plan=object(), valid_records=pairs, placement=None, steps=6
    )
    metrics = MetricsWriter(None, [])
    outputs = types.SimpleNamespace(
        metrics=metrics, run=types.SimpleNamespace(beat=lambda activity: None)
    )
    monkeypatch.setattr(evaluation, "held_out_metrics", lambda *_: {"order_divergence": 0.5})
    state = types.SimpleNamespace(params={})
    evaluation.evaluate_held_out(setup, outputs, None, None, {}, 6, state)
    assert metrics.rows == [{"step": 6, "valid_order_divergence": 0.5}]


@pytest.mark.slow
def test_stage_two_begins_with_the_weights_of_stage_one(tmp_path, monkeypatch):
    write = train(tiny_recipe("pretrain", tmp_path / "write"))
    recipe = tiny_recipe("finetune", tmp_path / "judge", model__name_or_path=str(write.folder))
    seen = []
    first_state = loop.first_state

    def look(*arguments):
        state, frozen = first_state(*arguments)
        seen.append(jax.tree.map(np.asarray, state.params))
        return state, frozen

    monkeypatch.setattr(loop, "first_state", look)
    train(recipe)
    for path, x in saved_state(write).items():
        np.testing.assert_array_equal(x, tree.flatten(seen[0])[path])


@pytest.mark.slow
def test_lora_trains_and_is_merged_when_loaded(tmp_path, one_device):
    result = train(tiny_recipe("finetune", tmp_path / "run", **LORA))
    base = tree.flatten(load_model("tiny-random", one_device, None)[1])
    changed = {path for path, x in saved_state(result).items() if not np.array_equal(x, base[path])}
    assert changed == {"layers/q", "layers/v"}


LORA = {"lora__rank": 2, "lora__alpha": 4.0, "lora__target_modules": ["q", "v"]}


@pytest.mark.slow
def test_lora_is_loaded_from_any_working_directory(tmp_path, monkeypatch):
    train(tiny_recipe("pretrain", tmp_path / "base", run__max_steps=1, optimizer__warmup_steps=0.0))
    monkeypatch.chdir(tmp_path)
    result = train(tiny_recipe("finetune", tmp_path / "run", model__name_or_path="base", **LORA))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "layers/q" in saved_state(result)


@pytest.mark.slow
def test_lora_on_a_rank_run_goes_on_after_an_interruption(tmp_path, monkeypatch):
    base = str(train(tiny_recipe("bradley_terry", tmp_path / "base")).folder)
    for stage in ("finetune", "bradley_terry"):
        recipe = tiny_recipe(stage, tmp_path / stage, model__name_or_path=base, **LORA)
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(loop, "plot_curves", lambda *_, **__: 1 / 0)
            train(recipe, curves=True)
        result = train(recipe)
        assert ("score" in saved_state(result)) == (stage == "bradley_terry")


@pytest.fixture
def classifier(tmp_path, one_device):
    """A judge exported with the two rows of its verdicts as the head."""
    cfg, params = load_model("tiny-random", one_device, None)
    tokenizer = load_tokenizer("tiny-random")
    spec = make_spec(tokenizer, max_length=192)
    cfg, params = as_classifier(cfg, params, spec, "labels")
    return export_hf(tmp_path / "cls", cfg, params, dtype=None, tokenizer=tokenizer, spec=spec)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_classifier_of_verdicts_is_trained_and_loaded(tmp_path, classifier, one_device, method):
    changes = {"run__max_steps": 1, "optimizer__warmup_steps": 0.0}
    changes |= {"model__name_or_path": str(classifier)} | (LORA if method == "lora" else {})
    found = saved_state(train(tiny_recipe("finetune", tmp_path / "run", **changes)))
    before = tree.flatten(load_model(classifier, one_device, None)[1])
    assert found.keys() == before.keys() and found["score"].shape == before["score"].shape
    assert np.array_equal(found["score"], before["score"]) == (method == "lora")


def test_the_baseline_does_not_begin_with_a_classifier_of_verdicts(tmp_path, classifier):
    recipe = tiny_recipe("bradley_terry", tmp_path / "run", model__name_or_path=str(classifier))
    with pytest.raises(RecipeError, match="is a classifier of verdicts"):
        train(recipe)


def test_a_run_stays_on_the_step_of_its_start_that_it_began_with(tmp_path, one_device):
    steps = {"run__max_steps": 2, "optimizer__warmup_steps": 0.0}
    base = tiny_recipe("finetune", tmp_path / "base", **steps)
    start = {"model__name_or_path": base.run.output_dir}
    lora = tiny_recipe("finetune", tmp_path / "lora", **steps, **start, **LORA)
    with pytest.warns(GramWarning, match="step 1 of 2"):
        train(base, stop_at_step=1)
        result = train(lora)
    expected = saved_state(result)
    train(base)
    jax.tree.map(np.testing.assert_array_equal, saved_state(result), expected)

    noted, pinned = json.loads((result.folder / "run.json").read_text()), f"{tmp_path / 'base'}@1"
    assert json.loads((result.folder / "model" / "base.json").read_text())["base"] == pinned
    assert set_up(lora, RunDirectory(result.folder, noted), one_device).start == pinned
    del noted["start"]  # as in runs of older versions
    newest = f"{tmp_path / 'base'}@2"
    assert set_up(lora, RunDirectory(result.folder, noted), one_device).start == newest

    shutil.rmtree(tmp_path / "base" / "checkpoints" / "1")
    with pytest.raises(CheckpointError, match=r"of the LoRA(.|\n)*step 1; its steps: 2"):
        saved_state(result)


@pytest.mark.slow
def test_lora_trains_on_a_mesh(tmp_path):
    mesh = make_placement({"fsdp": 2}, devices=jax.devices()[:2])
    recipe = tiny_recipe("finetune", tmp_path / "run", **LORA, execution__compute_dtype="bfloat16")
    assert loop.train(recipe, placement=mesh).steps == 6


def poison(monkeypatch, bad_step: int):
    """The batch of one step carries an infinite weight."""
    batch_of = BatchPlan.batch

    def batch(self, step, shard=(0, 1)):
        found = batch_of(self, step, shard)
        if step == bad_step:
            found.weights[0] = np.inf
        return found

    monkeypatch.setattr(BatchPlan, "batch", batch)


@pytest.mark.slow
def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    poison(monkeypatch, bad_step=3)
    recipe = tiny_recipe("finetune", tmp_path / "run", log__logging_steps=2)
    with pytest.raises(NonFiniteError, match=r"step 4(.|\n)*after step 3(.|\n)*max_skipped=1"):
        train(recipe)
    good = tiny_recipe(
        "finetune", tmp_path / "good", checkpoint__save_steps=3, checkpoint__max_to_keep=9
    )
    monkeypatch.undo()
    train(good)
    jax.tree.map(
        np.testing.assert_array_equal, *(params_of(tmp_path / x, 3) for x in ("run", "good"))
    )
    tokens = [
        next(
            row["num_tokens"]
            for row in read_metrics(tmp_path / x / "metrics.jsonl")
            if row["step"] == 3
        )
        for x in ("run", "good")
    ]
    assert tokens[0] == tokens[1]

    # with one skip allowed, the same run goes on past that batch
    poison(monkeypatch, bad_step=3)
    result = train(tiny_recipe("finetune", tmp_path / "run", run__max_skipped=1))
    assert result.steps == 6
    assert result.metrics["skipped"] == 1
    assert all(np.isfinite(x).all() for x in saved_state(result).values())


def params_of(folder, step):
    return load_model(f"{folder}@{step}", make_placement({}, devices=jax.devices()[:1]), None)[1]


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, monkeypatch):
    recipe = tiny_recipe("finetune", tmp_path / "run", checkpoint__save_steps=2)
    usage = shutil.disk_usage
    calls = []

    def full_later(path):
        calls.append(path)
        free = usage(path).free if len(calls) == 1 else 0
        return types.SimpleNamespace(total=free, used=0, free=free)

    monkeypatch.setattr(shutil, "disk_usage", full_later)
    with pytest.raises(CheckpointError, match="full"):
        train(recipe)
    monkeypatch.undo()
    with Checkpoints(tmp_path / "run" / "checkpoints", keep=None) as checkpoints:
        assert checkpoints.latest() == 2
    assert train(recipe).steps == 6


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_end_leaves_a_run_that_can_be_concluded(tmp_path, monkeypatch):
    recipe = tiny_recipe(
        "finetune",
        tmp_path / "run",
        data__valid=[str(write_pairs(tmp_path / "valid.jsonl", 4, seed=1))],
    )

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="is full"):
        patch.setattr(loop, "plot_curves", fail)
        train(recipe, curves=True)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    train(recipe, curves=True)
    assert (tmp_path / "run" / "curves.png").is_file()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def new_writer(folder, **changes):
    settings = {"start_step": 0, "tensorboard": True, "wandb": None, "settings": {}}
    settings |= changes
    return MetricsWriter(folder, truncate(folder, settings["start_step"]), **settings)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_metrics_on_a_full_disk_are_a_named_error(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    named = r"metrics\.jsonl cannot be written \(No space left"
    with (
        pytest.raises(CheckpointError, match=named),
        closing(MetricsWriter(tmp_path, [])) as writer,
    ):
        writer.write(1, {"loss": 0.5})
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be read"):
        new_writer(tmp_path, start_step=1)


CHANGES = {
    "a digit": lambda data: data.replace(b"0.5", b"0.4", 1),
    "random bytes": lambda data: data[:40] + b"\xff\x00\x80" + data[43:],
    "no bytes": lambda data: data[:40] + bytes(3) + data[43:],
    "a line less": lambda data: data[data.index(b"\n") + 1 :],
    "a line twice": lambda data: data[: data.index(b"\n") + 1] + data,
    "the last line less": lambda data: data[: data[:-1].rindex(b"\n") + 1],
    "half of the last line": lambda data: data[:-20],
    "no line": lambda data: b"",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_metrics_are_refused_until_the_user_accepts_them(tmp_path, change):
    with closing(new_writer(tmp_path)) as writer:
        for step in range(1, 6):
            writer.write(step, {"loss": 0.5, "share": math.nan})
    path = tmp_path / "metrics.jsonl"
    rows, data = read_metrics(path), path.read_bytes()
    assert truncate(tmp_path, 5) == rows and path.read_bytes() == data
    path.write_bytes(CHANGES[change](data))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl.* --accept"):
        truncate(tmp_path, 5)
    accept_metrics(tmp_path, 5)
    kept = truncate(tmp_path, 5)
    assert kept[-1]["step"] == 5 and len(kept) <= 6
    with closing(MetricsWriter(tmp_path, kept)) as writer:
        writer.write(6, {"loss": 0.25})
    assert read_metrics(path) == [*kept, {"step": 6, "loss": 0.25}]


def test_a_line_that_a_killed_run_did_not_finish_is_written_again(tmp_path):
    with closing(new_writer(tmp_path)) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 0.5})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert [row["step"] for row in truncate(tmp_path, 2)] == [1, 2]
    assert len(read_metrics(path)) == 2


def test_tensorboard_on_a_full_disk_is_given_up_with_a_warning(tmp_path, monkeypatch):
    writer = new_writer(tmp_path)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.write_event", fail)
    with pytest.warns(UserWarning, match="TensorBoard"):
        for step in range(1, 100):
            writer.write(step, {"loss": 0.5})
    writer.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 99


def test_tensorboard_gets_the_figures_and_where_a_run_goes_on(tmp_path):
    with closing(MetricsWriter(tmp_path, [], start_step=3, tensorboard=True)) as writer:
        writer.write(4, {"loss": 0.5, "valid_loss": 2.0})
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:  # size and its checksum, 12 bytes; the event; its checksum
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[size + 16 :]
    assert [event.step for event in events] == [0, 4, 4, 4]
    assert events[2].session_log.status == SessionLog.START
    figures = {value.tag: value.simple_value for value in events[3].summary.value}
    assert figures == {"train/loss": 0.5, "valid/loss": 2.0}


@pytest.mark.slow
def test_wandb_goes_on_with_an_id_of_the_run_and_not_of_its_name(tmp_path, monkeypatch):
    ids = []

    def init(**settings):
        ids.append(settings["id"])
        return types.SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for folder in ("a/judge", "b/judge"):
        (tmp_path / folder).parent.mkdir()
        recipe = tiny_recipe(
            "finetune",
            tmp_path / folder,
            log__wandb=True,
            run__max_steps=1,
            optimizer__warmup_steps=0,
        )
        with monkeypatch.context() as patch, pytest.raises(OSError):
            patch.setattr(loop, "plot_curves", lambda *_, **__: (_ for _ in ()).throw(OSError()))
            train(recipe, curves=True)
        train(recipe)
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(RecipeError, match=r"thesis.tex"):
        train(tiny_recipe("finetune", tmp_path / "run"))


def test_rows_that_the_mesh_cannot_share_are_named_with_the_nearest_that_it_can(tmp_path):
    recipe = tiny_recipe(
        "finetune", tmp_path / "run", batch__batch_size=12, batch__gradient_accumulation_steps=2
    )
    with pytest.raises(RecipeError, match="nearest valid size is 16"):
        loop.train(recipe)  # 8 devices share the batch


def test_a_mesh_that_does_not_divide_the_model_or_the_rows_is_refused(tmp_path, one_device):
    tensor = make_placement({"tensor": 4}, devices=jax.devices()[:4])
    cfg = replace(tiny_config("llama", True), vocab_size=289, query_heads=9, kv_heads=3)
    with pytest.raises(RecipeError) as error:
        check_divides(tree.flatten(param_specs(cfg)), tensor)
    text = str(error.value)
    assert "layers/q, layers/o: heads 9 over tensor = 4; the nearest valid size is 3" in text
    assert "embed: vocab 289 over tensor = 4 x fsdp = 1; the nearest valid size is 1" in text
    assert "mlp" not in text
    check_divides(tree.flatten(param_specs(cfg)), one_device)

    recipe = tiny_recipe("finetune", tmp_path / "run")
    with pytest.raises(RecipeError, match=r"layers/k, layers/v: kv_heads 2 over tensor = 4"):
        loop.train(recipe, placement=tensor)
    sequence = make_placement({"sequence": 5}, devices=jax.devices()[:5])
    with pytest.raises(
        RecipeError, match=r"192 positions over sequence = 5: the nearest valid sizes are 190 and"
    ):
        loop.train(recipe, placement=sequence)


def test_a_judge_longer_than_the_context_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="1024 positions"):
        train(tiny_recipe("finetune", tmp_path / "run", judge__max_length=2000))


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"optimizer__warmup_steps": 0.99, "run__max_steps": 3}, RecipeError, "warmup_steps"),
        ({"data__valid": ["nowhere.jsonl"]}, DataError, "nowhere.jsonl"),
    ],
)
def test_what_needs_no_data_is_checked_before_the_data_are_encoded(
    tmp_path, monkeypatch, changes, error, named
):
    monkeypatch.setattr(
        "gram_jax.training.setup.training_examples", lambda *_: pytest.fail("read the data")
    )
    with pytest.raises(error, match=named):
        train(tiny_recipe("finetune", tmp_path / "run", **changes))


def test_a_run_that_was_never_saved_begins_again_with_another_recipe(tmp_path):
    recipe = tiny_recipe("finetune", tmp_path / "run")
    with open_run(recipe, command="train") as run, open_checkpoints(run):
        run.directory.note(steps=3, examples="of other data")
    other = tiny_recipe("finetune", tmp_path / "run", run__seed=5)
    with open_run(other, command="train") as run:
        assert run.directory.info == {}
    (tmp_path / "run" / "checkpoints" / "3").mkdir()
    with pytest.raises(RecipeError, match=r"run\.seed: 0 -> 5"):
        open_run(other, command="train").__enter__()
    (tmp_path / "run" / "run.json").unlink()
    for either in (recipe, other):
        with pytest.raises(CheckpointError, match=r"no run\.json"):
            open_run(either, command="train").__enter__()


def test_a_missing_wandb_is_noticed_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"\[wandb\]"):
        train(tiny_recipe("finetune", tmp_path / "run", log__wandb=True))


@pytest.mark.slow
def test_the_judge_of_rendered_rows_is_recovered_and_saved(tmp_path):
    shown = "[The Start of Assistant {0}'s Answer]\n{{}}\n[The End of Assistant {0}'s Answer]\n\n"
    text = "[User Question]\n{}\n\n" + shown.format("A") + shown.format("B") + "Better:"
    rows = [
        {"instruction": text.format(f"q{i}", f"a{i}", f"b{i}"), "input": "", "output": "AB"[i % 2]}
        for i in range(8)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    changes = {
        "judge__template": "from-dataset",
        "judge__labels": None,
        "data__position_augmentation": "fixed",
    }
    changes |= {"judge__max_length": 256, "batch__max_length": 256}
    recipe = tiny_recipe("finetune", tmp_path / "run", data__train=[str(data)], **changes)
    result = train(recipe)
    assert load_spec(result.folder).template == text.format("{prompt}", "{first}", "{second}")


@pytest.mark.slow
def test_compute_in_bfloat16_keeps_float32_masters_and_learns_as_well(judge_run, tmp_path):
    recipe, _ = judge_run
    values = recipe_values(recipe)
    values["run"]["output_dir"] = str(tmp_path / "run")
    values["execution"] |= {"compute_dtype": "bfloat16", "remat": "full"}
    result = train(make_recipe(values))
    assert {x.dtype.name for x in saved_state(result).values()} == {"float32"}
    assert result.metrics["valid_accuracy"] == 1.0


def fake_program(temporaries):
    memory = types.SimpleNamespace(
        argument_size_in_bytes=100,
        temp_size_in_bytes=temporaries,
        output_size_in_bytes=50,
        alias_size_in_bytes=50,
    )
    compiled = types.SimpleNamespace(memory_analysis=lambda: memory)
    return types.SimpleNamespace(compile=lambda: compiled)


def test_a_step_that_does_not_fit_names_what_would(one_device, monkeypatch):
    monkeypatch.setattr("gram_jax.training.compiling.free_bytes", lambda placement: 1000)

    def lowered(change):
        return fake_program(4096 // change.get("batch.gradient_accumulation_steps", 1))

    changes = [{"batch.gradient_accumulation_steps": n} for n in (2, 4, 8, 16)]
    with pytest.raises(DoesNotFitError) as error:
        compile_step(lowered, one_device, changes)
    text = str(error.value)
    assert "4.0 KiB" in text
    assert "batch.gradient_accumulation_steps = 2:" not in text
    assert "batch.gradient_accumulation_steps = 8" in text


def test_a_state_that_does_not_fit_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("gram_jax.training.compiling.free_bytes", lambda placement: 100_000)
    monkeypatch.setattr(loop, "first_state", None)
    with pytest.raises(DoesNotFitError, match=r"97\.7 KiB are free. Its weights(.|\n)*\[lora\]"):
        train(tiny_recipe("finetune", tmp_path / "run"))


def test_running_out_of_memory_while_loading_is_explained(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(loop, "start_weights", fail)
    with pytest.raises(DoesNotFitError, match="gradient_accumulation_steps"):
        train(tiny_recipe("finetune", tmp_path / "run"))


def test_running_out_of_memory_while_compiling_or_training_is_explained(one_device):
    def lowered(change):
        def fail():
            raise RuntimeError("RESOURCE_EXHAUSTED: 20.1G of 16.0G hbm used")

        return types.SimpleNamespace(compile=fail)

    with pytest.raises(DoesNotFitError, match=r"20\.1G(.|\n)*batch\.max_length"):
        compile_step(lowered, one_device, [{"batch.gradient_accumulation_steps": 2}])
    with (
        pytest.raises(DoesNotFitError, match="gradient_accumulation_steps"),
        explain_step_memory(None),
    ):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
    with pytest.raises(KeyError), explain_step_memory(None):
        raise KeyError("something else")
