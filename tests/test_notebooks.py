"""Every notebook runs from top to bottom, and shows what it promises."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from lit_gpt_scratch import cli

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
TINY = [
    *["--data.corpus", "sample", "--data.sample_size", "20000", "--data.context", "32"],
    *["--model.net.layers", "2", "--model.net.width", "16", "--model.net.attention.heads", "2"],
    *["--trainer.max_steps", "20", "--wandb.mode", "disabled"],
]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_a_checkpoint_and_draws(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path)]
    folder = cli.main(["fit", *TINY, *root]).folder
    monkeypatch.setenv("CHECKPOINT", str(folder / "checkpoints/best.ckpt"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": tmp_path}}, timeout=120
    ).execute()
    shown = [
        output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    assert any("image/png" in data for data in shown)


def test_notebooks_are_committed_with_stable_ids_and_no_timestamps() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        assert [cell.id for cell in notebook.cells] == [
            f"cell-{i}" for i in range(len(notebook.cells))
        ]
        assert all("execution" not in cell.metadata for cell in notebook.cells)
        assert "widgets" not in notebook.metadata
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert outputs, "a notebook is committed with its pictures"
        assert not [o for o in outputs if o.get("name") == "stderr"], "paths of one machine"
