"""Headless Chromium for tests: opens a page, runs JavaScript in it and records events."""

import json
import os
import select
import shutil
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def until(condition: str) -> str:
    """Return JavaScript that waits until an expression is true; `Page.evaluate` waits with it."""
    return f"new Promise(f => {{ const w = () => {condition} ? f(1) : setTimeout(w, 20); w() }})"


class Chromium:
    """A browser process, driven over its DevTools pipe: JSON messages that end with a zero byte."""

    def __init__(self, profile: Path) -> None:
        commands, self._commands = os.pipe()
        self._events, events = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        flags += ["--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{events}', "bash", CHROMIUM, *flags],
            pass_fds=(commands, events), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(events)
        self._buffer, self._ids = b"", count(1)
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params, "sessionId": session}
        os.write(self._commands, json.dumps({k: v for k, v in message.items() if v}).encode())
        os.write(self._commands, b"\0")
        while (message := self._receive()).get("id") != number:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._events], [], [], 90)[0], "the browser does not answer"
            self._buffer += os.read(self._events, 1 << 20)
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        self.call("Browser.close")
        self._process.wait(20)


class Page:
    """An open page, loaded and drawn."""

    def __init__(self, browser: Chromium, path: Path, width: int = 1280) -> None:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self.browser, self.session = browser, attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        self.call("Page.navigate", url=path.as_uri())
        self.evaluate("document.readyState == 'complete' || new Promise(f => window.onload = f)")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def evaluate(self, expression: str) -> Any:
        options = {
            "awaitPromise": True,
            "returnByValue": True,
            "allowUnsafeEvalBlockedByCSP": False,
        }
        answer = self.call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def events(self, *methods: str) -> list[dict[str, Any]]:
        own = [e for e in self.browser.events if e.get("sessionId") == self.session]
        return [event["params"] for event in own if event["method"] in methods]

    def console_messages(self) -> list[dict[str, Any]]:
        """Return all console output: messages, exceptions and the browser's own errors."""
        return self.events("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")

    def requested_urls(self) -> list[str]:
        """Return the URLs that the page requested, without its own and without data URLs."""
        urls = [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith("data:")][1:]

    def count_traces(self) -> dict[str, int]:
        """Return the number of drawn traces of each plot."""
        return self.evaluate(
            "Object.fromEntries([...document.querySelectorAll('.plot')].map(plot => "
            "[plot.dataset.key, plot.querySelectorAll('.trace').length]))"
        )
