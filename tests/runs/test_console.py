"""console.log: what `fit` prints, without redrawn bars; it never ends a run."""

import io
import sys
from pathlib import Path

import pytest
from laws import train_small

from lit_gpt_scratch.runs.console import Tee, console_log


def test_a_run_keeps_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_small(tmp_path)
    said, log = capsys.readouterr(), (run.folder / "console.log").read_text(encoding="utf-8")
    assert log.count("run          ") == 2, "header and summary"
    assert all(line in log for line in (said.out + said.err).splitlines())
    train_small(tmp_path, f"--ckpt_path={run.folder}", "--trainer.max_steps=6")
    longer = (run.folder / "console.log").read_text(encoding="utf-8")
    assert longer.startswith(log), "a resumed run appends"
    assert "at step 6" in longer


def test_the_streams_are_restored_and_a_bug_is_in_the_log(tmp_path: Path) -> None:
    before = sys.stdout, sys.stderr

    def fail() -> None:
        with console_log(tmp_path):
            print("before")
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (sys.stdout, sys.stderr) == before
    log = (tmp_path / "console.log").read_text(encoding="utf-8")
    assert log.startswith("before\nTraceback")
    assert log.endswith("ZeroDivisionError: a bug\n")


def test_redrawn_lines_are_shown_but_not_kept() -> None:
    shown, log = io.StringIO(), io.StringIO()
    stream = Tee(shown, log)
    for text in ("one\n", "\r 10 %", "\033[2K", "two\n"):
        stream.write(text)
    assert shown.getvalue() == "one\n\r 10 %\033[2Ktwo\n"
    assert log.getvalue() == "one\ntwo\n"
    assert stream.isatty() is False


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "console.log").mkdir()
    with console_log(tmp_path):
        print("goes on")


@pytest.mark.needs("linux", "/dev/full")
def test_a_full_disk_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(tmp_path / "console.log").symlink_to("/dev/full")
    with console_log(tmp_path):
        print("goes on")
    assert capsys.readouterr().out == "goes on\n"
