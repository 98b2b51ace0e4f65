"""The folder of a run: where it is, what is written into it, and what is said of it at the end."""

import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import lightning
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from lit_gpt_scratch.callbacks import (
    AttentionPictures,
    LogLines,
    ProgressBar,
    Samples,
    SymbolLosses,
    Throughput,
    quoted,
    wandb_run,
)
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


class StepWandbLogger(WandbLogger):
    """W&B counts optimizer steps, as all else does, so that a resumed run's curves go on."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)


def git_commit() -> str | None:
    """Of the repository that this package lies in; None where it was installed without one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "--show-prefix", "HEAD"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    except OSError:  # there is no git
        return None
    # An environment in somebody's own repository has another prefix.
    return said[1] if said[:1] == [f"{here.name}/"] else None


def about(trainer: Any, model: Any, data: Any) -> dict[str, Any]:
    """What a reader of a run asks that its config does not say."""
    device = trainer.strategy.root_device
    cuda = device.type == "cuda"
    return {
        "network": type(model.net).__name__,
        "parameters": count_parameters(model.net),
        "corpus": data.hparams.corpus,
        "sha256": data.hparams.sha256,
        "alphabet_size": len(data.alphabet),
        "context": data.context,
        "git_commit": git_commit(),
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "precision": str(trainer.precision),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": str(lightning.__version__),
    }


def make_loggers(
    folder: Path, config: dict[str, Any], settings: WandbSettings, wandb_id: str | None = None
) -> list[Logger]:
    """The CSV file and W&B's own files, both in the run's folder.

    Args:
        folder: The run's.
        config: For W&B to show.
        settings: Of W&B.
        wandb_id: That of the run which this one resumes.
    """
    loggers: list[Logger] = [
        CSVLogger(folder.parent.parent, folder.parent.name, folder.name, flush_logs_every_n_steps=1)
    ]
    mode = wandb_mode(settings)
    if mode == "disabled" or not is_first_process():
        return loggers
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
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError(f"W&B: {error} Run wandb login, or use --wandb.mode offline.") from error
    return [*loggers, StepWandbLogger(experiment=run)]


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


def make_callbacks(folder: Path, bar: bool | None, wandb_id: str | None = None) -> list[Callback]:
    """What every `fit` has: checkpoints, throughput, bar, and what validations leave behind.

    Args:
        folder: The run's.
        bar: Whether to show the bar; None: on a terminal.
        wandb_id: That of the run which this one resumes.
    """
    kept: dict[str, Any] = {
        "dirpath": folder / "checkpoints",
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
        "save_on_train_epoch_end": False,
    }
    return [
        Samples(folder),
        SymbolLosses(folder),
        AttentionPictures(folder),
        WandbRun(wandb_id),
        Throughput(),  # after these, so that its clock of training leaves them out
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


def describe(model: Any, data: Any, folder: Path) -> str:
    """What is about to be trained, on what, and where to."""
    net, splits = model.net, data.splits
    parts = [f"{name} {count_parameters(part):,}" for name, part in net.named_children()]
    return "\n".join(
        [
            f"network      {type(net).__name__}, {count_parameters(net):,} parameters "
            f"({', '.join(parts)})",
            f"corpus       {data.hparams.corpus}: {len(splits.train):,} characters to train on, "
            f"{len(splits.val):,} to validate, of an alphabet of {len(data.alphabet)}",
            f"batch        {data.batch_size} windows of {data.context} characters",
            f"run          {folder}",
        ]
    )


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
        *quoted(sample_text(model, data.seed)),
        "",
    ]
    for checkpoint in [path for path in kept if path.exists()][:1]:
        path = shlex.quote(str(checkpoint))
        lines += ["Next:", f"  lit-gpt-scratch predict --ckpt_path {path}{shown}"]
        lines += [f"  lit-gpt-scratch validate --ckpt_path {path}"]
        lines += [f"  python -m lit_gpt_scratch.report {shlex.quote(str(folder))}"]
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
