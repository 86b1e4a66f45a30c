"""The splits of folders: the rows of Hugging Face's `datasets` in each, or a refusal that names the file."""

import json
import os
import random
from pathlib import Path

import pytest

from gram_jax.data.reading import read_records
from gram_jax.data.sources import read_rows
from gram_jax.errors import DataError

DIRECTORIES = [
    "",
    "",
    "data/",
    "train/",
    "test/",
    "val/",
    "data/train/",
    "eval_set/",
    "raw/",
    ".cache/",
    "__old__/",
]
WORDS = ["train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "holdout",
         "pairs", "random", "Test", "TRAIN", "mytest", "contest", "train_test"]  # fmt: skip
TAILS = ["", "", "-00000-of-00001", "-00000-of-00001-9d40e7ed1234abcd", "_0", ".v2", "-part1", " 2"]
SUFFIXES = [".jsonl", ".jsonl", ".jsonl", ".json", ".csv"]


def write_rows(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": name, "chosen": "a", "rejected": "b"} for name in names]
    if path.suffix == ".csv":
        lines = ["prompt,chosen,rejected", *(",".join(row.values()) for row in rows)]
    else:
        lines = list(map(json.dumps, rows))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def random_layout(folder: Path, seed: int) -> None:
    """Up to five files with names that people give them, and now and then a README with configurations."""
    draw = random.Random(seed)
    for number in range(draw.randint(1, 5)):
        name = draw.choice(WORDS) + draw.choice(TAILS)
        path = folder / draw.choice(DIRECTORIES) / f"{name}{draw.choice(SUFFIXES)}"
        write_rows(path, [f"{number}.{row}" for row in range(draw.randint(1, 3))])
    if draw.random() < 0.15:
        files = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*.json*"))]
        lines = [f"  - split: s{at}\n    path: '{name}'" for at, name in enumerate(files)]
        if lines:
            card = "configs:\n- config_name: default\n  data_files:\n" + "\n".join(lines)
            (folder / "README.md").write_text(f"---\n{card}\n---\n")


def splits_of_datasets(folder: Path, cache: Path) -> dict[str, list[str]] | None:
    """The prompts of each split; None if `datasets` refuses the folder."""
    import datasets

    try:
        found = datasets.load_dataset(str(folder), cache_dir=str(cache))
    except Exception:
        return None
    return {str(split): list(map(str, rows["prompt"])) for split, rows in found.items()}


def check_layout(tmp_path: Path, seed: int) -> tuple[int, int]:
    """Numbers of splits read and refused. Fails if the rows of one are others than those of `datasets`."""
    folder = tmp_path / f"set{seed}"
    random_layout(folder, seed)
    splits = splits_of_datasets(folder, tmp_path / "cache") or {}
    same = refused = 0
    for split in (None, *splits):
        try:
            rows = read_rows(f"{folder}:{split}" if split else folder)
            found = [str(row.fields["prompt"]) for row in rows]
        except DataError as error:
            refused += 1
            assert folder.name in str(error)
            continue
        same += 1
        assert found == splits.get(split or "train"), (seed, split)
    return same, refused


LAYOUTS = int(os.environ.get("LAYOUTS", "200"))


@pytest.mark.parametrize(
    "seeds", [range(8), pytest.param(range(8, LAYOUTS), marks=pytest.mark.slow)]
)
def test_random_folders_have_the_splits_of_datasets_or_are_refused(seeds, tmp_path: Path):
    import datasets

    datasets.disable_progress_bars()
    read, refused = map(sum, zip(*(check_layout(tmp_path, seed) for seed in seeds), strict=True))
    assert read > (read + refused) / 3


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        write_rows(tmp_path / "set" / name, [name])
    return tmp_path / "set"


@pytest.mark.parametrize(
    "held_out",
    [
        "val.jsonl",
        "dev-0.jsonl",
        "eval.jsonl",
        "testing.jsonl",
        "test/0.jsonl",
        "data/test-1.jsonl",
    ],
)
def test_held_out_files_are_not_read_as_training_data(held_out: str, tmp_path: Path):
    train = "train/0.jsonl" if "test/" in held_out else "train.jsonl"
    records, _ = read_records(
        folder_of(tmp_path, train, held_out, ".hidden/train.jsonl", "__MACOSX/train.jsonl")
    )
    assert [record.prompt[0].content for record in records] == [train]


@pytest.mark.parametrize(
    "held_out", ["Test.jsonl", "holdout.jsonl", "held-out/0.jsonl", "pairs_testset.jsonl"]
)
def test_a_file_that_only_its_name_calls_held_out_is_refused(held_out: str, tmp_path: Path):
    folder = folder_of(tmp_path, "pairs.jsonl", held_out)
    with pytest.raises(DataError, match=held_out):
        read_records(folder)
    card = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: ['pairs.jsonl', '{held_out}']"
    (folder / "README.md").write_text(f"---\n{card}\n---\n")
    assert len(read_records(folder)[0]) == 2


def test_a_file_of_two_splits_is_refused(tmp_path: Path):
    folder = folder_of(tmp_path, "train_test.jsonl")
    with pytest.raises(DataError, match=r"train_test.jsonl .*train, test"):
        read_records(folder)


def test_without_a_split_and_without_train_the_splits_are_listed(tmp_path: Path):
    folder = folder_of(tmp_path, "test.jsonl", "dev.jsonl")
    with pytest.raises(DataError, match="no split 'train', it has validation, test"):
        read_records(folder)
    assert len(read_records(f"{folder}:test")[0]) == 1
    import datasets

    saved = datasets.DatasetDict(
        {"raw": datasets.Dataset.from_list([{"prompt": "p", "chosen": "a", "rejected": "b"}])}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="no split 'train', it has raw"):
        read_records(tmp_path / "saved")


def test_a_configuration_of_a_folder_is_named_after_a_slash(tmp_path: Path):
    folder = folder_of(tmp_path, "a.jsonl", "b.jsonl")
    one = "- config_name: {0}\n  data_files: {0}.jsonl\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{one.format('a')}{one.format('b')}---\n")
    assert [r.prompt[0].content for r in read_records(f"{folder}/b:train")[0]] == ["b.jsonl"]
    with pytest.raises(DataError, match=r"'a', 'b'"):
        read_records(folder)


def test_files_of_no_split_are_logged(tmp_path: Path, caplog):
    folder = folder_of(tmp_path, "train.jsonl", "notes.jsonl")
    assert len(read_records(folder)[0]) == 1
    assert "notes.jsonl" in caplog.text


def test_a_slice_of_a_folder_is_read(tmp_path: Path):
    write_rows(tmp_path / "set" / "train.jsonl", list("abcd"))
    records, _ = read_records(f"{tmp_path / 'set'}:train[25%:75%]")
    assert [record.prompt[0].content for record in records] == ["b", "c"]


def test_files_that_are_links_are_read_without_a_warning(tmp_path: Path, caplog):
    write_rows(tmp_path / "blobs" / "0a1b.jsonl", list("ab"))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "train.jsonl").symlink_to("../blobs/0a1b.jsonl")
    (tmp_path / "link").symlink_to("snapshot")
    for name in ("snapshot", "link"):
        assert len(read_records(tmp_path / name)[0]) == 2
    assert "not read" not in caplog.text
