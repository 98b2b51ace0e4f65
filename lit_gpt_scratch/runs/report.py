"""The offline report: runs on disk as one HTML file that needs no network and no account.

    lit-gpt-scratch report [RUNS...] [--output report.html]

Runs may come from strangers, and corpora hold anything: the template `report.html` escapes every
text, and the page may not call out.
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path

from jsonargparse import ArgumentParser
from tqdm import tqdm

from lit_gpt_scratch.data.corpus import TINY_SHAKESPEARE_SHA256
from lit_gpt_scratch.errors import InputError, exit_on_input_error
from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.runs.dashboard import AXES, PANELS
from lit_gpt_scratch.runs.reading import (
    STEPS,
    Columns,
    Run,
    find_runs,
    labels,
    number,
    read_run,
    thinned,
)

POINTS = 500  # of a curve
SYMBOLS = 120  # of an alphabet: the most frequent ones
IMAGES, IMAGE_BYTES = 40, 1_000_000  # of all runs together
MARK = b"<!doctype html>\n<!-- lit_gpt_scratch report -->"

# Validation losses on Tiny Shakespeare in nats: the reference's at its step 4,800, and nanoGPT's.
REFERENCES = {
    "reference, bigram": 2.5804,
    "reference, single head": 2.4116,
    "reference, multi-head": 2.2773,
    "reference, transformer": 2.1728,
    "nanoGPT on a CPU": 1.88,
    "reference, GPT": 1.6357,
    "nanoGPT on a GPU": 1.4697,
}
REFERENCE_TEXT = (TINY_SHAKESPEARE_SHA256, "0.1", "0.0")

# How each score is written, and which of several is the best.
SCORES: dict[str, tuple[str, Callable[[list[float]], float] | None]] = {
    "parameters": ("{:,.0f}", None),
    "validation loss, last": ("{:.4f}", min),
    "best": ("{:.4f}", min),
    "bits per character": ("{:.3f}", min),
    "seconds of training": ("{:,.0f}", None),
    "characters per second": ("{:,.0f}", max),
    "MFU": ("{:.0%}", max),
}


def scores(run: Run) -> list[float | None]:
    """A run's values of SCORES; None: it does not say."""

    def known(columns: Columns, key: str) -> list[float]:
        return [value for value in columns.get(key, ()) if value is not None]

    losses, seconds = known(run.val, "val/loss"), known(run.train, "train_seconds")
    speeds, shares = known(run.train, "chars_per_sec"), known(run.train, "mfu")
    return [
        number(run.about.get("parameters")),
        losses[-1] if losses else None,
        min(losses, default=None),
        min(losses) / math.log(2) if losses else None,
        seconds[-1] if seconds else None,
        statistics.median(speeds) if speeds else None,
        statistics.median(shares) if shares else None,
    ]


def scoreboard(runs: Sequence[Run]) -> list[list[tuple[str, bool]]]:
    """For each run and score, its text and whether it beats all that were measured on its text."""
    board = []
    for run in runs:
        rivals = zip(*(scores(other) for other in runs if other.text == run.text), strict=True)
        row = []
        for (form, best), value, others in zip(SCORES.values(), scores(run), rivals, strict=True):
            known = [other for other in others if other is not None]
            wins = best is not None and len(known) > 1 and value == best(known)
            row.append(("" if value is None else form.format(value), wins))
        board.append(row)
    return board


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs, with each run's value."""
    names = sorted({name for run in runs for name in run.config})
    values = [(name, [run.config.get(name, "") for run in runs]) for name in names]
    return [(name, row) for name, row in values if len(set(row)) > 1]


def visible(symbol: str) -> str:
    """A character as something to see."""
    shown = {"\n": "⏎", " ": "␣", "\t": "⇥"}.get(symbol, symbol)
    return shown if shown.isprintable() else f"U+{ord(shown[0]):04X}"


def report(runs: Sequence[Run]) -> str:
    """The page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    panels = [panel for panel in PANELS if any(run.shows(panel) for run in runs)]
    counts: Counter[str] = Counter()
    for run in runs:
        counts.update({symbol: round(count) for symbol, (count, _) in run.symbols.items()})
    symbols = [symbol for symbol, _ in counts.most_common(SYMBOLS)]
    references = REFERENCES if any(run.text == REFERENCE_TEXT for run in runs) else {}
    curves = [
        {
            "label": run.label,
            "train": {key: thinned(column, POINTS) for key, column in run.train.items()},
            "val": {key: thinned(column, POINTS) for key, column in run.val.items()},
            "symbols": [run.symbols.get(symbol) for symbol in symbols],
        }
        for run in runs
    ]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    source = resources.files("lit_gpt_scratch.runs").joinpath("report.html").read_text("utf-8")
    return environment.from_string(source).render(
        runs=runs,
        titles=[*SCORES],
        board=scoreboard(runs),
        references={name: (loss, loss / math.log(2)) for name, loss in references.items()},
        differences=differences(runs),
        sections=[(n, list(p)) for n, p in groupby(panels, lambda panel: panel.section)],
        axes=AXES,
        data={
            "runs": curves,
            "panels": {panel.key: panel._asdict() for panel in panels},
            "references": references,
            "symbols": [visible(symbol) for symbol in symbols],
        },
        plotly=Markup(get_plotlyjs()),
    )


def write_report(paths: Sequence[Path], output: Path) -> None:
    """Make the report of runs.

    Args:
        paths: Folders of runs, or of folders of them; none: see `find_runs`.
        output: An HTML file, new or an older report.

    Raises:
        InputError: There is no run, or the output is something else or cannot be written.
    """
    folders = find_runs(paths)
    images = min(STEPS, max(2, IMAGES // len(folders)))
    size = IMAGE_BYTES // (images * len(folders))
    named = list(zip(folders, labels(folders), strict=True))
    try:
        if output.exists() and not output.read_bytes().startswith(MARK):
            raise InputError(f"output {output} is there and is no report: choose another --output.")
        bar = tqdm(named, desc="report", unit="run", disable=None)
        runs = [read_run(folder, label, images, size) for folder, label in bar]
        with atomic_write(output) as file:
            file.write(report(runs).encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"output {output} cannot be written ({error.strerror}).") from error


def main(args: Sequence[str] | None = None) -> None:
    """Make one HTML file of runs on disk: scores, curves, settings, samples and attention."""
    parser = ArgumentParser(
        prog="lit-gpt-scratch report", description=main.__doc__, exit_on_error=False
    )
    where = "Folders of runs, or of folders of them. By default, each name's newest in ./runs."
    parser.add_argument("runs", nargs="*", type=Path, help=where)
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="The file.")
    with exit_on_input_error(parser.prog):
        asked = parser.parse_args(args)
        write_report(asked.runs or [], asked.output)
    print(asked.output)
