"""A real browser on a page, by the WebDriver protocol. Tests that need one are skipped where it is not installed."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from jobs import free_port

httpx = pytest.importorskip("httpx")

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium with its driver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that WebDriver gives an element under


class Page:
    """A browser on a page."""

    def __init__(self, driver: str, profile: str, url: str):
        self.client = httpx.Client(base_url=driver, timeout=60)
        options = {"binary": BROWSER, "args": [*FLAGS.split(), f"--user-data-dir={profile}"]}
        asked = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.session = f"/session/{self.post('/session', asked)['sessionId']}"
        self.post(f"{self.session}/url", {"url": url})

    def post(self, path: str, body: dict[str, Any]) -> Any:
        found = self.client.post(path, json=body).json()["value"]
        assert not (isinstance(found, dict) and "error" in found), found
        return found

    def element(self, name: str) -> str:
        found = self.post(f"{self.session}/element", {"using": "css selector", "value": f"#{name}"})
        return f"{self.session}/element/{found[ELEMENT]}"

    def width(self, pixels: int) -> None:
        """Of the window, which may be narrower than a window of a desktop can be."""
        size = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": size}
        self.post(f"{self.session}/goog/cdp/execute", command)

    def run(self, script: str) -> Any:
        """What a function with this body returns in the page."""
        return self.post(f"{self.session}/execute/sync", {"script": script, "args": []})

    def close(self) -> None:
        self.client.delete(self.session)
        self.client.close()


@contextmanager
def started_driver() -> Iterator[str]:
    """The address of a driver, which starts a browser for every `Page`."""
    port = free_port()
    process = subprocess.Popen(
        [str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
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
