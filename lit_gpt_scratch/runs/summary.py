"""What `fit` prints about a run: the header, the resume command and the results."""

import math
import platform
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from lit_gpt_scratch.data.grammar import play_log_loss
from lit_gpt_scratch.errors import InputError, describe_error
from lit_gpt_scratch.generation import SamplingSettings, default_prompt
from lit_gpt_scratch.inspection.playground import supports
from lit_gpt_scratch.models import count_parameters
from lit_gpt_scratch.runs.callbacks import printable_lines
from lit_gpt_scratch.runs.folder import last_checkpoint, mark_finished
from lit_gpt_scratch.runs.loggers import find_wandb_run
from lit_gpt_scratch.runs.provenance import Code, code_sha256
from lit_gpt_scratch.shell import checkpoint_flags, in_shell, plugin_flag, shell_name
from lit_gpt_scratch.training.checkpointing import best_checkpoint
from lit_gpt_scratch.training.distributed import is_rank_zero
from lit_gpt_scratch.training.optim import parameter_groups
from lit_gpt_scratch.training.sharding import is_sharded
from lit_gpt_scratch.training.throughput import Throughput


def run_facts(
    trainer: Any, model: Any, data: Any, code: Code, plugin: str | None = None
) -> dict[str, Any]:
    """Return the contents of about.yaml: facts about a run that its config lacks."""
    device = trainer.strategy.root_device
    return {
        "network": type(model.net).__name__,
        "parameters": count_parameters(model.net),
        "corpus": data.hparams.corpus,
        "sha256": data.hparams.sha256,
        "alphabet_size": len(data.alphabet),
        "context": data.context,
        "git_commit": code.commit,
        "git_is_clean": code.is_clean,
        "code_sha256": code_sha256(plugin),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": str(trainer.precision),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": str(lightning.__version__),
    }


def format_header(model: Any, data: Any, folder: Path) -> str:
    """Return the lines that `fit` prints before training."""
    net, splits, teacher = model.net, data.splits, model.teacher
    parts = [f"{name} {count_parameters(part):,}" for name, part in net.named_children()]
    lines = [
        f"network      {type(net).__name__}, {count_parameters(net):,} parameters "
        f"({', '.join(parts)})",
        f"corpus       {data.hparams.corpus}: {len(splits.train):,} characters to train on, "
        f"{len(splits.val):,} to validate, alphabet of {len(data.alphabet)}",
        f"batch        {data.batch_size} windows of {data.context} characters",
        *([f"teacher      {teacher.path}, weight {teacher.weight}"] if teacher else []),
        f"run          {folder}",
    ]
    return "\n".join(lines + large_alphabet_notice(model))


def large_alphabet_notice(model: Any) -> list[str]:
    """Return a notice if a large alphabet takes most of the parameters; never for a bigram."""
    net, size = model.net, len(model.tokenizer)
    groups = {group["name"]: group["params"] for group in parameter_groups(net)}
    share = sum(p.numel() for p in groups.get("embeddings", ())) / count_parameters(net)
    is_bigram = not any(hasattr(module, "unembed") for module in net.modules())
    if size < 1000 or share <= 0.5 or is_bigram:  # in a small net, any alphabet has a large share
        return []
    return [
        f"Notice: {share:.0%} of the parameters are in the embedding and the output layer, because "
        f"of an alphabet of {size:,}. Give a larger --model.net.width or --model.net.layers, or a "
        "text with fewer different characters."
    ]


def print_resume_command(folder: Path, message: str) -> None:
    """Print a message and how to resume the run, if it has a checkpoint, to standard error."""
    config, last = folder / "config.yaml", last_checkpoint(folder)
    if is_rank_zero() and last.exists():
        files = f"--config {in_shell(config)} --ckpt_path {in_shell(last)}"
        print(f"{message} To resume:\n  {shell_name()} fit {files}", file=sys.stderr)


