"""Which errors become one line, and which keep their traceback."""

import linecache
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_gpt_scratch.errors import (
    PACKAGE,
    causes,
    describe_error,
    files_of,
    is_bug,
    is_out_of_memory,
    is_users_mistake,
)
from lit_gpt_scratch.models import Bigram


def caught(function: Callable[[], Any]) -> BaseException:
    """Return what a function raises, with a traceback that begins in the function."""
    with pytest.raises((RuntimeError, TypeError, IndexError, ValueError)) as found:
        function()
    assert found.tb
    return found.value.with_traceback(found.tb.tb_next)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:114] can't allocate memory: 8 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8"), True),
        (RuntimeError("block_allocation_table has wrong shape"), False),
        (RuntimeError("size mismatch in the allocator's weights"), False),
        (ValueError("out of memory cells"), False),
    ],
)
def test_only_a_lack_of_memory_is_called_one(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_an_error_in_a_library_is_no_sure_bug() -> None:
    assert not is_bug(caught(partial(nn.Linear(2, 3).load_state_dict, {})))


def test_an_error_that_a_users_file_raises_is_a_bug(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def fails():\n    return 1 + 'a'\n", encoding="utf-8")
    error = caught(runpy.run_path(str(tmp_path / "mine.py"))["fails"])
    assert is_bug(error)
    assert describe_error(error).startswith("TypeError in mine.py, line 2: unsupported operand")


def test_the_place_of_an_error_is_the_users_last_line(tmp_path: Path) -> None:
    """Also if a library raises it. Without a user's line, it is the last line of this package."""
    text = "from torch import nn\n\ndef fails(net=nn.Linear(2, 3)):\n    net.load_state_dict({})\n"
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    error = caught(runpy.run_path(str(tmp_path / "mine.py"))["fails"])
    assert describe_error(error).startswith("RuntimeError in mine.py, line 4: Error(s) in loading")
    net = Bigram(alphabet_size=3, context=4)
    ours = caught(partial(net, torch.full((1, 2), 7)))
    assert describe_error(ours).startswith("IndexError in gpt.py, line ")


def test_an_error_in_a_network_is_a_bug() -> None:
    """Also in one of this package, which a researcher may have edited."""
    net = Bigram(alphabet_size=3, context=4)
    assert is_bug(caught(partial(net, torch.full((1, 2), 7))))
    assert is_bug(NameError("x"))


@pytest.fixture
def raised_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], BaseException]:
    """Return a function that returns an error which code in a file raises; it need not exist."""

    def raised(path: str, statement: str) -> BaseException:
        # Undone after the test: the source of a real file is read from this cache, too.
        lines = (len(statement), None, [statement], path)
        monkeypatch.setitem(linecache.cache, path, lines)
        return caught(partial(exec, compile(statement, path, "exec"), {}))

    return raised


@pytest.mark.parametrize(
    ("place", "statement", "expected"),
    [
        ("/x/site-packages/lightning/pytorch/trainer.py", "raise RuntimeError('no metric')", True),
        ("/x/site-packages/lightning/pytorch/trainer.py", "[][0]", False),
        ("/lightning/.venv/lib/site-packages/torch/nn.py", "raise RuntimeError('shape')", False),
        ("/x/dist-packages/lightning/fabric/x.py", "raise RuntimeError('no metric')", True),
        ("/lightning/mine.py", "raise RuntimeError('mine')", False),
    ],
)
def test_only_a_check_of_lightning_itself_is_a_users_mistake(
    place: str,
    statement: str,
    expected: bool,
    raised_in: Callable[[str, str], BaseException],
) -> None:
    assert is_users_mistake(raised_in(place, statement)) == expected


@pytest.mark.parametrize("part", ["models/gpt.py", "training/muon.py"])
def test_an_error_that_an_edited_part_raises_is_a_bug(
    part: str, raised_in: Callable[[str, str], BaseException]
) -> None:
    error = raised_in(str(PACKAGE / part), "raise TypeError('edited')")
    assert is_bug(error, "training")
    assert is_bug(error) == part.startswith("models"), "a damaged checkpoint can reach training"
    flag = raised_in(str(PACKAGE / "cli/parsing.py"), "raise TypeError('a flag')")
    assert not is_bug(flag, "training")


def test_causes_are_found_in_order_and_end() -> None:
    first, second = KeyError("first"), ValueError("second")
    second.__cause__ = first
    assert [*causes(second)] == [second, first]
    assert files_of(first) == [], "it was never raised"
    exceptions = [second]  # a library may keep its errors in a variable of this name
    assert [*causes(caught(partial(raise_first, exceptions)))] == [second, first]


def raise_first(exceptions: list[Exception]) -> None:
    raise exceptions[0]
