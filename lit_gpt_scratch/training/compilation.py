"""Compiles a network with torch.compile where that makes a training run shorter."""

import contextlib
import sys
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lit_gpt_scratch.errors import InputError, describe_error
from lit_gpt_scratch.models import count_parameters
from lit_gpt_scratch.models.modern import cosines_and_sines
from lit_gpt_scratch.private_api import tolerate_failed_compilation, uncompiled
from lit_gpt_scratch.training.distributed import is_rank_zero
from lit_gpt_scratch.training.hardware import is_small

# Parameters times characters of a whole run; `gpt_cpu` has 2.3e12. Compiling takes 5 seconds if the
# code is in the cache, else half a minute. Then each step takes a quarter less time (a tenth, where
# the processor lacks bf16: AMD EPYC with AVX2).
LONG = 2e12
# Do not test first which instruction sets the compiler supports: that takes ten seconds.
OPTIONS: dict[str, Any] = {"cpp.vec_isa_ok": True}


class CompileBlocks(Callback):
    """Compiles a network with torch.compile for training; validation is not compiled.

    Blocks are compiled one by one, because blocks of one shape share the compiled code; in place,
    because a compiled copy would rename the keys of the checkpoint.
    """

    def __init__(self) -> None:
        self._training, self._validation = contextlib.ExitStack(), contextlib.ExitStack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        net, is_cpu = pl_module.net, pl_module.device.type == "cpu"
        is_auto = pl_module.hparams["compile"] == "auto"
        if is_auto and not is_worth_it(trainer, net):
            return
        failure = why_not() if is_cpu else None
        if failure and not is_auto:
            raise InputError(f"--model.compile true: {failure} Leave it out.")
        if is_rank_zero():
            done = f"nothing: {failure}" if failure else "the blocks, in half a minute or less"
            print(f"compile      {done}", file=sys.stderr)
        if not failure:
            teacher = pl_module.teacher
            for each in [net] + ([teacher.net] if teacher else []):
                compile_blocks(each, options=OPTIONS if is_cpu else None)
        if is_auto:  # the compiler may fail with a user's own network
            self._training.enter_context(tolerate_failed_compilation())

    def on_train_end(self, *_: Any) -> None:
        self._training.close()

    def on_validation_start(self, *_: Any) -> None:
        self._validation.enter_context(uncompiled())

    def on_validation_end(self, *_: Any) -> None:
        self._validation.close()

    def on_exception(self, *_: Any) -> None:
        self._training.close()
        self._validation.close()


def is_worth_it(trainer: Any, net: nn.Module) -> bool:
    """Return whether compiling makes a run shorter. Only CPUs under Linux were measured.

    Only sizes decide, not a measurement. So a resumed run decides as it did before.
    """
    data = trainer.datamodule
    if sys.platform != "linux" or trainer.strategy.root_device.type != "cpu" or data is None:
        return False
    characters = data.batch_size * data.context
    steps = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
    is_long = count_parameters(net) * characters * steps >= LONG
    return is_long and not is_small(net, characters)


def why_not() -> str | None:
    """Return why torch.compile does not work here, or None. Compiles a small function."""

    def add_one(x: Tensor) -> Tensor:
        return x + 1

    try:
        torch.compile(add_one, options=OPTIONS)(torch.zeros(64))
    except Exception as error:  # compilers fail in many ways
        return (
            f"torch.compile fails here ({describe_error(error)[:200]}). It needs a C++ compiler "
            "and the header files of Python."
        )
    return None


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network, and of the networks in it, each once."""
    blocks = (block for module in net.modules() for block in getattr(module, "blocks", ()))
    return list(dict.fromkeys(blocks))


def compile_blocks(net: nn.Module, **how: Any) -> None:
    """Compile each block of a network. A network without blocks is compiled as a whole.

    PyTorch compiles a part when it is called next. `how` are arguments of torch.compile.
    """
    # Store cosines and sines as constants: otherwise compiled code computes them for each vector.
    torch.compiler.assume_constant_result(cosines_and_sines)  # type: ignore[no-untyped-call]
    for part in blocks_of(net) or [net]:
        part.compile(dynamic=False, **how)
