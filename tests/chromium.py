"""Headless Chromium, as a reader's browser: pages are opened in it, asked, and listened to."""

import json
import os
import select
import shutil
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Chromium:
    """A browser that is told what to do through its DevTools pipe: JSON, then a zero byte."""

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
        self.seen: list[dict[str, Any]] = []  # events

    def tell(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params, "sessionId": session}
        os.write(self._commands, json.dumps({k: v for k, v in message.items() if v}).encode())
        os.write(self._commands, b"\0")
        while (said := self._next()).get("id") != number:
            self.seen.append(said)
        assert "error" not in said, said
        return said["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._events], [], [], 90)[0], "the browser says nothing"
            self._buffer += os.read(self._events, 1 << 20)
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        self.tell("Browser.close")
        self._process.wait(20)


class Page:
    """A page that is open in the browser, loaded and drawn."""

    def __init__(self, browser: Chromium, path: Path, width: int = 1280) -> None:
        target = browser.tell("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.tell("Target.attachToTarget", targetId=target, flatten=True)
        self.browser, self.session = browser, attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{domain}.enable")
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.tell("Emulation.setDeviceMetricsOverride", **screen)
        self.tell("Page.navigate", url=path.as_uri())
        self.js("document.readyState == 'complete' || new Promise(f => window.onload = f)")

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.tell(method, self.session, **params)

    def js(self, expression: str) -> Any:
        how = {"awaitPromise": True, "returnByValue": True, "allowUnsafeEvalBlockedByCSP": False}
        said = self.tell("Runtime.evaluate", expression=expression, **how)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def events(self, *methods: str) -> list[dict[str, Any]]:
        ours = [e for e in self.browser.seen if e.get("sessionId") == self.session]
        return [event["params"] for event in ours if event["method"] in methods]

    def complaints(self) -> list[dict[str, Any]]:
        """Everything on the console: messages, exceptions, and what the browser itself says."""
        return self.events("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")

    def requests(self) -> list[str]:
        """What the page asked for, beside itself and what it holds."""
        asked = [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]
        return [url for url in asked if not url.startswith("data:")][1:]

    def traces(self) -> dict[str, int]:
        """For each plot, the number of traces that are really in its picture."""
        return self.js(
            "Object.fromEntries([...document.querySelectorAll('.plot')].map(plot => "
            "[plot.dataset.key, plot.querySelectorAll('.trace').length]))"
        )
