"""The server's page in a real browser. Skipped where chromium and its driver are not installed."""

import time

import pytest
from browser import Page, needs_browser, started_driver
from fake_judge import FakeJudge
from server import serving

from gram_jax.serve.admission import Limits

pytestmark = [needs_browser, pytest.mark.slow]


class Form(Page):
    """The form of the server's page."""

    def judge(self, **texts: str) -> str:
        """Fill in, press the button, and read what appears."""
        for name, text in texts.items():
            self.post(f"{self.element(name)}/clear", {})
            self.post(f"{self.element(name)}/value", {"text": text})
        self.post(f"{self.element('go')}/click", {})
        out, until = self.element("out"), time.monotonic() + 20
        while time.monotonic() < until:
            text = self.client.get(f"{out}/text").json()["value"]
            if text and "judging" not in text:
                return text
            time.sleep(0.05)
        raise AssertionError("nothing appeared")


@pytest.fixture
def driver():
    with started_driver() as url:
        yield url


def seen(driver: str, profile, judge: FakeJudge, *askings: dict, **settings) -> list[str]:
    """What a person sees after each asking."""
    with serving(Limits(), judge, **settings) as address:
        page = Form(driver, str(profile), f"{address.url}/")
        try:
            return [page.judge(**asking) for asking in askings]
        finally:
            page.close()


def test_a_person_pastes_a_pair_and_sees_the_verdict_in_both_orders(driver, tmp_path):
    pair = {"prompt": "<b>q</b>", "first": "aaaaa", "second": "a"}
    better, tie = seen(driver, tmp_path, FakeJudge(lean=1.0), pair, {"first": "b", "second": "b"})
    lines = better.splitlines()
    assert lines[0] == "Response 1 is better"
    assert "Response 1: 84.2 %" in lines  # the mean of the next two
    assert lines[lines.index("Response 1 shown first") + 1] == "Response 1: 95.3 %"
    assert lines[lines.index("Response 2 shown first") + 1] == "Response 1: 73.1 %"
    assert tie.startswith("A tie")


def test_orders_that_contradict_each_other_are_no_verdict(driver, tmp_path):
    pair = {"prompt": "q", "first": "aa", "second": "a"}
    (found,) = seen(driver, tmp_path, FakeJudge(lean=3.0), pair)
    assert found.startswith("Undecided") and "is better" not in found


def test_a_token_is_asked_for_where_it_is_missing(driver, tmp_path):
    pair = {"prompt": "q", "first": "aa", "second": "a"}
    without, given = seen(
        driver, tmp_path, FakeJudge(lean=0.0), pair, {"token": "s3cret"}, token="s3cret"
    )
    assert "token" in without and "is better" not in without
    assert given.startswith("Response 1 is better")
