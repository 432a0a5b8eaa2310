"""Firefox and WebKit as they are packaged, driven without a library: playwright drives only builds of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.waiting import PATIENCE, until

PATHS = {"Navigate": "url", "ExecuteScript": "execute/sync", "FindElement": "element"}  # of WebDriver, but for keys
ENTER = "\ue007"
MINI_BROWSER = next(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"), None)


class Window:
    """A window of a browser; `command` is one of WebDriver, by its name in Firefox."""

    def command(self, name: str, **body: Any) -> Any:
        raise NotImplementedError

    def goto(self, url: str) -> None:
        self.command("Navigate", url=url)

    def evaluate(self, script: str) -> Any:
        return self.command("ExecuteScript", script=f"return {script}", args=[])

    def wait(self, script: str) -> Any:
        return until(lambda: self.evaluate(script))

    def type(self, selector: str, text: str) -> None:
        found = self.command("FindElement", using="css selector", value=selector)
        self.command("ElementSendKeys", id=next(iter(found.values())), text=text)


class Firefox(Window):
    """By Marionette, which each Firefox has: JSON after its length, on a port that is written into the profile."""

    def __init__(self, profile: Path) -> None:
        port = profile / "MarionetteActivePort"
        until(lambda: port.is_file() and port.read_text())
        self._socket = socket.create_connection(("127.0.0.1", int(port.read_text())), timeout=PATIENCE)
        self._file = self._socket.makefile("rb")
        self._read()
        self.command("NewSession")

    def command(self, name: str, **body: Any) -> Any:
        message = json.dumps([0, 0, f"WebDriver:{name}", body]).encode()
        self._socket.sendall(b"%d:%s" % (len(message), message))
        _, _, error, answer = self._read()
        assert not error, error
        return answer.get("value", answer)

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _read(self) -> Any:
        length = b""
        while (byte := self._file.read(1)) != b":":
            assert byte, "Firefox has ended"
            length += byte
        return json.loads(self._file.read(int(length)))


class WebKit(Window):
    """WebKitGTK's MiniBrowser, by the HTTP of https://www.w3.org/TR/webdriver2/."""

    def __init__(self, port: int) -> None:
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)
        until(self._is_up)
        options = {"binary": str(MINI_BROWSER), "args": ["--automation"]}
        wanted = {"alwaysMatch": {"webkitgtk:browserOptions": options}}
        self._session = f"session/{self._post('session', {'capabilities': wanted})['sessionId']}"

    def command(self, name: str, id: str = "", **body: Any) -> Any:
        return self._post(f"{self._session}/{PATHS.get(name, f'element/{id}/value')}", body)

    def close(self) -> None:
        self._http.delete(self._session)
        self._http.close()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()["value"]

    def _is_up(self) -> bool:
        try:
            return self._http.get("status").is_success
        except httpx.ConnectError:
            return False


def missing(name: str) -> str | None:
    """What this machine does not have for the browser `firefox` or `webkit`."""
    if name == "firefox":
        return None if shutil.which("firefox") or shutil.which("firefox-esr") else "there is no firefox on the PATH"
    here = MINI_BROWSER and shutil.which("WebKitWebDriver") and shutil.which("xvfb-run")
    return None if here else "needs Debian's webkit2gtk-driver and xvfb"


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Window]:
    """A window of a new visitor, whose files are in `folder`."""
    own = {"HOME": str(folder), "NO_AT_BRIDGE": "1", "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1"}
    if name == "firefox":
        (folder / "user.js").write_text('user_pref("marionette.port", 0);\n')
        program = shutil.which("firefox") or shutil.which("firefox-esr") or "firefox"
        command = [program, "--marionette", "--headless", "--no-remote", "--profile", str(folder)]
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ["xvfb-run", "--auto-servernum", "WebKitWebDriver", f"--port={port}"]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **own}, start_new_session=True, stdout=output, stderr=output
        )
    try:
        window = Firefox(folder) if name == "firefox" else WebKit(port)
        try:
            yield window
        finally:
            window.close()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
