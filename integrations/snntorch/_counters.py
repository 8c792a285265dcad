"""Which refractory counter belongs to a membrane: found by the membrane's storage, held weakly.

snnTorch's user owns the membrane: the loop passes ``mem`` in and gets ``mem`` back, detaches it, keeps
several of them, or cuts a batch out of one. A counter kept on the module would belong to none of these for
sure, so each counter is filed under the storage of the membrane that was handed out with it: ``mem.detach()``
and every view of ``mem`` share that storage, a copy or a membrane made elsewhere does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["CounterRegistry"]


class _Entry(NamedTuple):
    storage: StorageWeakRef  # of the membrane: while it is held, no other storage gets the same address
    offset: int  # of the membrane in its storage
    refractory: Tensor  # int32, strides of the membrane: a view of one is the same view of the other


def _extent(tensor: Tensor) -> int:
    """Elements of its storage from the first to the last that ``tensor`` reaches."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


class CounterRegistry:
    """Counters of the membranes that one neuron module has handed out and that are still alive."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._prune_at = 16

    def bind(self, mem: Tensor, refractory: Tensor) -> None:
        """File ``refractory`` under the storage of ``mem``."""
        self._file(mem, mem.stride(), int(mem.storage_offset()), refractory)

    def bind_last(self, mem_seq: Tensor, refractory: Tensor) -> None:
        """File ``refractory`` under ``mem_seq[-1]``, without the view, which autograd would track."""
        step, *strides = mem_seq.stride()
        offset = int(mem_seq.storage_offset()) + (len(mem_seq) - 1) * step
        self._file(mem_seq, tuple(strides), offset, refractory)

    def _file(self, mem: Tensor, strides: tuple[int, ...], offset: int, refractory: Tensor) -> None:
        if len(self._entries) >= self._prune_at:
            self._entries = {k: e for k, e in self._entries.items() if not e.storage.expired()}
            self._prune_at = max(16, 2 * len(self._entries))
        if refractory.stride() != strides:
            like_mem = torch.empty_strided(
                refractory.shape, strides, dtype=refractory.dtype, device=refractory.device
            )
            refractory = like_mem.copy_(refractory)
        storage = mem.untyped_storage()
        self._entries[storage._cdata] = _Entry(StorageWeakRef(storage), offset, refractory)

    def find(self, mem: Tensor) -> Tensor | None:
        """The counter of ``mem``, itself or any view of a membrane filed here; ``None``: it has none."""
        entry = self._entries.get(mem.untyped_storage()._cdata)
        if entry is None:
            return None
        offset = mem.storage_offset() - entry.offset
        if mem.numel() == 0 or offset < 0 or offset + _extent(mem) > _extent(entry.refractory):
            return None
        first = entry.refractory.storage_offset() + offset
        return entry.refractory.as_strided(mem.shape, mem.stride(), first)

    def copy(self) -> CounterRegistry:
        """A registry that knows the same membranes and goes its own way from here."""
        other = CounterRegistry()
        other._entries, other._prune_at = dict(self._entries), self._prune_at
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> CounterRegistry:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        # the address of a storage means nothing in another process
        return CounterRegistry, ()
