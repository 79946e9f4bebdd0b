"""A browser without a window, which the project does not ship: `make browser` puts Chromium into .browser.

It is spoken to in the Chrome DevTools Protocol, through two pipes: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

_FOLDER = Path(__file__).resolve().parents[1] / ".browser"
_NAME = "chromium-headless-shell"
_PATIENCE_S = 60.0
_GONE = -32000  # code of an error
_ARGUMENTS = (
    "--remote-debugging-pipe",
    "--no-sandbox",  # which refuses to run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# In one step, since the page may renew itself between two.
_CLICK_LINK = """text => {
  const link = [...document.links].find(each => each.textContent.includes(text));
  if (!link) return `no link holds ${text}`;
  for (let fold = link.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  link.scrollIntoView({block: "center"});
  const {x, y, width, height} = link.getClientRects()[0];
  const top = document.elementFromPoint(x + width / 2, y + height / 2);
  if (!link.contains(top)) return `${top?.outerHTML} covers ${link.outerHTML}`;
  link.click();
  return "";
}"""


class Browser:
    """A process of Chromium; the test is skipped where there is none."""

    def __init__(self, folder: Path) -> None:
        fetched = _FOLDER / "usr" / "lib" / "chromium" / _NAME
        program = fetched if fetched.exists() else shutil.which(_NAME)
        if program is None:
            pytest.skip(f"needs {_NAME}: `make browser` fetches it")
        libraries = {str(path.parent) for path in (_FOLDER / "usr" / "lib").rglob("*.so*")}
        environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(sorted(libraries))}
        its_input, self._to = os.pipe()
        self._from, its_output = os.pipe()
        self._log = folder / "browser.log"
        # The browser knows its pipes by their numbers.
        command = ["bash", "-c", f'exec "$@" 3<&{its_input} 4>&{its_output}', "bash", str(program), *_ARGUMENTS]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"--user-data-dir={folder / 'browser'}"],
                pass_fds=(its_input, its_output),
                stdout=log,
                stderr=log,
                env=environment,
            )
        os.close(its_input)
        os.close(its_output)
        self._numbers = itertools.count(1)
        self._unread = b""
        self.errors: list[str] = []

    def open(self, url: str, width: int, height: int) -> Page:
        """A page in a window of so many CSS pixels; a narrow one as a phone shows it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        page.call("Page.navigate", url=url)
        return page

    def call(self, method: str, session: str | None = None, **parameters: object) -> Any:
        """Ask for something of the protocol; returns the answer. What pages complain of meanwhile is in `errors`."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            heard = self._next()
            if heard.get("id") == number:
                if heard.get("error", {}).get("code") == _GONE:
                    raise PageLeft(heard["error"]["message"])
                assert "error" not in heard, f"{method}: {heard['error']}"
                return heard["result"]
            if heard.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(heard["params"]["exceptionDetails"]))
            elif heard.get("method") == "Log.entryAdded" and heard["params"]["entry"]["level"] == "error":
                self.errors.append(json.dumps(heard["params"]["entry"]))

    def _next(self) -> Any:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], _PATIENCE_S)
            some = os.read(self._from, 1 << 20) if ready else b""
            assert some, f"the browser does not answer:\n{self._log.read_text()}"
            self._unread += some
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(30)
        os.close(self._to)
        os.close(self._from)


class PageLeft(Exception):
    """What was asked of a page got no answer, since another one took its place."""


class Page:
    """A page in a browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **parameters: object) -> Any:
        """Ask for something of the protocol."""
        return self._browser.call(method, self._session, **parameters)

    def value(self, expression: str) -> Any:
        """What an expression in JavaScript gives in the page as it is now."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self) -> str:
        """What the page shows, white space as one blank."""
        try:
            return " ".join(str(self.value("document.body?.innerText ?? ''")).split())
        except PageLeft:  # on the way to another one
            return ""

    def wait_for(self, *texts: str) -> str:
        """Until it shows all of these at once; returns all that it shows then."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            shown = self.text()
            if all(text in shown for text in texts):
                return shown
            assert time.monotonic() < deadline, f"{texts} are not all in: {shown}"
            time.sleep(0.2)

    def click_link(self, text: str) -> None:
        """Press the first link that holds this text; what folds it away is opened, and nothing may cover it."""
        problem = self.value(f"({_CLICK_LINK})({json.dumps(text)})")
        assert not problem, problem

    def fits(self) -> bool:
        """Whether nothing stands out beyond the window's right edge."""
        return bool(self.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))

    def picture(self, path: Path) -> None:
        """Save all of the page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
