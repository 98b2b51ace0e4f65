"""The dashboard as code: what is drawn of a run, by W&B and by the offline report alike.

    lit-gpt-scratch dashboard --project PROJECT --entity ENTITY

saves it as a workspace of a W&B project, which needs a login.
"""

from collections.abc import Sequence
from importlib import import_module
from itertools import groupby
from typing import Any, Literal, NamedTuple

from jsonargparse import ArgumentParser

from lit_gpt_scratch.errors import InputError, exit_on_input_error

# What curves can be drawn against.
AXES = {"step": "step", "tokens_seen": "characters seen", "train_seconds": "seconds of training"}


class Panel(NamedTuple):
    """One picture of runs.

    Attributes:
        section: The heading that it stands under.
        title: Its own.
        key: What `fit` logs it under: for a line a column of metrics.csv, for a table or bars the
            file KEY.csv, for an image the folder KEY.
        kind: How it is drawn.
        unit: Of the vertical axis.
        log: Whether that axis is logarithmic.
        axes: What W&B draws it against, once each; a reader of the report chooses among all.
    """

    section: str
    title: str
    key: str
    kind: Literal["line", "bar", "table", "image"] = "line"
    unit: str = ""
    log: bool = False
    axes: tuple[str, ...] = ("step",)


NATS = "nats per character"
PANELS = (
    Panel("Loss", "Validation loss", "val/loss", unit=NATS, axes=tuple(AXES)),
    Panel("Loss", "Training loss", "train/loss", unit=NATS, axes=("step", "tokens_seen")),
    Panel("Loss", "Validation loss above training loss", "val/gap", unit=NATS),
    Panel("Loss", "Bits per character", "val/bpc", unit="bits"),
    Panel("Loss", "Perplexity", "val/perplexity", unit="characters", log=True),
    Panel("Loss", "Validation loss of each character", "symbols", "bar", unit=NATS),
    Panel("Optimisation", "Learning rate", "lr"),
    Panel("Optimisation", "Norm of the gradients, before clipping", "grad_norm", log=True),
    Panel("Speed", "Training speed", "chars_per_sec", unit="characters per second"),
    Panel("Speed", "Model-FLOP utilisation", "mfu", unit="of the device's peak"),
    Panel("Samples", "Samples through training", "samples", "table"),
    Panel("Attention", "Attention of every head", "attention", "image"),
)


def workspace(project: str, entity: str) -> Any:
    """The dashboard as an object of wandb-workspaces; nothing but its `save()` needs a login.

    Raises:
        InputError: wandb-workspaces is not installed.
    """
    try:
        ws = import_module("wandb_workspaces.workspaces")
        wr = import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise InputError(
            "wandb-workspaces is not installed: pip install 'lit_gpt_scratch[dashboard]'."
        ) from error

    def drawn(panel: Panel) -> list[Any]:
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
        ws.Section(name=name, is_open=True, panels=[p for panel in panels for p in drawn(panel)])
        for name, panels in groupby(PANELS, key=lambda panel: panel.section)
    ]
    return ws.Workspace(name="lit_gpt_scratch", project=project, entity=entity, sections=sections)


def main(args: Sequence[str] | None = None) -> None:
    """Save the dashboard into a W&B project."""
    parser = ArgumentParser(
        prog="lit-gpt-scratch dashboard", description=main.__doc__, exit_on_error=False
    )
    parser.add_argument("--project", default="lit_gpt_scratch", help="The project's name.")
    parser.add_argument("--entity", required=True, help="The user or team that has it.")
    with exit_on_input_error(parser.prog):
        asked = parser.parse_args(args)
        built = workspace(asked.project, asked.entity)
        import wandb

        try:
            built.save()
        except wandb.Error as error:
            raise InputError(f"W&B: {error}") from error
