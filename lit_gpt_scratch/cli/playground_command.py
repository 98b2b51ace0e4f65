"""`lit-gpt-scratch playground`: trained models in one HTML file, in which they run."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from lit_gpt_scratch.errors import InputError, exit_on_input_error
from lit_gpt_scratch.files import write_html
from lit_gpt_scratch.inspection import load
from lit_gpt_scratch.inspection.playground import describe, first_text, render_page
from lit_gpt_scratch.runs import find_checkpoint
from lit_gpt_scratch.runs.folder import is_run, runs_folder
from lit_gpt_scratch.runs.listing import read_info
from lit_gpt_scratch.runs.reading import find_runs
from lit_gpt_scratch.shell import PROGRAM


def newest_runs() -> list[Path]:
    """Return each name's newest run in ./runs, the highest loss first; only with a best.ckpt."""
    folders = [f for f in find_runs([]) if (f / "checkpoints" / "best.ckpt").is_file()]
    if not folders:
        raise InputError("no run in runs has a checkpoint yet: run fit first.")
    return sorted(folders, key=lambda folder: -(read_info(folder).best or 0))


def name_of(checkpoint: Path) -> str:
    """Return the name of a checkpoint's run, or of an export."""
    is_in_run = checkpoint.parent.name == "checkpoints" and is_run(checkpoint.parents[1])
    return checkpoint.parents[2].name if is_in_run else checkpoint.stem


def write_playground(
    checkpoints: Sequence[str],
    output: Path,
    text: str | None = None,
    float32: bool = False,
    plugin: str | None = None,
) -> list[str]:
    """Write the page; return the names of its models.

    Args:
        checkpoints: As for --ckpt_path; none: the newest run of each name in ./runs.
        output: The HTML file.
        text: The text that the page begins with.
        float32: Store weights in 32 bits: the file is three times as large.
        plugin: Your own module, if a checkpoint uses its classes.

    Raises:
        InputError: A checkpoint cannot be read, or the page does not know its network.
    """
    names: list[str] = []

    def make() -> str:
        descriptions = []
        for checkpoint in checkpoints or map(str, newest_runs()):
            path = find_checkpoint(checkpoint, runs_folder(None)).resolve()
            try:
                model = load(path, plugin)
                descriptions.append(describe(model, name_of(path), float32))
            except InputError as error:  # for example, it needs a plugin
                if checkpoints:
                    raise
                print(f"Notice: {error} It is left out.", file=sys.stderr)
                continue
            last = model
        if not descriptions:
            raise InputError("none of the runs can be shown: train a network of this program.")
        names.extend(description["name"] for description in descriptions)
        return render_page(descriptions, text or first_text(last), len(descriptions) - 1)

    write_html(output, "playground", make)
    return names


def main(args: Sequence[str] | None = None) -> None:
    """Write trained models into one HTML file, in which one can type, look inside and generate."""
    parser = ArgumentParser(
        prog=f"{PROGRAM} playground", description=main.__doc__, exit_on_error=False
    )
    where = "Runs, checkpoints or exports; else the newest run of each name in ./runs."
    parser.add_argument("checkpoints", nargs="*", default=[], help=where)
    parser.add_argument("--output", type=Path, default="playground.html", help="The HTML file.")
    parser.add_argument("--text", help="The text that the page begins with.")
    exact = "Store weights in 32 bits instead of 16: the file is three times as large."
    parser.add_argument("--float32", action="store_true", help=exact)
    plugin = "Your own module, or its file, if a checkpoint uses its classes."
    parser.add_argument("--plugin", help=plugin)
    with exit_on_input_error(parser.prog):
        options = parser.parse_args(args)
        names = write_playground(**vars(options))
    size = options.output.stat().st_size / 1e6
    print(f"models: {', '.join(names)}", file=sys.stderr)
    print(f"{options.output}  {size:.1f} MB")
