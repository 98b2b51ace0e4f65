"""Writes trained models into one HTML file in which they run: no network, no server, no Python.

`network.js` and `model.js` compute what the networks and the sampling of this package compute;
`worker.js` runs them beside the page; `page.js` and `panels.js` are the page.
"""

import base64
import inspect
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Literal

import torch

from lit_gpt_scratch import models
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.files import render_html
from lit_gpt_scratch.training.module import LitCharLM

# The classes that network.js knows.
NETWORKS = ("Bigram", "AttentionLM", "GPT", "ModernGPT", "Ensemble")
ATTENTIONS = (
    "MeanAttention", "SingleHeadAttention", "MultiHeadAttention", "FusedAttention",
    "RotaryAttention",
)  # fmt: skip
DTYPES = {"float16": torch.float16, "float32": torch.float32}
TEXT = "ROMEO:\nWhat is the name of this good lady here?\n"


def describe(
    model: LitCharLM, name: str, dtype: Literal["float16", "float32"] = "float16"
) -> dict[str, Any]:
    """Return what the page needs to know of a model: its network, alphabet and weights.

    Args:
        model: The model.
        name: What the page calls it.
        dtype: How weights are stored. float16 halves the file, and changes the validation losses
            of the ladder by 1.2e-5 nats at most.

    Raises:
        InputError: The network has a class that the page does not know.
    """
    net = complete(model.hparams["net"], NETWORKS, name)
    state = model.net.state_dict()
    weights = [tensor.detach().cpu().to(DTYPES[dtype]).contiguous() for tensor in state.values()]
    data = b"".join(tensor.numpy().tobytes() for tensor in weights)
    return {
        "name": name,
        "net": net,
        "alphabet": model.tokenizer.alphabet,
        "context": model.context,
        "parameters": sum(tensor.numel() for tensor in weights),
        "tensors": [[key, list(tensor.shape)] for key, tensor in state.items()],
        "dtype": dtype,
        "data": base64.b64encode(data).decode(),
    }


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


def render_page(descriptions: list[dict[str, Any]], text: str = TEXT, model: int = 0) -> str:
    """Return the page of some models, which begins with a text and a model."""
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
        script=Markup(source["page.js"] + source["panels.js"]),
    )
