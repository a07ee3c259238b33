"""What the page of the server does, in a real browser with a tiny model behind it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rmat.serving.auth import Keys
from tests.makers.browsers import REFUSED, Windows, fresh, running_browser
from tests.makers.servers import running_app, running_server

pytestmark = pytest.mark.timeout(900)

HOSTILE = '<img src=x onerror="alert(1)"><b>bold</b>&amp;<script>alert(2)</script>'


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


def test_a_chat_without_a_session(opened: Windows) -> None:
    tab = opened()
    tab.set(max_tokens="30", seed="3", system="Be brief.")
    first = tab.say("hello")
    assert len(first) == 30 and first.isprintable()
    assert "30 written" in tab.text("#stats")
    tab.say("again")
    roles = [[message["role"] for message in chat["messages"]] for chat in tab.chats]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"]]
    assert tab.chats[1]["messages"][2]["content"] == first
    assert all("session" not in chat and chat["seed"] == 3 for chat in tab.chats)
    tab.page.reload()
    tab.page.wait_for_selector(".blank")
    assert tab.page.locator(".turn").count() == 0
    tab.say("hello")
    assert tab.chats[-1]["max_tokens"] == 30, "settings outlive the page"
    assert tab.settle() == first, "and the same seed gives the same reply"
    tab.sound()


def test_text_appears_as_it_is_written_and_stops(opened: Windows) -> None:
    tab, name = opened(), fresh("stopped")
    tab.create(name)
    tab.set(max_tokens="4000")
    tab.page.fill("#entry", "one")
    tab.page.press("#entry", "Shift+Enter")
    tab.page.keyboard.type("two")
    assert tab.page.input_value("#entry") == "one\ntwo"
    tab.page.press("#entry", "Enter")
    tab.page.wait_for_selector(r".turn.writing .text:text-matches('.{21,}')")
    assert tab.page.locator(".turn.assistant").last.get_attribute("aria-busy") == "true"
    tab.page.click("#stop")
    assert 20 < len(tab.settle()) < 4000
    tab.page.wait_for_selector("text=Stopped. The session does not have this exchange.")
    assert tab.session(name)["history"] == []
    tab.set(max_tokens="10")
    assert len(tab.say("go on")) == 10
    assert tab.session(name)["turns"] == 2
    tab.sound()


def test_sessions_are_made_forked_renamed_and_deleted(opened: Windows) -> None:
    tab, name, copy, other = opened(), fresh("chat"), fresh("copy"), fresh("other")
    tab.set(max_tokens="12", system="Be kind.")
    tab.create(name)
    reply = tab.say("hello")
    tab.say("and")
    assert [[m["role"] for m in chat["messages"]] for chat in tab.chats] == [["system", "user"], ["user"]]
    assert {chat["session"] for chat in tab.chats} == {name}
    assert tab.session(name)["history"][1:3] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": reply},
    ]
    assert f"{tab.session(name)['tokens_read']} tokens read" in tab.text("#subtitle")
    tab.page.click("text=Fork")
    tab.page.fill("#name", name)
    tab.page.click("#naming [value=ok]")
    tab.page.wait_for_selector("#naming .said")
    assert name in tab.text("#naming .said"), "the name is taken"
    tab.confirm("naming", copy)
    tab.page.wait_for_selector(".turn >> nth=4")
    assert tab.session(copy)["tokens_read"] == tab.session(name)["tokens_read"]
    tab.page.click("text=Rename")
    tab.confirm("naming", other)
    assert tab.text("#title") == other and tab.page.url.endswith("#" + other)
    assert {name, other} <= set(tab.names()) and copy not in tab.names()
    tab.page.click("text=Delete")
    tab.page.click("#removing [value=cancel]")
    assert tab.session(other)["name"] == other
    tab.page.click("text=Delete")
    tab.confirm("removing")
    assert tab.text("#title") == "Temporary chat" and other not in tab.names()
    assert "error" in tab.session(other)
    tab.sound(REFUSED)


def test_what_it_remembers(opened: Windows, tmp_path: Path) -> None:
    tab, name = opened(), fresh("book")
    tab.page.click("#read")
    tab.page.fill("#new-name", name)
    tab.page.fill("#pasted", "the quick brown fox jumps over the lazy dog, " * 3)
    tab.confirm("reading")
    tab.page.wait_for_selector(".slots button")
    memory = tab.page.evaluate("async (name) => (await fetch(`v1/sessions/${name}/memory`)).json()", name)
    for layer, grid in zip(memory["layers"], tab.page.locator(".layer").all(), strict=True):
        assert grid.locator(".slots button").count() == layer["filled"] == 8
        assert f"{layer['pushed']} pushed, {100 * layer['openness']:.1f} % open" in grid.inner_text()
    cells, words = tab.page.locator(".slots").nth(1).locator("button"), tab.page.locator("#words")
    held = sorted(memory["layers"][1]["held"], key=lambda slot: slot["age"])
    cells.nth(0).focus()
    for rank in range(4):
        said = words.inner_text()
        assert f"{held[rank]['age']} token" in said and f"ago, gate {held[rank]['gate']:.2f}" in said
        assert words.locator(".quote").text_content() == held[rank]["text"]
        tab.page.keyboard.press("ArrowRight")
    gates = [float(cell.evaluate("(e) => e.style.getPropertyValue('--gate')")) for cell in cells.all()]
    order = sorted(range(8), key=lambda rank: held[rank]["gate"])
    assert [gates[rank] for rank in order] == sorted(gates) and (min(gates), max(gates)) == (0, 1)
    cells.nth(6).click()
    tab.page.hover("#title")
    assert f"{held[6]['age']} tokens ago" in words.inner_text(), "a chosen slot stays shown"
    (tmp_path / "more.txt").write_text("and then it sleeps, ünder a tree")
    tab.page.click("#read")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\x00\xff")
    tab.page.set_input_files("#file", tmp_path / "picture.txt")
    tab.page.click("#reading [value=ok]")
    tab.page.wait_for_selector("#reading .said")
    assert "picture.txt is not UTF-8 text" in tab.text("#reading .said")
    tab.page.set_input_files("#file", tmp_path / "more.txt")
    tab.confirm("reading")
    tab.page.wait_for_selector("text=Read more.txt: 33 tokens")
    tab.page.wait_for_selector(".slots button.new")
    tab.page.screenshot(path=tmp_path / "memory.png")
    tab.sound()


def test_hostile_text_is_text(opened: Windows) -> None:
    tab, name = opened(), fresh("hostile")
    tab.set(max_tokens="5", system=HOSTILE)
    tab.create(name)
    tab.read(HOSTILE * 3)
    tab.say(HOSTILE)
    for _ in range(2):  # as it was sent, then as the server gives it back
        shown = tab.page.locator(".turn.user .text, .turn.system .text")
        assert [shown.nth(k).text_content() for k in range(2)] == [HOSTILE, HOSTILE]
        tab.page.locator(".slots button").first.focus()
        assert tab.page.locator("img, b:not(.brand b), .log script, #words script").count() == 0
        tab.page.reload()
        tab.page.wait_for_selector(".slots button")
        tab.page.wait_for_selector(".turn.assistant")
    tab.sound()


def test_a_wrong_key(opened: Windows, tmp_path: Path) -> None:
    with running_app(tmp_path, keys=Keys(["right"])) as app, running_server(app) as address:
        tab = opened(at=address)
        line = "The key is missing or wrong. Enter the key that you were given under Settings."
        assert tab.text("#problem p") == line and tab.page.is_visible("#key")
        tab.page.fill("#key", "wrong")
        tab.page.press("#key", "Enter")
        tab.say("hello")
        assert tab.text("#problem p") == line and tab.page.input_value("#entry") == "hello"
        assert tab.page.locator(".turn").count() == 0
        tab.page.fill("#key", "right")
        tab.page.dispatch_event("#key", "change")
        tab.page.wait_for_selector("#problem", state="hidden")
        assert tab.text("#model") == "tiny"
        tab.set(max_tokens="5")
        assert len(tab.say("hello")) == 5
        assert tab.page.evaluate("sessionStorage.getItem('rmat.key')") == "right"
        assert "right" not in tab.page.evaluate("JSON.stringify({ ...localStorage }) + document.cookie")
        tab.sound(REFUSED)
