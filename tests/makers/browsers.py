"""The page of the server in a real browser: a window of it, what went wrong in it and what it sent."""

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DESKTOP, PHONE = (1280, 800), (390, 844)
REFUSED = "Failed to load resource: the server responded with a status of 4"
"""How a browser's console tells of an answer with an error status."""

_NUMBERS = itertools.count()


def fresh(stem: str) -> str:
    """A session's name that no test had before."""
    return f"{stem}-{next(_NUMBERS)}"


@contextmanager
def running_browser() -> Iterator[Any]:
    """Chromium of this machine, else playwright's own; without either the test is skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        path = found or playwright.chromium.executable_path
        if not Path(path).is_file():
            pytest.skip("no chromium or chrome on this machine")
        running = playwright.chromium.launch(executable_path=path, args=options, timeout=180_000)
        yield running
        running.close()


class Windows:
    """Opens windows of the page at `address`, and closes them all."""

    def __init__(self, browser: Any, address: str) -> None:
        self._browser = browser
        self._address = address
        self._tabs: list[Tab] = []

    def __call__(
        self, size: tuple[int, int] = DESKTOP, *, at: str | None = None, scheme: str = "light"
    ) -> "Tab":
        self._tabs.append(Tab(self._browser, at or self._address, size, scheme))
        return self._tabs[-1]

    def close(self) -> None:
        for tab in self._tabs:
            tab.context.close()


class Tab:
    """The page in a window of its own, what went wrong in it and what it sent."""

    def __init__(self, browser: Any, address: str, size: tuple[int, int], scheme: str = "light") -> None:
        width, height = size
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=size == PHONE
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.address = address
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.chats: list[dict[str, Any]] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.faults.append("dialog"), dialog.dismiss()))
        self.page.on("request", self._note)
        self.page.goto(address)
        self.page.wait_for_selector("#model:not(:text-is('…')), #problem:not([hidden])", state="attached")

    def _note(self, request: Any) -> None:
        self.asked.append(request.url)
        if request.url.endswith("/chat/completions"):
            self.chats.append(request.post_data_json)

    def fits(self) -> None:
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert self.page.evaluate(
            "[...document.querySelectorAll('.main, .side, .panel, .body, .scroller, .list, dialog[open]')]"
            ".every((box) => box.scrollWidth <= box.clientWidth)"
        ), "nothing scrolls sideways"

    def sound(self, *expected: str) -> None:
        """Nothing went wrong but what is expected, nothing was asked of others, nothing is too wide."""
        assert [fault for fault in self.faults if not fault.startswith(expected or ("\0",))] == []
        assert all(url.startswith((self.address + "/", "data:")) for url in self.asked)
        self.fits()

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def settle(self) -> str:
        """Wait for the reply under way; the text of the last one."""
        self.page.wait_for_selector("#stop, .waiting, .writing", state="hidden")
        replies = self.page.locator(".turn.assistant .text").all_text_contents()
        return str(replies[-1]) if replies else ""

    def say(self, text: str) -> str:
        self.page.fill("#entry", text)
        self.page.press("#entry", "Enter")
        return self.settle()

    def problem(self, line: str) -> None:
        """Wait for this line about what went wrong."""
        self.page.wait_for_selector(f"#problem p:text-is('{line}')")

    def set(self, **settings: str) -> None:
        """Change settings; a memory that was shown is shown again."""
        shown = self.page.is_visible("#memory")
        if self.page.is_hidden("#settings"):
            self.page.click("#show-settings")
        for name, value in settings.items():
            self.page.fill(f"#{name}", value)
            self.page.dispatch_event(f"#{name}", "change")
        self.page.click("#show-memory" if shown else "#panel-close")

    def names(self) -> list[str]:
        return [str(name) for name in self.page.locator("#sessions .name").all_inner_texts()]

    def create(self, name: str) -> None:
        if self.page.is_visible("#side-open"):
            self.page.click("#side-open")
        self.page.click("#create")
        self.confirm("naming", name)

    def confirm(self, dialog: str, name: str | None = None) -> None:
        if name is not None:
            self.page.fill("#name", name)
        self.fits()
        self.page.click(f"#{dialog} [value=ok]")
        self.page.wait_for_selector(f"#{dialog}", state="hidden")

    def read(self, text: str) -> None:
        self.page.click("#read")
        self.page.fill("#pasted", text)
        self.confirm("reading")

    def session(self, name: str) -> Any:
        return self.page.evaluate("async (name) => (await fetch('v1/sessions/' + name)).json()", name)
