"""The panels show everything that `fit` logs; the W&B workspace builds without an account."""

import csv
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from laws import train_small

from lit_gpt_scratch.runs import dashboard
from lit_gpt_scratch.runs.dashboard import AXES, PANELS, Panel

WORKSPACES = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")
KEYS = {panel.key for panel in PANELS}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of the default network."""
    return train_small(tmp_path_factory.mktemp("root"), "--trainer.max_steps=4").folder


def header(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.key)
def test_a_run_logs_the_data_of_each_panel(panel: Panel, run: Path) -> None:
    if panel.kind == "line":
        assert {panel.key, *panel.axes} <= set(header(run / "metrics.csv"))
    elif panel.kind == "layers":
        assert f"{panel.key}/blocks.0" in header(run / "metrics.csv")
    elif panel.kind == "image":
        assert [path.name for path in (run / panel.key).iterdir()] == ["step_000004.png"]
    else:
        columns = ["symbol", "count", "loss"] if panel.kind == "bar" else ["prompt", "text"]
        assert header(run / f"{panel.key}.csv") == ["step", *columns]


def test_every_column_has_a_panel(run: Path) -> None:
    """Each column of metrics.csv is a panel or an axis, or of a layer."""
    layers = tuple(f"{panel.key}/" for panel in PANELS if panel.kind == "layers")
    columns = header(run / "metrics.csv")
    assert {c for c in columns if not c.startswith(layers)} <= KEYS | AXES.keys() | {"epoch"}
    assert all(any(c.startswith(layer) for c in columns) for layer in layers)


def test_sections_are_contiguous_and_keys_are_unique() -> None:
    """groupby would split a section whose panels are apart."""
    sections = [name for name, _ in groupby(panel.section for panel in PANELS)]
    assert sections == ["Loss", "Optimisation", "Layers", "Speed", "Samples", "Attention"]
    assert len(KEYS) == len(PANELS)


def keys_of(panel: Any) -> set[str]:
    """Return the metric keys that a W&B panel reads."""
    single = {getattr(panel, name) for name in ("x", "table_name") if getattr(panel, name, None)}
    several = [key for name in ("y", "media_keys") for key in getattr(panel, name, None) or []]
    layers = [p.removeprefix("^").removesuffix("/.*") for p in (panel_regex(panel),) if p]
    return {str(key) for key in (*single, *several, *layers)}


def panel_regex(panel: Any) -> str | None:
    return getattr(panel, "metric_regex", None)


@WORKSPACES
def test_the_workspace_builds_offline_with_every_key() -> None:
    workspace = dashboard.build_workspace("project", "entity")
    assert (workspace.project, workspace.entity) == ("project", "entity")
    shown = {
        section.name: set().union(*map(keys_of, section.panels)) for section in workspace.sections
    }
    assert list(shown) == list(dict.fromkeys(panel.section for panel in PANELS))
    for name, keys in shown.items():
        panels = [panel for panel in PANELS if panel.section == name]
        axes = {axis for panel in panels if panel.kind == "line" for axis in panel.axes}
        axes |= {"Step"} if name == "Layers" else set()  # W&B's own
        assert keys == {panel.key for panel in panels} | axes
    assert workspace._spec  # what save() would send
    assert [metric.name for metric in workspace.runset_settings.groupby] == ["Group"]


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the error line of a command that is refused."""
    with pytest.raises(SystemExit) as stop:
        dashboard.main(args)
    line = capsys.readouterr().err
    assert stop.value.code == 2
    assert line.startswith("lit-gpt-scratch dashboard: error: ")
    assert line.count("\n") == 1
    return line


@WORKSPACES
def test_an_error_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A missing flag, a missing login, or wandb-workspaces not installed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert "entity" in refusal(capsys)
    assert "wandb login" in refusal(capsys, "--entity", "nobody")
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert "pip install wandb-workspaces" in refusal(capsys, "--entity", "nobody")
