"""`lit-gpt-scratch report`: writes one HTML file about runs; it needs no network and no account.

Runs of one config are one group: the page shows their mean and range. Runs may come from untrusted
sources and corpora may contain any text: the template `report.html` escapes all text, and its
content security policy forbids network requests.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser
from tqdm import tqdm

from lit_gpt_scratch.data.corpus import TINY_SHAKESPEARE_SHA256
from lit_gpt_scratch.errors import exit_on_input_error
from lit_gpt_scratch.files import render_html, write_html
from lit_gpt_scratch.runs import reading
from lit_gpt_scratch.runs.comparison import paired_difference
from lit_gpt_scratch.runs.dashboard import AXES, PANELS
from lit_gpt_scratch.runs.groups import Group, Seed, make_groups, seed_of, spread
from lit_gpt_scratch.runs.reading import Columns, Run, parse_number, subsample
from lit_gpt_scratch.shell import PROGRAM

MAX_POINTS = 500  # of each curve
MAX_SYMBOLS = 120  # the most frequent ones
# The Okabe-Ito palette is safe for colour-blind readers; grey, as its black vanishes in dark mode.
# Later groups repeat it with dashes, then with dots.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f98")
MAX_IMAGES, MAX_IMAGE_BYTES = 40, 1_000_000  # of all runs together

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
# Columns of the scoreboard: metric, statistic of its values, format, whether the least is the best.
SCORES: dict[str, tuple[str, Statistic, str, bool]] = {
    "validation loss, best": ("val/loss", min, "{:.4f}", True),
    "validation loss, last": ("val/loss", last, "{:.4f}", True),
    "bits per character, best": ("val/bpc", min, "{:.3f}", True),
    "steps": ("step", max, "{:,.0f}", False),
    "parameters": ("parameters", last, "{:,.0f}", False),
    "seconds of training": ("train_seconds", max, "{:,.0f}", False),
    "characters per second": ("chars_per_sec", median, "{:,.0f}", False),
    "MFU": ("mfu", median, "{:.0%}", False),
}


class Score(NamedTuple):
    """One cell of the scoreboard."""

    mean: float | None
    text: str  # of the mean
    range: str  # of several runs: least and greatest
    is_best: bool


def compute_score(run: Run, metric: str, statistic: Statistic) -> float | None:
    """Return a statistic of a metric's known values, or None if the run has none."""
    columns = {"parameters": [parse_number(run.about.get("parameters"))]}
    tables = [run.train, run.val, columns]
    known = [v for table in tables for v in table.get(metric, ()) if v is not None]
    return statistic(known) if known else None


def is_better(own: Mapping[Seed, float], other: Mapping[Seed, float]) -> bool:
    """Return whether `compare` would call the own losses better, for the seeds that both have."""
    seeds = [seed for seed in own if seed in other]
    if not seeds:
        return False
    difference = paired_difference([other[seed] for seed in seeds], [own[seed] for seed in seeds])
    return difference.verdict == "better"


def make_scoreboard(groups: Sequence[Group]) -> list[list[Score]]:
    """Return each group's scores.

    The best is the group that is better than each other group with the same validation text.
    """
    board: list[list[Score]] = [[] for _ in groups]
    for metric, statistic, form, is_compared in SCORES.values():
        scores = [[(run, compute_score(run, metric, statistic)) for run in g.runs] for g in groups]
        by_seed = [{seed_of(r): value for r, value in row if value is not None} for row in scores]
        texts = [group.runs[0].validation_text for group in groups]
        for i, row in enumerate(board):
            rivals = [by_seed[j] for j in range(len(groups)) if j != i and texts[j] == texts[i]]
            is_best = is_compared and bool(rivals) and all(is_better(by_seed[i], r) for r in rivals)
            values = [value for _, value in scores[i] if value is not None]
            several = len({form.format(value) for value in values}) > 1
            ends = f"{form.format(min(values))} to {form.format(max(values))}" if several else ""
            average = mean(values) if values else None
            written = "" if average is None else form.format(average)
            row.append(Score(average, written, ends, is_best))
    return board


