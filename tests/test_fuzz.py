"""A short part of `make fuzz`, and tests that its monitor detects forbidden actions."""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "faults"))
import fuzz
import monitor
from fuzz import Result, campaign, table
from readers import READERS, Material, last, make_material

from lit_gpt_scratch.errors import InputError

pytestmark = pytest.mark.slow
SEED = 7


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", "")  # make_material sets it; monkeypatch restores it
        yield make_material(tmp_path_factory.mktemp("material"))


def test_damaged_files_are_refused_or_harmless(material: Material, tmp_path: Path) -> None:
    results = campaign(range(100), SEED, material, tmp_path / "kept")
    assert len(results) == 100
    assert {result.outcome for result in results} == {"refused", "harmless"}, table(results)
    assert {result.reader for result in results} == set(READERS)


def unpickles(folder: Path) -> None:
    if last(folder).exists():
        torch.load(last(folder), weights_only=False)


def waits(_: Path) -> None:
    time.sleep(1000)


def turns(_: Path) -> None:
    while True:
        pass


def crashes(_: Path) -> None:
    ctypes.string_at(0)


def exits(_: Path) -> None:
    os._exit(0)


def writes(folder: Path) -> None:
    (folder.parent / "outside").write_text("x", encoding="utf-8")


def deletes(folder: Path) -> None:
    (folder / ".." / ".." / "notes.txt").unlink()


def swallows(folder: Path) -> None:
    """Hides a forbidden action in an error."""
    try:
        writes(folder)
    except BaseException:
        raise InputError("an ordinary error") from None


def fills(_: Path) -> None:
    [torch.ones(1 << 27) for _ in range(3)]


def raises(_: Path) -> None:
    raise KeyError("x")


def several(_: Path) -> None:
    raise InputError("two\nlines")


@pytest.mark.parametrize(
    ("reader", "finding"),
    [
        (unpickles, "code run"),
        (turns, "hang"),
        (waits, "hang"),
        (crashes, "dead process"),
        (exits, "dead process"),
        (writes, "write outside"),
        (deletes, "write outside"),
        (swallows, "write outside"),
        (fills, "memory"),
        (raises, "traceback: KeyError"),
        (several, "traceback"),
    ],
)
def test_the_monitor_detects_a_forbidden_action(
    material: Material, tmp_path: Path, reader: Callable[[Path], Any], finding: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if finding == "hang":
        for module in (fuzz, monitor):
            monkeypatch.setattr(module, "SECONDS", 2)  # to save time
    kept = tmp_path / "kept"
    # `unpickles` needs several inputs, because not all are checkpoints; a hang takes seconds.
    numbers = range(12 if reader is unpickles else 1 if finding == "hang" else 2)
    results = campaign(numbers, SEED, material, kept, dict.fromkeys(READERS, reader))
    assert [result.number for result in results] == [*numbers]
    found = [result for result in results if result.outcome not in ("refused", "harmless")]
    assert found
    if reader is not unpickles:  # it may fail in other ways before code runs
        assert all(result.outcome.startswith(finding) for result in found), found
    assert any(result.outcome.startswith(finding) for result in found), found
    assert {path.name for path in kept.iterdir()} == {f"{SEED}-{r.number}" for r in found}
    assert not (tmp_path / "outside").exists()


def test_an_input_depends_only_on_seed_and_number(material: Material, tmp_path: Path) -> None:
    reader: Callable[[Path], Any] = raises
    ends = [
        campaign(range(10), SEED, material, tmp_path / str(i), dict.fromkeys(READERS, reader))
        for i in range(2)
    ]
    assert [Result(*r)[:3] for r in ends[0]] == [Result(*r)[:3] for r in ends[1]]
    for number in range(10):
        files = [tmp_path / str(i) / f"{SEED}-{number}" for i in range(2)]
        names = [{str(p.relative_to(f)) for p in f.rglob("*")} for f in files]
        assert names[0] == names[1]
