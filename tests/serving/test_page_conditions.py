"""The page of the server where the window is small, the network gone, a mouse missing or a wish refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rmat.serving.auth import Keys
from tests.makers.browsers import DESKTOP, PHONE, REFUSED, Windows, fresh, running_browser
from tests.makers.servers import running_app, running_server

pytestmark = pytest.mark.timeout(900)

TEXT = "The gate keeps what is worth keeping, and the oldest slot leaves first.\n" * 3
NAMELESS = """[...document.querySelectorAll('button, input, textarea, summary, [role=group], dialog, aside, nav')]
  .filter((e) => !(e.ariaLabel || e.labels?.length || e.getAttribute('aria-labelledby') || e.textContent.trim()))
  .map((e) => e.outerHTML)"""
CONTRAST = """(selector) => {
  const light = (c) => c.map((x) => (x /= 255, x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4));
  const level = ([r, g, b]) => .2126 * r + .7152 * g + .0722 * b;
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  let element = document.querySelector(selector), ground = [0, 0, 0, 0];
  const ink = parts(getComputedStyle(element).color);
  for (; ground[3] === 0 && element; element = element.parentElement) {
    ground = parts(getComputedStyle(element).backgroundColor);
    if (ground.length === 3) ground.push(1);
  }
  const [a, b] = [ink, ground].map((c) => level(light(c.slice(0, 3)))).sort((x, y) => y - x);
  return (a + .05) / (b + .05);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_app(tmp_path_factory.mktemp("sessions")) as app, running_server(app) as address:
        yield address


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Windows]:
    windows = Windows(browser, address)
    yield windows
    windows.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_and_can_be_read(opened: Windows, tmp_path: Path, size: tuple[int, int], scheme: str) -> None:
    tab, name = opened(size, scheme=scheme), fresh("session-with-a-name-that-is-rather-long")
    tab.set(max_tokens="90")
    tab.create(name)
    tab.read(TEXT)
    tab.say("What does the gate keep? " + "w" * 300)
    tab.page.screenshot(path=tmp_path / "chat.png")
    tab.fits()
    for view in ("memory", "settings"):
        if tab.page.get_attribute(f"#show-{view}", "aria-expanded") == "false":
            tab.page.click(f"#show-{view}")
        tab.page.wait_for_selector(f"#{view}", state="visible")
        if view == "memory":
            tab.page.locator(".slots button").nth(2).click()
            assert "tokens ago" in tab.text("#words")
        tab.page.screenshot(path=tmp_path / f"{view}.png")
        tab.fits()
        for selector in (".legend", "#words p", ".field small", ".turn.user .text", "#subtitle", "#model"):
            assert tab.page.evaluate(CONTRAST, selector) >= 4.5, selector
        if size == PHONE:
            assert tab.page.evaluate("main.inert"), "what lies behind is out of reach"
            tab.page.keyboard.press("Escape")
            assert tab.page.is_hidden("#panel") and not tab.page.evaluate("main.inert")
    tones = tab.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert all(tone < 60 if scheme == "dark" else tone > 200 for tone in tones)
    if size == PHONE:
        assert tab.page.is_hidden("#side")
        tab.page.click("#side-open")
        tab.page.screenshot(path=tmp_path / "side.png")
        tab.fits()
        tab.page.click("#temporary button")
        assert tab.page.is_hidden("#side") and tab.text("#title") == "Temporary chat"
    for picture in tmp_path.glob("*.png"):
        assert picture.stat().st_size > 15_000
    assert tab.page.evaluate(NAMELESS) == []
    tab.sound()


def test_a_lost_connection(opened: Windows) -> None:
    tab, name = opened(), fresh("offline")
    tab.set(max_tokens="10")
    tab.create(name)
    tab.say("one")
    tab.context.set_offline(True)
    tab.say("two")
    assert tab.text("#problem p").startswith("The server does not answer. This page tries again by itself")
    assert tab.page.is_visible("#banner") and tab.page.input_value("#entry") == "two"
    assert tab.page.locator(".turn.user").count() == 1
    tab.context.set_offline(False)
    tab.page.wait_for_selector("#banner", state="hidden")
    tab.page.wait_for_selector("#problem", state="hidden")
    tab.page.click("#send")
    assert len(tab.settle()) == 10
    assert tab.session(name)["turns"] == 4
    tab.sound("Failed to load resource: net::ERR_INTERNET_DISCONNECTED")


