"""Laws of `files.py`."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lit_gpt_scratch.files import beside, lock, written_whole


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"an earlier text"])
def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, error: type[BaseException], before: bytes | None
) -> None:
    path = tmp_path / "folder" / "file.txt"
    if before is not None:
        path.parent.mkdir()
        path.write_bytes(before)

    def write_half() -> None:
        with written_whole(path) as file:
            file.write(b"the first half")
            raise error

    with pytest.raises(error):
        write_half()
    assert files_in(tmp_path) == ([path] if before else [])
    assert before is None or path.read_bytes() == before


def test_a_file_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with written_whole(path) as file:
        file.write(b"all")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"all"
    assert files_in(tmp_path) == [path]


def test_a_file_is_readable_to_those_who_share_the_folder(tmp_path: Path) -> None:
    with written_whole(tmp_path / "file.txt") as file:
        file.write(b"all")
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


MAKE = """
import sys
from pathlib import Path
from lit_gpt_scratch.files import beside

with beside(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print(folder, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """A process in the middle of making something."""
    return subprocess.Popen(
        [sys.executable, "-c", MAKE, str(tmp_path / "made")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_makes_stays(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    assert other.stdout
    left = Path(other.stdout.readline().strip())
    with beside(tmp_path / "made") as ours:
        assert ours != left
        assert (left / "half").exists()
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert left.exists()
    with beside(tmp_path / "other"):
        assert left.exists()  # not of that name
    with beside(tmp_path / "made") as ours:
        assert [*tmp_path.iterdir()] == [ours]
    assert [*tmp_path.iterdir()] == []


def test_one_at_a_time_holds_a_folder(tmp_path: Path) -> None:
    held = lock(tmp_path)
    assert held is not None
    assert lock(tmp_path) is None
    os.close(held)
    again = lock(tmp_path)
    assert again is not None
    os.close(again)
    assert lock(tmp_path / "missing") is None


def test_where_there_are_no_locks_nobody_is_kept_out_and_nothing_is_removed(
    tmp_path: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some file systems of clusters, of which this machine has none."""

    def refuses(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    assert other.stdout
    living = Path(other.stdout.readline().strip())
    monkeypatch.setattr(fcntl, "flock", refuses)
    held = lock(tmp_path)
    assert held is not None
    os.close(held)
    with written_whole(tmp_path / "made") as file:
        file.write(b"all")
    assert (tmp_path / "made").read_bytes() == b"all"
    assert (living / "half").exists()
    other.kill()
    other.wait()
