"""Every notebook runs from top to bottom and shows the plots that it is committed with."""

import hashlib
from pathlib import Path

import nbformat
import pytest
from chromium import CHROMIUM, Chromium, Page, until
from laws import CONFIGS, train_small
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from lit_gpt_scratch.runs import find_checkpoint

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
GPT = [
    *["--data.sample_size=20000", "--data.context=32", "--trainer.max_steps=20"],
    *["--model.net.layers=2", "--model.net.width=16", "--model.net.attention.heads=2"],
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with short runs for all notebooks: the default model and the small ones."""
    root = tmp_path_factory.mktemp("runs")
    for config in CONFIGS:
        if config.stem in ("bigram", "mean", "multi_head"):  # notebooks train what is missing
            train_small(root, config=config)
    train_small(root, *GPT)  # the newest run is the user's
    return root


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws_a_plot_in_the_same_cells_as_when_committed(
    path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = root / "runs" / "gpt_cpu" / "version_0" / "checkpoints" / "best.ckpt"
    monkeypatch.setenv("CHECKPOINT", str(checkpoint))
    monkeypatch.setenv("RUNS", str(root / "runs"))
    monkeypatch.setenv("CORPUS", "sample")
    monkeypatch.delenv("WANDB_MODE")
    notebook = nbformat.read(path, as_version=4)
    committed = plots(notebook)
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": root}}, timeout=120
    ).execute()
    assert find_checkpoint("best", root / "runs") == checkpoint, "toys are in another folder"
    assert [cell for cell, _ in plots(notebook)] == [cell for cell, _ in committed]
    assert len({digest for _, digest in plots(notebook)}) == len(committed), "two plots are equal"
    if CHROMIUM and any("inspection.show(" in cell.source for cell in notebook.cells):
        assert_exported_page_runs(notebook, root / f"{path.stem}.html")


def assert_exported_page_runs(notebook: nbformat.NotebookNode, file: Path) -> None:
    """Check that the playground in a notebook's HTML has read its text, without the kernel."""
    file.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    browser = Chromium(file.with_suffix(".profile"))
    inside = "document.querySelector('iframe[title=Playground]').contentDocument"
    ready = f"{inside}.querySelectorAll('#ladder tbody tr').length"
    page = Page(browser, file)
    page.evaluate(until(ready))
    assert "nats" in page.evaluate(f"{inside}.querySelector('#surprise').innerText")
    browser.close()


def plots(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """Return the cell and the hash of each plot in a notebook."""
    shown = [
        (cell.id, output["data"]["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    return [(cell, hashlib.sha256(data.encode()).hexdigest()) for cell, data in shown]


def test_there_are_five_notebooks_each_committed_with_its_plots() -> None:
    assert [path.name[:3] for path in NOTEBOOKS] == ["01_", "02_", "03_", "04_", "05_"]
    assert all(plots(nbformat.read(path, as_version=4)) for path in NOTEBOOKS)


def test_the_readme_lists_every_notebook() -> None:
    text = (NOTEBOOKS[0].parent / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS if f"]({path.name})" not in text] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_has_no_volatile_content(path: Path) -> None:
    """Cell ids are stable; timestamps, widgets and paths of one machine would change each diff."""
    notebook = nbformat.read(path, as_version=4)
    assert [cell.id for cell in notebook.cells] == [f"cell-{i}" for i in range(len(notebook.cells))]
    assert all("execution" not in cell.metadata for cell in notebook.cells)
    assert "widgets" not in notebook.metadata
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)], "run in order"
    assert not any("__file__" in cell.source for cell in code), "a wheel has other folders"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.get("name") == "stderr"], "warnings hold paths"
    assert not [o for o in outputs if o.output_type == "error"]
    assert "<iframe" not in str(outputs), "a page holds megabytes: keep its text/plain only"
