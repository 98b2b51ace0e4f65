"""The panels that show a run: one list for the W&B dashboard and for the offline report."""

from typing import Literal, NamedTuple

# The metrics that a curve can be plotted against, and the titles of these axes.
AXES = {"step": "step", "tokens_seen": "characters seen", "train_seconds": "seconds of training"}


class Panel(NamedTuple):
    """One plot, table or series of images.

    Attributes:
        section: The heading above the panel.
        title: The panel's title.
        key: What `fit` logs: a column of metrics.csv for a line, the file KEY.csv for a table or
            bars, the folder KEY for images.
        kind: How the panel is drawn.
        unit: Unit of the vertical axis.
        log: Whether the vertical axis is logarithmic.
        axes: Horizontal axes; W&B gets one plot for each. The report offers all of `AXES`.
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
