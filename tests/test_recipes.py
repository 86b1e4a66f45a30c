"""Recipes: strict to read, complete to write, helpful when wrong."""

import dataclasses
from pathlib import Path

import pytest
from tiny_runs import tiny_values

from gram_jax.errors import RecipeError
from gram_jax.recipes.reading import (
    FREE_ON_RESUME,
    changed_on_resume,
    make_recipe,
    read_recipe,
    recipe_names,
    recipe_text,
    recipe_to_toml,
    recipe_values,
)
from gram_jax.recipes.tables import Recipe

CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
    if not path.stem.endswith("-rl")  # RL recipes
]


@pytest.fixture
def file(tmp_path) -> Path:
    """A good recipe on disk."""
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_to_toml(make_recipe(tiny_values("finetune", tmp_path / "run"))))
    return path


def wrong(file: Path, *overrides: str) -> str:
    """The message of the error that these overrides cause."""
    with pytest.raises(RecipeError) as error:
        read_recipe(file, overrides)
    return str(error.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_can_be_read_and_written_again(path: Path, tmp_path):
    recipe = read_recipe(path)
    (tmp_path / "again.toml").write_text(recipe_to_toml(recipe))
    assert read_recipe(tmp_path / "again.toml") == recipe
    assert recipe.run.output_dir == f"runs/{path.stem}"


def test_the_resolved_recipe_states_every_default(file: Path):
    text = recipe_to_toml(read_recipe(file))
    for key in (
        "max_skipped = 0",
        "max_to_keep = 2",
        "fsdp = -1",
        'first_moment_dtype = "float32"',
    ):
        assert key in text


def test_an_unknown_key_is_named_with_file_section_and_the_nearest_known_one(file: Path):
    text = wrong(file, "optimizer.learning_rat=1e-5")
    assert str(file) in text
    assert "[optimizer] learning_rat is not a known key; did you mean learning_rate?" in text


def test_an_unknown_section_is_named_with_the_nearest_known_one(file: Path):
    assert "optimiser is not a known key; did you mean optimizer?" in wrong(file, "optimiser.b1=0")


def test_a_key_in_the_wrong_section_is_sent_to_its_own(file: Path):
    assert "[run] label_smoothing is not a known key; it belongs to [loss]" in wrong(
        file, "run.label_smoothing=0.1"
    )


@pytest.mark.parametrize(
    ("override", "present"),
    [
        ("batch.rows=4", "batch_size"),
        ("optimizer.clip=1.0", "max_grad_norm"),
        ("checkpoint.every=5", "save_steps"),
        ("log.every=5", "logging_steps"),
        ("mesh.between.data=2", "dcn"),
    ],
)
def test_a_former_name_of_a_key_is_refused_with_the_present_one(file: Path, override, present):
    assert f"did you mean {present}?" in wrong(file, override)


def test_an_unknown_key_of_a_source_is_named(file: Path):
    text = wrong(file, 'data.train=[{path="a.jsonl", spilt="train"}]')
    assert "did you mean split?" in text
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.learning_rate=abc", '[optimizer] learning_rate = "abc": expected a number'),
        ("optimizer.learning_rate=0", "learning_rate = 0: expected greater than 0"),
        ("optimizer.learning_rate=nan", "expected a finite number"),
        ("loss.label_smoothing=1.0", "[loss] label_smoothing = 1.0: expected less than 1"),
        ("run.seed=1.5", "[run] seed = 1.5: expected a whole number"),
        ("run.seed=true", "[run] seed = true: expected a whole number"),
        ("batch.packing=1", "[batch] packing = 1: expected true or false"),
        ("stage=train", "stage = \"train\": expected 'pretrain', 'finetune' or 'bradley_terry'"),
        ("data.train=a.jsonl", "expected a list, such as"),
        ("data.train=[]", "expected at least one entry"),
        ("data.train=[3]", "[data.train] 0 = 3: expected a table"),
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
    ("stage", "key", "expected"),
    [
        (
            "pretrain",
            "loss.label_smoothing=0.1",
            'label_smoothing is not used by stage "pretrain"',
        ),
        (
            "pretrain",
            "loss.loss_chunk_size=",
            'loss_chunk_size is missing: stage "pretrain" requires it',
        ),
        (
            "finetune",
            "loss.label_smoothing=",
            'label_smoothing is missing: stage "finetune" requires it',
        ),
        ("finetune", "loss.loss_chunk_size=8", 'loss_chunk_size is not used by stage "finetune"'),
        (
            "finetune",
            "data.position_augmentation=",
            'position_augmentation is missing: stage "finetune" requires it',
        ),
        (
            "bradley_terry",
            "data.position_augmentation=both",
            'position_augmentation is not used by stage "bradley_terry"',
        ),
    ],
)
def test_each_stage_has_its_own_keys(tmp_path, stage: str, key: str, expected: str):
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_to_toml(make_recipe(tiny_values(stage, tmp_path / "run"))))
    assert expected in wrong(path, key)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["run.num_train_epochs=2"], "exactly one of max_steps and num_train_epochs; found both"),
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
        (
            ["checkpoint.save_steps=2", "checkpoint.keep_period=5"],
            "expected a multiple of save_steps",
        ),
        (["checkpoint.save_steps=0", "checkpoint.keep_period=5"], "only the last step is saved"),
        (["lora.rank=4", "lora.alpha=8", 'lora.target_modules=["key"]'], "choose from q, k, v"),
    ],
)
def test_values_that_do_not_go_together_are_refused(file: Path, overrides, expected: str):
    assert expected in wrong(file, *overrides)


