"""`lit-gpt-scratch export`: a checkpoint as safetensors and JSON."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from lit_gpt_scratch.checkpoints.export import best_loss, write_export
from lit_gpt_scratch.checkpoints.reading import import_plugin, read_checkpoint
from lit_gpt_scratch.errors import InputError, exit_on_input_error
from lit_gpt_scratch.inspection.loading import build_model
from lit_gpt_scratch.runs.folder import find_checkpoint, runs_folder


def export(checkpoint: Path, output: Path, plugin: str | None = None) -> None:
    """Write a checkpoint into a new folder.

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
    build_model(contents, checkpoint)  # refuses a checkpoint whose parts do not fit together
    write_export(contents, checkpoint, output, best_loss(checkpoint, contents))


def main(args: Sequence[str] | None = None) -> None:
    """Write a checkpoint's weights as safetensors, and its settings as JSON, into a new folder."""
    parser = ArgumentParser(
        prog="lit-gpt-scratch export", description=main.__doc__, exit_on_error=False
    )
    parser.add_argument(
        "--ckpt_path", type=str, required=True, help="A .ckpt file, or best or last."
    )
    parser.add_argument("--output", type=Path, required=True, help="The folder to make.")
    parser.add_argument(
        "--plugin", type=str | None, help="A module of yours whose classes it may name."
    )
    with exit_on_input_error(parser.prog):
        asked = parser.parse_args(args)
        export(find_checkpoint(asked.ckpt_path, runs_folder(None)), asked.output, asked.plugin)
    size = sum(file.stat().st_size for file in asked.output.iterdir())
    print(f"{asked.output}  {size / 1e6:.1f} MB")
    print(f"Next:\n  lit-gpt-scratch predict --ckpt_path {shlex.quote(str(asked.output))}")
