"""Jobs of several real processes over loopback: the same results, and an end within seconds whatever happens."""

import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tomli_w
from jobs import COMMAND, start_job
from tiny_runs import compiled_programs, tiny_recipe, tiny_values, train, write_pairs  # noqa: F401

from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.errors import LOST, RESTART
from gram_jax.run.metrics import read_metrics

pytestmark = pytest.mark.slow

# Imports and compilation of two processes on two busy cores; what a test promises is counted from the event on.
START = 150.0


def recipe_file(folder: Path, stage: str = "finetune", name: str = "run", **changes) -> Path:
    if not (folder / "train.jsonl").exists():
        write_pairs(folder / "train.jsonl", 16)
        write_pairs(folder / "valid.jsonl", 8, seed=1)
    values = tiny_values(stage, folder / name, **({"batch__batch_size": 8} | changes))
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(values))
    return path


def endless(folder: Path, **changes) -> Path:
    """A run that somebody has to end."""
    return recipe_file(folder, run__max_steps=100_000, log__logging_steps=50, **changes)


def saved(folder: Path) -> tuple[int, dict[str, np.ndarray]]:
    """The newest checkpoint's step and weights."""
    with Checkpoints(folder / "checkpoints", keep=None) as checkpoints:
        step, shapes = checkpoints.latest(), checkpoints.params_shapes()
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes
        )
        leaves = jax.tree_util.tree_leaves_with_path(checkpoints.restore_params(None, abstract))
        return step, {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def figures(folder: Path) -> list[dict[str, float]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


def check_close(one: Path, other: Path) -> None:
    first, second = figures(one), figures(other)
    assert [row.keys() for row in first] == [row.keys() for row in second]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), atol=2e-5, rtol=2e-5)


def check_weights(one: Path, other: Path) -> None:
    """As near as weights in float32 are after a few updates on another number of processes."""
    (_, first), (_, second) = saved(one), saved(other)
    for path, weights in first.items():
        np.testing.assert_allclose(second[path], weights, atol=2e-4, err_msg=path)


def test_four_processes_stopped_and_continued_by_two_repeat_one_process(tmp_path):
    changes = {"data__valid": [str(tmp_path / "valid.jsonl")], "evaluate__eval_steps": 4}
    changes |= {
        "run__max_steps": 8,
        "checkpoint__save_steps": 3,
        "batch__gradient_accumulation_steps": 2,
        "batch__batch_size": 8,
    }
    broken = recipe_file(tmp_path, "finetune", "broken", **changes)
    train(tiny_recipe("finetune", tmp_path / "whole", **changes))
    stop_after_five = (
        COMMAND[0],
        "-c",
        "import signal, os; import gram_jax.training.loop as loop; log_step = loop.log_step\n"
        "def stop(outputs, watch, recipe, averages, step, *rest, **more):\n"
        "    found = log_step(outputs, watch, recipe, averages, step, *rest, **more)\n"
        "    if step == 4 and os.environ['GRAM_JAX_TEST_INDEX'] == '2':\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    return found\n"
        "loop.log_step = stop\n"
        "import sys; os.environ['GRAM_JAX_TEST_INDEX'] = sys.argv[sys.argv.index('--process') + 1]\n"
        "from gram_jax.cli import main; main()",
    )
    mesh = ("--set", "mesh.data=2", "--set", "mesh.fsdp=2")
    job = start_job(tmp_path, broken, 4, *mesh, devices=1, command=stop_after_five)
    assert job.wait(START) == [RESTART] * 4
    assert "is saved" in job.texts()[0]
    stopped_at = figures(tmp_path / "broken")[-1]["step"]
    assert 4 <= stopped_at <= 7
    assert start_job(tmp_path, broken, 2, devices=2).wait(START) == [0, 0]
    check_close(tmp_path / "whole", tmp_path / "broken")
    check_weights(tmp_path / "whole", tmp_path / "broken")


