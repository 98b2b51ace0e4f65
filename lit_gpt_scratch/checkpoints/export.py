"""Writes a checkpoint as safetensors and one JSON file, without pickle.

`predict`, `validate`, `test` and `inspection.load` take the folder as they take the checkpoint. The
optimizer's state and all else that only `fit` needs is left out.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from lit_gpt_scratch.checkpoints.reading import (
    CONFIG,
    FORMAT,
    HYPERPARAMETERS,
    WEIGHTS,
)
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.files import atomic_write, staging_dir


def write_export(
    contents: dict[str, Any], checkpoint: Path, output: Path, val_loss: float | None
) -> None:
    """Write a checkpoint's contents into a new folder, which appears when it is complete.

    Args:
        contents: What `read_checkpoint` returned.
        checkpoint: The file that it read, for messages.
        output: The folder to make.
        val_loss: Validation loss of the checkpoint in nats per character, if known.

    Raises:
        InputError: The contents do not fit into JSON, or the folder cannot be written.
    """
    facts = {
        "format": FORMAT,
        "global_step": contents.get("global_step", 0),
        "val_loss": val_loss,
    }
    for part in HYPERPARAMETERS:
        facts[part] = {k: v for k, v in contents[part].items() if k != "_instantiator"}
    # Tied weights are one memory under two names, which safetensors does not take.
    weights = {
        name: weight.clone(memory_format=torch.contiguous_format)
        for name, weight in contents["state_dict"].items()
    }
    try:
        text = json.dumps(facts, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"checkpoint {checkpoint} does not fit into JSON: {error}.") from error
    try:
        with staging_dir(output) as making:
            folder = making / output.name
            folder.mkdir()
            for name, content in {CONFIG: text.encode(), WEIGHTS: save(weights)}.items():
                with atomic_write(folder / name) as file:
                    file.write(content)
            folder.rename(output)
    except OSError as error:
        raise InputError(f"output {output} cannot be written: {error.strerror}.") from error


def best_loss(checkpoint: Path, contents: dict[str, Any]) -> float | None:
    """The validation loss that a best.ckpt was kept for; other files do not tell their own."""
    if checkpoint.name != "best.ckpt":
        return None
    try:
        states = contents["callbacks"].values()
        return float(next(s for s in states if s.get("monitor") == "val/loss")["best_model_score"])
    except Exception:  # edited by someone: nothing else depends on it
        return None
