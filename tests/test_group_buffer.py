"""Groups that arrive in parts at /compare: which responses are compared, deadlines, and closing."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gram_jax.rewards.group_buffer import MAX_GROUPS, GroupBuffer


def ranks(texts: list[str], deadline: float) -> list[float]:
    """A reward that shows the group: length, and how many were compared behind the point."""
    return [len(text) + len(texts) / 10 for text in texts]


def together(buffer: GroupBuffer, calls: list[tuple]) -> list:
    """What each call returns or raises; a call is (key, responses, size[, seconds until its deadline[, rate]])."""

    def ask(key, responses, size, seconds=30.0, rate=ranks):
        try:
            return buffer.gather(key, responses, size, time.monotonic() + seconds, rate)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(lambda call: ask(*call), calls))


def test_parts_of_several_responses_make_one_group():
    found = together(GroupBuffer(5), [("q", ["a", "aa"], 4), ("q", ["aaa", "aaaa"], 4)])
    assert found == [([1.4, 2.4], 4), ([3.4, 4.4], 4)]


def test_groups_of_other_prompts_or_sizes_stay_apart():
    calls = [("q", ["a"], 2), ("r", ["a"], 2), ("q", ["a"], 3), ("q", ["aa"], 2), ("r", ["aa"], 2)]
    found = together(GroupBuffer(1.5), calls)
    assert found == [([1.2], 2), ([1.2], 2), ([1.1], 1), ([2.2], 2), ([2.2], 2)]


def test_a_deadline_shorter_than_the_wait_times_out_its_caller_alone():
    buffer, started = GroupBuffer(1.0), time.monotonic()
    (alone,) = together(buffer, [("q", ["a"], 2, 0.1)])
    assert isinstance(alone, TimeoutError) and time.monotonic() - started < 0.9
    assert len(buffer) == 0  # nothing is kept of a group whose callers have left
    hasty, patient = together(buffer, [("q", ["a"], 3, 0.1), ("q", ["aa"], 3)])
    assert isinstance(hasty, TimeoutError) and patient == ([2.2], 2)
    assert len(buffer) == 0


def test_a_group_is_rated_by_the_latest_deadline_of_its_members():
    seen, now = [], time.monotonic()

    def rate(texts, deadline):
        seen.append(deadline - now)
        return [0.5] * len(texts)

    together(GroupBuffer(5), [("q", ["a"], 2, seconds, rate) for seconds in (20, 3)])
    assert seen == [pytest.approx(20, abs=1)]


def test_every_member_gets_the_error_of_its_group():
    def broken(texts, deadline):
        raise RuntimeError

    buffer = GroupBuffer(5)
    found = together(buffer, [("q", ["a"], 2, 30, broken)] * 2)
    assert [type(error) for error in found] == [RuntimeError] * 2 and len(buffer) == 0


def test_closing_ends_all_waiting():
    buffer = GroupBuffer(30)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(together, buffer, [("q", ["a"], 2)])
        time.sleep(0.2)
        started = time.monotonic()
        buffer.close()
        assert waiting.result(10) == [([1.1], 1)] and time.monotonic() - started < 5


def test_a_group_that_arrives_in_parts_has_its_earlier_responses_and_warns_once():
    buffer = GroupBuffer()
    with pytest.warns(UserWarning) as warned:
        assert buffer.extend("q", ["a"], 3) == ["a"]
        assert buffer.extend("r", ["x"], 3) == ["x"]
        assert buffer.extend("q", ["b", "c"], 3) == ["b", "c", "a"]
    assert len(warned) == 1 and len(buffer) == 1  # the group of q is complete
    assert buffer.extend("r", ["y"] * 3, 3) == ["y"] * 3 and len(buffer) == 0


def test_without_a_size_the_last_two_responses_are_kept():
    buffer = GroupBuffer()
    with pytest.warns(UserWarning):
        found = [buffer.extend("q", [text], None) for text in "abcd"]
    assert found == [["a"], ["b", "a"], ["c", "a", "b"], ["d", "b", "c"]]


def test_the_oldest_groups_are_dropped():
    buffer = GroupBuffer()
    with pytest.warns(UserWarning):
        for key in range(MAX_GROUPS + 1):
            buffer.extend(key, ["a"], 2)
    assert len(buffer) == MAX_GROUPS and buffer.extend(0, ["b"], 2) == ["b"]
