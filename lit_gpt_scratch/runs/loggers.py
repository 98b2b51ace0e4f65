"""The loggers of `fit`: metrics.csv and Weights & Biases, which by default records offline."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.private_api import WANDB_FLUSH
from lit_gpt_scratch.runs.folder import append_rows, read_rows, write_rows
from lit_gpt_scratch.training.distributed import is_rank_zero

Mode = Literal["offline", "online", "disabled"]
WANDB_MODES = get_args(Mode)


@dataclass(frozen=True)
class WandbSettings:
    """Weights & Biases. By default it records offline: no upload, no account.

    Attributes:
        mode: offline, online or disabled; the default is WANDB_MODE, else offline.
        project: Project name.
        entity: User or team; the default is your account's.
        group: Group of runs that this run belongs to.
        tags: Tags of the run.
    """

    mode: Mode | None = None
    project: str = "lit_gpt_scratch"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


def resolve_wandb_mode(settings: WandbSettings) -> Any:
    """Return the mode of the settings, else of WANDB_MODE, else offline."""
    mode = settings.mode or os.environ.get("WANDB_MODE", "offline")
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


class StepWandbLogger(WandbLogger):
    """Logs by optimizer step, so that the curves of a resumed run continue."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)


def make_loggers(
    folder: Path, config: dict[str, Any], settings: WandbSettings, wandb_id: str | None = None
) -> list[Logger]:
    """Return the loggers of a run: MetricsCSV and, in rank 0 unless it is disabled, W&B.

    W&B keeps its files in `folder`, shows `config`, and continues its run `wandb_id` if given.
    Raise InputError if W&B refuses the run.
    """
    mode = resolve_wandb_mode(settings)
    loggers: list[Logger] = [MetricsCSV(folder)]
    if mode == "disabled" or not is_rank_zero():
        return loggers
    import wandb  # not at the top: it takes two seconds

    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))  # staging area for uploads
    try:
        run = wandb.init(
            name=f"{folder.parent.name}/{folder.name}",
            id=wandb_id,
            resume="allow" if wandb_id else None,
            dir=folder,
            config=config,
            **asdict(replace(settings, mode=mode)),
            settings=wandb.Settings(silent=mode == "offline", console="off", **WANDB_FLUSH),
        )
    except wandb.Error as error:
        if not (folder / "metrics.csv").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise InputError(f"W&B: {error} Run wandb login, or use --wandb.mode offline.") from error
    return [*loggers, StepWandbLogger(experiment=run)]


def get_wandb_run(trainer: Any) -> Any:
    """Return the W&B run of this process, or None."""
    runs = (logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger))
    return next(runs, None)


def finish_wandb_run(trainer: Any) -> None:
    if run := get_wandb_run(trainer):
        run.finish()
