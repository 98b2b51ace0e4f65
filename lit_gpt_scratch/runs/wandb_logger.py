"""Records runs with Weights & Biases: offline by default, in the run's own folder."""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, WandbLogger

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.private_api import WANDB_FLUSH
from lit_gpt_scratch.training.checkpointing import best_checkpoint
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


class StepWandbLogger(WandbLogger):
    """Logs by optimizer step, so that the curves of a resumed run continue."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)


def make_wandb_loggers(
    folder: Path, config: dict[str, Any], settings: WandbSettings, wandb_id: str | None = None
) -> list[Logger]:
    """Return the W&B logger; none if the mode is `disabled` or this process is not rank 0.

    W&B keeps its files in `folder`, shows `config`, and continues its run `wandb_id` if given.
    Raise InputError if W&B refuses the run.
    """
    mode = resolve_wandb_mode(settings)
    if mode == "disabled" or not is_rank_zero():
        return []
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
    return [StepWandbLogger(experiment=run)]


def get_wandb_run(trainer: Any) -> Any:
    """Return the W&B run of this process, or None."""
    runs = (logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger))
    return next(runs, None)


def finish_wandb_run(folder: Path) -> None:
    """Finish the W&B run of a folder, if there is one."""
    if wandb := sys.modules.get("wandb"):
        wandb.finish()
        if os.environ.get("WANDB_DATA_DIR") == str(folder / "wandb"):
            del os.environ["WANDB_DATA_DIR"]


class WandbCheckpoints(Callback):
    """Saves the W&B run's id in each checkpoint, and logs the best checkpoint as an artifact."""

    def __init__(self, wandb_id: str | None = None) -> None:
        self.wandb_id = wandb_id  # of the resumed run; it is kept if W&B is now disabled

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        run = get_wandb_run(trainer)
        checkpoint["wandb_id"] = run.id if run else self.wandb_id

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Commit this step's row before the checkpoint: a resumed run does not log it again."""
        if run := get_wandb_run(trainer):
            run.log({}, step=trainer.global_step, commit=True)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        run, best = get_wandb_run(trainer), best_checkpoint(trainer)
        if run and Path(best.best_model_path).is_file():
            import wandb

            metrics = trainer.callback_metrics | {"best val/loss": best.best_model_score}
            metadata = {name: float(value) for name, value in metrics.items()}
            artifact = wandb.Artifact(f"checkpoint-{run.id}", "model", metadata=metadata)
            # Refer to the file in its place instead of copying it.
            artifact.add_file(best.best_model_path, policy="immutable", skip_cache=True)
            run.log_artifact(artifact, aliases=["best"])
