"""The page in a real browser: it draws itself without a fault and answers mouse, keys and narrow screens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rmat.report.page import page
from tests.makers.browsers import running_browser
from tests.makers.models import make_model
from tests.makers.reports import BYTES, told_of
from tests.report.test_contents import HOSTILE

pytestmark = pytest.mark.timeout(900)

TEXT = "The gate keeps what is worth keeping, and the oldest slot leaves first.\n" * 6
TRAINING = {
    "preset": "tiny",
    "variant": "recommended",
    "data": ["books"],
    "splits": {"train": {"documents": 3, "tokens": 10, "bytes": 30}},
    "train": [
        {"step": k, "tokens": 8 * k, "loss": 3 / k, "bits_per_byte": 2 / k, "openness": [0.1, 0.2]}
        for k in range(1, 9)
    ],
    "eval": [{"step": k, "bits_per_byte": 2 / k, "bits_per_byte_memory_zeroed": 2.2 / k} for k in (4, 8)],
}


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def browser(running: Any) -> Iterator[Any]:
    """It closes the pages of a test behind it."""
    yield running
    for context in running.contexts:
        context.close()


class Opened:
    """A page and what went wrong in it."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, height: int = 900) -> None:
        self.tab = browser.new_page(viewport={"width": width, "height": height})
        self.tab.set_default_timeout(180_000)
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.faults.append(message.text))
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.faults.append("dialog"), dialog.dismiss()))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(path.as_uri(), timeout=180_000)

    def text(self, selector: str) -> str:
        return str(self.tab.inner_text(selector))

    def sound(self) -> None:
        """No fault, nothing loaded from elsewhere, nothing wider than the window."""
        assert not self.faults
        assert len(self.asked) == 1, "the page loads itself only"
        assert self.tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def written(folder: Path, case: str, *texts: str, training: Any = None, **overrides: Any) -> Path:
    model = make_model(case, dtype=torch.float32, vocab_size=BYTES.vocab_size, **overrides)
    path = folder / "report.html"
    path.write_text(page(told_of(model, texts or (TEXT,), training)), encoding="utf-8")
    return path


def test_on_a_desktop(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, written(tmp_path, "recommended", training=TRAINING))
    tab = opened.tab
    assert tab.evaluate("pane.textContent").endswith(TEXT)
    shares = tab.evaluate("MEMORY_LAYERS.map((k) => layer_of(k).share.reduce((a, b) => a + b, 0))")
    first = shares.index(max(shares))
    assert tab.evaluate("layer_index") == first, "it opens on the layer that the text read most from"
    assert tab.locator("#training figure").count() == 3 and tab.locator("#fusion .head").count() == 8

    token = tab.evaluate(
        "[...layer.of_token].findIndex((e, i) => i > 60 && e >= 0 && layer.readers[e].length > 2)"
    )
    tab.evaluate(f"choose({token}, false, true)")  # scrolled into view, not yet held
    tab.click(f"#t{token}")
    panel = opened.text("#panel")
    assert (
        f"Read from the memory, layer {first + 1}" in panel
        and "tokens ago" in panel
        and "entered the bank" in panel
    )
    sources = tab.locator("#panel .sources button")
    assert 1 <= sources.count() <= 5
    marked = {
        int(name[1:]) for name in tab.evaluate("[...document.querySelectorAll('.t.s')].map((t) => t.id)")
    }
    read = {int(sources.nth(k).get_attribute("data-token")) for k in range(sources.count())}
    assert marked == read and all(source < token for source in read)

    sources.first.click()
    source = int(tab.evaluate("active"))
    assert source in read and "tokens later" in opened.text("#panel")
    before = opened.text("#panel")
    tab.locator("#layers label").nth(1 - first).click()
    assert f"layer {2 - first}" in opened.text("#panel") and opened.text("#panel") != before
    for way in tab.locator("#colour option").all():
        tab.select_option("#colour", way.get_attribute("value"))
        assert opened.text("#legend")
    tab.focus("#pane")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("active") == source + 1
    tab.keyboard.press("Shift+ArrowRight")
    assert tab.evaluate("layer.of_token[active]") >= 0
    tab.click("#steps button >> nth=0")
    assert tab.evaluate("layer.of_token[active]") >= 0 and tab.evaluate("active") <= source + 1
    tab.focus("#pane")
    tab.keyboard.press("Escape")
    assert "Choose a token" in opened.text("#panel")

    tab.focus("#positions svg[tabindex]")
    tab.keyboard.press("End")
    assert "memory on" in opened.text("#positions .readout >> nth=0")
    tab.screenshot(path=tmp_path / "desktop.png", full_page=True)
    assert (tmp_path / "desktop.png").stat().st_size > 20_000
    opened.sound()


def test_a_closed_gate_is_given_as_the_reason(browser: Any, tmp_path: Path) -> None:
    """The page said of every token that no segment had closed yet, in the middle of a text that no gate let in."""
    model = make_model("recommended", dtype=torch.float32, vocab_size=BYTES.vocab_size)
    for block in model.blocks:
        torch.nn.init.constant_(block.memory.writer.score.bias, -1e3)
    path = tmp_path / "report.html"
    path.write_text(page(told_of(model, (TEXT,))), encoding="utf-8")
    opened = Opened(browser, path)
    opened.tab.evaluate("choose(2, true, true)")
    assert "since the first write comes when a segment closes" in opened.text("#panel")
    opened.tab.evaluate("choose(200, true, true)")
    assert "since the gate had refused every token so far" in opened.text("#panel")
    assert "Not written: the gate refused it" in opened.text("#panel")
    opened.sound()


def test_on_a_phone(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, written(tmp_path, "recommended"), width=375, height=740)
    opened.tab.evaluate("choose(90, true, true)")
    opened.tab.locator("#t91").click()
    assert opened.text("#panel").startswith(opened.tab.evaluate("name_of(91)").strip())
    pane, panel = (opened.tab.locator(name).bounding_box() for name in ("#pane", "#panel"))
    assert panel["y"] > pane["y"] + pane["height"] - 1, "the panel stands below the text"
    assert pane["height"] + panel["height"] < 740, "both are seen at once"
    opened.tab.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert (tmp_path / "phone.png").stat().st_size > 20_000
    opened.sound()


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("paper", "As part of tokens"),
        ("pool_push_head", "As part of tokens"),
        ("local", "This model has no memory"),
        ("memory_in_one_layer_joint_output", "Read from the memory, layer 1"),
        (
            "admitted_of_heads",
            "entered the bank of key head 2 when local attention lost sight of it at token",
        ),
        ("admitted_all_with_sinks", "It is a sink: every token from 12 on sees it beside the bank."),
    ],
)
def test_other_models(browser: Any, tmp_path: Path, case: str, says: str) -> None:
    opened = Opened(browser, written(tmp_path, case, TEXT, TEXT[:90]))
    found = opened.tab.evaluate(
        """(says) => {
          for (let i = 0; i < N; i++) { choose(i, true, false); if (panel.textContent.includes(says)) return i; }
          return -1;
        }""",
        says,
    )
    assert found >= 0
    assert (opened.tab.locator("#slots").count() == 1) == (case != "local")
    opened.sound()


def test_a_hostile_text_does_not_run(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, written(tmp_path, "recommended", HOSTILE * 2))
    opened.tab.evaluate("for (let i = 0; i < N; i++) choose(i, true, true)")
    assert opened.tab.evaluate("pane.textContent").endswith(HOSTILE * 2)
    assert opened.tab.locator("img").count() == 0
    opened.sound()
