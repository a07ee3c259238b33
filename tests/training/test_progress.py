"""What a person sees."""

import io
from typing import Any

import pytest
from rich.console import Console

from rmat.training.progress import Terminal, describe_row, duration

ROW: dict[str, Any] = {
    "kind": "train",
    "step": 1200,
    "tokens": 4915200,
    "loss": 2.34567,
    "bits_per_byte": 1.23456,
    "gradient_norm": 0.5,
    "lr": 1e-3,
    "openness": [0.031, 0.25],
    "tokens_per_second": 8123.4,
    "elapsed": 605.0,
    "seconds_left": 3725.0,
}


def test_a_row_in_words() -> None:
    assert describe_row(ROW) == (
        "step 1,200  4,915,200 tokens  loss 2.3457  1.235 bits/byte  8,123 tokens/s  1:02:05 left  written 3% 25%"
    )
    assert "loss" not in describe_row({**ROW, "loss": None, "bits_per_byte": None})
    assert "written" not in describe_row({**ROW, "openness": []})
    assert (
        describe_row({"kind": "eval", "step": 5, "bits_per_byte": 2.0})
        == "step 5  valid  bits per byte 2.0000"
    )
    assert describe_row({"kind": "skipped", "step": 5, "reason": "why"}) == "step 5  skipped: why"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def show(terminal: bool) -> str:
    file = io.StringIO()
    reporter = Terminal(Console(file=file, force_terminal=terminal, width=150, soft_wrap=True))
    reporter.started(0, 10)
    reporter.stepped(1)
    reporter.logged(ROW)
    reporter.say("[bold]as it is[/bold]")
    reporter.stopped()
    return file.getvalue()


def test_elsewhere_than_on_a_terminal_there_is_a_line_a_row() -> None:
    assert show(terminal=False) == describe_row(ROW) + "\n[bold]as it is[/bold]\n"


def test_on_a_terminal_there_is_a_bar() -> None:
    shown = show(terminal=True)
    assert "1/10" in shown and "[bold]as it is[/bold]" in shown
