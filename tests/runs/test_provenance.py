"""Which code a run was trained with: commit, changes and hash, in real git repositories."""

import shutil
import subprocess
from pathlib import Path

import pytest

from lit_gpt_scratch.runs import provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a package and a config, of which the module believes to be a part."""
    package = tmp_path / "lit_gpt_scratch"
    (package / "models").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (package / "models" / "a.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "configs" / "c.yaml").write_text("a: 1\n", encoding="utf-8")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    return tmp_path


def test_a_clean_clone_has_its_commit_and_no_changes(clone: Path) -> None:
    (clone / "notes.txt").write_text("not code", encoding="utf-8")
    assert provenance.read_code() == (git(clone, "rev-parse", "HEAD"), True, None)


def test_the_commit_and_the_changes_rebuild_the_code(clone: Path, tmp_path: Path) -> None:
    """Changed, staged, new and deleted files: `git apply` on the commit gives them all."""
    (clone / "lit_gpt_scratch" / "models" / "a.py").write_text("x = 2\n", encoding="utf-8")
    (clone / "lit_gpt_scratch" / "new é.py").write_text("y = 3\n", encoding="utf-8")
    (clone / "configs" / "c.yaml").unlink()
    (clone / "configs" / "d.yaml").write_text("b: 2\n", encoding="utf-8")
    git(clone, "add", "configs/d.yaml")
    code = provenance.read_code()
    assert code.is_clean is False
    assert code.changes
    assert code.commit
    rebuilt = tmp_path / "rebuilt"
    git(clone, "clone", "-q", str(clone), str(rebuilt))
    (rebuilt / "changes.diff").write_text(code.changes, encoding="utf-8")
    git(rebuilt, "apply", "changes.diff")
    for folder in provenance.TRACKED:
        files = {
            path.relative_to(root): path.read_bytes()
            for root in (clone,)
            for path in (root / folder).rglob("*.*")
            if path.is_file()
        }
        assert {name: (rebuilt / name).read_bytes() for name in files} == files
    assert not (rebuilt / "configs" / "c.yaml").exists()


def test_another_repository_and_none_are_not_ours(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = clone / "vendor" / "lit_gpt_scratch"
    shutil.copytree(clone / "lit_gpt_scratch", inside)
    monkeypatch.setattr(provenance, "PACKAGE", inside)
    assert provenance.read_code() == (None, None, None)
    monkeypatch.setenv("PATH", str(tmp_path))  # git is not installed
    assert provenance.read_code() == (None, None, None)
