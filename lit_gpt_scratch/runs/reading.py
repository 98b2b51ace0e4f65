"""What runs left on disk, read back: whole, cut short, or from before a file was invented.

Runs may come from strangers: nothing here runs code of theirs, and all that they say is text.
"""

import base64
import contextlib
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs.dashboard import AXES, PANELS, Panel
from lit_gpt_scratch.runs.tables import Row, read_rows

STEPS = 8  # of a run's samples and images
FILES = ("config.yaml", "metrics.csv")  # a folder with one of them is a run

T = TypeVar("T")
Columns = dict[str, list[float | None]]


class Run(NamedTuple):
    """What a run's folder says.

    Attributes:
        label: The end of its path, long enough to tell it from the others.
        config: Dotted names and values.
        about: The facts of about.yaml.
        train: Columns of what was logged in training.
        val: Columns of what each validation logged.
        symbols: Of each character of the last validation, its count and loss.
        samples: Steps, each with its prompts and how they go on.
        attention: Steps, each with its image as a data URL.
    """

    label: str
    config: dict[str, str]
    about: dict[str, Any]
    train: Columns
    val: Columns
    symbols: dict[str, tuple[float, float]]
    samples: list[tuple[str, list[tuple[str, str]]]]
    attention: list[tuple[str, str]]

    @property
    def network(self) -> str:
        """The name of its class."""
        return self.config.get("model.net.class_path", "").rpartition(".")[2]

    @property
    def text(self) -> tuple[str | None, ...]:
        """What it was validated on: losses on other texts do not compare."""
        names = ("sha256", "val_fraction", "test_fraction")
        return tuple(self.config.get(f"data.{name}") for name in names)

    def shows(self, panel: Panel) -> bool:
        """Whether it has something for a panel."""
        if panel.kind == "line":
            return panel.key in self.train or panel.key in self.val
        return bool(getattr(self, panel.key))


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The folders of runs among `paths` and below them; without any, each name's newest in ./runs.

    Raises:
        InputError: A folder is not there, or there is no run in it.
    """
    found: list[Path] = []
    for path in paths or [Path("runs")]:
        if not path.is_dir():
            raise InputError(f"runs folder {path} is not there: name another, or run fit first.")
        below = list(runs_below(path.resolve()))
        if not below:
            raise InputError(f"folder {path} has no run in it: name one such as runs/NAME.")
        if not paths:  # they come in order, and the last of a name stays
            below = list({run.parent: run for run in below}.values())
        found += below
    return list(dict.fromkeys(found))


def runs_below(folder: Path) -> Iterator[Path]:
    """The folder if it is a run, else those in it, version_9 before version_10."""
    if any((folder / name).is_file() for name in FILES):
        yield folder
        return
    inner = [path for path in folder.iterdir() if path.is_dir()]
    # Words and numbers in turn, so that like is compared with like.
    inner.sort(key=lambda p: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", p.name)])
    for path in inner:
        yield from runs_below(path)


def labels(folders: Sequence[Path]) -> list[str]:
    """The last two parts of each path, or as many as tell them all apart."""
    parts = 2
    while True:
        found = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(found)) == len(found):
            return found
        parts += 1


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV file, less a last one that a killed run left torn; none without a file."""
    return read_rows(path)[1] if path.is_file() else []


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; empty where the file is missing, torn or something else."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings under the dotted names that are their flags."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else str(value)


def number(text: Any) -> float | None:
    """A finite number to six digits, or None."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        value = float(text)
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return None


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def columns(rows: Iterable[Row], anchor: str, keys: Iterable[str]) -> Columns:
    """Those of `keys` that have a value, over the rows that have one of `anchor`."""
    kept = [row for row in rows if row.get(anchor)]
    found = {key: [number(row.get(key)) for row in kept] for key in keys}
    return {key: column for key, column in found.items() if any(v is not None for v in column)}


def read_run(folder: Path, label: str, images: int = STEPS, size: int = 1 << 20) -> Run:
    """All that a run's folder has to show, which may be little.

    Args:
        folder: The run's.
        label: Its name in the report.
        images: How many images it may show.
        size: How many bytes each of them may have.
    """
    metrics = read_table(folder / "metrics.csv")
    lines = [panel.key for panel in PANELS if panel.kind == "line"]
    samples: dict[str, list[tuple[str, str]]] = {}
    for row in read_table(folder / "samples.csv"):
        prompt, text = row.get("prompt", ""), row.get("text", "")
        samples.setdefault(row.get("step", ""), []).append((prompt, text.removeprefix(prompt)))
    symbols: dict[str, dict[str, tuple[float, float]]] = {}
    for row in read_table(folder / "symbols.csv"):
        count, loss = number(row.get("count")), number(row.get("loss"))
        if count and loss is not None:
            symbols.setdefault(row.get("step", ""), {})[row.get("symbol", "")] = (count, loss)
    paths = thinned(sorted(folder.glob("attention/step_*.png")), images)
    return Run(
        label=label,
        config=dict(flat(read_mapping(folder / "config.yaml"))),
        about=read_mapping(folder / "about.yaml"),
        train=columns(metrics, "train/loss", [*AXES, *lines]),
        val=columns(metrics, "val/loss", [*AXES, *lines]),
        symbols=[{}, *symbols.values()][-1],
        samples=thinned(list(samples.items()), STEPS),
        attention=[(step, url) for path in paths for step, url in read_image(path, size)],
    )


def read_image(path: Path, size: int) -> Iterator[tuple[str, str]]:
    """The step of an image and its data URL, smaller where it has more bytes; nothing if torn."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            full = image.convert("RGB")
    except (OSError, SyntaxError):
        return
    data, kind = path.read_bytes(), "png"
    side, how = max(full.size), dict[str, Any](lossless=True)
    while len(data) > size:
        buffer = io.BytesIO()
        full.thumbnail((side, side))
        full.save(buffer, "WEBP", **how)
        data, kind = buffer.getvalue(), "webp"
        side, how = side * 3 // 4, {"quality": 50}
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    yield path.stem.removeprefix("step_").lstrip("0"), url


def read_wandb(*segments: Path) -> dict[int, dict[str, Any]]:
    """What W&B recorded of one run offline, by step: the values that it logged there.

    A resumed run has one segment for each start. From where a later one begins, what an earlier
    one still said counts no more: it had gone on past its last checkpoint.

    Args:
        segments: W&B's own folders, `offline-run-TIME-ID`, in any order.

    Raises:
        InputError: A folder is not one of W&B's.
    """
    found: dict[int, dict[str, Any]] = {}
    for segment in sorted(segments, key=lambda path: path.name):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", str(segment), "--json"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        records = [json.loads(line) for line in said.splitlines()]
        if not records:
            raise InputError(f"{segment} is not a run that W&B recorded: name an offline-run-*.")
        rows = [record["history"] for record in records if record["type"] == "history"]
        new = {int(row["step"]["num"]): row["item"] for row in rows}
        found = {step: row for step, row in found.items() if step < min(new, default=step + 1)}
        found |= new
    return found