def find_differences(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Return the settings that differ between groups, with each group's value."""
    names = sorted({name for group in groups for name in group.settings})
    values = [(name, [group.settings.get(name, "") for group in groups]) for name in names]
    return [(name, row) for name, row in values if len(set(row)) > 1]


def make_curves(group: Group) -> dict[str, Any]:
    """Return the curves of a group: of its mean, its band, and each of several runs."""
    several, curves = len(group.runs) > 1, dict[str, Any](label=group.label, runs=[])
    for part in ("train", "val"):
        tables = [columns for run in group.runs if (columns := getattr(run, part))]
        if len(tables) > 1:
            curves[part] = {name: shorten(columns) for name, columns in spread(tables).items()}
        else:
            curves[part] = {"mean": shorten(tables[0])} if tables else {"mean": {}}
    for run in group.runs if several else ():
        curves["runs"].append(
            {"label": run.label, "train": shorten(run.train), "val": shorten(run.val)}
        )
    return curves


def shorten(columns: Columns) -> Columns:
    """Return at most `MAX_POINTS` rows of a table."""
    return {key: subsample(column, MAX_POINTS) for key, column in columns.items()}


def mean_symbols(group: Group, symbols: Sequence[str]) -> list[tuple[float, float] | None]:
    """Return the count and the mean loss of each character over the runs that have it."""
    found = [[run.symbols[s] for run in group.runs if s in run.symbols] for s in symbols]
    return [
        (cells[0][0], float(f"{mean(loss for _, loss in cells):.6g}")) if cells else None
        for cells in found
    ]


def symbol_name(symbol: str) -> str:
    """Return a visible name of a character, unique within a plot's axis."""
    name = {"\n": "⏎", " ": "␣", "\t": "⇥"}.get(symbol, symbol)
    return name if name.isprintable() else f"U+{ord(name[0]):04X}"


def render_report(runs: Sequence[Run]) -> str:
    """Return the HTML page."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    panels = [panel for panel in PANELS if any(run.has_panel(panel) for run in runs)]
    counts: Counter[str] = Counter()
    for run in runs:
        counts.update({symbol: round(count) for symbol, (count, _) in run.symbols.items()})
    symbols = [symbol for symbol, _ in counts.most_common(MAX_SYMBOLS)]
    references = REFERENCES if any(run.validation_text == REFERENCE_TEXT for run in runs) else {}
    groups = make_groups(runs)
    folder = resources.files("lit_gpt_scratch.runs")
    source, style, script = (
        folder.joinpath(f"report.{kind}").read_text("utf-8") for kind in ("html", "css", "js")
    )
    return render_html(
        source,
        groups=groups,
        count=len(runs),
        commands=any(run.playground_command for run in runs),
        several=len(runs) > len(groups),
        colors=COLORS,
        max_steps=reading.MAX_STEPS,
        titles=[*SCORES],
        board=make_scoreboard(groups),
        singles=[make_scoreboard([Group(run.label, [run]) for run in g.runs]) for g in groups],
        references={name: (loss, loss / math.log(2)) for name, loss in references.items()},
        differences=find_differences(groups),
        sections=[(name, list(group)) for name, group in groupby(panels, lambda p: p.section)],
        axes=AXES,
        data={
            "groups": [make_curves(g) | {"symbols": mean_symbols(g, symbols)} for g in groups],
            "panels": {panel.key: panel._asdict() for panel in panels},
            "references": references,
            "symbols": [symbol_name(symbol) for symbol in symbols],
            "axes": AXES,
            "colors": COLORS,
        },
        style=Markup(style),
        script=Markup(script),
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

    def make() -> str:
        bar = tqdm(labelled, desc="report", unit="run", disable=None)
        return render_report([reading.read_run(f, label, images, size) for f, label in bar])

    write_html(output, "report", make)
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
