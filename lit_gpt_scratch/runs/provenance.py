"""Which code a run was trained with: git commit, changes since the commit, and a hash."""

import contextlib
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from lit_gpt_scratch.checkpoints.plugins import module_name, require_unchanged

PACKAGE = Path(__file__).parents[1]
TRACKED = (PACKAGE.name, "configs")  # folders whose changes are kept
MAX_CHANGES = 1_000_000  # characters of changes.diff


class Code(NamedTuple):
    """The state of this project's git repository. All is None outside such a repository."""

    commit: str | None = None
    is_clean: bool | None = None  # whether the package and the configs are as committed
    changes: str | None = None  # as `git diff` shows them, with new files; None: it is clean


def read_code() -> Code:
    """Return the commit of this package's own repository and the changes since then."""
    found = git("rev-parse", "--show-prefix", "HEAD").split()
    if found[:1] != [f"{PACKAGE.name}/"]:  # inside another repository, or in none
        return Code()
    root = git("rev-parse", "--show-toplevel").strip()
    folders = [f":/{name}" for name in TRACKED]
    changes = git("diff", "HEAD", "--", *folders)
    new = git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", *folders)
    for name in filter(None, new.split("\0")):
        changes += git("-C", root, "diff", "--no-index", "--", "/dev/null", name)
    return Code(found[1], not changes, changes[:MAX_CHANGES] or None)


def git(*arguments: str) -> str:
    """Return the output of git in the package's folder; empty if it fails or is not installed."""
    command = ["git", "-C", str(PACKAGE), *arguments]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, check=False)
        return done.stdout.decode("utf-8", "replace")
    return ""


def code_sha256(plugin: str | None) -> str:
    """Return the hash of the Python files that decide a run's result, and of the plugin's.

    Raises:
        InputError: The plugin has changed since it was imported: its files are not what runs.
    """
    rooms = ("models", "data", "training")
    files = [path for room in rooms for path in (PACKAGE / room).glob("*.py")]
    if plugin and (source := getattr(sys.modules.get(module_name(plugin)), "__file__", None)):
        require_unchanged(module_name(plugin))
        is_package = Path(source).name == "__init__.py"
        files += Path(source).parent.rglob("*.py") if is_package else [Path(source)]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()
