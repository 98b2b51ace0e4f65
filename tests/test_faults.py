"""A short part of `make faults`: one fault of a kind, by real processes of the command line."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))
import campaign
from harness import Prepared

# Kind and number: one of each family, those that take least time and that no other test has.
SHORT = [
    ("killed while saving", 0),
    ("file size limited: no room for a checkpoint", 0),
    ("checkpoint damaged", 2),
    ("resumed twice at once", 0),
]


@pytest.mark.slow
def test_what_can_go_wrong_ends_in_the_same_run_or_in_one_line(tmp_path: Path) -> None:
    """Weights, rows and files are those of a run that nobody touched, to the last bit."""
    outcomes = campaign.campaign(Prepared(tmp_path, seed=1337), SHORT, workers=2)
    assert sorted(kind for kind, _ in outcomes) == sorted(kind for kind, _ in SHORT)
    assert [outcome for outcome in outcomes if outcome[1].startswith("BAD")] == []


def test_every_kind_of_fault_is_there_often_enough() -> None:
    """At least 60 with the 20 kills of one run, also where no small disks can be mounted."""
    kinds = {k: v for k, v in campaign.kinds().items() if k not in campaign.disks.MOUNTED}
    assert sum(count for count, _ in kinds.values()) + 20 >= 60
