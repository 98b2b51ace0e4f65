"""`lit-gpt-scratch export`: a checkpoint as safetensors and JSON."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from lit_gpt_scratch.checkpoints.formats import import_plugin, read_checkpoint, write_export
from lit_gpt_scratch.cli.program import PROGRAM
from lit_gpt_scratch.errors import InputError, exit_on_input_error
from lit_gpt_scratch.inspection.loading import build_model
from lit_gpt_scratch.runs.folder import find_checkpoint, runs_folder


def export(checkpoint: Path, output: Path, plugin: str | None = None) -> None:
    """Write a .ckpt file of `fit` into a new folder. A plugin is a module whose classes it uses.

    Raises:
        InputError: The checkpoint is refused, or the folder exists or cannot be written.
    """
    if output.exists():
        raise InputError(f"--output {output} exists already: name a new folder.")
    if checkpoint.is_dir():
        raise InputError(
            f"--ckpt_path {checkpoint} is a folder: give a .ckpt file (an export can be copied)."
        )
    import_plugin(plugin)
    contents = read_checkpoint(checkpoint, plugin)
    build_model(contents, checkpoint)  # refuses a checkpoint whose parts do not fit together
    write_export(contents, checkpoint, output)


def main(args: Sequence[str] | None = None) -> None:
    """Write a checkpoint's weights as safetensors, and its settings as JSON, into a new folder."""
    parser = ArgumentParser(prog=f"{PROGRAM} export", description=main.__doc__, exit_on_error=False)
    checkpoint_help = "A .ckpt file, or best or last of the newest run."
    plugin_help = "Your own module, if the checkpoint uses its classes."
    parser.add_argument("--ckpt_path", type=str, required=True, help=checkpoint_help)
    parser.add_argument("--output", type=Path, required=True, help="A new folder.")
    parser.add_argument("--plugin", type=str | None, help=plugin_help)
    with exit_on_input_error(parser.prog):
        flags = parser.parse_args(args)
        export(find_checkpoint(flags.ckpt_path, runs_folder(None)), flags.output, flags.plugin)
    size = sum(file.stat().st_size for file in flags.output.iterdir())
    print(f"{flags.output}  {size / 1e6:.1f} MB")
    print(f"Next:\n  {PROGRAM} predict --ckpt_path {shlex.quote(str(flags.output))}")
