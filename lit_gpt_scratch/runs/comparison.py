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

from lit_gpt_scratch.runs.folder import read_mapping, validations

# 0.975 quantiles of Student's t distribution for 1 to 30 degrees of freedom.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
MAX_SEEDS = 100  # more are not suggested
GROUPS = ("model.net", "model.optimizer", "model.schedule", "model", "data", "trainer")
NOT_SETTINGS = {"code_sha256", "plugin"}  # the networks' classes tell more
Settings = Mapping[str, str]  # of one variant, by dotted name
Different = Mapping[str, Sequence[str]]  # settings, each with the value of every variant


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
    rows = validations(folder)
    if not rows:
        raise ValueError(f"{folder} has no validation loss")
    row, losses = rows[-1], [float(row["val/loss"]) for row in rows]
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


def align(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Pad all cells of a column to one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in rows]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first row is the header, in Markdown with aligned columns."""
    header, *body = align(rows)
    lines = [header, ["-" * max(3, len(cell)) for cell in header], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def explain(label: str, base: str, difference: Difference) -> str:
    """Return the verdict about a variant in one sentence."""
    d = difference
    text = f"{label} is {d.verdict}: {abs(d.mean):.4f} nats {'higher' if d.mean > 0 else 'lower'}"
    text += f" than {base}"
    if d.pairs == 1:
        return f"{label} is undecided: {text.partition(': ')[2]}, but one seed shows no spread."
    if d.verdict == "equal":
        return f"{label} has the same loss as {base} for each seed."
    text += f" (95 % interval {d.low:+.4f} to {d.high:+.4f}, {d.pairs} seeds)."
    if d.verdict != "undecided":
        return text
    if d.seeds_needed is None:
        return f"{text} The difference is small against its spread: {MAX_SEEDS} seeds are too few."
    more = d.seeds_needed - d.pairs
    return f"{text} About {more} more {'seed' if more == 1 else 'seeds'} would tell."


def differing_settings(settings: Mapping[str, Settings]) -> dict[str, list[str]]:
    """Return the settings in which variants differ, each with the value of every variant."""
    names = {name for values in settings.values() for name in values} - NOT_SETTINGS
    rows = {name: [values.get(name, "-") for values in settings.values()] for name in sorted(names)}
    return {name: row for name, row in rows.items() if len(set(row)) > 1}


def unequal_settings(different: Different, varied: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return those of the differing settings that the comparison is not about.

    It is about the `varied` flags; without any, about the first of GROUPS that differs. Where two
    classes differ, their arguments are left out.
    """

    def inside(groups: Sequence[str], name: str) -> bool:
        return f"{name}.".startswith(tuple(f"{group}." for group in groups))

    about = varied or [g for g in GROUPS if any(inside([g], name) for name in different)][:1]
    other = {name: [*row] for name, row in different.items() if not inside(about, name)}
    classes = [name.removesuffix(".class_path") for name in other if name.endswith(".class_path")]
    unequal = {c: [path.rpartition(".")[2] for path in other[f"{c}.class_path"]] for c in classes}
    return unequal | {name: row for name, row in other.items() if not inside(classes, name)}


def describe_unequal(unequal: Different) -> str:
    """Return the predicate of a warning that lists the settings and their values."""
    listed = "; ".join(f"{name} ({', '.join(dict.fromkeys(r))})" for name, r in unequal.items())
    return (
        f"also differs from the first in {listed}. A difference in loss may come from these: set "
        "them equal, or compare one change at a time."
    )


def relative(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, with /."""
    return Path(os.path.relpath(path, folder)).as_posix()


class Comparison(NamedTuple):
    """All runs of a comparison. The first variant is the one that others are compared with."""

    outcomes: dict[str, list[Outcome]]  # of each variant, in the order of the seeds
    different: Different  # settings
    warnings: list[str]
    machine: str
    failures: Sequence[str] = ()  # variants that are left out, each with the reason

    def difference(self, label: str) -> Difference:
        """Return how a variant differs from the first."""
        base, other = next(iter(self.outcomes.values())), self.outcomes[label]
        return paired_difference([o.last for o in base], [o.last for o in other])

    def rows(self) -> list[list[str]]:
        """Return the table, with its header."""
        rows = [["", "validation loss", "change", "verdict", "parameters", "seconds"]]
        for label, runs in self.outcomes.items():
            d, losses = self.difference(label), [run.last for run in runs]
            change = [f"{d.mean:+.4f}", d.verdict] if len(rows) > 1 else ["", ""]
            seconds = f"{mean(run.seconds for run in runs):.0f}"
            rows.append(
                [label, mean_and_range(losses), *change, f"{runs[0].parameters:,}", seconds]
            )
        return rows

    def verdicts(self) -> list[str]:
        """Return one sentence for each variant but the first."""
        base, *others = self.outcomes
        return [explain(label, base, self.difference(label)) for label in others]

    def markdown(self) -> str:
        """Return the table, the verdicts, the warnings, and how all this was found."""
        base, runs = next(iter(self.outcomes.items()))
        warnings = [f"**Warning:** {warning}" for warning in self.notices()]
        note = (
            "Loss in nats per character (lower is better) at the last step, on the "
            f"validation split: mean (lowest to highest) of the seeds "
            f"{', '.join(str(run.seed) for run in runs)}. Change: the mean difference from {base}, "
            "paired by seed. Interval: Student's t, at 95 % for each variant by itself: of 20 "
            "variants without an effect, about one looks different. Seconds: of training, mean; "
            f"runs share the machine. {self.machine}."
        )
        return "\n\n".join([markdown_table(self.rows()), *self.verdicts(), *warnings, note])

    def _repr_markdown_(self) -> str:
        return self.markdown()  # in a notebook's cell

    def text(self) -> str:
        """Return the table and the verdicts for a terminal."""
        table = "\n".join("  ".join(row).rstrip() for row in align(self.rows()))
        warnings = [f"Warning: {warning}" for warning in self.notices()]
        return "\n\n".join([table, *self.verdicts(), *warnings])

    def notices(self) -> list[str]:
        """Return all that weakens the verdicts."""
        return [*self.warnings, *(f"left out: {failure}" for failure in self.failures)]

    def json(self, folder: Path) -> str:
        """Return everything as JSON; paths of runs are relative to `folder`, where the file is."""
        variants: list[dict[str, Any]] = []
        for label, runs in self.outcomes.items():
            d = self.difference(label)
            values = {"difference": d.mean, "low": d.low, "high": d.high}
            known = {k: v if math.isfinite(v) else None for k, v in values.items()}
            rows = [run._asdict() | {"folder": relative(run.folder, folder)} for run in runs]
            variants.append({"label": label, "verdict": d.verdict, **known, "runs": rows})
        contents = {"variants": variants, "different": self.different, "warnings": self.notices()}
        return json.dumps(contents | {"machine": self.machine}, indent=1)
