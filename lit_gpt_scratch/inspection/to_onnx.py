"""Turns a model into ONNX, which other languages and runtimes run; for `export --format onnx`.

Attention weights and the logit lens are further outputs; hooks from outside find them. The export
reads texts of any length. If a network cannot be exported so, the export reads texts of the full
context only. Shorter texts are then padded on the right, which changes nothing in a causal network.

Shapes: B texts, T positions, H heads, V alphabet size.
"""

import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt_scratch.checkpoints.formats import CONFIG
from lit_gpt_scratch.errors import InputError, causes, describe_error
from lit_gpt_scratch.inspection.laws import random_ids
from lit_gpt_scratch.inspection.parts import evaluation_mode, recorded_weights, stages_by_name
from lit_gpt_scratch.training.module import LitCharLM

MODEL, IDS = "model.onnx", "ids"  # the file, and the name of its input
BATCH, LENGTH = "batch", "length"  # names of the axes of ids
Found = list[tuple[str, Tensor]]  # parts of a network and what they have computed


def require_onnx() -> None:
    """Raise `InputError` if a package that PyTorch needs to write ONNX is not installed."""
    try:
        import_module("onnx")
        import_module("onnxscript")
    except ModuleNotFoundError as error:
        raise InputError(
            "--format onnx needs onnx and onnxscript: pip install onnx onnxscript."
        ) from error


class WithInspection(nn.Module):
    """Maps ids (B, T) to logits (B, T, V), the attention weights of all layers, and the lens.

    Weights (B, H, T, T) and the probabilities of the lens (B, T, V) are in the order in which the
    layers run. A network without such parts has fewer outputs.
    """

    def __init__(self, model: LitCharLM) -> None:
        super().__init__()
        self.net: Any = model.net
        self.stages: dict[nn.Module, str] = {}
        with contextlib.suppress(InputError):  # a network may have a structure of its own
            self.stages = {stage: name for name, stage in stages_by_name(model).items()}

    def look(self, ids: Tensor) -> tuple[Tensor, Found, Found]:
        """Return the logits, the weights of each attention, and the output of each stage."""
        outputs: Found = []

        def after_stage(module: nn.Module, _: Any, output: Tensor) -> None:
            outputs.append((self.stages[module], output))

        with recorded_weights(self.net) as weights, contextlib.ExitStack() as hooks:
            for module in self.stages:
                hooks.enter_context(module.register_forward_hook(after_stage))
            logits = self.net(ids)
        return logits, weights, outputs

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        logits, weights, outputs = self.look(ids)
        lens = [self.net.unembed(output).float().softmax(-1) for _, output in outputs]
        return logits, *(weight for _, weight in weights), *lens

    def meanings(self, ids: Tensor) -> dict[str, str]:
        """Return the name of each output of `forward`, with what it is."""
        _, weights, outputs = self.look(ids)
        found = {"logits": "scores of the next character; softmax turns them into probabilities"}
        for i, (layer, _) in enumerate(weights):
            found[f"attention_{i}"] = f"attention weights of the heads of {layer}"
        for i, (stage, _) in enumerate(outputs):
            found[f"lens_{i}"] = f"probabilities of the next character, read from {stage}"
        return found


