"""A headless Chromium, spoken to over its debugging pipe: what a page shows, says on its console, and asks the network for."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions "
    "--disable-background-networking --disable-component-update --disable-sync --remote-debugging-pipe --hide-scrollbars"
).split()


class Page:
    """console: errors and warnings so far. requests: every address that was asked for."""

    def __init__(self, to: int, of: int) -> None:
        self.console: list[str] = []
        self.requests: list[str] = []
        self._to, self._from, self._buffer, self._count, self._session = to, of, b"", 0, ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            said = self._read()
            if said.get("id") == self._count:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result
            self._note(said)

    def open(self, path: Path, *, width: int, height: int, dark: bool) -> None:
        """Load a file, as a screen of this width in this scheme shows it."""
        media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=media)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Page.navigate", url=path.as_uri())
        while True:
            said = self._read()
            self._note(said)
            if said.get("method") == "Page.loadEventFired":
                return

    def run(self, script: str) -> Any:
        """Return what an expression comes to."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        picture = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(picture))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._from, 1 << 20)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        said: dict[str, Any] = json.loads(message)
        return said

    def _note(self, said: dict[str, Any]) -> None:
        method, params = said.get("method"), said.get("params", {})
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.console.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


@contextmanager
def browser(program: str) -> Iterator[Page]:
    """A browser with one page, and a profile of its own that goes with it."""
    to_read, to = os.pipe()
    of, from_write = os.pipe()
    with tempfile.TemporaryDirectory(prefix="jobcache-browser-", ignore_cleanup_errors=True) as profile:
        argv = [program, *_FLAGS, f"--user-data-dir={profile}"]
        line = f'exec "$@" 3<&{to_read} 4>&{from_write}'
        env = {"PATH": os.environ["PATH"], "HOME": profile}
        with subprocess.Popen(
            ["/bin/bash", "-c", line, "sh", *argv], pass_fds=(to_read, from_write), env=env, stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:  # fmt: skip
            os.close(to_read)
            os.close(from_write)
            try:
                page = Page(to, of)
                yield page
            finally:
                try:
                    page._session = ""
                    page.ask("Browser.close")
                    process.wait(10)
                finally:
                    process.kill()
                    os.close(to)
                    os.close(of)
