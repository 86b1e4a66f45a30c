"""Results in parts: whatever is killed, and by however many processes, the joined file is that of one process."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cli_runner import run_cli
from conftest import tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gram_jax.data.records import Candidates
from gram_jax.data.sources import read_rows as read_source
from gram_jax.distributed.lock import file_lock, hold_lock
from gram_jax.errors import DataError, GramError, InUseError, MissingExtraError
from gram_jax.files import write_atomic, write_json
from gram_jax.interop.hf_config import config_to_hf
from gram_jax.judge.messages import as_prompt
from gram_jax.progress import no_progress
from gram_jax.remote import local_copies, open_filesystem
from gram_jax.scoring.files import check_files
from gram_jax.scoring.merging import merge_parts
from gram_jax.scoring.part_folder import parts_in
from gram_jax.scoring.parts import write_parts, write_results
from gram_jax.scoring.results import (
    OutputSink,
    RowSource,
    RowTask,
    Shard,
    accept_rows,
    hold_shard,
    list_source,
    read_rows,
    with_checksum,
    without_checksum,
    write_rows,
)

METADATA = {"format": 1, "model": "m", "source": "s"}
CODE = {"program": "p"}
RECORDS = [(at, Candidates(as_prompt("q"), (str(at),), id=f"r{at}")) for at in range(1, 24)]
DROPPED = {3, 10, 11, 12}  # rows; with parts of three rows one part is empty


class Killed(BaseException):
    """What a kill is here: nothing is flushed, closed or removed after it."""


def source(records=RECORDS, dropped=DROPPED) -> RowSource:
    def read(wanted, drop) -> Iterator:
        for number, record in records:
            if wanted(number):
                if number in dropped:
                    drop(number, "bad row")
                else:
                    yield number, record

    whole = list_source(records)
    return whole._replace(records=read)


def task(kill_after: int | None = None, window: int = 4) -> RowTask:
    """Rows of records. kill_after: raises Killed instead of this window."""
    calls = 0

    def rows(records, bar):
        nonlocal calls
        calls += 1
        if calls - 1 == kill_after:
            raise Killed
        return [
            {"id": record.id, "row": number, "value": number / 7, "shortened": number % 5 == 0}
            for number, record in records
        ]

    return RowTask(rows, lambda record: 1, window)


def whole(folder: Path) -> Path:
    out = folder / "whole.jsonl"
    write_rows(OutputSink(out), METADATA, source(), task())
    return out


def write(out: Path | str, shard: Shard, *, made=None, of=None, metadata=METADATA, code=CODE):
    sink, read = OutputSink(out, shard=shard), source() if of is None else of
    made = task() if made is None else made
    return write_parts(sink, metadata, read, made, lambda: code)


def written(out: Path) -> tuple[bytes, bytes]:
    return out.read_bytes(), out.with_name(out.name + ".meta.json").read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("part_rows", [1, 3, 5, 100])
def test_joined_parts_have_the_bytes_of_one_process(tmp_path, count, part_rows):
    out = tmp_path / "out.jsonl"
    done = [
        write(out, Shard(at, count, part_rows), made=task(window=at + 1))
        for at in reversed(range(count))
    ]
    merged = merge_parts(str(out))
    assert written(out) == written(whole(tmp_path))
    assert sum(one.written for one in done) == merged.written == 19
    assert merged.dropped == {"bad row": 4} and merged.shortened == 3
    again = write(out, Shard(0, count, part_rows))
    assert (again.written, again.before) == (0, done[-1].written)
    merge_parts(str(out))  # a file with the same content is no conflict


def test_only_the_rows_that_are_shortened_are_counted_and_not_their_parts(tmp_path):
    """Rows of rationales hold scores, which say for themselves whether they are shortened."""
    score = {"first": 0.5, "shortened": True}

    def rows(records, bar):
        return [
            {
                "id": record.id,
                "row": number,
                "score": score,
                "direct": score,
                "shortened": number > 20,
            }
            for number, record in records
        ]

    done = [
        write(tmp_path / "out.jsonl", Shard(at, 2, 5), made=RowTask(rows, lambda record: 1, 4))
        for at in range(2)
    ]
    merged = merge_parts(str(tmp_path / "out.jsonl"))
    assert sum(one.shortened for one in done) == merged.shortened == 3


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_kills_lose_double_and_change_nothing(tmp_path_factory, data):
    """Attempts with different numbers of shards, each killed after some windows."""
    folder = tmp_path_factory.mktemp("killed")
    out, part_rows = folder / "out.jsonl", data.draw(st.integers(1, 8))
    for _ in range(data.draw(st.integers(0, 6))):
        count = data.draw(st.integers(1, 4))
        shard = Shard(data.draw(st.integers(0, count - 1)), count, part_rows)
        made = task(data.draw(st.integers(0, 3)), window=data.draw(st.integers(1, 5)))
        with suppress(Killed):
            write(out, shard, made=made)
        for partial in folder.glob("*.parts/*.partial"):
            content = partial.read_bytes()
            partial.write_bytes(content[: len(content) - data.draw(st.integers(0, 9))])
    count = data.draw(st.integers(1, 4))
    for at in range(count):
        write(out, Shard(at, count, part_rows))
    merge_parts(str(out))
    assert written(out) == written(whole(folder))


def test_a_part_that_was_begun_is_resumed_and_whole_parts_are_skipped(tmp_path):
    out, shard = tmp_path / "out.jsonl", Shard(0, 2, 6)
    with pytest.raises(Killed):
        write(out, shard, made=task(kill_after=2, window=3))
    done = write(out, shard)
    assert (done.before, done.written) == (6, 5)  # rows 1 to 6 without 3, and 13


def test_the_progress_of_a_shard_counts_its_own_rows(tmp_path):
    opened = []

    def progress(total, *, done=0, label="", unit=""):
        opened.append((total, done))
        return no_progress(total)

    def run(shard: Shard, **kill):
        sink = OutputSink(tmp_path / "out.jsonl", progress=progress, shard=shard)
        records = source(dropped=set())
        write_parts(sink, METADATA, records, task(**kill), lambda: CODE)

    with suppress(Killed):
        run(Shard(0, 2, 6), kill_after=2)  # two windows of four of the 23 rows
    run(Shard(0, 2, 6))
    run(Shard(1, 2, 6))
    assert opened == [(12, 0), (12, 8), (11, 0)]


def test_missing_parts_are_named_with_their_rows(tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="expected parts that --shard wrote"):
        merge_parts(str(out))
    write(out, Shard(1, 3, 5))
    with pytest.raises(
        DataError, match=r"3 of 5 parts .*: 0 \(rows 1 to 5\), 2 \(rows 11 to 15\), 3"
    ):
        merge_parts(str(out))
    with pytest.raises(Killed):
        write(tmp_path / "begun.jsonl", Shard(0, 1, 5), made=task(kill_after=1))
    with pytest.raises(DataError, match="to its end"):
        merge_parts(str(tmp_path / "begun.jsonl"))


@pytest.mark.parametrize(
    "damage", ["value", "line", "swap", "record", "missing", "manifest", "end"]
)
def test_a_damaged_part_is_named(tmp_path, damage):
    out = tmp_path / "out.jsonl"
    write(out, Shard(0, 1, 5))
    parts = tmp_path / "out.jsonl.parts"
    first, second = (parts / f"part-0000{at}.jsonl" for at in (0, 1))
    lines, expected = first.read_bytes().splitlines(keepends=True), first.name
    match damage:
        case "value":
            first.write_bytes(first.read_bytes().replace(b'"row": 2,', b'"row": 7,'))
            expected = f"{first.name}, line 2"
        case "line":
            first.write_bytes(b"".join(lines[1:]))
        case "swap":
            first.write_bytes(second.read_bytes())
        case "record":
            (parts / "part-00000.json").write_text('{"rows": 4}')
            expected = "part-00000.json"
        case "missing":
            (parts / "part-00000.json").unlink()
            expected = "part-00000.json is missing"
        case "manifest" | "end":
            expected = f"{damage}.json"
            (parts / expected).write_text("{}")
    with pytest.raises(DataError, match=expected):
        merge_parts(str(out))
    assert not out.exists()


def test_parts_of_other_results_or_inputs_are_not_mixed(tmp_path):
    out = tmp_path / "out.jsonl"
    write(out, Shard(0, 2, 5))
    for more, message in (
        ({"metadata": METADATA | {"weights": "w"}}, "weights: None there, 'w' now"),
        ({"of": source(RECORDS[:-1])}, "another input"),
        ({"shard": Shard(1, 2, 6)}, "--part-rows 5"),
    ):
        with pytest.raises(DataError, match=message):
            write(out, more.pop("shard", Shard(1, 2, 5)), **more)
    write(out, Shard(1, 2, 5), metadata=METADATA | {"model": "another/path"})
    merge_parts(str(out))
    out.write_bytes(out.read_bytes() + b"\n")
    with pytest.raises(DataError, match="has other rows than its parts"):
        merge_parts(str(out))
    merge_parts(str(out), overwrite=True)
    assert written(out) == written(whole(tmp_path))


def test_parts_of_a_manifest_that_another_process_replaced_are_named(tmp_path):
    """Shards with different judges that start at the same moment."""
    out, manifest = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts" / "manifest.json"
    write(out, Shard(0, 2, 5))
    ours = manifest.read_bytes()
    other = METADATA | {"weights": "w"}
    theirs = without_checksum(json.loads(ours)) | {"rows": other}
    manifest.write_text(json.dumps(with_checksum(theirs)))
    write(out, Shard(1, 2, 5), metadata=other)
    with pytest.raises(DataError, match=r"part-00000\.json is not of the results"):
        merge_parts(str(out))
    with pytest.raises(DataError, match=r"part-00000\.json is not of the results"):
        write(out, Shard(0, 2, 5), metadata=other)
    manifest.write_bytes(ours)
    with pytest.raises(DataError, match=r"part-00001\.json is not of the results"):
        merge_parts(str(out))


def test_a_manifest_whose_names_were_changed_is_damaged(tmp_path):
    out, manifest = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts" / "manifest.json"
    write(out, Shard(0, 1, 5))
    manifest.write_text(manifest.read_text().replace('"model": "m"', '"model": "n"'))
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        merge_parts(str(out))


def test_more_shards_than_rows_and_no_rows_at_all_are_joined(tmp_path):
    none = list_source([])
    for name, of, count in (("few", source(RECORDS[:2]), 5), ("none", none, 2)):
        out, alone = tmp_path / name, tmp_path / f"{name}-alone"
        for at in range(count):
            write(out, Shard(at, count, 1), of=of)
        merge_parts(str(out))
        write_rows(OutputSink(alone), METADATA, of, task())
        assert written(out) == written(alone)


def test_an_input_that_changes_while_it_is_read_is_refused(tmp_path):
    write(tmp_path / "out.jsonl", Shard(0, 2, 5))
    grown = source()._replace(rows=lambda: 99)
    with pytest.raises(DataError, match=r"99 rows, another process .* read 23"):
        write(tmp_path / "out.jsonl", Shard(1, 2, 5), of=grown)


def test_parts_of_different_programs_are_joined_with_a_warning(tmp_path, caplog):
    out = tmp_path / "out.jsonl"
    for at in range(2):
        write(out, Shard(at, 2, 5), code={"program": f"p{at}"})
    merge_parts(str(out))
    assert "p0" in caplog.text and "p1" in caplog.text


def test_of_two_processes_with_one_shard_the_second_is_refused(tmp_path):
    out = tmp_path / "out.jsonl"

    def second_starts(records, bar):
        if records[0][0] > 1:
            return task().rows(records, bar)
        with pytest.raises(InUseError, match=r"process \d+ on .* writes .*/part-00000.jsonl since"):
            write(out, Shard(0, 2, 5))
        return task().rows(records, bar)

    write(out, Shard(0, 2, 5), made=RowTask(second_starts, lambda record: 1, 4))
    write(out, Shard(1, 2, 5))
    merge_parts(str(out))
    assert written(out) == written(whole(tmp_path))


@pytest.mark.parametrize("command", ["score", "rank", "evaluate", "attack", "bon"])
def test_of_two_commands_with_one_shard_the_second_is_refused_before_it_loads_a_model(
    tmp_path, command
):
    """The model has a config and no weights."""
    pairs, model = tmp_path / "pairs.jsonl", tmp_path / "model"
    pairs.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}))
    model.mkdir()
    write_json(model / "config.json", config_to_hf(tiny_config("qwen3", True), "float32"))
    out = tmp_path / ("out.jsonl" if command in ("score", "rank") else "out")
    words = {
        "score": [pairs, out, "--model", model],
        "rank": [pairs, out, "--model", model],
        "evaluate": [model, pairs, "--out", out],
        "attack": [model, pairs, "--out", out],
        "bon": ["tiny-random", model, pairs, "--out", out, "--n", 2],
    }[command]
    shard = (*words, "--shard", "1/2")
    with hold_shard(out, Shard(1, 2, 5)):
        ran = run_cli(command, *shard)
    assert ran.status == 2 and f"process {os.getpid()} on" in ran.output
    ran = run_cli(command, *shard)
    assert ran.status == 2 and f"process {os.getpid()} on" not in ran.output


def test_of_two_commands_that_write_rationales_or_a_gate_the_second_is_refused(tmp_path):
    pairs, out, folder = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl", tmp_path / "folder"
    pairs.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}))
    folder.mkdir()
    votes = tmp_path / "out.votes.jsonl", folder / "votes.jsonl"
    with hold_lock(file_lock(votes[0])), hold_lock(file_lock(votes[1])):
        for ran in (
            run_cli("rationales", "no-model", pairs, out),
            run_cli("think", "no-model", pairs, "--budget", 10, "--out", folder),
        ):
            assert ran.status == 2 and f"process {os.getpid()} on" in ran.output


def test_of_two_commands_that_write_pairs_the_second_is_refused(tmp_path):
    source, out = tmp_path / "source.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt": "q", "chosen": "a b", "rejected": "b"}))
    scored = ("--scores", tmp_path / "no-scores.jsonl")
    with hold_lock(file_lock(out)):
        for words in (
            ("curate", source, out, *scored),
            ("data", "pairs", source, out, "--method", "corruptions"),
        ):
            ran = run_cli(*words)
            assert ran.status == 2 and f"process {os.getpid()} on" in ran.output
    assert not out.exists()


def test_what_killed_processes_left_of_a_file_is_removed_by_the_next_write(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    start = f"a.json.{socket.gethostname()}"
    left = {name: tmp_path / f"{start}.{name}.partial" for name in (gone.pid, os.getppid(), "x")}
    other = tmp_path / f"a.json.elsewhere.{gone.pid}.partial"
    for path in (*left.values(), other):
        path.write_text("half")
    write_atomic(tmp_path / "a.json", "whole")
    kept = {"a.json", other.name, left[os.getppid()].name, left["x"].name}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_of_two_processes_with_one_file_the_second_is_refused(tmp_path):
    out = tmp_path / "out.jsonl"
    with (
        hold_lock(file_lock(out)),
        pytest.raises(InUseError, match=rf"process \d+ on .* writes {out} since"),
    ):
        write_rows(OutputSink(out), METADATA, source(), task())


def test_rows_that_appear_while_a_file_is_written_are_an_error(tmp_path):
    """Of a process on another machine that had been silent and was taken for dead."""
    out = tmp_path / "out.jsonl"

    def other_appends(records, bar):
        with out.open("a") as file:
            file.write("{}\n")
        return task().rows(records, bar)

    made = RowTask(other_appends, lambda record: 1, 4)
    with pytest.raises(DataError, match="another process writes to it"):
        write_rows(OutputSink(out), METADATA, source(), made)


def test_a_file_is_not_begun_beside_its_parts(tmp_path):
    out = tmp_path / "out.jsonl"
    write(out, Shard(0, 1, 5))
    with pytest.raises(DataError, match="gram-jax merge"):
        write_rows(OutputSink(out), METADATA, source(), task())
    merge_parts(str(out))
    assert write_rows(OutputSink(out), METADATA, source(), task()).written == 0


def test_one_shard_does_not_overwrite_the_others(tmp_path):
    sink = OutputSink(tmp_path / "out.jsonl", overwrite=True, shard=Shard(0, 2, 5))
    with pytest.raises(DataError, match="leave out --overwrite"):
        write_parts(sink, METADATA, source(), task(), lambda: CODE)


def test_a_folder_has_several_files_with_parts(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.scores.jsonl", Shard(0, 1, 5))
    assert parts_in(str(tmp_path)) == [str(tmp_path / f"{n}.scores.jsonl") for n in "ab"]
    assert parts_in(f"{tmp_path}/a.scores.jsonl.parts/") == [f"{tmp_path}/a.scores.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected a file or folder"):
        parts_in(str(tmp_path / "empty"))


# --- checksums


@pytest.mark.parametrize("at", range(4))
def test_an_edited_row_is_refused_and_can_be_accepted(tmp_path, at):
    out = whole(tmp_path)
    lines = out.read_text().splitlines(keepends=True)
    row = json.loads(lines[at])
    lines[at] = lines[at].replace(f'"value": {row["value"]}', '"value": 0.5')
    out.write_text("".join(lines))
    with pytest.raises(DataError, match=rf"line {at + 1} .*gram-jax verify {out} --accept"):
        write_rows(OutputSink(out), METADATA, source(), task())
    with pytest.raises(DataError, match=f"line {at + 1} "):
        list(read_rows(out))
    assert accept_rows(out) == 1
    assert write_rows(OutputSink(out), METADATA, source(), task()).written == 0
    assert [row["value"] for row in read_rows(out)][at] == 0.5


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_is_used(tmp_path_factory, place, bit):
    """It is refused; in the last line end it leaves a line that is cut off and written again."""
    folder = tmp_path_factory.mktemp("flipped")
    out = whole(folder)
    before = out.read_bytes()
    content = bytearray(before)
    content[int(place * len(content))] ^= 1 << bit
    out.write_bytes(content)
    try:
        write_rows(OutputSink(out), METADATA, source(), task())
    except DataError as error:
        assert "line" in str(error)
    else:
        assert out.read_bytes() == before


# --- addresses


def test_results_at_an_address_are_those_of_a_disk(tmp_path):
    out = "memory://results/out.jsonl"
    write(out, Shard(1, 2, 5))
    with pytest.raises(DataError, match="3 of 5 parts"):
        merge_parts(out)
    write(out, Shard(0, 2, 5))
    again = write(out, Shard(0, 2, 5))
    assert (again.written, again.before) == (0, 10)
    merge_parts(out)
    sink = OutputSink("memory://results/alone.jsonl")
    write_results(sink, METADATA, source(), task(), lambda: CODE)
    files, _ = open_filesystem(out)
    for name in ("out", "alone"):
        found = [files.cat_file(f"/results/{name}.jsonl{end}") for end in ("", ".meta.json")]
        assert tuple(found) == written(whole(tmp_path))


def test_rows_at_an_address_and_of_a_pattern_are_read_in_the_order_of_names(tmp_path):
    files, _ = open_filesystem("memory://inputs/x")
    for at in (2, 1):
        line = json.dumps({"prompt": str(at)}) + "\n"
        files.pipe_file(f"/inputs/{at}.jsonl", line.encode())
        (tmp_path / f"{at}.jsonl").write_text(line)
    write_json(tmp_path / "3.other", {})
    for pattern in ("memory://inputs/*.jsonl", f"{tmp_path}/*.jsonl"):
        assert [row.fields["prompt"] for row in read_source(pattern)] == ["1", "2"]
    for missing in (
        "memory://inputs/no.jsonl",
        "memory://no/*.jsonl",
        "nothing://x",
        f"{tmp_path}/*.tsv",
    ):
        with pytest.raises(DataError):
            list(read_source(missing))
    with pytest.raises(MissingExtraError, match="gcs"):
        local_copies("gs://bucket/pairs.jsonl")


@pytest.mark.parametrize(
    "out", ["gs://bucket/x.jsonl", "s3://x/y", "https://host/x", "nothing://x"]
)
def test_an_output_that_cannot_be_written_is_refused_before_a_model_is_loaded(tmp_path, out):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}))
    with pytest.raises(GramError, match=out.partition(":")[0]):
        check_files(str(pairs), out)
