"""The folder of a run: where it is, what is written into it, and what is said of it at the end."""

import math
import os
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from lit_gpt_scratch.callbacks import LogLines, ProgressBar, Throughput
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import count_parameters
from lit_gpt_scratch.sampling import SamplingSettings

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


def is_first_process() -> bool:
    """Whether this process is the one that writes, also before the Trainer knows."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def runs_folder(root: str | Path | None) -> Path:
    """The folder of all runs under the Trainer's `default_root_dir` (default: this folder)."""
    return Path(root or ".").expanduser() / "runs"


def new_run_folder(runs: Path, name: str) -> Path:
    """The next `NAME/version_N`, made now, so that two runs that start together get two folders.

    Raises:
        InputError: The name is a path, or the folder cannot be written.
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise InputError(f"name is {name!r}: it must be a plain folder name, without slashes.")
    try:
        (runs / name).mkdir(parents=True, exist_ok=True)
        taken = [int(p.name[8:]) for p in (runs / name).glob("version_*") if p.name[8:].isdigit()]
        version = max(taken, default=-1) + 1
        while True:
            try:
                folder = runs / name / f"version_{version}"
                if is_first_process():
                    folder.mkdir()
                return folder
            except FileExistsError:
                if not folder.is_dir():
                    raise
                version += 1
    except OSError as error:
        raise InputError(
            f"run folder {runs / name} cannot be written ({error.strerror}): choose another with "
            "--trainer.default_root_dir."
        ) from error


def wandb_mode(settings: WandbSettings) -> Any:
    """The mode asked for, by the settings, else by WANDB_MODE; else offline.

    Raises:
        InputError: WANDB_MODE is another word.
    """
    mode = settings.mode or os.environ.get("WANDB_MODE", "offline")
    if mode not in WANDB_MODES:
        raise InputError(f"WANDB_MODE is {mode!r}: it must be {', '.join(WANDB_MODES)}.")
    return mode


def make_loggers(folder: Path, config: dict[str, Any], settings: WandbSettings) -> list[Logger]:
    """The CSV file and W&B's own files, both in the run's folder."""
    loggers: list[Logger] = [
        CSVLogger(folder.parent.parent, folder.parent.name, folder.name, flush_logs_every_n_steps=1)
    ]
    mode = wandb_mode(settings)
    if mode == "disabled" or not is_first_process():
        return loggers
    import wandb  # here, since it alone takes two seconds

    # Offline there is nothing to say but the run's folder, which the summary names.
    try:
        run = wandb.init(
            name=f"{folder.parent.name}/{folder.name}",
            dir=folder,
            mode=mode,
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            tags=settings.tags,
            config=config,
            settings=wandb.Settings(silent=mode == "offline", console="off"),
        )
    except wandb.Error as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError(f"W&B: {error} Run wandb login, or use --wandb.mode offline.") from error
    return [*loggers, WandbLogger(experiment=run)]


def make_callbacks(folder: Path, bar: bool | None) -> list[Callback]:
    """What every `fit` has: best and last checkpoints, throughput, bar.

    Args:
        folder: The run's.
        bar: Whether to show the bar; None: on a terminal.
    """
    kept: dict[str, Any] = {
        "dirpath": folder / "checkpoints",
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
        "save_on_train_epoch_end": False,
    }
    return [
        Throughput(),
        ProgressBar() if (sys.stdout.isatty() if bar is None else bar) else LogLines(),
        ModelCheckpoint(filename="best", monitor="val/loss", **kept),
        ModelCheckpoint(filename="last", monitor=None, **kept),
    ]


def best_checkpoint(trainer: Any) -> ModelCheckpoint:
    """The callback that keeps the best checkpoint; `best_model_score` is its validation loss."""
    return next(c for c in trainer.checkpoint_callbacks if c.monitor == "val/loss")


def sample_text(model: Any, seed: int) -> str:
    """A text of 300 characters, to show what a model has learnt."""
    prompt = model.tokenizer.encode(model.default_prompt)[None].to(model.device)
    settings = SamplingSettings(max_new_tokens=300, temperature=0.8, seed=seed)
    text: str = model.generate(prompt, settings)[0]
    return text.strip()


def bits(loss: Any) -> str:
    if loss is None:
        return "not validated"
    loss = float(loss)
    return f"{loss:.4f} nats ({loss / math.log(2):.3f} bits) per character"


def summarize(trainer: Any, model: Any, data: Any, folder: Path) -> str:
    """What a user wants to know when training ends."""
    best = best_checkpoint(trainer)
    throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    loss, best_loss = metrics.get("val/loss"), best.best_model_score
    above = f", {metrics['val/gap']:+.4f} above training text" if "val/gap" in metrics else ""
    shown = " --prompt ROMEO:" if set("ROMEO:") <= set(data.alphabet) else ""
    fell_back = " (THE DOWNLOAD FAILED: this is not the corpus that was asked for)"
    kept = [folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    lines = [
        f"corpus       {data.hparams.corpus}{fell_back * data.fell_back}",
        f"parameters   {count_parameters(model.net):,}",
        f"last         {bits(loss)} at step {trainer.global_step}{above}",
        f"best         {bits(best_loss)}",
        f"time         {throughput.train_seconds:.0f} s of training",
        *floor_lines(data),
        f"run          {folder}",
        "",
        "A sample:",
        "",
        *(f"  | {line}" for line in sample_text(model, data.seed).splitlines()),
        "",
    ]
    for checkpoint in [path for path in kept if path.exists()][:1]:
        path = shlex.quote(str(checkpoint))
        lines += ["Next:", f"  lit-gpt-scratch predict --ckpt_path {path}{shown}"]
        lines += [f"  lit-gpt-scratch validate --ckpt_path {path}"]
    offline = sorted(folder.glob("wandb/offline-run-*"))
    return "\n".join(lines + [f"  wandb sync {shlex.quote(str(run))}" for run in offline])


def floor_lines(data: Any) -> list[str]:
    """The sample knows its own entropy: what no model can beat but by luck."""
    if data.hparams.corpus != "sample":
        return []
    from lit_gpt_scratch.grammar import play_log_loss

    val = data.splits.val
    floor, error = play_log_loss(val.start + 1, val.stop)
    return [f"floor        {bits(floor)}, standard error {error:.4f}: the grammar's own loss"]
