"""The Makefile finds a Python of a supported version, or says what it found and what to do."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SUPPORTED = SpecifierSet(PROJECT["requires-python"])
VERSIONS = [f"3.{minor}.0" for minor in range(9, 17)]
MAKE = shutil.which("make") or ""
pytestmark = [
    pytest.mark.needs("unix", "shell scripts"),
    pytest.mark.skipif(not MAKE, reason="needs make"),
]


def setup(folder: Path, pythons: dict[str, str], *args: str) -> "subprocess.CompletedProcess[str]":
    """Run `make setup` in a folder, where only these Pythons (name: version) are on the PATH."""
    (folder / "bin").mkdir()
    for name, version in pythons.items():
        python = folder / "bin" / name
        numbers = tuple(map(int, version.split(".")))
        python.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo Python {version}; exit; fi\n'
            f"""exec {sys.executable} -S -c "import sys; sys.version_info = {numbers}; $2"\n""",
            encoding="utf-8",
        )
        python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    return subprocess.run(
        [MAKE, "setup", *args],
        cwd=folder,
        env={"PATH": str(folder / "bin")},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_make_takes_the_versions_that_pyproject_allows(version: str, tmp_path: Path) -> None:
    result = setup(tmp_path, {"python3": version}, "--dry-run")
    assert ("python3 -m venv .venv" in result.stdout) == (version in SUPPORTED)


def test_make_takes_a_newer_python_than_the_default_one(tmp_path: Path) -> None:
    result = setup(tmp_path, {"python3": "3.10.13", "python3.12": "3.12.1"}, "--dry-run")
    assert "python3.12 -m venv .venv" in result.stdout


PIP = """#!/bin/sh
echo Collecting torch; echo '  Downloading torch.whl (900 MB)'; echo no such package >&2
case "$*" in *"$(cat wrong)"*) exit 1;; esac
"""
VENV = """#!/bin/sh
[ "$1" = -c ] || { mkdir -p .venv/bin; cp pip .venv/bin/python; }
"""


@pytest.mark.parametrize("wrong", ["--editable", "sweeps", "nothing"])
def test_setup_says_what_it_does_and_fails_if_pip_fails(wrong: str, tmp_path: Path) -> None:
    """In a log file, it hides the lines of pip, but not its errors."""
    for name, text in (("pip", PIP), ("python", VENV), ("wrong", wrong)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    command = [MAKE, "setup", f"PYTHON={tmp_path / 'python'}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    is_right = wrong == "nothing"
    assert (result.returncode == 0) == is_right, result.stderr
    assert "about 10 minutes" in result.stdout
    assert "Collecting" not in result.stdout
    assert "no such package" in result.stderr
    assert (tmp_path / ".venv/.ready").exists() == is_right


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ([], ["python3: Python 3.10.13", "python3.13: none"]),
        (["PYTHON=mine"], ["mine: Python 3.9.2", "python3: Python 3.10.13"]),
        (["PYTHON=absent"], ["absent: none", "python3: Python 3.10.13"]),
    ],
)
def test_make_names_what_it_found_and_what_to_do(
    args: list[str], found: list[str], tmp_path: Path
) -> None:
    result = setup(tmp_path, {"python3": "3.10.13", "mine": "3.9.2"}, *args)
    lines = [line.strip() for line in result.stderr.splitlines()]
    assert result.returncode
    assert set(found) <= set(lines)
    assert "PYTHON=path" in result.stderr
    assert not (tmp_path / ".venv").exists()
