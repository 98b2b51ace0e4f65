"""The environment of all tests: one thread, a temporary cache, no account, no download."""

import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import settings

OUTER_DATA = os.environ.get("LIT_GPT_SCRATCH_DATA")

torch.set_num_threads(1)
# The same examples on every run: a suite that turns red has been turned red by a change.
settings.register_profile(
    "laws", max_examples=50, deadline=None, derandomize=True, database=None, print_blob=False
)
settings.load_profile("laws")


SYSTEMS = {"unix": os.name == "posix", "linux": sys.platform == "linux"}
# These break processes by Unix's signals and limits, and import what only Unix has.
collect_ignore = [] if SYSTEMS["unix"] else ["test_faults.py", "test_fuzz.py"]


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip a test with the marker `needs` if this is not the system that it needs."""
    for item in items:
        for marker in item.iter_markers("needs"):
            system, what = marker.args
            if not SYSTEMS[system]:
                item.add_marker(pytest.mark.skip(reason=f"needs {system}: {what}"))


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set the environment of all tests and of the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("LIT_GPT_SCRATCH_DATA", raising=False)
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("OMP_NUM_THREADS", "1")
        # As with an active environment: printed commands then begin with the program's name alone.
        patch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")  # servers that tests start
        yield


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """The folder that LIT_GPT_SCRATCH_DATA named, which holds Tiny Shakespeare.

    The variable itself is unset in tests: one that wants the real corpus sets it to this folder.
    """
    if not OUTER_DATA:
        pytest.skip("needs the real corpus: LIT_GPT_SCRATCH_DATA is not set")
    folder = Path(OUTER_DATA).expanduser().resolve()
    if not (folder / "tinyshakespeare" / "input.txt").is_file():
        pytest.skip("needs the real corpus: no tinyshakespeare/input.txt in LIT_GPT_SCRATCH_DATA")
    return folder