def test_fsdp_takes_the_devices_that_are_left_unless_another_axis_does(tmp_path):
    assert make_recipe(tiny_values("finetune", tmp_path / "run")).mesh.fsdp == -1
    recipe = make_recipe(tiny_values("finetune", tmp_path / "run", mesh__data=-1))
    assert recipe.mesh.sizes == {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert recipe_values(recipe)["mesh"]["fsdp"] == 1  # spelled out


def test_overrides_are_toml_or_plain_words(file: Path):
    recipe = read_recipe(
        file,
        [
            "optimizer.learning_rate=1e-5",
            "run.output_dir=runs/other one",
            'data.train=["a.jsonl", {path="b", split="train"}]',
            "run.max_steps=",
            "run.num_train_epochs=2",
            "lora.rank=4",
            "lora.alpha=8",
            'lora.target_modules=["q"]',
        ],
    )
    assert recipe.optimizer.learning_rate == 1e-5
    assert recipe.run.output_dir == "runs/other one"
    assert [(s.path, s.split) for s in recipe.data.train] == [("a.jsonl", None), ("b", "train")]
    assert (recipe.run.max_steps, recipe.run.num_train_epochs) == (None, 2)
    assert recipe.lora.config.rank == 4


@pytest.mark.parametrize("override", ["optimizer.b1", "=3", "stage.x=3", "a..b=1"])
def test_an_override_that_is_none_says_how_one_looks(file: Path, override: str):
    assert "--set" in wrong(file, override)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"absent\.toml"):
        read_recipe(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("[run\n")
    with pytest.raises(RecipeError, match=r"broken\.toml is not a TOML file"):
        read_recipe(tmp_path / "broken.toml")


def test_a_recipe_of_the_package_is_known_by_name_and_a_file_goes_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = Path(__file__).parents[1] / "configs"
    assert recipe_names() == sorted(path.stem for path in configs.glob("*.toml"))
    name = "smollm2-135m-finetune"
    assert recipe_text(name) == (configs / f"{name}.toml").read_text()
    Path(name).mkdir()  # a run may be called so
    assert read_recipe(name) == read_recipe(configs / f"{name}.toml")
    Path(name).rmdir()
    Path(name).write_text((configs / "smollm2-135m-bradley-terry.toml").read_text())
    assert read_recipe(name).stage == "bradley_terry"


def test_of_a_recipe_that_is_nowhere_the_known_names_are_said():
    with pytest.raises(RecipeError, match=r"shipped recipes: .*smollm2-135m-finetune"):
        read_recipe("configs/smollm2-135m-jugde.toml")


def test_without_the_recipes_of_the_package_files_are_still_read(tmp_path, monkeypatch):
    monkeypatch.setattr("gram_jax.recipes.reading.RECIPES", tmp_path / "absent")
    assert (
        read_recipe(Path(__file__).parents[1] / "configs/smollm2-135m-finetune.toml").stage
        == "finetune"
    )
    with pytest.raises(RecipeError, match="shipped recipes: none"):
        read_recipe("smollm2-135m-finetune")


def test_what_changes_results_is_told_from_what_does_not(file: Path):
    before = read_recipe(file)
    free = read_recipe(
        file,
        [
            "log.logging_steps=3",
            "mesh.data=2",
            "batch.gradient_accumulation_steps=2",
            "execution.remat=full",
        ],
    )
    assert changed_on_resume(before, free) == []
    other = read_recipe(file, ["optimizer.b1=0.5", "run.max_steps=9", "data.limit=3"])
    assert [line.split(":")[0] for line in changed_on_resume(before, other)] == [
        "data.limit",
        "optimizer.b1",
        "run.max_steps",
    ]


def test_every_free_key_exists(tmp_path):
    values = recipe_values(make_recipe(tiny_values("finetune", tmp_path / "run")))
    for key in FREE_ON_RESUME[Recipe]:
        section, _, name = key.partition(".")
        known = {f.name for f in dataclasses.fields(Recipe.__dataclass_fields__[section].type)}
        assert section in values
        assert not name or name in known
