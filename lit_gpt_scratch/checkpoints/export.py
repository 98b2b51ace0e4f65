"""Write a checkpoint as a folder of safetensors and JSON, without pickle.

`predict`, `validate`, `test` and `inspection.load` read the folder like the checkpoint. It leaves
out the optimizer's state and everything else that only `fit` needs.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from lit_gpt_scratch.checkpoints.reading import CONFIG, FORMAT, HYPERPARAMETERS, WEIGHTS
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.files import atomic_write, staging_dir
from lit_gpt_scratch.private_api import INSTANTIATOR_KEY


def write_export(
    contents: dict[str, Any], checkpoint: Path, output: Path, val_loss: float | None
) -> None:
    """Write a checkpoint's contents into a new folder, which appears when it is complete.

    `contents` is the result of `read_checkpoint(checkpoint)`; `val_loss`, its validation loss in
    nats per character, is None if unknown. Raises `InputError` if the contents do not fit into JSON
    or the folder cannot be written.
    """
    step = contents.get("global_step", 0)
    config: dict[str, Any] = {"format": FORMAT, "global_step": step, "val_loss": val_loss}
    for part in HYPERPARAMETERS:
        config[part] = {k: v for k, v in contents[part].items() if k != INSTANTIATOR_KEY}
    # Tied weights share memory, which safetensors refuses.
    weights = {
        name: weight.clone(memory_format=torch.contiguous_format)
        for name, weight in contents["state_dict"].items()
    }
    try:
        text = json.dumps(config, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"checkpoint {checkpoint} does not fit into JSON: {error}.") from error
    try:
        with staging_dir(output) as staging:
            folder = staging / output.name
            folder.mkdir()
            for name, content in {CONFIG: text.encode(), WEIGHTS: save(weights)}.items():
                with atomic_write(folder / name) as file:
                    file.write(content)
            folder.rename(output)
    except OSError as error:
        raise InputError(f"output {output} cannot be written: {error.strerror}.") from error


def best_loss(checkpoint: Path, contents: dict[str, Any]) -> float | None:
    """Return the validation loss of a best.ckpt; other files do not store it."""
    if checkpoint.name != "best.ckpt":
        return None
    try:
        states = contents["callbacks"].values()
        return float(next(s for s in states if s.get("monitor") == "val/loss")["best_model_score"])
    except Exception:  # someone edited the file; nothing else depends on this value
        return None
