"""What `compare` says about finished runs: means, differences paired by seed, and a verdict.

All losses are exact validation losses at the last step, in nats per character.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from lit_gpt_scratch.runs.folder import read_mapping, read_rows

# 0.975 quantiles of Student's t distribution for 1 to 30 degrees of freedom.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
MAX_SEEDS = 100  # more are not suggested
GROUPS = ("model.net", "model.optimizer", "model.schedule", "model", "data", "trainer")
Settings = Mapping[str, str]  # of one variant, by dotted name


class Outcome(NamedTuple):
    """A finished run."""

    seed: int
    folder: Path
    last: float  # validation loss at the last step
    best: float  # lowest validation loss
    train: float  # loss on a fixed sample of the training text, at the last step
    seconds: float  # of training, without validation
    parameters: int


def read_outcome(folder: Path, seed: int) -> Outcome:
    """Return the losses of a finished run. Raise ValueError if it has no validation."""
    _, rows = read_rows(folder / "metrics.csv")
    validations = [row for row in rows if row.get("val/loss")]
    if not validations:
        raise ValueError(f"{folder} has no validation loss")
    row = validations[-1]
    losses = [float(row["val/loss"]) for row in validations]
    return Outcome(
        seed=seed,
        folder=folder,
        last=losses[-1],
        best=min(losses),
        train=losses[-1] - float(row.get("val/gap") or math.nan),
        seconds=float(row.get("train_seconds") or math.nan),
        parameters=int(read_mapping(folder / "about.yaml").get("parameters", 0)),
    )


class Difference(NamedTuple):
    """The mean of the differences between pairs of runs, with its 95 % interval."""

    mean: float
    low: float
    high: float
    pairs: int
    seeds_needed: int | None  # to decide, if mean and spread stay; None: over MAX_SEEDS

    @property
    def verdict(self) -> str:
        """Return better, worse, equal or undecided. A lower loss is better."""
        if self.low > 0:
            return "worse"
        if self.high < 0:
            return "better"
        return "equal" if self.low == self.high else "undecided"


def paired_difference(base: Sequence[float], other: Sequence[float]) -> Difference:
    """Return the difference `other` - `base`, with Student's t interval over pairs.

    Runs of one seed read the same batches in the same order. So their difference varies less than
    the losses do.
    """
    differences = [b - a for a, b in zip(base, other, strict=True)]
    center, pairs = mean(differences), len(differences)
    if pairs == 1:
        return Difference(center, -math.inf, math.inf, 1, 3)
    spread = stdev(differences)
    half = half_width(spread, pairs)
    more = range(pairs, MAX_SEEDS + 1)
    needed = next((n for n in more if half_width(spread, n) < abs(center)), None)
    return Difference(center, center - half, center + half, pairs, needed)


def half_width(spread: float, pairs: int) -> float:
    """Return half the width of the 95 % interval of a mean with this standard deviation."""
    freedom = pairs - 1
    large = 1.96 + 2.42 / freedom  # right to two digits from 31 on
    quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else large
    return quantile * spread / math.sqrt(pairs)


def mean_and_range(values: Sequence[float]) -> str:
    """Format as `mean (lowest to highest)`, or as the value alone if there is one."""
    spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first row is the header, in Markdown with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ruled = [rows[0], ["-" * max(3, width) for width in widths], *rows[1:]]
    lines = [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in ruled]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def explain(label: str, base: str, difference: Difference) -> str:
    """Return the verdict about a variant in one sentence."""
    d = difference
    text = f"{label} is {d.verdict}: {abs(d.mean):.4f} nats {'higher' if d.mean > 0 else 'lower'}"
    text += f" than {base}"
    if d.pairs == 1:
        return f"{label} is undecided: {text.partition(': ')[2]}, but one seed shows no spread."
    if d.verdict == "equal":
        return f"{label} is equal to {base}: the same difference, {d.mean:+.4f}, for each seed."
    text += f" (95 % interval {d.low:+.4f} to {d.high:+.4f}, {d.pairs} seeds)."
    if d.verdict != "undecided":
        return text
    if d.seeds_needed is None:
        return f"{text} The difference is small against its spread: {MAX_SEEDS} seeds are too few."
    more = d.seeds_needed - d.pairs
    return f"{text} About {more} more {'seed' if more == 1 else 'seeds'} would tell."


def differing_settings(settings: Mapping[str, Settings]) -> dict[str, list[str]]:
    """Return the settings in which variants differ, each with the value of every variant."""
    names = sorted({name for values in settings.values() for name in values})
    rows = {name: [values.get(name, "-") for values in settings.values()] for name in names}
    return {name: row for name, row in rows.items() if len(set(row)) > 1}


def unequal_settings(
    different: Mapping[str, list[str]], varied: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Return those of the differing settings that the comparison is not about.

    It is about the `varied` flags; without any, about the first of GROUPS that differs.
    """
    in_groups = [g for g in GROUPS if any(f"{name}.".startswith(f"{g}.") for name in different)]
    about = tuple(f"{name}." for name in varied or in_groups[:1])
    return {name: row for name, row in different.items() if not f"{name}.".startswith(about)}


