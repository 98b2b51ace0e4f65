"""The loggers of `fit`: metrics.csv and Weights & Biases, which by default records offline."""

import contextlib
import os
import secrets
import string
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger

from lit_gpt_scratch.errors import InputError, describe_error
from lit_gpt_scratch.private_api import WANDB_FLUSH
from lit_gpt_scratch.runs.folder import append_rows, read_rows, write_rows
from lit_gpt_scratch.training.distributed import is_rank_zero

Mode = Literal["offline", "online", "disabled"]
WANDB_MODES = get_args(Mode)


@dataclass(frozen=True)
class WandbSettings:
    """Weights & Biases. By default it records offline: no upload, no account.

    W&B's environment variables count where no flag is given; an empty variable counts as unset.

    Attributes:
        mode: offline, online or disabled; the default is WANDB_MODE, else offline.
        project: Project name; the default is WANDB_PROJECT, else lit_gpt_scratch.
        entity: User or team; the default is WANDB_ENTITY, else your account's.
        group: Group of runs, which W&B averages; the default is WANDB_RUN_GROUP, else the run's
            name: so the seeds of a config are a group.
        tags: Tags of the run; the default is WANDB_TAGS, separated by commas.
    """

    mode: Mode | None = None
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


def resolve_wandb_mode(settings: WandbSettings) -> Any:
    """Return the mode of the settings, else of WANDB_MODE, else offline."""
    mode = settings.mode or os.environ.get("WANDB_MODE") or "offline"
    if mode not in WANDB_MODES:
        raise InputError(f"WANDB_MODE is {mode!r}: it must be {', '.join(WANDB_MODES)}.")
    return mode


class MetricsCSV(Logger):
    """Appends one row to metrics.csv for each log call; a new column is added to all rows.

    Lightning's CSVLogger would delete the file of a run that resumes.
    """

    name = version = save_dir = ""  # in the base class they are properties

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.name, self.version = folder.parent.name, folder.name
        self.save_dir = str(folder.parents[1])
        self.path = folder / "metrics.csv"
        self._columns, _ = read_rows(self.path)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the run's config.yaml has the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        if new := [key for key in row if key not in self._columns]:
            self._columns += new
            write_rows(self.path, self._columns, read_rows(self.path)[1])
        append_rows(self.path, self._columns, [[row.get(key, "") for key in self._columns]])


class WandbRun(Logger):
    """Logs into a W&B run. The process that trains as rank 0 starts the run when fit begins.

    If W&B fails, then or later, it prints a notice, and training continues without W&B.

    Args:
        folder: The run's folder; W&B keeps its files there, unless WANDB_DIR names another.
        config: What W&B shows as the run's config.
        settings: The flags.
        wandb_id: The id of a W&B run to continue; None: a new run.
    """

    name = version = ""  # in the base class they are abstract properties

    def __init__(
        self, folder: Path, config: Any, settings: WandbSettings, wandb_id: str | None = None
    ) -> None:
        super().__init__()
        letters = string.ascii_lowercase + string.digits
        new_id = os.environ.get("WANDB_RUN_ID") or "".join(
            secrets.choice(letters) for _ in range(8)
        )
        self.folder, self.id = folder, wandb_id or new_id
        self.options = {
            "id": self.id,
            "resume": "allow" if wandb_id else None,
            "name": os.environ.get("WANDB_NAME") or f"{folder.parent.name}/{folder.name}",
            "dir": os.environ.get("WANDB_DIR") or folder,
            "mode": resolve_wandb_mode(settings),
            "project": settings.project or os.environ.get("WANDB_PROJECT") or "lit_gpt_scratch",
            "entity": settings.entity,  # for None, W&B reads its environment variable itself
            "group": settings.group or os.environ.get("WANDB_RUN_GROUP") or folder.parent.name,
            "tags": settings.tags or None,
            "config": config,
        }
        self.failure = ""  # why W&B does not record
        self._run: Any = None
        self._is_over = False

    @property
    def experiment(self) -> Any:
        """W&B's run; None in other ranks, after the end, and after a failure."""
        if self._run is None and not self._is_over and is_rank_zero():
            with self._notice_errors():
                self._run = self._start()
        return self._run

    def _start(self) -> Any:
        import wandb  # not at the top: it takes two seconds

        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            if not os.environ[name]:
                del os.environ[name]  # W&B would use an empty value
        os.environ.setdefault("WANDB_DATA_DIR", str(self.folder / "wandb"))  # uploads start there
        silent = self.options["mode"] == "offline"
        settings = wandb.Settings(silent=silent, console="off", **WANDB_FLUSH)
        return wandb.init(**self.options, settings=settings)

    def log(self, values: Mapping[str, Any], step: int, commit: bool | None = None) -> None:
        """Log values at an optimizer step, so that the curves of a resumed run continue."""
        if run := self.experiment:
            with self._notice_errors():
                run.log(dict(values), step=step, commit=commit)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.log(metrics, step or 0)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: `config` has the hyperparameters."""

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Set values in W&B's summary of the run."""
        if run := self.experiment:
            with self._notice_errors():
                run.summary.update(dict(values))

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None:
        if run := self.experiment:
            with self._notice_errors():
                run.log_artifact(artifact, aliases=aliases)

    def finalize(self, status: str) -> None:
        """Finish the run. Lightning calls this at the end of a fit, also after an error."""
        run, self._run, self._is_over = self._run, None, True
        if run:
            with self._notice_errors():
                run.finish()

    @contextlib.contextmanager
    def _notice_errors(self) -> Iterator[None]:
        """If this `with` block fails, print one notice and record nothing more."""
        try:
            yield
        except Exception as error:  # whatever W&B raises, it must not end training
            self._run, self._is_over = None, True
            self.failure = describe_error(error)
            notice = (
                f"Notice: W&B has failed and records no more ({self.failure}). Training goes on"
            )
            print(f"{notice}; metrics.csv gets all rows.", file=sys.stderr)
            with contextlib.suppress(Exception):
                sys.modules["wandb"].teardown(exit_code=1)  # else it prints a traceback at exit


def make_loggers(
    folder: Path, config: Any, settings: WandbSettings, wandb_id: str | None, given: list[Logger]
) -> list[Logger]:
    """Return the loggers of a run: metrics.csv, W&B unless it is disabled, and the user's."""
    loggers: list[Logger] = [MetricsCSV(folder)]
    is_given = any(isinstance(logger, WandbLogger) for logger in given)
    if resolve_wandb_mode(settings) != "disabled" and not is_given:
        loggers.append(WandbRun(folder, config, settings, wandb_id))
    return loggers + given


def find_wandb_run(trainer: Any) -> WandbRun | None:
    """Return the logger of W&B; None: W&B is disabled."""
    found = (logger for logger in trainer.loggers if isinstance(logger, WandbRun))
    return next(found, None)
