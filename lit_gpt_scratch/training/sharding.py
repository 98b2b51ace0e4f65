"""FSDP2: weights, gradients and the optimizer's state are split between all processes.

`--trainer.strategy fsdp2` trains so. Each process keeps some rows of every tensor. Before a block
runs, the processes gather its weights; after it, they drop the rows of the others (Zhao et al.
2023, arXiv 2304.11277). So a forward pass needs all processes.

Shapes: N matrices of one shape, R rows, C columns, P processes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    StrategyRegistry,
)
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F
from torch.nn.utils import get_total_norm

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.training.compilation import blocks_of

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


def is_sharded(net: nn.Module) -> bool:
    """Return whether a network's weights are split: then only all processes together can run it."""
    return isinstance(net, FSDPModule)


def shard(net: nn.Module, device: str) -> None:
    """Split a network's weights between all processes, block by block; the rest together.

    A second call does nothing. Raises `InputError` for a network that cannot be split.
    """
    if is_sharded(net):
        return
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    try:
        for part in [*blocks_of(net), net]:
            fully_shard(part, mesh=mesh)
    except ValueError as error:  # for example, a parameter without dimensions
        raise InputError(f"strategy is fsdp2: this network cannot be split ({error}).") from error


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with checkpoints that are ordinary files.

    A checkpoint does not depend on the strategy or on the number of processes: rank 0 gathers it
    tensor by tensor, and a resumed process reads all of it, but keeps its rows only.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Return that Lightning calls `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole weights in rank 0, and nothing in other ranks."""
        assert self.lightning_module is not None
        return self._gather(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the whole state in rank 0; in other ranks, it has no tensors."""
        saved: dict[str, Any] = ParallelStrategy.optimizer_state(self, optimizer)
        state = {index: self._gather(values) for index, values in saved["state"].items()}
        return saved | {"state": state}

    def _gather(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return whole tensors, on the CPU, in rank 0. All ranks gather them, one by one."""
        kept = {}
        for name, value in values.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if self.is_global_zero:
                kept[name] = whole.cpu() if isinstance(whole, Tensor) else whole
        return kept

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Read a whole checkpoint, and run no code from it."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy this process' rows of the weights into the network."""
        assert self.lightning_module is not None
        own, saved = self.lightning_module.state_dict(), checkpoint["state_dict"]
        weights = {name: own_rows(value, own.get(name)) for name, value in saved.items()}
        self.lightning_module.load_state_dict(weights, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give the optimizer this process' rows of its state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            indices = [index for group in saved["param_groups"] for index in group["params"]]
            state = {
                index: {name: own_rows(value, p) for name, value in saved["state"][index].items()}
                for index, p in zip(indices, params, strict=True)
                if index in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})


StrategyRegistry.register("fsdp2", FSDP2Strategy, "Weights are split between processes.")


def own_rows(whole: Any, like: Any) -> Any:
    """Return a copy of this process' rows of a tensor, if `like`, of the same shape, is split."""
    if not isinstance(like, DTensor) or getattr(whole, "shape", None) != like.shape:
        return whole
    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def require_supported(trainer: Any) -> None:
    """Raise `InputError` for a strategy, or something beside it, with which training goes wrong."""
    strategy = trainer.strategy
    others = FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy
    if not isinstance(strategy, FSDP2Strategy):
        if isinstance(strategy, others):
            name = type(strategy).__name__
            raise InputError(f"--trainer.strategy is {name}, which is not supported: give fsdp2.")
        return
    if trainer.precision not in PRECISIONS:
        raise InputError(
            f"precision is {trainer.precision}: with --trainer.strategy fsdp2, it must be one of "
            f"{', '.join(PRECISIONS)}."
        )
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging | StochasticWeightAveraging):
            raise InputError(
                f"{type(callback).__name__} copies whole networks, so it cannot be used with "
                "--trainer.strategy fsdp2: use ddp, or leave it out."
            )


def local_parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return what this process has of each tensor: its rows, in the same memory, or all."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all numbers in tensors, which may be split."""
    norm = get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def on_whole_matrices(function: Callable[[Tensor], Tensor], rows: Tensor, matrix: Tensor) -> Tensor:
    """Apply a function of matrices (N, R, C), and return this process' rows of the result.

    `matrix` is one of them. If it is split, `rows` (N, about R / P, C) are those of this process,
    and each process gets about N / P whole matrices: it computes a share, and needs the memory of a
    share. Otherwise `rows` are the matrices.
    """
    if not isinstance(matrix, DTensor):
        return function(rows)
    (count, own, width), height = rows.shape, matrix.size(0)
    group, world_size = matrix.device_mesh.get_group(), matrix.device_mesh.size()
    matrices, strip = (-(-size // world_size) for size in (count, height))  # of each, rounded up
    sent = rows.new_zeros(world_size, matrices, strip, width)
    sent.flatten(0, 1)[:count, :own] = rows
    received = torch.empty_like(sent)  # from each process its rows of this process' matrices
    dist.all_to_all_single(received, sent, group=group)
    results = function(received.transpose(0, 1).flatten(1, 2)[:, :height])
    padded = F.pad(results, (0, 0, 0, world_size * strip - height))
    sent = padded.view(matrices, world_size, strip, width).transpose(0, 1).contiguous()
    dist.all_to_all_single(received, sent, group=group)
    return received.flatten(0, 1)[:count, :own]
