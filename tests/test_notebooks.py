"""Every notebook runs from top to bottom, and shows what it promises."""

import hashlib
from pathlib import Path

import nbformat
import pytest
from laws import CONFIGS, train_small
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
GPT = [
    *["--data.sample_size=20000", "--data.context=32", "--trainer.max_steps=20"],
    *["--model.net.layers=2", "--model.net.width=16", "--model.net.attention.heads=2"],
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few runs that all notebooks read: a default one, and the small rungs."""
    root = tmp_path_factory.mktemp("runs")
    train_small(root, *GPT)
    for config in CONFIGS:
        if not config.stem.startswith("gpt"):
            train_small(root, config=config)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws_what_its_committed_self_shows(
    path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = root / "runs" / "gpt_cpu" / "version_0" / "checkpoints" / "best.ckpt"
    monkeypatch.setenv("CHECKPOINT", str(checkpoint))
    monkeypatch.setenv("RUNS", str(root / "runs"))
    monkeypatch.setenv("CORPUS", "sample")
    monkeypatch.delenv("WANDB_MODE")
    notebook = nbformat.read(path, as_version=4)
    committed = pictures(notebook)
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": root}}, timeout=120
    ).execute()
    assert [cell for cell, _ in pictures(notebook)] == [cell for cell, _ in committed]
    assert len({picture for _, picture in pictures(notebook)}) == len(committed), "all different"


def pictures(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """The cell and the hash of each picture that a notebook shows."""
    shown = [
        (cell.id, output["data"]["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    return [(cell, hashlib.sha256(data.encode()).hexdigest()) for cell, data in shown]


def test_there_are_five_and_each_is_committed_with_its_pictures() -> None:
    assert [path.name[:3] for path in NOTEBOOKS] == ["01_", "02_", "03_", "04_", "05_"]
    assert all(pictures(nbformat.read(path, as_version=4)) for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_differ_only_where_they_differ(path: Path) -> None:
    """Stable ids, no timestamps, no widgets, and nothing of the machine that they ran on."""
    notebook = nbformat.read(path, as_version=4)
    assert [cell.id for cell in notebook.cells] == [f"cell-{i}" for i in range(len(notebook.cells))]
    assert all("execution" not in cell.metadata for cell in notebook.cells)
    assert "widgets" not in notebook.metadata
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)], "run in order"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.get("name") == "stderr"], "paths of one machine"
    assert not [o for o in outputs if o.output_type == "error"]