def test_a_stream_that_breaks_off(opened: Windows) -> None:
    tab = opened()
    begun = 'data: {"choices": [{"index": 0, "delta": {"content": "half"}}]}\r\n\r\ndata: {"choi'
    answer = {"status": 200, "content_type": "text/event-stream", "body": begun}
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))
    assert tab.say("hello") == "half"
    assert tab.text("#problem p").startswith("The connection was lost before the reply was complete.")
    answer["body"] = 'data: {"error": {"message": "the model stumbled"}}\n\n'
    tab.page.click("#dismiss")
    tab.say("hello again")
    assert tab.text("#problem p") == "The model stumbled."
    assert tab.page.input_value("#entry") == "hello again"
    tab.sound()


def test_a_refusal_says_what_to_do_and_can_be_tried_again(opened: Windows) -> None:
    tab = opened()
    tab.page.evaluate("settings.max_tokens = 9999")
    tab.say("hello")
    assert "max_tokens is 9999: this server writes at most 4096 in one answer." in tab.text("#problem p")
    tab.set(max_tokens="10")
    busy = {
        "status": 429,
        "headers": {"Retry-After": "3", "Content-Type": "application/json"},
        "body": '{"error": {"message": "too many requests wait already"}}',
    }
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(**busy))
    tab.page.click("#again")
    tab.problem("Too many requests wait already. Try again in 3 seconds.")
    tab.page.unroute("**/v1/chat/completions")
    tab.page.click("#again")
    assert len(tab.settle()) == 10 and tab.page.is_hidden("#problem")
    tab.page.goto("about:blank")  # from the page itself it would be a change of the hash only
    tab.page.goto(tab.address + "/#no-such-session")
    tab.page.wait_for_selector("#problem p:text-matches('no-such-session')")
    assert tab.text("#title") == "Temporary chat"
    tab.sound(REFUSED)


def test_fields_hold_what_the_server_takes(opened: Windows) -> None:
    tab = opened()
    tab.set(max_tokens="12")
    tab.set(max_tokens="4097")
    assert not tab.page.evaluate("document.getElementById('max_tokens').checkValidity()")
    assert len(tab.say("hello")) == 12
    assert tab.chats[0]["max_tokens"] == 12
    tab.sound()


def test_what_an_earlier_visit_left_broken_stops_nothing(opened: Windows) -> None:
    """A temperature of "hot" was sent as it was, and every message was refused until the storage was cleared."""
    tab = opened()
    for left in (
        "{",
        "5",
        "null",
        '{"temperature": "hot", "top_p": -1, "max_tokens": "x", "seed": {}, "system": 7}',
    ):
        tab.page.evaluate("(left) => localStorage.setItem('rmat.settings', left)", left)
        tab.page.reload()
        tab.page.wait_for_selector("#model:not(:text-is('…'))", state="attached")
        tab.page.evaluate("settings.max_tokens = 6")
        assert len(tab.say("hello")) == 6
        sent = tab.chats[-1]
        assert (sent["temperature"], sent["top_p"]) == (0.8, 0.95)
        assert "seed" not in sent and [m["role"] for m in sent["messages"]] == ["user"]
    tab.sound()


def test_a_key_is_asked_for_and_taken_where_the_window_is_narrow(opened: Windows, tmp_path: Path) -> None:
    with running_app(tmp_path, keys=Keys(["right"])) as app, running_server(app) as address:
        tab = opened(PHONE, at=address)
        line = "The key is missing or wrong. Enter the key that you were given under Settings."
        tab.page.wait_for_selector(f"#panel #key-problem:text-is('{line}')")
        assert tab.page.locator("#key-problem").bounding_box()["y"] < PHONE[1]
        tab.page.fill("#key", "wrong")
        tab.page.press("#key", "Enter")
        tab.page.wait_for_selector(f"#panel #key-problem:text-is('{line}')")
        tab.page.fill("#key", "right")
        tab.page.press("#key", "Enter")
        tab.page.wait_for_selector("#panel", state="hidden")
        assert not tab.page.evaluate("main.inert") and tab.page.is_hidden("#problem")
        tab.sound(REFUSED)


