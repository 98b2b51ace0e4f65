"""The package is eight rooms, and each imports only from the rooms below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lit_gpt_scratch

PACKAGE = Path(lit_gpt_scratch.__file__).parent
# From top to bottom.
ROOMS = [
    "cli", "runs", "inspection", "training", "generation", "data", "checkpoints", "models",
]  # fmt: skip
# Modules beside the rooms: what every room may import, and entries, which may import any room.
BASE = {"", "errors", "files", "private_api", "shell"}
ENTRIES = {"__main__", "report", "export", "dashboard"}


def imports(file: Path) -> set[str]:
    """The rooms and base modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write the import in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in names]
        found |= {name[1] for name in parts if name[0] == PACKAGE.name and len(name) > 1}
    return {name if name in ROOMS or name in BASE else "" for name in found}


def test_there_are_eight_rooms_and_nothing_else() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert folders == set(ROOMS)
    assert files <= BASE | ENTRIES


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_below_it(room: str) -> None:
    allowed = {*ROOMS[ROOMS.index(room) :], *BASE}
    if room == "models":
        allowed = {"models", "errors", ""}
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for file in files:
        assert imports(file) <= allowed, f"{file.relative_to(PACKAGE)} imports upwards"


@pytest.mark.parametrize("name", sorted(BASE - {""}))
def test_what_every_room_may_import_imports_no_room(name: str) -> None:
    file = PACKAGE / f"{name}.py"
    assert imports(file) <= BASE


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_exports_public_names(room: str) -> None:
    script = (
        f"import lit_gpt_scratch.{room} as room; assert room.__doc__; "
        "[getattr(room, name) for name in room.__all__]; "
        "assert list(room.__all__) == sorted(room.__all__, key=lambda n: (not n.isupper(), n[0]."
        "islower(), n)); assert room.__all__"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", ["--help", "report --help", "dashboard --help", "report no"])
def test_commands_that_need_no_lightning_do_not_import_it(arguments: str) -> None:
    script = (
        "import sys\nfrom lit_gpt_scratch import cli\n"
        f"try: cli.main({arguments.split()!r})\nexcept SystemExit: pass\n"
        "print(*{'lightning', 'torch', 'wandb'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "", done.stderr
