"""Output that is redrawn in place in a notebook's cell, and the live loss curve of `fit` there."""

import html
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lit_gpt_scratch.runs.folder import read_rows
from lit_gpt_scratch.training.progress import step_of_total

Point = tuple[float, float]  # step and loss
WIDTH, HEIGHT = 640, 240  # pixels of the curve
SECONDS_BETWEEN_UPDATES = 1.0


def cell_display() -> Callable[[str], None] | None:
    """Return a function that shows HTML in place of its last HTML; None outside a notebook."""
    if "ipykernel.zmqshell" not in sys.modules:
        return None
    from IPython.core.getipython import get_ipython
    from IPython.display import DisplayHandle

    if get_ipython() is None:  # another process, which imports ipykernel only
        return None
    handle: Any = DisplayHandle()  # type: ignore[no-untyped-call]
    handle.display({"text/html": ""}, raw=True)
    return lambda text: handle.update({"text/html": text}, raw=True)


class LiveCurve(Callback):
    """Shows progress and both loss curves in a notebook's cell; a resumed run shows all of it."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show = show
        self.folder = Path()  # of the run; `fit` sets it
        self._shown = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if time.monotonic() - self._shown > SECONDS_BETWEEN_UPDATES:
            self.update(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.update(trainer)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.update(trainer)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        self.update(trainer)

    def update(self, trainer: pl.Trainer) -> None:
        """Draw the curves in metrics.csv."""
        if not trainer.is_global_zero:
            return
        _, rows = read_rows(self.folder / "metrics.csv")
        curves = {
            name: [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
            for name in ("train/loss", "val/loss")
        }
        total = trainer.estimated_stepping_batches
        part = trainer.global_step / total if math.isfinite(total) else None
        self.show(draw(curves, part, f"step {step_of_total(trainer)}"))
        self._shown = time.monotonic()


def draw(curves: dict[str, list[Point]], part: float | None, text: str) -> str:
    """Return a progress bar, the last losses, and the curves as SVG."""
    value = "" if part is None else f' value="{part:.3f}"'
    losses = [f"{name} {points[-1][1]:.4f}" for name, points in curves.items() if points]
    line = html.escape(", ".join([text, *losses]))
    bar = f'<progress style="width:{WIDTH}px"{value}></progress><div>{line}</div>'
    points = [point for curve in curves.values() for point in curve]
    if len(points) < 2:
        return bar
    x_max, y_min = max(x for x, _ in points), min(y for _, y in points)
    y_max = max(y for _, y in points)

    def path(curve: Sequence[Point], color: str) -> str:
        scaled = (
            f"{WIDTH * x / max(x_max, 1):.1f},{HEIGHT * (y_max - y) / max(y_max - y_min, 1e-9):.1f}"
            for x, y in curve
        )
        style = f'fill="none" stroke="{color}" stroke-width="2"'
        return f'<polyline {style} points="{" ".join(scaled)}"/>'

    colors = {"train/loss": "#9aa5b1", "val/loss": "#d9480f"}
    paths = "".join(path(curves[name], color) for name, color in colors.items())
    legend = " ".join(
        f'<span style="color:{c}">&#9644; {name}</span>' for name, c in colors.items()
    )
    box = f'viewBox="0 -4 {WIDTH} {HEIGHT + 8}" width="{WIDTH}" role="img" aria-label="{line}"'
    axis = f"<div>{legend}, from {y_max:.2f} (top) to {y_min:.2f}, {x_max:,.0f} steps</div>"
    return f'{bar}<svg {box} style="background:#fff;border:1px solid #ccc">{paths}</svg>{axis}'
