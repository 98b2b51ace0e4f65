"""Writes trained models into one HTML file in which they run: no network, no server, no Python.

`network.js` and `model.js` compute what the networks and the sampling of this package compute;
`worker.js` runs them beside the page; the other files are the page.
"""

import base64
import inspect
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from lit_gpt_scratch import models
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.files import render_html
from lit_gpt_scratch.generation import SamplingSettings, default_prompt
from lit_gpt_scratch.training.module import LitCharLM

# The classes that network.js knows.
NETWORKS = ("Bigram", "AttentionLM", "GPT", "ModernGPT", "Ensemble")
ATTENTIONS = (
    "MeanAttention", "SingleHeadAttention", "MultiHeadAttention", "FusedAttention",
    "RotaryAttention",
)  # fmt: skip
PAGE = ("drawing", "page", "panels", "tour")  # its sources, in this order
TEXT = "ROMEO:\nWhat is the name of this good lady here?\n"


def describe(model: LitCharLM, name: str, float32: bool = False) -> dict[str, Any]:
    """Return a model's network, alphabet and weights, as the page reads them.

    Args:
        model: The model.
        name: What the page calls it.
        float32: Store weights in 32 bits. Otherwise they are rounded to 16 bits: the file has a
            third of the size, and the ladder's validation losses change by 1.2e-4 nats at most.

    Raises:
        InputError: The network has a class that the page does not know, or weights that are not
            finite.
    """
    net = complete(model.hparams["net"], NETWORKS, name)
    state = {key: weight.detach().cpu().float() for key, weight in model.net.state_dict().items()}
    if not all(weight.isfinite().all() for weight in state.values()):
        raise InputError(f"{name} has weights that are not finite numbers: its training diverged.")
    steps = {key: None if float32 else find_step(weight) for key, weight in state.items()}
    return {
        "name": name,
        "net": net,
        "alphabet": model.tokenizer.alphabet,
        "context": model.context,
        "parameters": sum(weight.numel() for weight in state.values()),
        "tensors": [[key, list(weight.shape), steps[key]] for key, weight in state.items()],
        "data": base64.b64encode(zlib.compress(pack(state, steps), 9)).decode(),
    }


def find_step(weight: Tensor) -> float:
    """Return the size of a step. A tensor's weights are stored as whole numbers of steps.

    For a matrix, a step is 1/200 of the root mean square of its weights. Then most whole numbers
    are small, and their high bytes compress well. Vectors have the smallest possible step: they
    take little space.
    """
    least = weight.abs().max().item() / 32767  # the largest whole number fits into 16 bits
    size = weight.square().mean().sqrt().item() if weight.dim() > 1 else 0.0
    return max(least, size / 200) or 1.0


def pack(state: Mapping[str, Tensor], steps: Mapping[str, float | None]) -> bytes:
    """Return all weights as bytes.

    With steps, these are whole numbers of 16 bits: first all low bytes, then all high bytes.
    Without (None), these are the weights in 32 bits.
    """
    numbers = []
    for key, weight in state.items():
        step = steps[key]
        numbers.append((weight if step is None else (weight / step).round().short()).flatten())
    data = torch.cat(numbers)
    planes = data if data.dtype == torch.float32 else data.view(torch.uint8).view(-1, 2).T
    return planes.contiguous().numpy().tobytes()


def supports(model: LitCharLM) -> bool:
    """Return whether the page knows all classes of a model's network."""
    try:
        complete(model.hparams["net"], NETWORKS, "it")
    except InputError:
        return False
    return True


def complete(spec: Mapping[str, Any], known: Sequence[str], name: str) -> dict[str, Any]:
    """Return a class and its arguments with all defaults.

    Raises:
        InputError: The page does not know the class, or one in its arguments.
    """
    module, _, kind = spec["class_path"].rpartition(".")
    if kind not in known or not module.startswith("lit_gpt_scratch."):
        raise InputError(
            f"{name} uses {spec['class_path']}, which the playground does not know. It knows "
            f"{', '.join(known)}."
        )
    parameters = inspect.signature(getattr(models, kind)).parameters.values()
    arguments = {p.name: p.default for p in parameters if p.default is not p.empty}
    arguments |= spec.get("init_args", {})
    for argument, allowed in (("net", NETWORKS), ("attention", ATTENTIONS)):
        if argument in arguments:
            part = arguments[argument]
            if isinstance(part, type):
                part = {"class_path": f"{models.__name__}.{part.__name__}"}
            arguments[argument] = complete(part, allowed, name)
    return {"class_path": spec["class_path"], "init_args": arguments}


class Playground:
    """The page of some models as the output of a notebook's cell. The page runs in the output."""

    def __init__(self, page: str, names: Sequence[str], height: int) -> None:
        self.page, self.names, self.height = page, list(names), height

    def __repr__(self) -> str:
        return f"Playground of {', '.join(self.names)}. Run this cell to open it."

    def _repr_html_(self) -> str:
        from markupsafe import escape

        style = f"width: 100%; height: {self.height}px; border: 0"
        return f'<iframe srcdoc="{escape(self.page)}" title="Playground" style="{style}"></iframe>'


def show(
    model: LitCharLM | Mapping[str, LitCharLM], text: str | None = None, height: int = 800
) -> Playground:
    """Return the page of a model, or of several by name, for the output of a notebook's cell.

    Args:
        model: A model, or models by name; the page begins with the last.
        text: The text that the page begins with; default: one that suits the alphabet.
        height: Height of the page in pixels.

    Raises:
        InputError: A network has a class that the page does not know.
    """
    named = {type(model.net).__name__: model} if isinstance(model, LitCharLM) else dict(model)
    if not named:
        raise InputError("show needs a model: give one, or a dictionary of models by name.")
    described = [describe(each, name) for name, each in named.items()]
    start = first_text([*named.values()][-1]) if text is None else text
    return Playground(render_page(described, start, len(described) - 1), [*named], height)


def first_text(model: LitCharLM) -> str:
    """Return the text that the page begins with: a sample if the alphabet has other characters."""
    if set(TEXT) <= set(model.tokenizer.alphabet):
        return TEXT
    prompt = model.tokenizer.encode(default_prompt(model.tokenizer))[None].to(model.device)
    return model.generate(prompt, SamplingSettings(max_new_tokens=60, temperature=0.8))[0].strip()


def render_page(descriptions: list[dict[str, Any]], text: str, model: int = 0) -> str:
    """Return the page of some models. It begins with a text, and with the model at an index."""
    from markupsafe import Markup

    folder = resources.files(__name__)
    source = {path.name: path.read_text("utf-8") for path in folder.iterdir() if path.is_file()}
    return render_html(
        source["page.html"],
        names=[description["name"] for description in descriptions],
        descriptions=descriptions,
        start={"text": text, "model": model},
        style=Markup(source["page.css"]),
        engine=Markup(source["network.js"] + source["model.js"]),
        worker=Markup(source["worker.js"]),
        script=Markup("".join(source[f"{part}.js"] for part in PAGE)),
    )
