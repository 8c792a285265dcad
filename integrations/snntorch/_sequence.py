"""What the layers for whole sequences have in common: what they return, and the state they carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from snn_fr_plugin import systems
from snn_fr_plugin._checks import check_flag, check_sequence
from snn_fr_plugin.integrations._state import flatten, unflatten, with_tensors

__all__ = ["SequenceLayer", "surrogate_option"]


class SequenceLayer(nn.Module):
    """A ``systems.SpikingLayer`` that keeps its state, if asked, in the way of snnTorch's hidden states."""

    def __init__(self, system: systems.SpikingLayer, output: bool, init_hidden: bool) -> None:
        super().__init__()
        check_flag("output", output)
        check_flag("init_hidden", init_hidden)
        self.system = system
        self.output, self.init_hidden = output, init_hidden
        self._state: Any = None

    def forward(self, input_: Tensor) -> Any:
        """``spk, mem`` of a sequence [T, B, d_model]; ``mem`` alone with ``output=False``."""
        check_sequence(input_, "input_")
        if self.init_hidden:
            self._check_causal()
            spk, mem, self._state = self.system.forward_with_drive(input_, self._carried(input_))
        else:
            spk, mem, _ = self.system.forward_with_drive(input_)
        return (spk, mem) if self.output else mem

    def _check_causal(self) -> None:
        """There is nothing to go on from for what reads the future."""
        try:
            self.system.check_causal()
        except RuntimeError as error:
            raise ValueError(f"init_hidden must be False, got True: {error}") from error

    def _carried(self, input_: Tensor) -> Any:
        """The state kept, where and in which dtype the input needs it; ``None``: begin at rest."""
        if self._state is None:
            return None
        # what the state should look like; on the meta device it costs nothing to ask
        step = input_.new_empty(input_.shape[1:], device="meta")
        pairs = list(zip(flatten(self._state), flatten(self.system.initial_state(step)), strict=True))
        if any(isinstance(like, Tensor) and leaf.shape != like.shape for leaf, like in pairs):
            return None
        leaves = [
            leaf.to(input_.device, like.dtype) if isinstance(like, Tensor) else leaf for leaf, like in pairs
        ]
        return unflatten(self._state, leaves)

    def reset_mem(self) -> None:
        """Forget the state: the next call begins at rest."""
        self._state = None

    def detach_mem(self) -> None:
        """Cut the state from its autograd history."""
        self._state = with_tensors(Tensor.detach, self._state)

    def __getstate__(self) -> dict[str, Any]:
        # no autograd history: neither deepcopy nor another process could follow it
        return {**self.__dict__, "_state": with_tensors(Tensor.detach, self._state)}

    def extra_repr(self) -> str:
        """What differs from the defaults."""
        parts = [] if self.output else ["output=False"]
        return ", ".join([*parts, "init_hidden=True"] if self.init_hidden else parts)


def surrogate_option(spike_grad: Callable[[Tensor], Tensor] | None) -> dict[str, Any]:
    """The argument ``surrogate`` of a system; ``None`` leaves it the system's own."""
    return {} if spike_grad is None else {"surrogate": spike_grad}
