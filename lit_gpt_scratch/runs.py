"""The folder of a run: where it is, what is written into it, and what is said of it at the end."""

import math
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_gpt_scratch.callbacks import (
    AttentionPictures,
    LogLines,
    ProgressBar,
    Samples,
    SymbolLosses,
    Throughput,
    quoted,
)
from lit_gpt_scratch.errors import InputError, writing
from lit_gpt_scratch.files import written_whole
from lit_gpt_scratch.models import count_parameters
from lit_gpt_scratch.optim import parameter_groups
from lit_gpt_scratch.processes import SameEverywhere, is_first_process
from lit_gpt_scratch.recording import WandbRun
from lit_gpt_scratch.sampling import SamplingSettings
from lit_gpt_scratch.saving import Saver, best_checkpoint, hold
from lit_gpt_scratch.tables import read_rows

DEFAULT_NAME = "gpt_cpu"
LARGE_ALPHABET = 1000  # below it, its parameters cost nothing worth a word


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


def default_name(config: Path | None, checkpoint: Path | None) -> str:
    """A run's, from its first config file, else from the run that its checkpoint lies in."""
    if config and config.name != "config.yaml":  # a run's own, whose name says nothing
        return config.stem
    folder = Path()
    if config:
        folder = config.resolve().parent
    elif checkpoint:
        folder = checkpoint.resolve().parents[1]
    return folder.parent.name if folder.name.startswith("version_") else DEFAULT_NAME


def write_facts(folder: Path, **parts: dict[str, Any]) -> None:
    """NAME.yaml of each, whole."""
    for name, values in parts.items():
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        path = folder / f"{name}.yaml"
        with writing(path), written_whole(path) as file:
            file.write(text.encode())


def last_checkpoint(folder: Path) -> Path:
    """Where the run in a folder keeps what it goes on from."""
    return folder / "checkpoints" / "last.ckpt"


def resume_command(folder: Path) -> str:
    """What goes on with a run from its last checkpoint."""
    config, last = (shlex.quote(str(p)) for p in (folder / "config.yaml", last_checkpoint(folder)))
    return f"lit-gpt-scratch fit --config {config} --ckpt_path {last}"


def folder_to_go_on_in(checkpoint: Path, name: str | None) -> Path | None:
    """That of the run which a checkpoint lies in, unless a run of another name is asked for."""
    path = checkpoint.resolve()
    folder = path.parents[1]
    # Either of them: the other may be what was lost.
    ours = any((folder / file).is_file() for file in ("config.yaml", "metrics.csv"))
    inside = path.parent.name == "checkpoints" and ours
    return folder if inside and name in (None, folder.parent.name) else None


def check_whole(config: Path) -> None:
    """Refuse a run's own config.yaml of which only the beginning is left: defaults would follow.

    Raises:
        InputError: Its end is missing. Any other config is as its user wrote it.
    """
    if config.name != "config.yaml" or not (config.parent / "checkpoints").is_dir():
        return
    text = config.read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    last = found.get("wandb") if isinstance(found, dict) else None
    if "tags" not in (last or ()) or not text.endswith("\n"):
        raise InputError(
            f"{config} is torn: it lacks its end. Give the configs and flags that the run was "
            "begun with instead, and it is written anew."
        )


def say_how_to_go_on(folder: Path, what: str) -> None:
    """On standard error, where the run in a folder has a checkpoint."""
    if is_first_process() and last_checkpoint(folder).exists():
        print(f"{what} To go on:\n  {resume_command(folder)}", file=sys.stderr)


def unfinished(runs: Path) -> Path | None:
    """The newest run in a folder of versions, if it ended before its last step."""
    folders = [p for p in runs.glob("version_*") if p.name[8:].isdecimal()]
    folder = max(folders, key=lambda path: int(path.name[8:]), default=None)
    if folder is None:
        return None
    try:
        steps = int(yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_steps"])
        _, rows = read_rows(folder / "metrics.csv")
        reached = max((int(row["step"]) for row in rows), default=0)
        os.close(hold(folder))  # or somebody is at it
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None
    return folder if reached < steps else None


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
        SameEverywhere(),
        Samples(folder),
        SymbolLosses(folder),
        AttentionPictures(folder),
        WandbRun(wandb_id),
        Saver(last_checkpoint(folder)),
        Throughput(),  # after these, so that its clock of training leaves them out
        ProgressBar() if (sys.stdout.isatty() if bar is None else bar) else LogLines(),
        ModelCheckpoint(filename="best", monitor="val/loss", **kept),
        ModelCheckpoint(filename="last", monitor=None, **kept),
    ]


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
            *alphabet_lines(model),
        ]
    )


def alphabet_lines(model: Any) -> list[str]:
    """A warning where a large alphabet has most of a network's parameters.

    None for a bigram, which is nothing but a table of characters.
    """
    net, size = model.net, len(model.tokenizer)
    if size < LARGE_ALPHABET or not any(hasattr(module, "unembed") for module in net.modules()):
        return []
    groups = {group["name"]: group["params"] for group in parameter_groups(net)}
    share = sum(p.numel() for p in groups["embeddings"]) / count_parameters(net)
    if share <= 0.5:
        return []
    return [
        f"Notice: {share:.0%} of the parameters are in the embedding and the output layer, for an "
        f"alphabet of {size:,}, and little is left between them. Give a larger --model.net.width "
        "or --model.net.layers, or a text of fewer different characters."
    ]


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
