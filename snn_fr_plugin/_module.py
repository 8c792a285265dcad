"""What every memory and spiking module is: a map of sequences with explicit state.

``forward(x_seq, state)`` and ``step(x, state)`` return their output and the next state and keep nothing, so
that a sequence equals its steps, and equals its chunks with the state carried from one to the next. A state
is a tensor or a NamedTuple; ``None`` stands for a fresh one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_step, state_dtype
from .ops._providers import check_backend

__all__ = ["MemoryModule", "SequenceModule", "SpikingModule", "complex_state_dtype"]


class SequenceModule(nn.Module):
    """Base of the modules that map a time-major sequence [T, N, *] to another, carrying a state.

    Args:
        backend: provider of the operators: "auto", "torch", "cpp" or "cupy".
    """

    def __init__(self, *, backend: str = "auto") -> None:
        super().__init__()
        check_backend(backend)
        self.backend = backend

    def forward(self, x_seq: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The whole sequence [T, N, *] from ``state`` (``None``: fresh): the output and the next state."""
        raise NotImplementedError

    def check_causal(self) -> None:
        """Raise a RuntimeError if an output may depend on later inputs, so that there are no single steps."""

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step [N, *] from ``state`` (``None``: fresh). A RuntimeError where there are no steps."""
        check_step(x)
        self.check_causal()
        y_seq, state = self.forward(x[None], state)  # T = 1: the same operator, the same rounding
        return y_seq[0], state

    def initial_state(self, x: Tensor) -> Any:
        """The fresh state for inputs like ``x``, one step [N, *]."""
        raise NotImplementedError


class MemoryModule(SequenceModule):
    """Linear, with all the history: what a spiking module samples."""

    dynamics: tuple[str, ...] = ()  # names of the parameters that set its time scales: trained with care


class SpikingModule(SequenceModule):
    """What decides which instants of a memory are sent on: a linear part, then a threshold.

    ::

        forward(x_seq) = fire(integrate(x_seq))

    The two are apart so that a norm can stand between them (``systems.SpikingLayer``).
    """

    def integrate(self, y_seq: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The linear part: the drive [T, N, *] and the state. The identity unless the module filters."""
        return y_seq, state

    def fire(self, drive_seq: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Binary spikes [T, N, *] of a drive, in its dtype, and the state."""
        raise NotImplementedError

    def forward(self, x_seq: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Binary spikes [T, N, *] in the dtype of ``x_seq`` [T, N, *], and the state."""
        drive, state = self.integrate(x_seq, state)
        spikes, state = self.fire(drive, state)
        return spikes.to(x_seq.dtype), state


def complex_state_dtype(x: Tensor) -> torch.dtype:
    """Dtype of a complex state that goes with ``x``: complex128 for float64 input, complex64 otherwise."""
    return torch.complex128 if state_dtype(x) == torch.float64 else torch.complex64