class FitSummary(Callback):
    """At the end of a fit, marks the run as finished and prints its results.

    A callback, because strategies such as ddp_spawn train in other processes than the first.
    """

    def __init__(self, folder: Path, plugin: str | None = None) -> None:
        self.folder, self.plugin = folder, plugin
        self._first_step: int | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._first_step = trainer.global_step

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # Not in on_fit_end: a progress bar of another library may still be on the terminal.
        if stage != "fit":
            return
        if self._first_step in (None, trainer.global_step):
            raise InputError(
                "no step was trained: increase --trainer.max_epochs, --trainer.max_time or "
                "--trainer.limit_train_batches."
            )
        if trainer.is_global_zero:
            mark_finished(self.folder)
        if trainer.is_global_zero or is_sharded(pl_module.net):  # it has a sample
            data = trainer.datamodule
            text = format_summary(trainer, pl_module, data, self.folder, self.plugin)
            if trainer.is_global_zero:
                print(text, flush=True)


def sample_text(model: Any, seed: int) -> str:
    """Return a sample of 200 characters."""
    prompt = model.tokenizer.encode(default_prompt(model.tokenizer))[None].to(model.device)
    settings = SamplingSettings(max_new_tokens=200, temperature=0.8, seed=seed)
    text: str = model.generate(prompt, settings)[0]
    return text.strip()


def format_loss(loss: Any) -> str:
    if loss is None:
        return "not validated"
    loss = float(loss)
    return f"{loss:.4f} nats ({loss / math.log(2):.3f} bits) per character"


def format_summary(
    trainer: Any, model: Any, data: Any, folder: Path, plugin: str | None = None
) -> str:
    """Return the results and the next commands, which `fit` prints after training."""
    metrics = trainer.callback_metrics
    throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))
    fell_back = " (THE DOWNLOAD FAILED: this is not the corpus that you asked for)"
    lines = [
        f"corpus       {data.hparams.corpus}{fell_back * data.fell_back}",
        f"parameters   {count_parameters(model.net):,}",
        f"last         {format_loss(metrics.get('val/loss'))} at step {trainer.global_step}",
    ]
    if "val/gap" in metrics:
        gap = f"{metrics['val/gap']:+.4f} nats"
        lines.append(f"gap          {gap}: validation loss minus loss on training text")
    if best := best_checkpoint(trainer):
        lines.append(f"best         {format_loss(best.best_model_score)}")
    reasons = (getattr(c, "stopping_reason_message", None) for c in trainer.callbacks)
    lines += [f"stopped      {reason}" for reason in reasons if reason]  # by EarlyStopping
    lines += [
        f"time         {throughput.train_seconds:.0f} s of training",
    ]
    if data.hparams.corpus == "sample":
        floor, error = play_log_loss(data.splits.val.start + 1, data.splits.val.stop)
        lines.append(f"floor        {format_loss(floor)}, ± {error:.4f}: the lowest loss possible")
    if (run := find_wandb_run(trainer)) and run.failure:
        lines.append(f"W&B          failed, and has not recorded all of the run: {run.failure}")
    lines += [f"run          {folder}", "", "A sample:", ""]
    try:
        lines += printable_lines(sample_text(model, data.seed))
    except Exception as error:  # a new network may fail at other lengths than in training
        lines.append(f"  none: {describe_error(error)}")
    lines.append("")
    prompt = " --prompt ROMEO:" if set("ROMEO:") <= set(data.alphabet) else ""
    checkpoints = [folder / "checkpoints" / "best.ckpt", last_checkpoint(folder)]
    if checkpoint := next(filter(Path.exists, checkpoints), None):
        program = shell_name()
        flags = checkpoint_flags(checkpoint, plugin)
        lines += [
            "Next:",
            f"  {program} predict {flags}{prompt}",
            f"  {program} validate {flags}",
            f"  {program} report {in_shell(folder)}",
        ]
        if supports(model):
            lines.append(f"  {program} playground {in_shell(checkpoint)}{plugin_flag(plugin)}")
    where = f"wandb/offline-run-*-{run.id}" if run else ""
    offline = sorted(Path(run.options["dir"]).glob(where)) if run else []
    return "\n".join(lines + [f"  {shell_name('wandb')} sync {in_shell(path)}" for path in offline])
