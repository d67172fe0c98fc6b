"""Debian's chromium without a window, driven over its own protocol: with mouse, keyboard and finger."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_PATIENCE = 30.0  # seconds; two cores may be busy with other tests


class Tab:
    """One tab. `problems`: exceptions, errors on the console, what the page's policy refused."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._count = socket, 0
        self.problems: list[str] = []
        self._sent: dict[str, str] = {}
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, answered."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(_PATIENCE))
            if message.get("id") == self._count:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message)

    def open(self, path: Path, width: int = 1280, height: int = 900, phone: bool = False, **features: str) -> None:
        """Show a file, as wide as that; `features` of the reader: prefers_color_scheme="dark"."""
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.do("Emulation.setTouchEmulationEnabled", enabled=phone)
        wishes = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.do("Emulation.setEmulatedMedia", media="", features=wishes)
        self.problems, self._sent = [], {}
        self.do("Page.navigate", url=path.as_uri())
        self.until("document.readyState == 'complete' && location.href.startsWith('file:')")

    @property
    def requests(self) -> set[str]:
        """The addresses that were asked for; what the page's policy kept from being asked is none."""
        return set(self._sent.values())

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, (expression, answer["exceptionDetails"])
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a condition holds in the page."""
        end = time.monotonic() + _PATIENCE
        while not self.ask(condition):
            assert time.monotonic() < end, f"not so after {_PATIENCE:.0f} s: {condition}"
            time.sleep(0.02)

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of the first such element, brought into view."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.ask(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        return tuple(self.ask(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({element}.getBoundingClientRect())"))

    def hover(self, selector: str) -> None:
        """Move the mouse there."""
        x, y = self.place(selector)
        self.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Click there with the mouse."""
        x, y = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, selector: str) -> None:
        """Tap there with a finger."""
        x, y = self.place(selector)
        self.do("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.do("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key and let it go."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.do("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.do("Input.dispatchKeyEvent", type="keyUp", **about)

    def choose(self, field: str, value: str) -> None:
        """Choose an option of a field of the gallery, or tick it."""
        what = f"checked = {value}" if value in ("true", "false") else f"value = {value!r}"
        self.ask(
            f"(f => {{ f.{what}; f.dispatchEvent(new Event('change', {{bubbles: true}})); }})"
            f"(document.querySelector('.filters').elements.{field})"
        )

    def _note(self, message: dict[str, Any]) -> None:
        about, method = message.get("params", {}), message.get("method")
        if method == "Network.requestWillBeSent":
            self._sent[about["requestId"]] = about["request"]["url"]
        elif method == "Network.loadingFailed" and about.get("blockedReason") == "csp":
            self._sent.pop(about["requestId"], None)
        elif method == "Runtime.exceptionThrown":
            self.problems.append(about["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Log.entryAdded":
            self.problems.append(about["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.problems.append(str(about["args"]))


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A tab of a chromium of its own, which keeps its things in `folder` and is gone afterwards."""
    assert CHROMIUM is not None
    port = folder / "DevToolsActivePort"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"]
    # A mouse, which a machine without a screen does not have.
    flags += ["--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"]
    # No name is resolved: what the page might ask for fails, and is seen.
    flags += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    process = subprocess.Popen(
        [CHROMIUM, *flags, "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + _PATIENCE
        while not (port.exists() and len(port.read_text().split()) == 2):
            assert process.poll() is None and time.monotonic() < end, "chromium did not start"
            time.sleep(0.02)
        number, path = port.read_text().split()
        with connect(f"ws://127.0.0.1:{number}{path}", max_size=None, proxy=None) as whole:
            whole.send(json.dumps({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
            while (answer := json.loads(whole.recv(_PATIENCE))).get("id") != 1:
                pass
            target = answer["result"]["targetId"]
            address = f"ws://127.0.0.1:{number}/devtools/page/{target}"
            with connect(address, max_size=None, proxy=None) as socket:
                yield Tab(socket)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
