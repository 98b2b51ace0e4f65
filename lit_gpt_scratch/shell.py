"""Printed commands: they work as printed, also where no Python environment is active."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PROGRAM = "lit-gpt-scratch"


def quote(*words: str) -> str:
    """Return words as a part of a command, quoted for the system's shell."""
    return shlex.join(words) if os.name == "posix" else subprocess.list2cmdline(words)


def in_shell(path: Path) -> str:
    """Return a path for a printed command; with / on Windows."""
    return quote(path.as_posix())


def checkpoint_flags(path: Path, plugin: str | None) -> str:
    """Return the flags of a printed command that reads a checkpoint."""
    return f"--ckpt_path {in_shell(path)}" + plugin_flag(plugin)


def plugin_flag(plugin: str | None) -> str:
    """Return the end of a printed command that needs the user's module; nothing without one."""
    return f" --plugin {quote(plugin)}" if plugin else ""


def shell_name(program: str = PROGRAM) -> str:
    """Return how the user's shell starts a program of this Python's environment.

    This is its name if the shell finds it on the PATH, else its path, else `python -m MODULE`.
    """
    own = shutil.which(program, path=sysconfig.get_path("scripts"))
    if own is None:
        return quote(sys.executable, "-m", program.replace("-", "_"))
    found = shutil.which(program)
    # uv runs programs with a PATH that the user's shell does not have.
    if found and Path(found).samefile(own) and "UV" not in os.environ:
        return program
    path, here = Path(own), Path.cwd()
    is_below = path.is_relative_to(here) and path.parent != here  # a shell needs a / in the path
    return quote(str(path.relative_to(here) if is_below else path))
