"""The wheel holds all that a user without a clone needs, and works outside the clone."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lit_gpt_scratch.cli.program import overview

ROOT = Path(__file__).parents[1]
BUILD = "import sys\nfrom setuptools import build_meta\nbuild_meta.build_wheel(sys.argv[1])"
# Runs a list of commands in one process, as importing PyTorch takes seconds.
RUN = r"""
import sys
from lit_gpt_scratch import cli
for command in sys.stdin.read().splitlines():
    cli.main(command.split()[1:])
print(*(m.__file__ for name, m in sys.modules.items() if "lit_gpt_scratch." in name), sep="\n")
"""
SMALL = (
    " --data.corpus=sample --data.sample_size=20000 --data.context=16 --data.batch_size=4"
    " --trainer.accelerator=cpu --trainer.max_steps=4 --trainer.val_check_interval=2"
    " --trainer.limit_val_batches=2 --model.net.width=32 --wandb.mode=disabled"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the contents of the wheel, built from a copy of the project."""
    copy, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("installed")
    for folder in ("lit_gpt_scratch", "configs", "tests", "notebooks"):
        shutil.copytree(ROOT / folder, copy / folder)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=copy, capture_output=True, text=True
    )
    assert build.returncode == 0, build.stderr
    [wheel] = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(out)
    wheel.unlink()
    return out


def files(folder: Path) -> set[str]:
    """Return the paths of all files in a folder, relative to it."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith((".pyc", ".DS_Store", "~"))}


def test_the_wheel_holds_the_package_with_the_configs_and_nothing_else(installed: Path) -> None:
    configs = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    package = files(ROOT / "lit_gpt_scratch")
    pages = {f"runs/report.{kind}" for kind in ("html", "css", "js")}
    assert {"py.typed", *pages} <= package
    assert configs
    assert files(installed / "lit_gpt_scratch") == package | configs
    [_, facts] = sorted(installed.iterdir())
    assert facts.suffix == ".dist-info"


@pytest.mark.slow
def test_what_the_overview_and_the_readme_say_works_without_a_clone(
    installed: Path, tmp_path: Path
) -> None:
    """The first commands of the overview, and those of the README's Colab cell."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    here = tmp_path / "content"  # Colab's working directory
    here.mkdir()
    commands = re.findall(r"^  (lit-gpt-scratch .+)$", overview(), re.MULTILINE)
    commands += re.findall(r"^!(lit-gpt-scratch .+?)(?: +#.*)?$", readme, re.MULTILINE)
    assert [command.split()[1] for command in commands] == (
        ["fit", "predict", "fit", "report", "fit", "report"]
    )
    commands = [line + SMALL * (" fit" in line) for line in commands]
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", RUN], input="\n".join(commands), cwd=here,
        env=environment | {"PYTHONPATH": str(installed)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modules = [line for line in done.stdout.splitlines() if line.endswith(".py")]
    assert len(modules) > 20
    assert all(module.startswith(str(installed)) for module in modules), "none is of the clone"
    assert "\nROMEO:" in done.stdout
    for name in ("gpt_cpu", "multi_head"):
        assert (here / f"runs/{name}/version_0/checkpoints/best.ckpt").exists(), name
    assert (here / "report.html").exists()
    # Where notebook 03 looks for its checkpoint.
    assert [*tmp_path.glob("runs/*/version_0/checkpoints/best.ckpt")]
