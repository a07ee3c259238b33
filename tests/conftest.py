"""What holds for all tests: one thread, a fixed seed, and no network."""

import gc
import os

# Before torch is imported here or in a subprocess: tiny tensors are slower on several threads.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Random numbers do not depend on which tests ran before."""
    # `torch.manual_seed` also asks devices that are not there, which takes milliseconds for each test.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    yield


def pytest_collection_finish() -> None:
    """What is imported by now stays: collections of garbage need not look at it, nor come as often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Where the time goes, area by area, at the end of a run of several of them."""
    seconds: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, int] = defaultdict(int)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                first = Path(report.nodeid.partition("::")[0]).relative_to(TESTS.name).parts[0]
                seconds[first] += report.duration
                counts[first] += report.when == "call"
    if len(seconds) > 1:
        terminalreporter.section("time by area")
        for area in sorted(seconds, key=lambda area: -seconds[area]):
            terminalreporter.write_line(f"{seconds[area]:7.1f} s  {counts[area]:5} tests  {area}")
        terminalreporter.write_line(f"{sum(seconds.values()):7.1f} s  {sum(counts.values()):5} tests")
