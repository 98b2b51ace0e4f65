"""The panels that show a run: one list for the W&B dashboard and for the offline report."""

from typing import Literal, NamedTuple

# The metrics that a curve can be plotted against, and the titles of these axes.
AXES = {"step": "step", "tokens_seen": "characters seen", "train_seconds": "seconds of training"}


class Panel(NamedTuple):
    """One plot, table or series of images."""

    section: str  # the heading above the panel
    title: str
    key: str  # column of metrics.csv (line), file KEY.csv (table or bar) or folder KEY (image)
    kind: Literal["line", "bar", "table", "image"] = "line"
    unit: str = ""  # of the vertical axis
    log: bool = False  # whether the vertical axis is logarithmic
    axes: tuple[str, ...] = ("step",)  # W&B gets one plot for each; the report offers all `AXES`


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