def test_a_long_document_is_read_in_parts(opened: Windows) -> None:
    tab, name = opened(), fresh("long")
    tab.create(name)
    words = "".join(f"{number} \N{GRINNING FACE} is not {number + 1}.\n" for number in range(25_000))
    sent: list[str] = []

    def take(route: Any) -> None:
        sent.append(route.request.post_data_json["text"])
        full = {
            "status": 507,
            "content_type": "application/json",
            "body": '{"error": {"message": "the disk is full"}}',
        }
        route.fulfill(**full) if len(sent) == 3 else route.fulfill(
            status=200, content_type="application/json", body="{}"
        )

    tab.page.route("**/read", take)
    tab.page.click("#read")
    tab.page.evaluate("(words) => { document.getElementById('pasted').value = words; }", words)
    tab.page.click("#reading [value=ok]")
    tab.page.wait_for_selector("#reading .said:text-matches('disk is full')")
    assert "It has read the first" in tab.text("#reading .said") and "remembers that" in tab.text(
        "#reading .said"
    )
    assert len(sent) == 3 and words.startswith("".join(sent)) and all(part.endswith("\n") for part in sent)
    del sent[:]
    sent += ["", "", ""]  # no further fault
    tab.page.click("#reading [value=ok]")
    tab.page.wait_for_selector("#reading", state="hidden")
    assert "".join(sent) == words and max(map(len, sent)) <= 200_000
    tab.sound(REFUSED, "Failed to load resource: the server responded with a status of 507")


def test_a_damaged_session_is_shown_and_can_be_deleted(opened: Windows, tmp_path: Path) -> None:
    with running_app(tmp_path) as app, running_server(app) as address:
        tab, name = opened(at=address), fresh("damaged")
        tab.create(name)
        tab.read(TEXT)
        assert "Read the pasted text" in tab.text(".event")
        tab.page.reload()
        tab.page.wait_for_selector(".blank p:text-matches('It has read the pasted text')")
        (file,) = tmp_path.rglob(f"{name}*.safetensors")
        file.write_bytes(file.read_bytes()[:-9])
        tab.page.goto("about:blank")
        tab.page.goto(address)
        tab.page.click(f"#sessions button:has-text('{name}'):has-text('damaged')")
        tab.confirm("removing")
        tab.page.wait_for_selector("#sessions:has-text('None yet.')")
        assert not list(tmp_path.rglob(f"{name}*.safetensors"))
        tab.sound(REFUSED)


def test_by_keyboard_alone(opened: Windows) -> None:
    tab, name = opened(), fresh("keys")
    tab.set(max_tokens="40")
    keyboard = tab.page.keyboard

    def reach(what: str) -> None:
        for _ in range(60):
            if tab.page.evaluate("(what) => document.activeElement.matches(what)", what):
                return
            keyboard.press("Tab")
        raise AssertionError(f"the tab key does not lead to {what}")

    tab.page.evaluate("document.activeElement.blur()")
    reach("#create")
    keyboard.press("Enter")
    keyboard.type(name)
    keyboard.press("Enter")
    tab.page.wait_for_selector("#naming", state="hidden")
    assert tab.page.evaluate("document.activeElement.id") == "entry"
    keyboard.type("hello")
    keyboard.press("Enter")
    assert len(tab.settle()) == 40
    reach("#show-memory[aria-expanded=false], .slots button")
    if tab.page.evaluate("document.activeElement.id") == "show-memory":
        keyboard.press("Enter")
    reach(".slots button")
    seen = set()
    for key in ("Home", "ArrowRight", "ArrowRight", "End"):
        keyboard.press(key)
        seen.add(tab.text("#words"))
    assert len(seen) == 4 and tab.page.evaluate("document.activeElement.matches('.slots button:last-child')")
    reach("#sessions .deeds .danger")
    keyboard.press("Enter")
    tab.page.wait_for_selector("#removing[open]")
    keyboard.press("Escape")
    assert tab.session(name)["turns"] == 2
    tab.sound()
