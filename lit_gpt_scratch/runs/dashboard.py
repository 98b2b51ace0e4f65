"""`lit-gpt-scratch dashboard`: saves the panels as a workspace of a W&B project; needs a login."""

from collections.abc import Sequence
from importlib import import_module
from itertools import groupby
from typing import Any

from jsonargparse import ArgumentParser

from lit_gpt_scratch.errors import InputError, exit_on_input_error
from lit_gpt_scratch.runs.panels import AXES, PANELS, Panel


def build_workspace(project: str, entity: str) -> Any:
    """Return the dashboard as a `wandb_workspaces` object; only its `save()` needs a login."""
    try:
        ws = import_module("wandb_workspaces.workspaces")
        wr = import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise InputError(
            "wandb-workspaces is not installed: pip install 'lit_gpt_scratch[dashboard]'."
        ) from error

    def wandb_panels(panel: Panel) -> list[Any]:
        if panel.kind == "line":
            style = {"title": panel.title, "title_y": panel.unit or None, "log_y": panel.log}
            return [
                wr.LinePlot(x=axis, y=[panel.key], title_x=AXES[axis], **style)
                for axis in panel.axes
            ]
        if panel.kind == "image":
            return [wr.MediaBrowser(title=panel.title, media_keys=[panel.key])]
        return [wr.WeavePanelSummaryTable(table_name=panel.key)]

    sections = [
        ws.Section(name=name, is_open=True, panels=[w for p in panels for w in wandb_panels(p)])
        for name, panels in groupby(PANELS, key=lambda panel: panel.section)
    ]
    return ws.Workspace(name="lit_gpt_scratch", project=project, entity=entity, sections=sections)


def main(args: Sequence[str] | None = None) -> None:
    """Save the dashboard into a W&B project."""
    parser = ArgumentParser(
        prog="lit-gpt-scratch dashboard", description=main.__doc__, exit_on_error=False
    )
    parser.add_argument("--project", default="lit_gpt_scratch", help="Name of the W&B project.")
    parser.add_argument("--entity", required=True, help="W&B user or team that owns the project.")
    with exit_on_input_error(parser.prog):
        options = parser.parse_args(args)
        workspace = build_workspace(options.project, options.entity)
        import wandb

        try:
            workspace.save()
        except wandb.Error as error:
            raise InputError(f"W&B: {error}") from error
