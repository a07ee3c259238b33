"""What the help of `rmat eval` tells about the measurements by tasks."""

from .conftest import Rmat
from .test_evaluate_tasks import MEASUREMENTS

COMMON = ("MODEL", "--slots", "--eviction", "--batch-size", "--seed", "--device", "--out", "--json")


def test_help_names_every_measurement_and_its_options(rmat: Rmat) -> None:
    listed = rmat("eval", "--help").out
    for measurement in MEASUREMENTS:
        assert measurement in listed
        told = rmat("eval", measurement, "--help")
        assert told.status == 0 and not told.err
        for option in COMMON:
            assert option in told.out, (measurement, option)
        assert ("--samples" in told.out) == ("--memory" in told.out) == (measurement != "dialogue")
