"""A headless browser, controlled by the WebDriver protocol over plain HTTP."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # a constant of the WebDriver standard
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Left": "\ue012", "Up": "\ue013"}
KEYS |= {"Right": "\ue014", "Down": "\ue015", "End": "\ue010", "Home": "\ue011", "Tab": "\ue004"}

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium with its chromedriver is installed"
)


class Browser:
    """A browser with one window."""

    def __init__(self, address: str, folder: Path) -> None:
        self._http = requests.Session()
        self._http.trust_env = False
        flags = [*_FLAGS, f"--user-data-dir={folder}"]
        options = {"binary": CHROMIUM, "args": flags}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "unhandledPromptBehavior": "ignore",
        }
        self._address = f"{address}/session"
        made = self._send("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._address += f"/{made['sessionId']}"

    def close(self) -> None:
        self._send("DELETE", "")
        self._http.close()

    def open(self, path: Path) -> None:
        self._send("POST", "/url", {"url": path.as_uri()})

    def run(self, script: str) -> Any:
        """Run *script* as the body of a function in the page, and return its result."""
        return self._send("POST", "/execute/sync", {"script": script, "args": []})

    def settle(self) -> None:
        """Wait until the browser has drawn all changes."""
        script = "const done = arguments[0]; requestAnimationFrame(() => setTimeout(done, 50));"
        self._send("POST", "/execute/async", {"script": script, "args": []})

    def press(self, *keys: str) -> None:
        """Press *keys* at the focus: each is a name in `KEYS` or a text."""
        element = self._send("GET", "/element/active")[_ELEMENT]
        for key in keys:
            self._send("POST", f"/element/{element}/value", {"text": KEYS.get(key, key)})
            element = self._send("GET", "/element/active")[_ELEMENT]
        self.settle()

    def click(self, css: str) -> None:
        found = self._send("POST", "/element", {"using": "css selector", "value": css})
        self._send("POST", f"/element/{found[_ELEMENT]}/click", {})
        self.settle()

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the page in pixels, and its colour scheme."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.settle()

    def messages(self) -> list[str]:
        """Return the messages of the console since the last call: errors and policy violations."""
        return [entry["message"] for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def picture(self) -> bytes:
        """Return a PNG of the visible page."""
        return base64.b64decode(self._send("GET", "/screenshot"))

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        body = {"cmd": command, "params": parameters}
        return self._send("POST", "/goog/cdp/execute", body)

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        reply = self._http.request(method, self._address + path, json=body, timeout=60)
        value = reply.json()["value"]
        if not reply.ok:
            raise AssertionError(f"{path}: {value['error']}: {value['message']}")
        return value


@contextmanager
def started(folder: Path) -> Iterator[Browser]:
    """Start a browser that stores its files in the new *folder*."""
    assert DRIVER
    command = [DRIVER, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            browser = Browser(f"http://127.0.0.1:{_port(process)}", folder)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()


def _port(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout
    for line in process.stdout:
        if match := re.search(rb"started successfully on port (\d+)", line):
            return int(match[1])
    raise AssertionError("chromedriver did not start")
