"""Portable weights: a checkpoint as safetensors and one JSON file, without pickle.

    python -m lit_gpt_scratch.export --ckpt_path PATH --output DIR

`predict`, `validate`, `test` and `explore.load` take the folder as they take the checkpoint. What
only `fit` needs, above all the optimizer's state, is left out.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from safetensors.torch import save

from lit_gpt_scratch.checkpoint import (
    CONFIG,
    FORMAT,
    HYPERPARAMETERS,
    WEIGHTS,
    find_checkpoint,
    import_plugin,
    model_of,
    read_checkpoint,
)
from lit_gpt_scratch.errors import InputError, mistakes_in_one_line
from lit_gpt_scratch.files import beside, written_whole
from lit_gpt_scratch.runs import runs_folder


def export(checkpoint: Path, output: Path, plugin: str | None = None) -> None:
    """Write a checkpoint into a new folder, which takes its name when it is complete.

    Args:
        checkpoint: A .ckpt file of `fit`.
        output: The folder to make.
        plugin: A module besides this package whose classes the checkpoint may name.

    Raises:
        InputError: The checkpoint is refused, or the folder exists or cannot be written.
    """
    if output.exists():
        raise InputError(f"output {output} exists already: name a new folder.")
    if checkpoint.is_dir():
        raise InputError(f"checkpoint {checkpoint} is a folder: give a .ckpt file, or copy it.")
    import_plugin(plugin)
    contents = read_checkpoint(checkpoint, plugin)
    model_of(contents, checkpoint)  # what does not fit together is not handed on
    facts = {"format": FORMAT, "global_step": contents.get("global_step", 0)}
    facts["val_loss"] = best_loss(checkpoint, contents)
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
        with beside(output) as making:
            folder = making / output.name
            folder.mkdir()
            for name, content in {CONFIG: text.encode(), WEIGHTS: save(weights)}.items():
                with written_whole(folder / name) as file:
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


def main(args: Sequence[str] | None = None) -> None:
    """Write a checkpoint's weights as safetensors, and its settings as JSON, into a new folder."""
    parser = ArgumentParser(
        prog="python -m lit_gpt_scratch.export", description=main.__doc__, exit_on_error=False
    )
    parser.add_argument(
        "--ckpt_path", type=str, required=True, help="A .ckpt file, or best or last."
    )
    parser.add_argument("--output", type=Path, required=True, help="The folder to make.")
    parser.add_argument(
        "--plugin", type=str | None, help="A module of yours whose classes it may name."
    )
    with mistakes_in_one_line(parser.prog):
        asked = parser.parse_args(args)
        export(find_checkpoint(asked.ckpt_path, runs_folder(None)), asked.output, asked.plugin)
    size = sum(file.stat().st_size for file in asked.output.iterdir())
    print(f"{asked.output}  {size / 1e6:.1f} MB")
    print(f"Next:\n  lit-gpt-scratch predict --ckpt_path {shlex.quote(str(asked.output))}")


if __name__ == "__main__":
    main()
