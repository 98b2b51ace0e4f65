"""`lit-gpt-scratch report`: writes one HTML file about runs; it needs no network and no account.

Runs may come from untrusted sources and corpora may contain any text: the template `report.html`
escapes all text, and its content security policy forbids network requests.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import median

from jsonargparse import ArgumentParser
from tqdm import tqdm

from lit_gpt_scratch.data.corpus import TINY_SHAKESPEARE_SHA256
from lit_gpt_scratch.errors import InputError, exit_on_input_error
from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.runs import reading
from lit_gpt_scratch.runs.dashboard import AXES, PANELS
from lit_gpt_scratch.runs.reading import Run, parse_number, subsample
from lit_gpt_scratch.shell import PROGRAM

MAX_POINTS = 500  # of each curve
MAX_SYMBOLS = 120  # the most frequent ones
MAX_IMAGES, MAX_IMAGE_BYTES = 40, 1_000_000  # of all runs together
FIRST_LINES = b"<!doctype html>\n<!-- lit_gpt_scratch report -->"

# Validation losses on Tiny Shakespeare in nats: the reference's at step 4,800, and those that
# nanoGPT's README gives.
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

Statistic = Callable[[list[float]], float]
last: Statistic = itemgetter(-1)
# Columns of the scoreboard: metric, statistic of its values, format, best value of several runs.
SCORES: dict[str, tuple[str, Statistic, str, Statistic | None]] = {
    "parameters": ("parameters", last, "{:,.0f}", None),
    "validation loss, last": ("val/loss", last, "{:.4f}", min),
    "validation loss, best": ("val/loss", min, "{:.4f}", min),
    "bits per character, best": ("val/bpc", min, "{:.3f}", min),
    "seconds of training": ("train_seconds", last, "{:,.0f}", None),
    "characters per second": ("chars_per_sec", median, "{:,.0f}", max),
    "MFU": ("mfu", median, "{:.0%}", max),
}


def compute_score(run: Run, metric: str, statistic: Statistic) -> float | None:
    """Return a statistic of a metric's known values, or None if the run has none."""
    parameters = parse_number(run.about.get("parameters"))
    columns = run.val | run.train | {"parameters": [parameters]}
    known = [value for value in columns.get(metric, ()) if value is not None]
    return statistic(known) if known else None


def make_scoreboard(runs: Sequence[Run]) -> list[list[tuple[str, bool]]]:
    """Return each run's scores as text, and whether each is the best on the same text."""
    board = []
    for run in runs:
        comparable = [other for other in runs if other.validation_text == run.validation_text]
        row = []
        for metric, statistic, form, best in SCORES.values():
            value = compute_score(run, metric, statistic)
            scores = [compute_score(other, metric, statistic) for other in comparable]
            known = [score for score in scores if score is not None]
            is_best = best is not None and len(known) > 1 and value == best(known)
            row.append(("" if value is None else form.format(value), is_best))
        board.append(row)
    return board


def find_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the settings that differ between runs, with each run's value."""
    names = sorted({name for run in runs for name in run.config})
    values = [(name, [run.config.get(name, "") for run in runs]) for name in names]
    return [(name, row) for name, row in values if len(set(row)) > 1]


def symbol_name(symbol: str) -> str:
    """Return a visible name of a character, unique within a plot's axis."""
    name = {"\n": "⏎", " ": "␣", "\t": "⇥"}.get(symbol, symbol)
    return name if name.isprintable() else f"U+{ord(name[0]):04X}"


def render_report(runs: Sequence[Run]) -> str:
    """Return the HTML page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    panels = [panel for panel in PANELS if any(run.has_panel(panel) for run in runs)]
    counts: Counter[str] = Counter()
    for run in runs:
        counts.update({symbol: round(count) for symbol, (count, _) in run.symbols.items()})
    symbols = [symbol for symbol, _ in counts.most_common(MAX_SYMBOLS)]
    references = REFERENCES if any(run.validation_text == REFERENCE_TEXT for run in runs) else {}
    curves = [
        {
            "label": run.label,
            "train": {key: subsample(column, MAX_POINTS) for key, column in run.train.items()},
            "val": {key: subsample(column, MAX_POINTS) for key, column in run.val.items()},
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
        board=make_scoreboard(runs),
        references={name: (loss, loss / math.log(2)) for name, loss in references.items()},
        differences=find_differences(runs),
        sections=[(name, list(group)) for name, group in groupby(panels, lambda p: p.section)],
        axes=AXES,
        data={
            "runs": curves,
            "panels": {panel.key: panel._asdict() for panel in panels},
            "references": references,
            "symbols": [symbol_name(symbol) for symbol in symbols],
        },
        plotly=Markup(get_plotlyjs()),
    )


def write_report(paths: Sequence[Path], output: Path) -> list[str]:
    """Write the report about the runs that `find_runs` finds; return their labels.

    Raises:
        InputError: There are no runs, or a file that is no report would be replaced.
    """
    folders = reading.find_runs(paths)
    images = min(reading.MAX_STEPS, max(2, MAX_IMAGES // len(folders)))
    size = MAX_IMAGE_BYTES // (images * len(folders))
    labels = reading.unique_labels(folders)
    labelled = list(zip(folders, labels, strict=True))
    try:
        if output.exists() and not output.read_bytes().startswith(FIRST_LINES):
            raise InputError(f"output {output} exists and is no report: choose another --output.")
        bar = tqdm(labelled, desc="report", unit="run", disable=None)
        runs = [reading.read_run(folder, label, images, size) for folder, label in bar]
        with atomic_write(output) as file:
            file.write(render_report(runs).encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"output {output} cannot be written ({error.strerror}).") from error
    return labels


def main(args: Sequence[str] | None = None) -> None:
    """Make one HTML file about runs: scores, curves, settings, samples and attention."""
    parser = ArgumentParser(prog=f"{PROGRAM} report", description=main.__doc__, exit_on_error=False)
    where = "Folders of runs, or folders that contain them; else each name's newest run in ./runs."
    parser.add_argument("runs", nargs="*", type=Path, default=[], help=where)
    output = "The HTML file to write."
    parser.add_argument("--output", type=Path, default="report.html", help=output)
    with exit_on_input_error(parser.prog):
        options = parser.parse_args(args)
        labels = write_report(options.runs, options.output)
    print(f"runs: {', '.join(labels)}", file=sys.stderr)
    print(options.output)
