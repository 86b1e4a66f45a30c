"""The output of a command in a log file."""

import io
import itertools

import pytest

from gram_jax.cli.console import Console


def plain() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file), file


def test_without_a_terminal_progress_is_plain_lines_now_and_then(monkeypatch):
    clock = itertools.count()  # a second for each update
    monkeypatch.setattr("gram_jax.cli.console.time.perf_counter", lambda: next(clock))
    console, file = plain()
    with console.progress(100, label="judge") as progress:
        for _ in range(100):
            progress.update(units=500, values={"loss": 0.5})
    lines = file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [f"{n}/100" for n in (1, 2, 22, 42, 62, 82, 100)]
    assert "\x1b" not in file.getvalue()
    assert all(part in lines[1] for part in ("loss 0.5", "tokens/s", " left"))
    # The first update also compiled, so nothing is known yet.
    assert " left" not in lines[0] + lines[-1]


def test_a_resumed_count_begins_where_it_stopped_and_its_speed_is_of_new_steps_only():
    console, file = plain()
    with console.progress(10, done=9, label="judge") as progress:
        progress.update(units=1)
    assert file.getvalue().startswith("judge 10/10")


def test_an_unknown_total_has_no_time_left():
    console, file = plain()
    with console.progress(None, label="scored", unit="rows") as progress:
        progress.update(3, units=3)
        assert progress.seconds_left is None
    assert "left" not in file.getvalue()
    assert "rows/s" in file.getvalue()


def test_brackets_in_a_line_are_no_mark_up():
    console, file = plain()
    console.say("[optimizer] b1 [/nothing]")
    console.warn("[bold]")
    assert file.getvalue() == "[optimizer] b1 [/nothing]\nwarning: [bold]\n"


def test_a_muted_console_prints_nothing():
    file = io.StringIO()
    console = Console(mute=True, file=file)
    console.say("a")
    console.table("t", ("x", "y"), [("a", 1)])
    with console.progress(2, label="p") as progress:
        progress.update(2)
    console.warn("look")
    assert file.getvalue() == ""


def test_time_left_forgets_the_first_step_which_compiled(monkeypatch):
    clock = iter([0.0, 60.0, 61.0, 62.0])  # a first step of a minute
    monkeypatch.setattr("gram_jax.cli.console.time.perf_counter", lambda: next(clock))
    console, _ = plain()
    with console.progress(100, label="judge") as progress:
        for left in (None, 98, 97):
            progress.update()
            assert progress.seconds_left == left


def test_the_speed_of_items_that_come_in_batches_is_that_of_the_batches(monkeypatch):
    clock = 0.0
    monkeypatch.setattr("gram_jax.cli.console.time.perf_counter", lambda: clock)
    console, file = plain()
    with console.progress(1000, label="scored", unit="pairs") as progress:
        for batch in range(50):
            clock += 40 if batch == 0 else 10  # 16 items in 10 seconds
            for _ in range(16):
                clock += 1e-4
                progress.update(units=1)
    lines = file.getvalue().splitlines()
    assert lines[0] == "scored 1/1000 0.025 pairs/s"
    assert lines[1].startswith("scored 17/1000 10 min 14 s left | 1.6")
    assert all(float(line.split()[-2]) == pytest.approx(1.6, rel=0.01) for line in lines[1:])


def test_on_a_terminal_progress_is_one_line_that_is_drawn_again(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    console, file = plain()
    with console.progress(2, label="judge", unit="pairs") as progress:
        progress.update(2, units=2)
    assert "\x1b" in file.getvalue() and "2/2" in file.getvalue()
