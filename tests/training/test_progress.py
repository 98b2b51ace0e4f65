"""The progress bar on a terminal of 80 columns."""

import contextlib
import os
import re
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from laws import train_small


@contextlib.contextmanager
def terminal(columns: int, seen: bytearray) -> Iterator[None]:
    """Make standard output a terminal in this `with` block; append to `seen` what it gets."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def read() -> None:
        with contextlib.suppress(OSError):  # so Linux reports the end of a terminal
            while data := os.read(ours, 65536):
                seen.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        yield
    reader.join()
    os.close(ours)


@pytest.mark.needs("unix", "pseudo-terminals")
def test_the_bar_begins_with_losses_and_fits_80_columns(tmp_path: Path) -> None:
    """After a resume, it begins at the step of the checkpoint."""
    often = ["--trainer.log_every_n_steps=10", "--trainer.val_check_interval=20"]
    seen = bytearray()
    with terminal(80, seen):
        folder = train_small(tmp_path, *often, "--trainer.max_steps=30").folder
        resume = [f"--ckpt_path={folder / 'checkpoints/last.ckpt'}", "--trainer.max_steps=50"]
        train_small(tmp_path, *often, *resume)
    lines = re.split(r"[\r\n]+|\x1b\[A", seen.decode())
    bars = [line for line in lines if re.search(r"\d/[35]0 \[", line)]
    assert max(map(len, bars)) <= 80
    losses, rest = r"loss: train \d\.\d{3}, val \d\.\d{3}", r"\[[\d:]+<[\d:]+, chars/s=[\d,]+\]"
    for total, steps in ((30, {"20", "30"}), (50, {"40", "50"})):
        pattern = rf"{losses} \|.+\| (\d+)/{total} {rest}"
        found = [match for line in bars if (match := re.fullmatch(pattern, line))]
        assert {match[1] for match in found} == steps
    first = next(line for line in bars if "/50 [" in line)
    assert re.match(r"Training \|.+\| 30/50 \[", first)
