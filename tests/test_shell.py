"""Printed commands start this program in the user's shell, wherever it is installed."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest

from lit_gpt_scratch.shell import in_shell, shell_name

Install = Callable[[str], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that puts a program, `hello`, into a folder: that of this Python's scripts.

    The folder is below the working directory, and not on the PATH.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.delenv("UV", raising=False)

    def install(name: str) -> Path:
        scripts = tmp_path / name
        scripts.mkdir(parents=True, exist_ok=True)
        (scripts / "hello").write_text("#!/bin/sh\necho $0\n", encoding="utf-8")
        (scripts / "hello").chmod(0o755)
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(scripts))
        return scripts

    return install


@pytest.mark.needs("unix", "shell scripts")
def test_a_program_on_the_path_has_its_name_alone(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the folder on the PATH has a link to it, as pipx makes them."""
    scripts, links = install("bin"), tmp_path / "links"
    links.mkdir()
    (links / "hello").symlink_to(scripts / "hello")
    for folder in (scripts, links):
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.defpath}")
        assert shell_name("hello") == "hello"
    monkeypatch.setenv("UV", "/bin/uv")  # uv has set this PATH, for this process alone
    assert shell_name("hello") == "bin/hello"


@pytest.mark.needs("unix", "shell scripts")
@pytest.mark.parametrize("folder", [".venv/bin", "it's an environment/bin", "."])
@pytest.mark.parametrize("is_other_on_path", [False, True])
def test_a_program_that_is_not_on_the_path_has_its_path(
    folder: str, is_other_on_path: bool, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another environment's program of this name may be on the PATH."""
    if is_other_on_path:
        monkeypatch.setenv("PATH", str(install("other")), prepend=os.pathsep)
    own = install(folder) / "hello"
    command = shell_name("hello")
    assert (str(own) in command) == (folder == "."), "it is relative, if a / remains"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).samefile(own)


def test_a_package_without_a_program_is_run_as_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/a folder/python")
    assert shell_name("no-such-program") in (
        "'/a folder/python' -m no_such_program",
        '"/a folder/python" -m no_such_program',  # Windows
    )


def test_a_path_of_windows_is_printed_with_slashes() -> None:
    """Its own separator is no plain character in shells: it would be quoted."""
    path: Any = PureWindowsPath(r"runs\gpt_cpu\version_0\checkpoints\last.ckpt")
    assert in_shell(path) == "runs/gpt_cpu/version_0/checkpoints/last.ckpt"
