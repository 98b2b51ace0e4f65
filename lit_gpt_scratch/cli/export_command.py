"""`lit-gpt-scratch export`: a checkpoint as safetensors and JSON, as ONNX, or for Hugging Face."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from lit_gpt_scratch.checkpoints.formats import (
    CONFIG,
    facts_for_others,
    format_of,
    read_checkpoint,
    write_export,
    write_folder,
)
from lit_gpt_scratch.checkpoints.plugins import import_plugin
from lit_gpt_scratch.checkpoints.to_huggingface import huggingface_files
from lit_gpt_scratch.errors import InputError, exit_on_input_error
from lit_gpt_scratch.inspection.loading import build_model
from lit_gpt_scratch.inspection.to_onnx import onnx_files, require_onnx
from lit_gpt_scratch.runs import find_checkpoint
from lit_gpt_scratch.runs.folder import runs_folder
from lit_gpt_scratch.shell import PROGRAM, checkpoint_flags, shell_name
from lit_gpt_scratch.training.module import LitCharLM

# What the printed code reads, if the alphabet has these characters.
PROMPT = "ROMEO:"
ONNX_CODE = """\
Next, in Python, after `pip install onnxruntime`:
  import json, numpy, onnxruntime
  text, folder = {prompt}, {folder}
  alphabet = json.load(open(folder + "/config.json"))["alphabet"]
  session = onnxruntime.InferenceSession(folder + "/model.onnx")
  ids = [alphabet.index(character) for character in {characters}]
  [logits] = session.run(["logits"], {{"ids": numpy.array([ids], dtype="int64")}})
  print(repr(alphabet[logits[0, len(text) - 1].argmax()]))  # the likeliest next character"""
HUGGINGFACE_CODE = """\
Next, in Python, after `pip install transformers`:
  from transformers import AutoModelForCausalLM, AutoTokenizer
  folder = {folder}
  tokenizer = AutoTokenizer.from_pretrained(folder)
  model = AutoModelForCausalLM.from_pretrained(folder)
  ids = tokenizer({prompt}, return_tensors="pt")
  texts = model.generate(**ids, do_sample=True, max_new_tokens={count})  # up to its context
  print(tokenizer.decode(texts[0]))"""


def export(
    ckpt_path: str,
    output: Path,
    format: Literal["safetensors", "onnx", "huggingface"] = "safetensors",
    plugin: str | None = None,
) -> str:
    """Write a checkpoint's network and weights into a new folder, without pickle.

    Returns what to do next with the folder.

    Args:
        ckpt_path: A .ckpt file, or best or last of the newest run.
        output: A new folder.
        format: safetensors: for this program, with the settings as JSON. onnx: for other languages
            and runtimes, with attention weights and the logit lens. huggingface: for transformers
            (networks of class GPT only).
        plugin: Your own module, if the checkpoint uses its classes.

    Raises `InputError` if the checkpoint is refused, the format cannot hold its network, or the
    folder exists or cannot be written.
    """
    if format == "onnx":
        require_onnx()
    checkpoint = find_checkpoint(ckpt_path, runs_folder(None))
    if output.exists():
        raise InputError(f"--output {output} exists already: name a new folder.")
    if checkpoint.is_dir():
        raise InputError(
            f"--ckpt_path {checkpoint} is a folder: give a .ckpt file (an export can be copied)."
        )
    import_plugin(plugin)
    contents = read_checkpoint(checkpoint, plugin)
    model = build_model(contents, checkpoint)  # refuses parts that do not fit together
    if format == "safetensors":
        write_export(contents, checkpoint, output)
        return f"Next:\n  {shell_name()} predict {checkpoint_flags(output, plugin)}"
    facts = facts_for_others(format, contents, checkpoint)
    if format == "onnx":
        files = onnx_files(model, facts)
    else:
        files = huggingface_files(model.net, model.tokenizer.alphabet, model.context, facts)
    write_folder(output, files)
    return code_that_reads(output, model, json.loads(files[CONFIG]))


def code_that_reads(folder: Path, model: LitCharLM, config: dict[str, Any]) -> str:
    """Return Python code that reads a folder with this config.json."""
    alphabet, context = model.tokenizer.alphabet, model.context
    text = (PROMPT if set(PROMPT) <= set(alphabet) else alphabet[0])[:context]
    values = {"prompt": ascii(text), "folder": ascii(folder.as_posix())}
    if config["format"] == format_of("huggingface"):
        return HUGGINGFACE_CODE.format(**values, count=max(1, context - len(text)))
    is_padded = config["length"] == "padded"
    characters = f"text.ljust({context}, text[0])" if is_padded else "text"
    return ONNX_CODE.format(**values, characters=characters)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = ArgumentParser(prog=f"{PROGRAM} export", exit_on_error=False)
    parser.add_function_arguments(export)
    with exit_on_input_error(parser.prog):
        flags = parser.parse_args(args)
        next_step = export(**vars(flags))
    size = sum(file.stat().st_size for file in flags.output.iterdir())
    print(f"{flags.output}  {size / 1e6:.1f} MB\n{next_step}")
