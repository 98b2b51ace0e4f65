"""What `fit` prints about a run: what it is about to train, and its results."""

import math
import platform
import shlex
import subprocess
from pathlib import Path
from typing import Any

import lightning
import torch

from lit_gpt_scratch.generation.sampling import SamplingSettings
from lit_gpt_scratch.generation.text import default_prompt
from lit_gpt_scratch.models.gpt import count_parameters
from lit_gpt_scratch.runs.recorders import quoted
from lit_gpt_scratch.training.checkpointing import best_checkpoint
from lit_gpt_scratch.training.optim import parameter_groups
from lit_gpt_scratch.training.throughput import Throughput

LARGE_ALPHABET = 1000  # below it, its parameters cost nothing worth a word


def git_commit() -> str | None:
    """Of the repository that this package lies in; None where it was installed without one."""
    here = Path(__file__).parents[1]
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


def sample_text(model: Any, seed: int) -> str:
    """A text of 300 characters, to show what a model has learnt."""
    prompt = model.tokenizer.encode(default_prompt(model.tokenizer))[None].to(model.device)
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
        lines += [f"  lit-gpt-scratch report {shlex.quote(str(folder))}"]
    offline = sorted(folder.glob("wandb/offline-run-*"))
    return "\n".join(lines + [f"  wandb sync {shlex.quote(str(run))}" for run in offline])


def floor_lines(data: Any) -> list[str]:
    """The sample knows its own entropy: what no model can beat but by luck."""
    if data.hparams.corpus != "sample":
        return []
    from lit_gpt_scratch.data.grammar import play_log_loss

    val = data.splits.val
    floor, error = play_log_loss(val.start + 1, val.stop)
    return [f"floor        {bits(floor)}, standard error {error:.4f}: the grammar's own loss"]
