"""Groups runs that differ only in their seed, so that a report compares means instead of luck."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean
from typing import NamedTuple

from lit_gpt_scratch.runs.dashboard import AXES
from lit_gpt_scratch.runs.reading import Columns, Run

SEEDS = ("seed_everything", "data.seed")  # these settings change a result by chance only
# Beginnings of settings that change no result.
WITHOUT_EFFECT = (
    "name", "ckpt_path", "wandb.", "trainer.default_root_dir", "trainer.enable_", "trainer.logger",
    "trainer.model_registry", "trainer.profiler",
)  # fmt: skip
STATISTICS: dict[str, Callable[[list[float]], float]] = {"mean": mean, "low": min, "high": max}
Seed = tuple[str | None, ...]  # the values of SEEDS


class Group(NamedTuple):
    """The runs of one config."""

    label: str
    runs: list[Run]

    @property
    def network(self) -> str:
        """Class name of the network."""
        return self.runs[0].network

    @property
    def settings(self) -> dict[str, str]:
        return without_seeds(self.runs[0].config)


def with_effect(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that change a run's result."""
    return {name: value for name, value in settings.items() if not name.startswith(WITHOUT_EFFECT)}


def without_seeds(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that change a run's result other than by chance."""
    return {name: value for name, value in with_effect(settings).items() if name not in SEEDS}


def seed_of(run: Run) -> Seed:
    """Return the run's seeds."""
    return tuple(run.config.get(name) for name in SEEDS)


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """Return the runs of each folder NAME that have equal settings, in the order of the runs."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], list[Run]] = {}
    for run in runs:
        # Nothing is known about a run that has lost its config: it is a group of its own.
        name = run.label.rpartition("/")[0] if run.config else run.label
        found.setdefault((name, tuple(sorted(without_seeds(run.config).items()))), []).append(run)
    names = [name for (name, _), members in found.items() if len(members) > 1]
    return [
        Group(name if len(members) > 1 and names.count(name) == 1 else members[0].label, members)
        for (name, _), members in found.items()
    ]


def spread(tables: Sequence[Columns]) -> dict[str, Columns]:
    """Return the `mean`, `low` and `high` of several runs' columns, at the steps they all have.

    Tables without steps are left out: the files may be those of strangers.
    """
    tables = [columns for columns in tables if "step" in columns]
    if not tables:
        return {"mean": {}}
    by_step = [dict(zip(columns["step"], _rows(columns), strict=True)) for columns in tables]
    steps = [step for step in by_step[0] if all(step in rows for rows in by_step)]
    result: dict[str, Columns] = {"mean": {}, "low": {}, "high": {}}
    for key in tables[0]:
        cells = [[rows[step].get(key) for rows in by_step] for step in steps]
        known = [[v for v in values if v is not None] for values in cells]
        full = [values if len(values) == len(tables) else [] for values in known]
        for name, statistic in STATISTICS.items():
            if name == "mean" or key not in AXES:
                numbers = [statistic(values) if values else None for values in full]
                result[name][key] = [v if v is None else float(f"{v:.6g}") for v in numbers]
    return result


def _rows(columns: Columns) -> Iterator[dict[str, float | None]]:
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