def relative(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, with /."""
    return Path(os.path.relpath(path, folder)).as_posix()


class Comparison(NamedTuple):
    """All runs of a comparison. The first variant is the one that others are compared with."""

    outcomes: dict[str, list[Outcome]]  # of each variant, in the order of the seeds
    different: dict[str, list[str]]  # settings that differ, with the value of each variant
    warnings: list[str]
    machine: str

    def difference(self, label: str) -> Difference:
        """Return how a variant differs from the first."""
        base, other = next(iter(self.outcomes.values())), self.outcomes[label]
        return paired_difference([o.last for o in base], [o.last for o in other])

    def markdown(self) -> str:
        """Return the table, the verdicts and how they were found."""
        base, *others = self.outcomes
        rows = [["", "validation loss", "difference", "verdict", "best", "parameters", "seconds"]]
        for label, runs in self.outcomes.items():
            d = self.difference(label)
            interval = f" ({d.low:+.4f} to {d.high:+.4f})" if d.pairs > 1 else ""
            change = ["", ""] if label == base else [f"{d.mean:+.4f}{interval}", d.verdict]
            best, seconds = mean(run.best for run in runs), mean(run.seconds for run in runs)
            cells = [f"{best:.4f}", f"{runs[0].parameters:,}", f"{seconds:.0f}"]
            rows.append([label, mean_and_range([run.last for run in runs]), *change, *cells])
        seeds = ", ".join(str(run.seed) for run in self.outcomes[base])
        note = (
            "Loss in nats per character (lower is better) at the last step, on all characters of "
            f"the validation split: mean (lowest to highest) of the seeds {seeds}. Difference: "
            f"against {base}, paired by seed, with the 95 % interval of Student's t; each interval "
            "stands for itself. Of 20 variants without an effect, about one looks different. "
            f"Seconds: of training, runs side by side. {self.machine}."
        )
        verdicts = [explain(label, base, self.difference(label)) for label in others]
        warnings = [f"**Warning:** {warning}" for warning in self.warnings]
        return "\n\n".join([markdown_table(rows), *verdicts, *warnings, note])

    def json(self, folder: Path) -> str:
        """Return everything as JSON; paths of runs are relative to `folder`, where the file is."""
        variants: list[dict[str, Any]] = []
        for label, runs in self.outcomes.items():
            d = self.difference(label)
            values = {"difference": d.mean, "low": d.low, "high": d.high}
            known = {k: v if math.isfinite(v) else None for k, v in values.items()}
            rows = [run._asdict() | {"folder": relative(run.folder, folder)} for run in runs]
            variants.append({"label": label, "verdict": d.verdict, **known, "runs": rows})
        contents = {"variants": variants, "different": self.different, "warnings": self.warnings}
        return json.dumps(contents | {"machine": self.machine}, indent=1)
