"""State-space spiking layers in snnTorch's conventions for whole sequences.

As snnTorch's own sequence layers (``StateLeaky``), they take [T, B, C], return ``spk, mem``, and with
``output=False`` the ``mem`` alone. ``mem`` is the drive: what the threshold saw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snn_fr_plugin import systems
from snn_fr_plugin._checks import check_flag, check_sequence, state_dtype
from snn_fr_plugin.ops.refractory import Scheme

__all__ = ["SequenceLayer", "SpikingFRSSM", "SpikingPSSM"]


class SequenceLayer(nn.Module):
    """A ``systems.SpikingLayer`` that keeps its state, if asked, in the way of snnTorch's hidden states."""

    def __init__(self, system: systems.SpikingLayer, output: bool, init_hidden: bool) -> None:
        super().__init__()
        check_flag("output", output)
        check_flag("init_hidden", init_hidden)
        self.system = system
        self.output, self.init_hidden = output, init_hidden
        self._state: Any = None
        self._shape: torch.Size | None = None  # of a step, for which the state is

    def forward(self, input_: Tensor) -> Any:
        """``spk, mem`` of a sequence [T, B, d_model]; ``mem`` alone with ``output=False``."""
        check_sequence(input_, "input_")
        state = self._fitting(input_) if self.init_hidden else None
        spk, mem, state = self.system.forward_with_drive(input_, state)
        if self.init_hidden:
            self._state, self._shape = state, input_.shape[1:]
        return (spk, mem) if self.output else mem

    def _fitting(self, input_: Tensor) -> Any:
        """The state kept, where and in which dtype the input needs it; ``None``: another batch size."""
        if self._state is None or self._shape != input_.shape[1:]:
            return None
        dtype, device = state_dtype(input_), input_.device
        return _mapped(self._state, lambda leaf: _converted(leaf, dtype, device))

    def reset_mem(self) -> None:
        """Forget the state: the next call begins at rest."""
        self._state = None

    def detach_mem(self) -> None:
        """Cut the state from its autograd history."""
        self._state = _mapped(self._state, Tensor.detach)

    def __getstate__(self) -> dict[str, Any]:
        # no autograd history: neither deepcopy nor another process could follow it
        return {**self.__dict__, "_state": _mapped(self._state, Tensor.detach)}

    def extra_repr(self) -> str:
        """What differs from the defaults."""
        parts = [] if self.output else ["output=False"]
        return ", ".join([*parts, "init_hidden=True"] if self.init_hidden else parts)


def _mapped(state: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A state, nested NamedTuples, with the function applied to each of its tensors."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, tuple):
        return type(state)(*(_mapped(part, function) for part in state))
    return state


def _converted(leaf: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of a state that computes in ``dtype``, float32 or float64."""
    if leaf.is_complex():
        return leaf.to(device, torch.complex64 if dtype == torch.float32 else torch.complex128)
    return leaf.to(device, dtype if leaf.is_floating_point() else leaf.dtype)


class SpikingFRSSM(SequenceLayer):
    """State-space memory sampled by a threshold with a fixed refractory period, for whole sequences.

    ``systems.SpikingFRSSM``, which documents the equations::

        mem = norm(S4D(input_))
        spk = 1[mem >= threshold] and silent for the last R steps

    Args:
        d_model: channels C, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        refractory_period: R >= 0, in steps. Default 1.
        scheme: "absolute" (default), "window", "strided" or "onset"; see ``ops.fixed_refractory``.
        spike_grad: a surrogate of ``snn_fr_plugin.surrogate``, or any callable applied to
            ``mem - threshold``, snnTorch's own included. ``None`` (default) is ATan.
        output: return ``spk, mem`` (default), or ``mem`` alone.
        init_hidden: ``False`` (default): every call begins at rest. ``True``: a call goes on where the last
            one ended, until ``reset_mem()`` or a change of the batch size.
        backend: provider of the operators, "auto" (default), "torch", "cpp" or "cupy".
        options: the others of ``systems.SpikingFRSSM``: ``threshold``, ``learn_threshold``, ``norm``,
            ``init``, ``discretization``, ``dt_min``, ``dt_max``, ``device``, ``dtype``.

    Shapes:
        input_, spk: [T, B, C], of one dtype; mem: [T, B, C].

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling,
        arXiv 2504.17751 (2025).

    Example:
        >>> layer = SpikingFRSSM(4, d_state=8, refractory_period=2)
        >>> spk, mem = layer(torch.randn(10, 2, 4))
        >>> spk.shape, mem.shape
        (torch.Size([10, 2, 4]), torch.Size([10, 2, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        refractory_period: int = 1,
        scheme: Scheme = "absolute",
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        output: bool = True,
        init_hidden: bool = False,
        backend: str = "auto",
        **options: Any,
    ) -> None:
        if spike_grad is not None:
            options["surrogate"] = spike_grad
        system = systems.SpikingFRSSM(
            d_model, d_state, refractory_period=refractory_period, scheme=scheme, backend=backend, **options
        )
        super().__init__(system, output, init_hidden)


class SpikingPSSM(SequenceLayer):
    """State-space memory sampled by a parallel spiking neuron, for whole sequences.

    ``systems.SpikingPSSM``, which documents the equations::

        mem = norm(w * S4D(input_))                w * y the filter of the PSN over time
        spk = 1[mem + bias >= 0]

    Args:
        d_model: channels C, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        k: taps of the sliding filter, or steps that the masked one reads once closed. Default 8.
        psn: "sliding" (default; causal), "masked" (causal once its ``lambda_`` is 1) or "full" (not causal).
        T: steps of every sequence; for "masked" and "full" only.
        spike_grad: a surrogate of ``snn_fr_plugin.surrogate``, or any callable applied to ``mem + bias``,
            snnTorch's own included. ``None`` (default) is ATan.
        output: return ``spk, mem`` (default), or ``mem`` alone.
        init_hidden: ``False`` (default): every call begins at rest. ``True``: a call goes on where the last
            one ended, until ``reset_mem()`` or a change of the batch size; not with ``psn="full"``.
        backend: provider of the operators, "auto" (default), "torch", "cpp" or "cupy".
        options: the others of ``systems.SpikingPSSM``: ``norm``, ``init``, ``discretization``, ``dt_min``,
            ``dt_max``, ``device``, ``dtype``.

    Shapes:
        input_, spk: [T, B, C], of one dtype; mem: [T, B, C].

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        E. Zhang, arXiv 2504.17751 (2025); W. Fang et al., arXiv 2304.12760 (2023).

    Example:
        >>> layer = SpikingPSSM(4, d_state=8, k=4)
        >>> spk, mem = layer(torch.randn(10, 2, 4))
        >>> spk.shape, mem.shape
        (torch.Size([10, 2, 4]), torch.Size([10, 2, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        k: int = 8,
        psn: Literal["sliding", "masked", "full"] = "sliding",
        T: int | None = None,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        output: bool = True,
        init_hidden: bool = False,
        backend: str = "auto",
        **options: Any,
    ) -> None:
        if spike_grad is not None:
            options["surrogate"] = spike_grad
        if init_hidden and psn == "full":
            raise ValueError(
                "init_hidden must be False with psn='full', got True: each of its spikes depends on the "
                "whole sequence, so there is nothing to go on from"
            )
        system = systems.SpikingPSSM(d_model, d_state, k=k, psn=psn, T=T, backend=backend, **options)
        super().__init__(system, output, init_hidden)
