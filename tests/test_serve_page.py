"""The server's page in a real browser. Skipped where chromium and its driver are not installed."""

import shutil
import subprocess
import time

import pytest
from jobs import free_port

pytest.importorskip("fastapi", reason="the extra serve is not installed")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from test_serve import Judge  # noqa: E402
from test_serve_wire import serving  # noqa: E402

from gram_jax.serve.guard import Limits  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium with its driver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that WebDriver gives an element under


class Leaning(Judge):
    """Prefers what is longer, and by `lean` what is shown first."""

    def __init__(self, lean: float):
        super().__init__()
        self.lean = lean

    def score_many(self, triples):
        from gram_jax.scoring.scorer import pair_score

        gaps = [(len(a) - len(b)) / 2 for _, a, b in triples]
        return [pair_score(gap + self.lean, -gap + self.lean, False) for gap in gaps]


class Page:
    """A browser on a page, by the WebDriver protocol."""

    def __init__(self, driver: str, profile: str, url: str):
        self.client = httpx.Client(base_url=driver, timeout=60)
        options = {"binary": BROWSER, "args": [*FLAGS.split(), f"--user-data-dir={profile}"]}
        asked = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.session = f"/session/{self.post('/session', asked)['sessionId']}"
        self.post(f"{self.session}/url", {"url": url})

    def post(self, path: str, body: dict):
        found = self.client.post(path, json=body).json()["value"]
        assert not (isinstance(found, dict) and "error" in found), found
        return found

    def element(self, name: str) -> str:
        found = self.post(f"{self.session}/element", {"using": "css selector", "value": f"#{name}"})
        return f"{self.session}/element/{found[ELEMENT]}"

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

    def close(self) -> None:
        self.client.delete(self.session)
        self.client.close()


@pytest.fixture
def driver():
    port = free_port()
    process = subprocess.Popen(
        [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                httpx.get(f"{url}/status").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def seen(driver: str, profile, judge: Judge, *askings: dict, **settings) -> list[str]:
    """What a person sees after each asking."""
    with serving(Limits(), judge, **settings) as address:
        page = Page(driver, str(profile), "http://{}:{}/".format(*address))
        try:
            return [page.judge(**asking) for asking in askings]
        finally:
            page.close()


def test_a_person_pastes_a_pair_and_sees_the_verdict_in_both_orders(driver, tmp_path):
    pair = {"prompt": "<b>q</b>", "first": "aaaaa", "second": "a"}
    better, tie = seen(driver, tmp_path, Leaning(1.0), pair, {"first": "b", "second": "b"})
    lines = better.splitlines()
    assert lines[0] == "Response 1 is better"
    assert "Response 1: 84.2 %" in lines  # the mean of the next two
    assert lines[lines.index("Response 1 shown first") + 1] == "Response 1: 95.3 %"
    assert lines[lines.index("Response 2 shown first") + 1] == "Response 1: 73.1 %"
    assert tie.startswith("A tie")


def test_orders_that_contradict_each_other_are_no_verdict(driver, tmp_path):
    pair = {"prompt": "q", "first": "aa", "second": "a"}
    (found,) = seen(driver, tmp_path, Leaning(3.0), pair)
    assert found.startswith("Undecided") and "is better" not in found


def test_a_token_is_asked_for_where_it_is_missing(driver, tmp_path):
    pair = {"prompt": "q", "first": "aa", "second": "a"}
    without, given = seen(driver, tmp_path, Leaning(0.0), pair, {"token": "s3cret"}, token="s3cret")
    assert "token" in without and "is better" not in without
    assert given.startswith("Response 1 is better")
