"""A headless Chromium, controlled over a pipe by the Chrome DevTools Protocol: it needs no driver and no port.

https://chromedevtools.github.io/devtools-protocol/ documents the methods and events named here.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_BROWSER = "no browser: apt-get install --no-install-recommends chromium"
ANSWERS_WITHIN = 60.0

_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
]
_KEYS = {"Tab": 9, "Enter": 13, " ": 32}


class Browser:
    """The process and its pipe, which carries JSON messages, each ended by a zero byte."""

    def __init__(self, requests: trio.lowlevel.FdStream, answers: trio.lowlevel.FdStream) -> None:
        self._requests = requests
        self._answers = answers
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[trio.Event, list[dict[str, Any]]]] = {}
        self._pages: dict[str, Page] = {}

    async def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result. Raises `AssertionError` if the browser refuses it."""
        number = next(self._numbers)
        answered, answer = trio.Event(), list[dict[str, Any]]()
        self._waiting[number] = answered, answer
        request = {"id": number, "method": method, "params": parameters}
        request |= {} if session is None else {"sessionId": session}
        await self._requests.send_all(json.dumps(request).encode() + b"\0")
        with trio.fail_after(ANSWERS_WITHIN):
            await answered.wait()
        assert "error" not in answer[0], f"{method}: {answer[0]['error']}"
        result: dict[str, Any] = answer[0]["result"]
        return result

    async def page(self) -> Page:
        """Open an empty page."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            await page.call(f"{domain}.enable")
        return page

    async def listen(self) -> None:
        """Read messages of the browser until it closes the pipe."""
        rest = b""
        async for data in self._answers:
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    answered, answer = self._waiting.pop(message["id"])
                    answer.append(message)
                    answered.set()
                elif page := self._pages.get(message.get("sessionId", "")):
                    page.noticed(message["method"], message["params"])


class Page:
    """A tab. `errors` are the exceptions of its script and the errors in its console, such as a violated policy."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.errors: list[str] = []
        self._browser = browser
        self._session = session
        self._loaded = trio.Event()

    def noticed(self, method: str, parameters: dict[str, Any]) -> None:
        """Record an event."""
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol for this page."""
        return await self._browser.call(method, self._session, **parameters)

    async def open(self, url: str) -> None:
        """Load a page. Returns when it is loaded; a stream of events may still be open."""
        self._loaded = trio.Event()
        await self.call("Page.navigate", url=url)
        with trio.fail_after(ANSWERS_WITHIN):
            await self._loaded.wait()

    async def look(self, width: int, height: int = 900, *, dark: bool = False, scale: float = 1.0) -> None:
        """Set the size of the window, and the colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, awaited if it is a promise. Raises `AssertionError` if it throws."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        done = await self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def until(self, expression: str, seconds: float = 30.0) -> Any:
        """Wait until an expression is true, and return its value."""
        wait = f"""new Promise((resolve, reject) => {{
            const end = performance.now() + {seconds * 1000};
            const look = () => {{
                const value = ({expression});
                if (value) resolve(value);
                else if (performance.now() > end) reject(new Error("not within {seconds} s"));
                else setTimeout(look, 20);
            }};
            look();
        }})"""
        return await self.evaluate(wait)

    async def press(self, key: str) -> None:
        """Press and release a key."""
        typed = {"text": {"Enter": "\r"}.get(key, key)} if key in ("Enter", " ") else {}
        named = {"key": key, "code": {" ": "Space"}.get(key, key), "windowsVirtualKeyCode": _KEYS[key]}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **named, **typed)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    async def picture(self, height: int | None = None) -> bytes:
        """Return a PNG of the window's width: of the entire page, or of its first `height` pixels."""
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        size["height"] = min(size["height"], height or size["height"])
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shown = await self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return b64decode(shown["data"])


def _beyond(descriptor: int) -> int:
    """Return a duplicate of the descriptor with a number above 3 and 4."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(descriptor)


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Browser]:
    """Run a browser with an empty profile in that folder. `BROWSER` must not be None."""
    assert BROWSER is not None
    request_end, requests = os.pipe()
    answers, answer_end = os.pipe()
    request_end, answer_end = _beyond(request_end), _beyond(answer_end)
    # The browser reads from descriptor 3 and writes to 4, whatever the numbers are in this process.
    moved = f'exec "$@" 3<&{request_end} 4>&{answer_end}'
    command = ["bash", "-c", moved, "bash", BROWSER, *_OPTIONS, f"--user-data-dir={profile}"]
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(request_end, answer_end),
        start_new_session=True,
    )
    os.close(request_end)
    os.close(answer_end)
    try:
        async with (
            trio.lowlevel.FdStream(requests) as to,
            trio.lowlevel.FdStream(answers) as came,
            trio.open_nursery() as nursery,
        ):
            running = Browser(to, came)
            nursery.start_soon(running.listen)
            yield running
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):  # bounded: a killed process is gone at once
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
