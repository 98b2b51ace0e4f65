"""A short part of `make faults`, with real processes of the command line."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))
import campaign
from harness import Prepared

# Kind and number. Other tests read damaged checkpoints and locked folders in their own process.
SHORT = [
    ("killed while saving", 0),
    ("file size limited: no room for a checkpoint", 0),
]


@pytest.mark.slow
def test_a_fault_ends_in_the_same_result_or_in_one_error_line(tmp_path: Path) -> None:
    outcomes = campaign.campaign(Prepared(tmp_path, seed=1337), SHORT, workers=2)
    assert sorted(kind for kind, _ in outcomes) == sorted(kind for kind, _ in SHORT)
    assert [outcome for outcome in outcomes if outcome[1].startswith("BAD")] == []


def test_there_are_at_least_60_faults_without_root() -> None:
    """The 20 kills of one run count; faults that mount a file system do not."""
    kinds = {k: v for k, v in campaign.kinds().items() if k not in campaign.disks.MOUNTED}
    assert sum(count for count, _ in kinds.values()) + 20 >= 60
