"""The user's own modules: `--plugin my_module`, or a file, `--plugin experiments/my_module.py`."""

import contextlib
import hashlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from lit_gpt_scratch.errors import InputError, raise_user_bug


def module_name(plugin: str) -> str:
    """Return the name of a plugin's module, as class paths in checkpoints begin: a file's stem."""
    return Path(plugin).stem if plugin.endswith(".py") else plugin


@contextlib.contextmanager
def modules_of(folder: Path) -> Iterator[None]:
    """In this `with` block, modules in a folder can be imported, after the installed ones."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def import_plugin(plugin: str | None) -> ModuleType | None:
    """Import and return the module named with --plugin; a module may lie in the working directory.

    Raises:
        InputError: There is no such module or file, another module has the name of the file, or the
            file has changed since it was imported.
    """
    if not plugin:
        return None
    file = Path(plugin).expanduser() if plugin.endswith(".py") else None
    folder = file.resolve().parent if file else Path.cwd()
    if file and not file.is_file():
        raise InputError(f"--plugin {plugin}: there is no such file in {Path.cwd()}.")
    try:
        with modules_of(folder):
            module = importlib.import_module(module_name(plugin))
    except (ImportError, ValueError) as error:  # ValueError: a name such as ".mine"
        raise_user_bug(error)
        raise InputError(
            f"--plugin {plugin}: {error}. Give a file, as in my_module.py, or the name of a module "
            f"in {folder} or in a folder that is on PYTHONPATH."
        ) from error
    found = getattr(module, "__file__", None)
    if file and not (found and Path(found).samefile(file)):
        raise InputError(
            f"--plugin {plugin}: another module is called {module.__name__} ({found or 'built in'})"
            ": rename the file."
        )
    require_unchanged(module.__name__)
    return module


def require_unchanged(name: str) -> None:
    """Raise InputError if a module, or one inside it, has changed since the first call.

    Python imports a module once: a later run in the same process would use the old code.
    """
    loaded = [*sys.modules.items()]
    for module in [m for each, m in loaded if f"{each}.".startswith(f"{name}.")]:
        file, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
        if file and spec:
            source = Path(file).read_bytes() if Path(file).is_file() else b""
            digest = hashlib.sha256(source).hexdigest()
            # Kept in the spec, because a module that is imported again or reloaded has another one.
            if vars(spec).setdefault("source_sha256", digest) != digest:
                raise InputError(
                    f"{file} has changed since it was imported: start this program again. In a "
                    "notebook, restart the kernel."
                )