def test_sigterm_to_one_process_saves_one_step_on_all(tmp_path):
    recipe, cache = endless(tmp_path), tmp_path / "xla"
    job = start_job(tmp_path, recipe, 2, cache=cache)
    job.wait_for("finetune 1/")
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait(90) == [RESTART, RESTART]
    step, _ = saved(tmp_path / "run")
    said = f"stopped by SIGTERM: step {step} of 100000 is saved. Resume with the same command for every process"
    assert said in job.texts()[0]
    assert figures(tmp_path / "run")[-1]["step"] == step
    # Programs that processes on CPUs read back from the compilation cache make jobs hang now and then.
    assert not cache.exists() or not any(cache.iterdir())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_at_once_with_its_name(victim, tmp_path):
    job = start_job(tmp_path, endless(tmp_path), 2)
    job.wait_for("finetune 1/")
    job.processes[victim].kill()
    other = 1 - victim
    ends = job.wait(60)
    assert (ends[victim], ends[other]) == (-signal.SIGKILL, LOST)
    assert f"process {victim} on " in job.texts()[other]
    assert "its connection is closed; it was last at: " in job.texts()[other]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_process_is_given_up_after_the_stated_time(victim, tmp_path):
    job = start_job(tmp_path, endless(tmp_path), 2, "--lost-after", "4")
    job.wait_for("finetune 1/")
    job.processes[victim].send_signal(signal.SIGSTOP)
    since = time.monotonic()
    assert job.processes[1 - victim].wait(60) == LOST
    assert time.monotonic() - since > 3
    assert f"process {victim} on " in job.texts()[1 - victim]
    assert "not been heard of for 4 s" in job.texts()[1 - victim]
    job.processes[victim].send_signal(signal.SIGCONT)
    assert job.wait(90)[victim] == LOST  # it does not go on alone


HANGING = (
    COMMAND[0],
    "-c",
    "import sys, time; from gram_jax.data.batches import BatchPlan; batch = BatchPlan.batch\n"
    "def hang_in_the_loader(self, step, *rest):\n"
    "    if step == 5 and sys.argv[sys.argv.index('--process') + 1] == '1':\n"
    "        time.sleep(1000)\n"
    "    return batch(self, step, *rest)\n"
    "BatchPlan.batch = hang_in_the_loader\n"
    "from gram_jax.cli import main; main()",
)


def test_a_loader_that_hangs_is_found_with_its_stack(tmp_path):
    # A step takes milliseconds, but the compilation before it many seconds on a busy machine.
    job = start_job(tmp_path, endless(tmp_path), 2, "--stuck-after", "25", command=HANGING)
    job.wait_for("finetune 1/")
    assert job.wait(120) == [LOST, LOST]
    report = (tmp_path / "run" / "stuck-1.txt").read_text()
    assert "no progress for 25 s, at: waiting for the data of step 6" in report
    assert "hang_in_the_loader" in report
    assert "waiting for the data of step 6" in job.texts()[0]  # who it was, also in the main log


def early(body: str) -> tuple[str, ...]:
    """The program, of which process 1 does something else where it would read its data."""
    return (
        COMMAND[0],
        "-c",
        "import sys, time, gram_jax.training.examples as job; from gram_jax.errors import DataError\n"
        f"def read_nothing(*_, **__):\n    {body}\n"
        "if sys.argv[sys.argv.index('--process') + 1] == '1':\n"
        "    job.read_pairs = read_nothing\n"
        "from gram_jax.cli import main; main()",
    )


def test_a_process_that_hangs_before_the_first_step_is_found_with_its_stack(tmp_path):
    hanging = early("time.sleep(1000)")
    job = start_job(tmp_path, endless(tmp_path), 2, "--stuck-after", "10", command=hanging)
    assert job.wait(150) == [LOST, LOST]
    report = (tmp_path / "run" / "stuck-1.txt").read_text()
    assert "no progress for 10 s, at: reading the data" in report
    assert "read_nothing" in report


