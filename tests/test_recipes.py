"""Recipes: strict to read, complete to write, helpful when wrong."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_rl_values, tiny_values

from gram_jax.errors import RecipeError
from gram_jax.recipes.reading import (
    FREE_ON_RESUME,
    changed_on_resume,
    make_recipe,
    make_rl_recipe,
    read_recipe,
    read_rl_recipe,
    recipe_names,
    recipe_text,
    recipe_to_toml,
    recipe_values,
)
from gram_jax.recipes.tables import Recipe

CONFIGS = Path(__file__).parents[1] / "configs"


def write_recipe(folder: Path, stage: str = "finetune", **changes: Any) -> Path:
    path = folder / "recipe.toml"
    path.write_text(recipe_to_toml(make_recipe(tiny_values(stage, folder / "run", **changes))))
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    """A good recipe on disk."""
    return write_recipe(tmp_path)


def wrong(file: Path, *overrides: str) -> str:
    """The message of the error that these overrides cause."""
    with pytest.raises(RecipeError) as error:
        read_recipe(file, overrides)
    return str(error.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_project_can_be_read_and_written_again(name: str, tmp_path):
    read = read_rl_recipe if name.endswith("-rl") else read_recipe
    recipe = read(CONFIGS / f"{name}.toml")
    (tmp_path / "again.toml").write_text(recipe_to_toml(recipe))
    assert read(tmp_path / "again.toml") == recipe
    assert recipe.run.output_dir == f"runs/{name}"


def test_the_resolved_recipe_states_every_default(file: Path):
    text = recipe_to_toml(read_recipe(file))
    for key in (
        "max_skipped = 0",
        "max_to_keep = 2",
        "fsdp = -1",
        'first_moment_dtype = "float32"',
    ):
        assert key in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.learning_rat=1e-5", "[optimizer] learning_rat .* did you mean learning_rate?"),
        ("optimiser.b1=0", "optimiser .* did you mean optimizer?"),
        ("run.label_smoothing=0.1", "[run] label_smoothing .* belongs to [loss]"),
        ('data.train=[{path="a.jsonl", spilt="train"}]', "[data.train.0] spilt .* mean split?"),
        ("mesh.dcn.datum=2", "[mesh.dcn] datum .* did you mean data?"),
        ("lora.rang=2", "[lora] rang .* did you mean rank?"),
        # earlier names
        ("batch.rows=4", "[batch] rows .* did you mean batch_size?"),
        ("optimizer.clip=1.0", "[optimizer] clip .* did you mean max_grad_norm?"),
        ("checkpoint.every=5", "[checkpoint] every .* did you mean save_steps?"),
        ("log.every=5", "[log] every .* did you mean logging_steps?"),
        ("mesh.between.data=2", "[mesh] between .* did you mean dcn?"),
    ],
)
def test_an_unknown_key_is_named_with_file_table_and_the_nearest_known_one(
    file: Path, override: str, expected: str
):
    text = wrong(file, override)
    assert str(file) in text
    for part in expected.split(" .* "):
        assert part in text
    assert len(text.splitlines()) == (5 if "lora" in override else 2)  # missing keys of lora


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "optimizer.learning_rate=abc",
            '[optimizer] learning_rate = "abc": expected a valid number',
        ),
        ("optimizer.learning_rate=0", "learning_rate = 0: expected greater than 0"),
        ("optimizer.learning_rate=nan", "expected a finite number"),
        ("loss.label_smoothing=1.0", "[loss] label_smoothing = 1.0: expected less than 1"),
        ("run.seed=1.5", "[run] seed = 1.5: expected a valid integer"),
        ("run.seed=true", "[run] seed = true: expected a valid integer"),
        (f"run.seed={2**32}", f"[run] seed = {2**32}: expected less than {2**32}"),
        (f"run.max_steps={2**31}", f"[run] max_steps = {2**31}: expected less than {2**31}"),
        ("batch.packing=1", "[batch] packing = 1: expected a valid boolean"),
        (
            "stage=train",
            "stage = \"train\": expected 'pretrain', 'finetune', 'rationale' or 'bradley_terry'",
        ),
        ("data.train=a.jsonl", "expected a list"),
        ("data.train=[]", "expected at least 1 item"),
        ("data.train=[3]", "[data.train] 0 = 3: expected a table"),
        ('data.train=[""]', '[data.train.0] path = "": expected at least 1 character'),
        ("model=3", "model = 3: expected a table"),
        ('judge.labels=["A"]', "[judge.labels] 1 is missing"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(file: Path, override: str, expected: str):
    assert expected in wrong(file, override)


def test_every_mistake_is_listed_at_once(file: Path):
    text = wrong(file, "run.seed=x", "loss.label_smoothing=2", "log.evry=3")
    assert len(text.splitlines()) == 4


def required_keys() -> list[str]:
    """Keys without a default, which is what changes results."""
    found = []
    for section in dataclasses.fields(Recipe):
        if section.name == "stage" or not dataclasses.is_dataclass(section.type):
            continue
        found += [
            f"{section.name}.{f.name}"
            for f in dataclasses.fields(section.type)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
    return found


@pytest.mark.parametrize("key", required_keys())
def test_a_number_that_changes_results_cannot_be_left_out(file: Path, key: str):
    section, name = key.split(".")
    assert f"[{section}] {name} is missing" in wrong(file, f"{key}=")


def test_the_numbers_of_the_method_are_among_the_required_ones():
    assert {
        "optimizer.learning_rate",
        "optimizer.warmup_steps",
        "optimizer.lr_scheduler_type",
        "optimizer.weight_decay",
        "optimizer.max_grad_norm",
        "batch.batch_size",
        "batch.max_length",
        "judge.max_length",
        "run.seed",
        "execution.compute_dtype",
        "model.param_dtype",
    } <= set(required_keys())


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("pretrain", "loss.label_smoothing=0.1"),
        ("pretrain", "loss.loss_chunk_size="),
        ("finetune", "loss.label_smoothing="),
        ("finetune", "loss.loss_chunk_size=8"),
        ("finetune", "data.position_augmentation="),
        ("bradley_terry", "data.position_augmentation=both"),
    ],
)
def test_each_stage_has_its_own_keys(tmp_path, stage: str, override: str):
    key, value = override.split("=")
    fault = "not used by" if value else "missing:"
    expected = f'{key.split(".")[1]} is {fault} stage "{stage}"'
    assert expected in wrong(write_recipe(tmp_path, stage), override)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["run.num_train_epochs=2"],
            "exactly one of max_steps and num_train_epochs; found both. On the command line, --set run.max_steps=",
        ),
        (["run.max_steps="], "exactly one of max_steps and num_train_epochs; found neither"),
        (
            ["batch.batch_size=10", "batch.gradient_accumulation_steps=4"],
            "not a multiple of 4 (4 microbatches x 1 batch shards): "
            "the nearest valid sizes are 8 and 12",
        ),
        (
            ["batch.batch_size=6", "mesh.data=2", "mesh.fsdp=2"],
            "(1 microbatches x 4 batch shards): the nearest valid sizes are 4 and 8",
        ),
        (["optimizer.warmup_steps=2.5"], "expected a ratio below 1 or a whole number"),
        (["optimizer.warmup_steps=6"], "is not less than run.max_steps = 6"),
        (["model.param_dtype=bfloat16", "optimizer.learning_rate=1e-5"], "lost in bfloat16"),
        (["mesh.data=-1", "mesh.fsdp=-1"], "data, fsdp: at most one size may be -1"),
        (["mesh.tensor=0"], "expected sizes of at least 1"),
        (["judge.labels="], "[judge] labels is missing"),
        (["evaluate.eval_steps=5"], "data.valid is missing"),
        (["checkpoint.save_steps=2", "checkpoint.keep_period=5"], "found save_steps = 2"),
        (["checkpoint.save_steps=0", "checkpoint.keep_period=5"], "found save_steps = 0, which"),
        (["lora.rank=4", "lora.alpha=8", 'lora.target_modules=["key"]'], "expected 'q', 'k', 'v'"),
    ],
)
def test_values_that_do_not_go_together_are_refused(file: Path, overrides, expected: str):
    assert expected in wrong(file, *overrides)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run__seed": 2**32}, r"\[run\] seed = .*: expected less than"),
        ({"run__max_steps": 2**31}, r"\[run\] max_steps = .*: expected less than"),
        (
            {"policy__param_dtype": "bfloat16", "optimizer__learning_rate": 1e-6},
            r"\[policy\] param_dtype .* lost in bfloat16",
        ),
    ],
)
def test_values_that_no_rl_run_could_use_are_refused(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        make_rl_recipe(tiny_rl_values(tmp_path / "run", **changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reward.compare_with", "group"),
        ("reward.scale", "log_odds"),
        ("reward.length_penalty", 1.0),
        ("reward.num_devices", 1),
        ("policy.system", "Be brief."),
    ],
)
def test_a_reward_by_labels_has_no_key_of_a_judge(tmp_path, key, value):
    table, name = key.split(".")
    labels = tiny_rl_values(tmp_path / "run") | {"reward": {"kind": "label"}}
    assert make_rl_recipe(labels).reward.judge is None
    labels[table] = {**labels[table], name: value}
    with pytest.raises(
        RecipeError, match=rf'\[{table}\] {name} is not used by \[reward\] kind = "label"'
    ):
        make_rl_recipe(labels)


def test_fsdp_takes_the_devices_that_are_left_unless_another_axis_does(tmp_path):
    assert make_recipe(tiny_values("finetune", tmp_path / "run")).mesh.fsdp == -1
    recipe = make_recipe(tiny_values("finetune", tmp_path / "run", mesh__data=-1))
    assert recipe.mesh.sizes == {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert recipe_values(recipe)["mesh"]["fsdp"] == 1  # spelled out


def test_overrides_are_toml_or_plain_words(file: Path):
    overrides = """optimizer.learning_rate=1e-5
        run.output_dir=runs/other one
        data.train=["a.jsonl", {path="b", split="train"}]
        run.max_steps=
        run.num_train_epochs=2
        lora.rank=4
        lora.alpha=8
        lora.target_modules=["q"]"""
    recipe = read_recipe(file, overrides.split("\n        "))
    assert recipe.optimizer.learning_rate == 1e-5
    assert recipe.run.output_dir == "runs/other one"
    assert [(s.path, s.split) for s in recipe.data.train] == [("a.jsonl", None), ("b", "train")]
    assert (recipe.run.max_steps, recipe.run.num_train_epochs) == (None, 2)
    assert recipe.lora.config.rank == 4
    assert recipe_values(recipe)["data"]["train"] == [
        "a.jsonl",
        {"path": "b", "schema": "auto", "split": "train", "weight": 1.0},
    ]


@pytest.mark.parametrize("override", ["optimizer.b1", "=3", "stage.x=3", "a..b=1"])
def test_an_override_that_is_none_says_how_one_looks(file: Path, override: str):
    assert "--set" in wrong(file, override)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"absent\.toml.*\n.*smollm2-135m-finetune"):
        read_recipe(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("[run\n")
    with pytest.raises(RecipeError, match=r"broken\.toml"):
        read_recipe(tmp_path / "broken.toml")


def test_a_shipped_recipe_is_read_by_name_and_a_file_precedes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_names() == sorted(path.stem for path in CONFIGS.glob("*.toml"))
    name = "smollm2-135m-finetune"
    assert recipe_text(name) == (CONFIGS / f"{name}.toml").read_text()
    Path(name).mkdir()  # a run of this name
    assert read_recipe(name) == read_recipe(CONFIGS / f"{name}.toml")
    Path(name).rmdir()
    Path(name).write_text((CONFIGS / "smollm2-135m-bradley-terry.toml").read_text())
    assert read_recipe(name).stage == "bradley_terry"


def test_without_the_shipped_recipes_files_are_still_read(tmp_path, monkeypatch):
    monkeypatch.setattr("gram_jax.recipes.reading.RECIPES", tmp_path / "absent")
    assert read_recipe(CONFIGS / "smollm2-135m-finetune.toml").stage == "finetune"
    with pytest.raises(RecipeError, match="shipped recipes: none"):
        read_recipe("smollm2-135m-finetune")


def test_what_changes_results_is_told_from_what_does_not(file: Path):
    before = read_recipe(file)
    free = [
        "log.logging_steps=3",
        "mesh.data=2",
        "batch.gradient_accumulation_steps=2",
        "execution.remat=full",
    ]
    assert changed_on_resume(before, read_recipe(file, free)) == []
    other = read_recipe(file, ["optimizer.b1=0.5", "run.max_steps=9", "data.limit=3"])
    assert [line.split(":")[0] for line in changed_on_resume(before, other)] == [
        "data.limit",
        "optimizer.b1",
        "run.max_steps",
    ]


@pytest.mark.parametrize("kind", FREE_ON_RESUME)
def test_every_free_key_exists(kind: type):
    for key in FREE_ON_RESUME[kind]:
        section, name = key.split(".")
        known = {f.name for f in dataclasses.fields(kind.__dataclass_fields__[section].type)}
        assert not name or name in known
