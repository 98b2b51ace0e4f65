"""The key-value cache, which makes sampling fast; shapes as in attention.py."""

import inspect

from torch import Tensor, nn


class KVCache:
    """Stores the keys and values of earlier positions, so that each is computed only once.

    The cache stores the tensors of each module under the module itself. Modules store nothing.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity  # most positions; each buffer is allocated once, at this length
        self.length = 0  # positions stored; the network increases it at the end of its forward
        self._buffers: dict[nn.Module, list[Tensor]] = {}

    def extend(self, owner: nn.Module, *new: Tensor) -> list[Tensor]:
        """Append the owner's tensors (..., T, D); return old and new, (..., length + T, D)."""
        if owner not in self._buffers:
            self._buffers[owner] = [
                x.new_empty(*x.shape[:-2], self.capacity, x.size(-1)) for x in new
            ]
        end = self.length + new[0].size(-2)
        assert end <= self.capacity, "the cache is full"
        for buffer, x in zip(self._buffers[owner], new, strict=True):
            buffer[..., self.length : end, :] = x
        return [buffer[..., :end, :] for buffer in self._buffers[owner]]


def takes_cache(net: nn.Module) -> bool:
    """Return whether a network, all its members and all its attentions support a cache.

    A class supports it if its `forward` has an argument `cache`; other classes need no change.
    """
    modules = [net, *getattr(net, "members", ())]
    for name, module in net.named_modules():
        if name.endswith("attention") or hasattr(module, "weights"):
            modules.append(module)
    return all("cache" in inspect.signature(module.forward).parameters for module in modules)
