"""Finds and reads runs on disk, also incomplete ones, and executes none of their content."""

import base64
import contextlib
import io
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs.dashboard import AXES, PANELS, Panel
from lit_gpt_scratch.runs.folder import Row, is_run, read_mapping, read_rows, version_order
from lit_gpt_scratch.shell import PROGRAM, in_shell, plugin_flag

MAX_STEPS = 8  # number of steps whose samples and images a run shows

Columns = dict[str, list[float | None]]


class Run(NamedTuple):
    """The contents of a run's folder."""

    folder: Path
    label: str  # the end of the folder's path, long enough to be unique
    config: dict[str, str]  # settings by dotted name
    about: dict[str, Any]  # contents of about.yaml
    train: Columns  # of the rows of metrics.csv that training logged
    val: Columns  # of the rows that validation logged
    symbols: dict[str, tuple[float, float]]  # last validation's count and loss of each character
    samples: list[tuple[str, list[tuple[str, str]]]]  # steps; pairs of prompt and continuation
    attention: list[tuple[str, str]]  # steps, each with an image as a data URL

    @property
    def network(self) -> str:
        """Class name of the network."""
        return self.config.get("model.net.class_path", "").rpartition(".")[2]

    @property
    def validation_text(self) -> tuple[str | None, ...]:
        """What identifies the validation split: only losses on the same text are comparable."""
        names = ("sha256", "val_fraction", "test_fraction")
        return tuple(self.config.get(f"data.{name}") for name in names)

    @property
    def playground_command(self) -> str:
        """The command that writes the playground of this run; "" if it has no best.ckpt."""
        best = self.folder / "checkpoints" / "best.ckpt"
        if not best.is_file():
            return ""
        here = Path.cwd()
        folder = self.folder.relative_to(here) if self.folder.is_relative_to(here) else self.folder
        plugin = self.config.get("plugin", "null")
        flag = "" if plugin == "null" else plugin_flag(plugin)
        return f"{PROGRAM} playground {in_shell(folder)}{flag}"

    def has_panel(self, panel: Panel) -> bool:
        """Return whether the run has data for a panel."""
        if panel.kind == "layers":
            return any(name.startswith(f"{panel.key}/") for name in self.val)
        if panel.kind == "line":
            return panel.key in self.train or panel.key in self.val
        return bool(getattr(self, panel.key))


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the runs among `paths` and below; without paths, each name's newest run in ./runs."""
    found: list[Path] = []
    for path in paths or [Path("runs")]:
        if path.suffix == ".json":
            found += runs_of_comparison(path)
            continue
        require_folder(path)
        below = list(runs_below(path.resolve()))
        if not below:
            raise InputError(f"folder {path} contains no run: give a folder such as runs/NAME.")
        newest = {run.parent: run for run in below}  # the runs of a name come in version order
        found += below if paths else newest.values()
    return list(dict.fromkeys(found))


def require_folder(path: Path) -> None:
    """Raise InputError if a folder of runs does not exist."""
    if not path.is_dir():
        fault = "is a file" if path.exists() else "does not exist"
        raise InputError(f"folder {path} {fault}: name a folder of runs, or run fit first.")


def runs_of_comparison(path: Path) -> list[Path]:
    """Return the runs that a table of `compare` in JSON names."""
    try:
        variants = json.loads(path.read_bytes())["variants"]
        runs = [path.parent / run["folder"] for variant in variants for run in variant["runs"]]
        if not runs:
            raise ValueError("no runs")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}. Give a table that compare wrote.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a table that compare wrote: it does not name its runs."
        ) from error
    if missing := [run for run in runs if not is_run(run)]:
        raise InputError(f"{path} names the run {missing[0]}, which does not exist.")
    return [run.resolve() for run in runs]


def runs_below(folder: Path) -> Iterator[Path]:
    """Yield the folder itself if it is a run, else the runs inside it in version order."""
    if is_run(folder):
        yield folder
    else:
        for path in sorted(filter(Path.is_dir, folder.iterdir()), key=version_order):
            yield from runs_below(path)