def onnx_files(model: LitCharLM, facts: dict[str, Any]) -> dict[str, bytes]:
    """Return the files of an export: model.onnx with all weights, and config.json.

    Prints a notice if the network can be exported only for its full context.

    Args:
        model: The model.
        facts: What config.json says besides.

    Raises:
        InputError: The network cannot be exported.
    """
    context = model.context
    with evaluation_mode(model):
        net = WithInspection(model)
        ids = random_ids(len(model.tokenizer), 2, context)
        meanings = net.meanings(ids)
        program, axes = export_as_dynamic_as_possible(net, ids, list(meanings))
    length = f"1 to {context} characters"
    is_padded = context > 1 and LENGTH not in axes.values()
    if is_padded:
        length = (
            f"{context} characters: pad a shorter text on the right with any ids, and ignore what "
            "is computed for them"
        )
    shapes = {
        value.name: [size if isinstance(size, int) else str(size) for size in value.shape]
        for value in program.model.graph.outputs
    }
    meaning = f"each character's place in the alphabet, counted from 0; {length}"
    shape = [axes.get(0, 1), axes.get(1, context)]
    config = {
        **facts,
        "alphabet": model.tokenizer.alphabet,
        "context": context,
        "length": "padded" if is_padded else "dynamic",
        "inputs": [{"name": IDS, "type": "int64", "shape": shape, "meaning": meaning}],
        "outputs": [
            {"name": name, "shape": shapes[name], "meaning": meaning}
            for name, meaning in meanings.items()
        ],
    }
    files = {MODEL: program.model_proto.SerializeToString()}
    return files | {CONFIG: json.dumps(config, indent=2).encode()}


def export_as_dynamic_as_possible(
    net: WithInspection, ids: Tensor, outputs: list[str]
) -> tuple[Any, dict[int, str]]:
    """Return PyTorch's ONNXProgram, and the names of those axes of ids (B, T) that are dynamic.

    Some networks can be exported only for the size with which they are exported.
    """
    reasons: list[str] = []
    choices: tuple[dict[int, str], ...] = ({0: BATCH, 1: LENGTH}, {0: BATCH}, {})
    for axes in choices if ids.size(1) > 1 else choices[1:]:
        try:
            program = export(net, ids if axes else ids[:1], axes, outputs)
        except Exception as error:  # PyTorch raises many types, and a network may raise any
            reasons.append(describe_error([*causes(error)][-1]))
            continue
        if reasons:
            print(
                f"Notice: the export reads {'texts' if axes else 'one text'} of "
                f"{ids.size(1)} characters only, so pad shorter ones on the right. Other sizes "
                f"failed: {reasons[0]}.",
                file=sys.stderr,
            )
        return program, axes
    name = type(net.net).__name__
    raise InputError(f"PyTorch cannot export {name} to ONNX: {reasons[-1]}. Change that code.")


def export(net: WithInspection, ids: Tensor, axes: dict[int, str], outputs: list[str]) -> Any:
    """Export a network that reads ids (B, T), and return PyTorch's ONNXProgram.

    `axes` gives names to axes of ids. An axis with a name may have any size; the others are fixed.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    largest = {BATCH: None, LENGTH: ids.size(1)}
    dims = {i: torch.export.Dim(name, min=1, max=largest[name]) for i, name in axes.items()}
    with quiet():
        exported = torch.export.export(net, (ids,), dynamic_shapes=(dims,), strict=False)
        require_equal(exported.module(), net, ids, axes)
        program: Any = torch.onnx.export(
            exported, dynamo=True, verbose=False, input_names=[IDS], output_names=outputs,
            dynamic_shapes=(dims,),  # for the names of the axes
        )  # fmt: skip
        ClearMetadataAndDocStringPass()(program.model)  # it names folders of this computer
    return program


def require_equal(exported: nn.Module, net: nn.Module, ids: Tensor, axes: dict[int, str]) -> None:
    """Raise `ValueError` if the exported network gives other values than the original network.

    This happens if the export has stored something of the example's size, such as a mask.
    """
    batch, length = ids.shape
    for texts in {1, batch} if BATCH in axes.values() else {batch}:
        for end in {1, length // 2 + 1, length} if LENGTH in axes.values() else {length}:
            part = ids[:texts, :end]
            for actual, expected in zip(exported(part), net(part), strict=True):
                if not torch.allclose(actual, expected, atol=1e-4, rtol=1e-3):
                    raise ValueError("the export computes something else than the network")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, logs and prints. PyTorch's exporter writes many that users do not need."""
    disabled, ignored = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(ignored),
            contextlib.redirect_stderr(ignored),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
