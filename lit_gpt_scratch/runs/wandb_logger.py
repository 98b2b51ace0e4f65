"""What W&B records of a run: on this machine alone, unless it is asked for more."""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, WandbLogger

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.training.checkpointing import best_checkpoint
from lit_gpt_scratch.training.distributed import is_rank_zero

Mode = Literal["offline", "online", "disabled"]
WANDB_MODES = get_args(Mode)


@dataclass(frozen=True)
class WandbSettings:
    """Weights & Biases. By default nothing leaves this machine and no account is asked for.

    Attributes:
        mode: offline, online or disabled; the default is WANDB_MODE, else offline.
        project: The project's name.
        entity: User or team; the default is the account's.
        group: What this run is compared with.
        tags: Labels.
    """

    mode: Mode | None = None
    project: str = "lit_gpt_scratch"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


def wandb_mode(settings: WandbSettings) -> Any:
    """The mode asked for, by the settings, else by WANDB_MODE; else offline.

    Raises:
        InputError: WANDB_MODE is another word.
    """
    mode = settings.mode or os.environ.get("WANDB_MODE", "offline")
    if mode not in WANDB_MODES:
        raise InputError(f"WANDB_MODE is {mode!r}: it must be {', '.join(WANDB_MODES)}.")
    return mode


class StepWandbLogger(WandbLogger):
    """W&B counts optimizer steps, as all else does, so that a resumed run's curves go on."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)


def make_wandb_logger(
    folder: Path, config: dict[str, Any], settings: WandbSettings, wandb_id: str | None = None
) -> list[Logger]:
    """W&B's logger, if any, with its files in the run's folder.

    Args:
        folder: The run's.
        config: For W&B to show.
        settings: Of W&B.
        wandb_id: That of the run which this one resumes.

    Raises:
        InputError: W&B refuses, or WANDB_MODE is another word.
    """
    mode = wandb_mode(settings)
    if mode == "disabled" or not is_rank_zero():
        return []
    import wandb  # here, since it alone takes two seconds

    # What W&B puts aside until it is uploaded stays with the run, too.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
    # Offline there is nothing to say but the run's folder, which the summary names.
    try:
        run = wandb.init(
            name=f"{folder.parent.name}/{folder.name}",
            id=wandb_id,
            resume="allow" if wandb_id else None,
            dir=folder,
            mode=mode,
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            tags=settings.tags,
            config=config,
            # By default what a killed run logged in its last 15 seconds would be lost.
            settings=wandb.Settings(
                silent=mode == "offline", console="off", x_transaction_log_flush_interval=0.1
            ),
        )
    except wandb.Error as error:
        if not (folder / "metrics.csv").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise InputError(f"W&B: {error} Run wandb login, or use --wandb.mode offline.") from error
    return [StepWandbLogger(experiment=run)]


def wandb_run(trainer: Any) -> Any:
    """The run that W&B records in this process, or None."""
    found = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return found[0].experiment if found else None


def finish_wandb(folder: Path) -> None:
    """Close what W&B recorded of a run, if it did."""
    if wandb := sys.modules.get("wandb"):
        wandb.finish()
        if os.environ.get("WANDB_DATA_DIR") == str(folder / "wandb"):
            del os.environ["WANDB_DATA_DIR"]


class WandbRun(Callback):
    """The id of W&B's run travels in the checkpoint, and the best checkpoint goes to W&B.

    Args:
        wandb_id: That of the run which this one resumes, kept where W&B is off this time.
    """

    def __init__(self, wandb_id: str | None = None) -> None:
        self.wandb_id = wandb_id

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        run = wandb_run(trainer)
        checkpoint["wandb_id"] = run.id if run else self.wandb_id

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Have the row of this step written now: the checkpoint that follows goes on after it."""
        if run := wandb_run(trainer):
            run.log({}, step=trainer.global_step, commit=True)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        run, best = wandb_run(trainer), best_checkpoint(trainer)
        if run and Path(best.best_model_path).is_file():
            import wandb

            metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
            assert best.best_model_score is not None
            metrics["best val/loss"] = float(best.best_model_score)
            artifact = wandb.Artifact(f"checkpoint-{run.id}", "model", metadata=metrics)
            # The file stays as it is, where it is: no copy is made of it.
            artifact.add_file(best.best_model_path, policy="immutable", skip_cache=True)
            run.log_artifact(artifact, aliases=["best"])