def unique_labels(folders: Sequence[Path]) -> list[str]:
    """Return the last two parts of each path, or as many parts as make the labels unique."""
    parts = 2
    while len({folder.parts[-parts:] for folder in folders}) < len(folders):
        parts += 1
    return ["/".join(folder.parts[-parts:]) for folder in folders]


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings by dotted name, as on the command line."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else str(value)


def parse_number(text: Any) -> float | None:
    """Return a finite number, rounded to six digits, or None."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        value = float(text)
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return None


def subsample(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` items, evenly spaced, with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def metric_columns(rows: Iterable[Row], required: str) -> Columns:
    """Return the metrics of all rows that have a value of `required`, without empty columns."""
    kept = [row for row in rows if row.get(required)]
    keys = [*AXES, *(panel.key for panel in PANELS if panel.kind == "line")]
    prefixes = tuple(f"{panel.key}/" for panel in PANELS if panel.kind == "layers")
    keys += [name for name in (kept[0] if kept else ()) if name.startswith(prefixes)]
    columns = {key: [parse_number(row.get(key)) for row in kept] for key in keys}
    return {key: column for key, column in columns.items() if any(v is not None for v in column)}


def read_run(folder: Path, label: str, max_images: int = MAX_STEPS, max_bytes: int = 2**20) -> Run:
    """Read a run's folder; what is missing stays empty. Images are scaled down to `max_bytes`."""
    _, metrics = read_rows(folder / "metrics.csv")
    samples: dict[str, list[tuple[str, str]]] = {}
    for row in read_rows(folder / "samples.csv")[1]:
        prompt, text = row.get("prompt", ""), row.get("text", "")
        samples.setdefault(row.get("step", ""), []).append((prompt, text.removeprefix(prompt)))
    symbols: dict[str, dict[str, tuple[float, float]]] = {}
    for row in read_rows(folder / "symbols.csv")[1]:
        count, loss = parse_number(row.get("count")), parse_number(row.get("loss"))
        if count and loss is not None:
            symbols.setdefault(row.get("step", ""), {})[row.get("symbol", "")] = (count, loss)
    paths = subsample(sorted(folder.glob("attention/step_*.png")), max_images)
    return Run(
        folder=folder,
        label=label,
        config=dict(flatten(read_mapping(folder / "config.yaml"))),
        about=read_mapping(folder / "about.yaml"),
        train=metric_columns(metrics, "train/loss"),
        val=metric_columns(metrics, "val/loss"),
        symbols=[{}, *symbols.values()][-1],
        samples=subsample(list(samples.items()), MAX_STEPS),
        attention=[(step, url) for path in paths for step, url in read_image(path, max_bytes)],
    )


def read_image(path: Path, max_bytes: int) -> Iterator[tuple[str, str]]:
    """Yield an image's step and data URL, scaled down to `max_bytes`; nothing if it is damaged."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            full = image.convert("RGB")
    except (OSError, SyntaxError):
        return
    data, kind = path.read_bytes(), "png"
    side, options = max(full.size), dict[str, Any](lossless=True)
    while len(data) > max_bytes:
        buffer = io.BytesIO()
        full.thumbnail((side, side))
        full.save(buffer, "WEBP", **options)
        data, kind = buffer.getvalue(), "webp"
        side, options = side * 3 // 4, {"quality": 50}
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    yield path.stem.removeprefix("step_").lstrip("0"), url


def read_wandb(*segments: Path) -> dict[int, dict[str, Any]]:
    """Return what W&B recorded of one run: for each step, the values by name.

    `segments` are the run's folders `wandb/offline-run-*`: W&B starts one whenever the run starts
    or resumes. A resumed run repeats the steps after its checkpoint, so from the first step of a
    segment on, the rows of earlier segments are dropped.
    """
    rows: dict[int, dict[str, Any]] = {}
    for segment in sorted(segments, key=lambda path: path.name):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", str(segment), "--json"]
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        records = [json.loads(line) for line in output.splitlines()]
        if not records:
            raise InputError(f"{segment} is not a run that W&B recorded: name an offline-run-*.")
        history = [record["history"] for record in records if record["type"] == "history"]
        new = {int(row["step"]["num"]): row["item"] for row in history}
        rows = {step: row for step, row in rows.items() if step < min(new, default=step + 1)} | new
    return rows
