"""What the help of `rmat eval` tells about its measurements."""

from tests.cli.conftest import Rmat
from tests.cli.test_evaluate_tasks import MEASUREMENTS

COMMON = ("MODEL", "--slots", "--eviction", "--batch-size", "--seed", "--device", "--out", "--json")


def test_help_names_every_measurement_and_its_options(rmat: Rmat) -> None:
    listed = rmat("eval", "--help").out
    others = ("perplexity", "ablation", "recall", "completion")
    for measurement in (*MEASUREMENTS, *others):
        assert measurement in listed
        told = rmat("eval", measurement, "--help")
        assert told.status == 0 and not told.err
        for option in COMMON:
            assert option in told.out, (measurement, option)
        if measurement in others:
            continue
        assert ("--samples" in told.out) == ("--memory" in told.out) == (measurement != "dialogue")
