"""Tests of `files.py`: atomic writes, staging folders and locks."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_gpt_scratch.files import atomic_link, atomic_write, lock, staging_dir


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"an earlier text"])
def test_an_interrupted_write_changes_nothing(
    tmp_path: Path, error: type[BaseException], before: bytes | None
) -> None:
    path = tmp_path / "folder" / "file.txt"
    if before is not None:
        path.parent.mkdir()
        path.write_bytes(before)

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"the first half")
            raise error

    with pytest.raises(error):
        write_half()
    assert files_in(tmp_path) == ([path] if before else [])
    assert before is None or path.read_bytes() == before


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with atomic_write(path) as file:
        file.write(b"all")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"all"
    assert files_in(tmp_path) == [path]


def write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def test_a_linked_file_keeps_its_contents_when_the_other_name_is_replaced(tmp_path: Path) -> None:
    """Whichever of the two is replaced. A second link of the same file changes nothing."""
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        write(path, path.name.encode())
    for replaced, kept in ((first, second), (second, first)):
        write(first, b"shared")
        for _ in range(2):
            assert atomic_link(first, second)
            assert first.samefile(second)
        write(replaced, b"new")
        assert (replaced.read_bytes(), kept.read_bytes()) == (b"new", b"shared")
        assert sorted(tmp_path.iterdir()) == [first, second]


def test_without_links_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some file systems; here the call fails. Nor if the first file is missing."""
    first, second = tmp_path / "first", tmp_path / "second"
    write(second, b"before")
    assert not atomic_link(first, second)

    def unsupported(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    write(first, b"new")
    monkeypatch.setattr(os, "link", unsupported)
    assert not atomic_link(first, second)
    assert second.read_bytes() == b"before"
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file.txt") as file:
        file.write(b"all")
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


STAGE_AND_WAIT = """
import sys
from pathlib import Path
from lit_gpt_scratch.files import staging_dir

with staging_dir(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print(folder, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that is building something in a staging folder for `target`."""
    return subprocess.Popen(
        [sys.executable, "-c", STAGE_AND_WAIT, str(tmp_path / "target")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_staging_deletes_folders_of_killed_processes_but_not_of_running_ones(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    assert other.stdout
    other_folder = Path(other.stdout.readline().strip())
    with staging_dir(tmp_path / "target") as own_folder:
        assert own_folder != other_folder
        assert (other_folder / "half").exists()
    other.kill()
    other.wait()
    assert other_folder.exists()
    with staging_dir(tmp_path / "another target"):
        assert other_folder.exists()
    with staging_dir(tmp_path / "target") as own_folder:
        assert [*tmp_path.iterdir()] == [own_folder]
    assert [*tmp_path.iterdir()] == []


def test_a_folder_is_locked_by_one_holder_at_a_time(tmp_path: Path) -> None:
    first = lock(tmp_path)
    assert first is not None
    assert lock(tmp_path) is None
    first.release()
    second = lock(tmp_path)
    assert second is not None
    second.release()
    assert lock(tmp_path / "missing") is None


@pytest.mark.needs("unix", "flock")
def test_without_lock_support_lock_succeeds_and_staging_deletes_nothing(
    tmp_path: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the file systems of some clusters; here `flock` is made to fail."""
    import fcntl

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    assert other.stdout
    other_folder = Path(other.stdout.readline().strip())
    monkeypatch.setattr(fcntl, "flock", unsupported)
    held = lock(tmp_path)
    assert held is not None
    held.release()
    assert lock(tmp_path, locked_if_unsupported=True) is None
    with atomic_write(tmp_path / "target") as file:
        file.write(b"all")
    assert (tmp_path / "target").read_bytes() == b"all"
    assert (other_folder / "half").exists()
    other.kill()
    other.wait()
