"""Laws, small models and helpers that several test files share.

Shapes: B batch, T time, H heads, V alphabet size.
"""

import copy
import math
import string
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt_scratch.cli import main
from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.inspection.laws import (
    attention_inputs as attention_inputs,
)
from lit_gpt_scratch.inspection.laws import (
    breaks_causality,
)
from lit_gpt_scratch.inspection.laws import (
    random_ids as random_ids,
)
from lit_gpt_scratch.inspection.laws import (
    run_in_pieces as run_in_pieces,
)
from lit_gpt_scratch.inspection.laws import (
    with_random_weights as with_random_weights,
)
from lit_gpt_scratch.training.module import LitCharLM

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
ALPHABET = "".join(sorted(string.ascii_letters))
SMALL = {"layers": 2, "width": 32}  # maxima for networks that have these arguments
SMALL_CONTEXT = 8
NAMES_A_NET = ("--config", "--ckpt_path", "--model.net")


class Parsed(CharCLI):
    """The command line of `fit`, which parses and builds a model, but creates no run folder."""

    def before_instantiate_classes(self) -> None:
        self.config.model.teacher = None  # the run that a config names is not here
        super().before_instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> None:
        return None


def parse(*args: str) -> Parsed:
    """Parse flags of `fit`, with an alphabet instead of a corpus."""
    return Parsed("fit", ["--data.alphabet", ALPHABET, *args])


@cache
def settings(config: Path) -> Any:
    """Return all values that the command line reads from a config, defaults included."""
    return parse("--config", str(config)).config


@cache
def _small(config: Path) -> LitCharLM:
    parsed = settings(config)
    args = [f"--data.context={min(parsed.data.context, SMALL_CONTEXT)}"]
    flag, net = "--model.net", parsed.model.net.get("init_args", {})
    if "net" in net:  # an ensemble: the sizes to reduce are those of its members
        args.append(f"{flag}.size=3")
        flag, net = f"{flag}.net", net.net.init_args
    for name, maximum in SMALL.items():
        if size := net.get(name):
            while size > maximum:
                size //= 2  # so that the heads still divide the width
            args.append(f"{flag}.{name}={size}")
    return parse("--config", str(config), *args).model


def small(config: Path) -> LitCharLM:
    """Return a new, untrained model of a config, reduced to a size for tests."""
    return copy.deepcopy(_small(config))


def train_small(folder: Path, *args: str, config: Path | None = None) -> CharCLI:
    """Run `fit` for a few steps, with its runs in a folder; `args` override the flags below.

    The network is small unless the arguments name one.
    """
    config_flags = ["--config", str(config)] if config else []
    if not config and not any(arg.startswith(NAMES_A_NET) for arg in args):
        args = "--model.net.layers=1", "--model.net.width=16", *args
    flags = {
        "data.corpus": "sample",
        "data.sample_size": 20_000,
        "data.context": 8,
        "data.batch_size": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 4,
        "trainer.default_root_dir": folder,
        "wandb.mode": "disabled",
    }
    return main(
        ["fit", *config_flags, *(f"--{name}={value}" for name, value in flags.items()), *args]
    )


def assert_causal(net: nn.Module, alphabet_size: int, context: int) -> None:
    found = breaks_causality(net, alphabet_size, context)
    assert not found, found


def reference_weights(q: Tensor, k: Tensor) -> Tensor:
    """Return attention weights (T, T) of one head, from q and k (T, D), one query at a time."""
    weights = q.new_zeros(len(q), len(q))
    for t in range(len(q)):
        scores = torch.stack([q[t].dot(k[s]) / math.sqrt(q.size(-1)) for s in range(t + 1)])
        weights[t, : t + 1] = scores.exp() / scores.exp().sum()
    return weights
