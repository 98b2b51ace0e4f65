"""`lit-gpt-scratch export`: a checkpoint as safetensors and JSON."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from lit_gpt_scratch.checkpoints.formats import read_checkpoint, write_export
from lit_gpt_scratch.checkpoints.plugins import import_plugin
from lit_gpt_scratch.errors import InputError, exit_on_input_error
from lit_gpt_scratch.inspection.loading import build_model
from lit_gpt_scratch.runs import find_checkpoint
from lit_gpt_scratch.runs.folder import runs_folder
from lit_gpt_scratch.shell import PROGRAM, in_shell, shell_name


def export(ckpt_path: str, output: Path, plugin: str | None = None) -> None:
    """Write a checkpoint's weights as safetensors, and its settings as JSON, into a new folder.

    Args:
        ckpt_path: A .ckpt file, or best or last of the newest run.
        output: A new folder.
        plugin: Your own module, if the checkpoint uses its classes.

    Raises `InputError` if the checkpoint is refused, or the folder exists or cannot be written.
    """
    checkpoint = find_checkpoint(ckpt_path, runs_folder(None))
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
    """Run the command."""
    parser = ArgumentParser(prog=f"{PROGRAM} export", exit_on_error=False)
    parser.add_function_arguments(export)
    with exit_on_input_error(parser.prog):
        flags = parser.parse_args(args)
        export(**vars(flags))
    size = sum(file.stat().st_size for file in flags.output.iterdir())
    print(f"{flags.output}  {size / 1e6:.1f} MB")
    print(f"Next:\n  {shell_name()} predict --ckpt_path {in_shell(flags.output)}")
