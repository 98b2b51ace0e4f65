"""The panels that show a run: in the offline report, and as a dashboard in a W&B project."""

from collections.abc import Sequence
from importlib import import_module
from itertools import groupby
from typing import Any, Literal, NamedTuple

from jsonargparse import ArgumentParser

from lit_gpt_scratch.errors import InputError, exit_on_input_error
from lit_gpt_scratch.shell import PROGRAM

# The metrics that a curve can be plotted against, and the titles of these axes.
AXES = {"step": "step", "tokens_seen": "characters seen", "train_seconds": "seconds of training"}


class Panel(NamedTuple):
    """One plot, table or series of images."""

    section: str  # the heading above the panel
    title: str
    # A column of metrics.csv (line), all columns KEY/LAYER (layers), a file KEY.csv (table or bar),
    # or a folder KEY (image).
    key: str
    kind: Literal["line", "layers", "bar", "table", "image"] = "line"
    unit: str = ""  # of the vertical axis
    log: bool = False  # whether the vertical axis is logarithmic
    axes: tuple[str, ...] = ("step",)  # W&B gets one plot for each; the report offers all `AXES`


NATS = "nats per character"
PANELS = (
    Panel("Loss", "Validation loss", "val/loss", unit=NATS, axes=tuple(AXES)),
    Panel("Loss", "Training loss", "train/loss", unit=NATS, axes=("step", "tokens_seen")),
    Panel("Loss", "Gap: validation loss minus loss on training text", "val/gap", unit=NATS),
    Panel("Loss", "Bits per character", "val/bpc", unit="bits"),
    Panel("Loss", "Perplexity", "val/perplexity", unit="characters", log=True),
    Panel("Loss", "Validation loss of each character", "symbols", "bar", unit=NATS),
    Panel("Optimisation", "Learning rate", "lr"),
    Panel("Optimisation", "Norm of the gradients, before clipping", "grad_norm", log=True),
    Panel("Layers", "Norm of each layer's gradients", "layer_grad_norm", "layers", log=True),
    Panel("Layers", "Update over weights, of each layer", "update_ratio", "layers", log=True),
    Panel(
        "Layers", "Entropy of each layer's attention", "attention_entropy", "layers", unit="nats"
    ),
    Panel("Speed", "Training speed", "chars_per_sec", unit="characters per second"),
    Panel("Speed", "Model-FLOP utilisation", "mfu", unit="of the device's peak"),
    Panel("Samples", "Samples through training", "samples", "table"),
    Panel("Attention", "Attention of every head", "attention", "image"),
)


def build_workspace(project: str, entity: str) -> Any:
    """Return the dashboard as a `wandb_workspaces` object; only its `save()` needs a login."""
    try:
        ws = import_module("wandb_workspaces.workspaces")
        wr = import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise InputError(
            "wandb-workspaces is not installed: pip install wandb-workspaces."
        ) from error

    def wandb_panels(panel: Panel) -> list[Any]:
        if panel.kind == "line":
            style = {"title": panel.title, "title_y": panel.unit or None, "log_y": panel.log}
            return [
                wr.LinePlot(x=axis, y=[panel.key], title_x=AXES[axis], **style)
                for axis in panel.axes
            ]
        if panel.kind == "layers":
            pattern = f"^{panel.key}/.*"
            return [wr.LinePlot(title=panel.title, metric_regex=pattern, log_y=panel.log)]
        if panel.kind == "image":
            return [wr.MediaBrowser(title=panel.title, media_keys=[panel.key])]
        return [wr.WeavePanelSummaryTable(table_name=panel.key)]

    sections = [
        ws.Section(name=name, is_open=True, panels=[w for p in panels for w in wandb_panels(p)])
        for name, panels in groupby(PANELS, key=lambda panel: panel.section)
    ]
    # The runs of a group, which are the seeds of a config, are one curve: their mean.
    columns = ["summary:best val/loss", "summary:best step"]
    runs = ws.RunsetSettings(groupby=[ws.Metric("Group")], pinned_columns=columns)
    names = {"project": project, "entity": entity}
    return ws.Workspace(name="lit_gpt_scratch", sections=sections, runset_settings=runs, **names)


def main(args: Sequence[str] | None = None) -> None:
    """Save the dashboard into a W&B project."""
    parser = ArgumentParser(
        prog=f"{PROGRAM} dashboard", description=main.__doc__, exit_on_error=False
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