def test_sigterm_before_the_first_step_ends_all_with_the_status_that_starts_again(tmp_path):
    sleeping = early("print('asleep', flush=True); time.sleep(1000)")
    job = start_job(tmp_path, endless(tmp_path), 2, command=sleeping)
    job.wait_for("asleep", index=1)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait(90) == [RESTART, RESTART]
    assert "there is nothing to save yet" in job.texts()[1]
    assert "process 1 on " in job.texts()[0] and "nothing to save yet" in job.texts()[0]


def test_the_port_of_jax_that_is_taken_is_named_to_all(tmp_path):
    recipe = endless(tmp_path)
    while True:
        with socket.create_server(("", 0)) as taken:
            port = taken.getsockname()[1]
            job = start_job(tmp_path, recipe, 2, devices=1, port=port - 1)
            ends = job.wait(150)
        if "cannot listen at" not in job.texts()[0]:  # the port below was free
            break
    assert ends == [2, 2]
    for text in job.texts():
        assert f"JAX needs port {port}" in text and "Traceback" not in text


def test_processes_that_do_not_come_are_named(tmp_path):
    arguments = ("--join-timeout", "6")
    job = start_job(tmp_path, endless(tmp_path), 4, *arguments, only=(0, 2), devices=1)
    assert job.wait(150) == [LOST, LOST]
    for text in job.texts():
        assert "process 1, process 3 did not come within 6 s" in text
        assert "there: process 0 on " in text

    job = start_job(tmp_path, endless(tmp_path), 2, "--join-timeout", "3", only=(1,), devices=1)
    assert job.wait(150) == [LOST]
    assert "process 0 at 127.0.0.1" in job.texts()[0]


def test_an_error_of_one_process_is_everybodys_and_says_whose(tmp_path):
    recipe = endless(tmp_path)
    broken = early("raise DataError('train.jsonl is not there')")
    job = start_job(tmp_path, recipe, 2, command=broken)
    assert job.wait(START) == [2, 2]
    assert "process 1 on " in job.texts()[0]
    assert "ended: train.jsonl is not there" in job.texts()[0]


def test_an_error_that_follows_from_a_lost_process_does_not_hide_it(tmp_path):
    first, second = "raise DataError('garbage')", "os.kill(os.getpid(), signal.SIGKILL)"
    dying = (
        COMMAND[0],
        "-c",
        "import os, signal, sys, time, gram_jax.training.examples as job; from gram_jax.errors import DataError\n"
        "def read_first(*_, **__):\n"
        f"    while not os.path.exists('dying'): time.sleep(0.01)\n    {first}\n"
        "def read_second(*_, **__):\n"
        f"    open('dying', 'w'); time.sleep(0.3); {second}\n"
        "here = sys.argv[sys.argv.index('--process') + 1]\n"
        "job.read_pairs = {'0': read_first, '1': read_second}[here]\n"
        "from gram_jax.cli import main; main()",
    )
    job = start_job(tmp_path, endless(tmp_path), 2, command=dying)
    assert job.wait(START) == [LOST, -signal.SIGKILL], job.texts()
    assert "process 1 on " in job.texts()[0]


def test_processes_with_different_data_are_refused(tmp_path):
    recipe = endless(tmp_path)
    other = (
        COMMAND[0],
        "-c",
        "import sys, gram_jax.training.examples as job; read = job.read_pairs\n"
        "if sys.argv[sys.argv.index('--process') + 1] == '1':\n"
        "    job.read_pairs = lambda recipe, sources, limit: read(recipe, sources, 15)\n"
        "from gram_jax.cli import main; main()",
    )
    job = start_job(tmp_path, recipe, 2, command=other)
    assert job.wait(START) == [2, 2]
    assert "has another set of training examples than process 0" in "".join(job.texts())
