"""Runs commands one after another in each process that torchrun has started: one JSON argument.

Importing PyTorch and Lightning takes longer than such a command.
"""

import json
import sys

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lit_gpt_scratch import cli
from lit_gpt_scratch.training.sharding import FSDP2Strategy, on_whole_matrices


def check_exchange_of_rows() -> None:
    """For numbers of matrices and rows that the number of processes need not divide."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for count, rows, columns in [(1, 1, 3), (1, 4, 2), (2, 5, 3), (3, 4, 4), (5, 7, 6)]:
        torch.manual_seed(count)
        matrices = torch.randn(count, rows, columns)
        split = [distribute_tensor(matrix, mesh, [Shard(0)]) for matrix in matrices]
        shares: list[int] = []

        def normalize(whole: torch.Tensor, shares: list[int] = shares) -> torch.Tensor:
            shares.append(len(whole))
            return whole @ whole.mT @ whole

        own = torch.stack([matrix.to_local() for matrix in split])
        found = on_whole_matrices(normalize, own, split[0])
        expected = matrices @ matrices.mT @ matrices
        first = dist.get_rank() * -(-rows // dist.get_world_size())
        torch.testing.assert_close(found, expected[:, first : first + own.size(1)])
        assert shares == [-(-count // dist.get_world_size())], "each computes a share"


def check_memory(optimizer: torch.optim.Optimizer) -> None:
    """Check that a process holds about half of the weights and of the optimizer's state."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for kept in (weights, [t for state in optimizer.state.values() for t in state.values()]):
        split = [tensor for tensor in kept if isinstance(tensor, DTensor)]
        memory = {(part := t.to_local().untyped_storage()).data_ptr(): part.nbytes() for t in split}
        assert 0 < sum(memory.values()) < 0.6 * sum(t.nbytes for t in split)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    check_exchange_of_rows()
    for flags in json.loads(sys.argv[1]):
        try:
            trainer = cli.main(flags).trainer
            if isinstance(trainer.strategy, FSDP2Strategy):
                check_memory(trainer.optimizers[0])
        except SystemExit as stop:
            print("ended with", stop.code)
