"""Parallel spiking layers in snnTorch's conventions for whole sequences: any memory with any spiking module.

As snnTorch's own sequence layers (``StateLeaky``), they take [T, B, C], return ``spk, mem``, and with
``output=False`` the ``mem`` alone. ``mem`` is the drive: what the threshold saw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from snn_fr_plugin import systems
from snn_fr_plugin.integrations.snntorch._peers import (
    PMSN,
    PRF,
    BinaryS4D,
    PSpikeSSM,
    SPikESSM,
    SpikingSSM,
)
from snn_fr_plugin.integrations.snntorch._sequence import SequenceLayer, surrogate_option
from snn_fr_plugin.ops.refractory import Scheme
from snn_fr_plugin.systems import S4DOptions
from snn_fr_plugin.systems.layer import Norm

__all__ = [
    "PMSN",
    "PRF",
    "BinaryS4D",
    "PSpikeSSM",
    "SPikESSM",
    "SequenceLayer",
    "SpikingFRSSM",
    "SpikingLayer",
    "SpikingPSSM",
    "SpikingSSM",
]


class SpikingLayer(SequenceLayer):
    """Any memory in front of any spiking module, for whole sequences.

    ``systems.SpikingLayer``, which documents the equations::

        mem = norm(spiking.integrate(memory(input_)))
        spk = spiking.fire(mem)

    Args:
        memory: ``Leaky``, ``S4D``, ``Resonator``, ``MultiCompartment`` or ``Bidirectional`` of
            ``snn_fr_plugin.memory``, or a module of your own with ``forward`` and ``initial_state``.
        spiking: a module of ``snn_fr_plugin.spiking``, or of your own with ``integrate``, ``fire`` and
            ``initial_state``. It brings its surrogate, and both bring their ``backend``.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        d_model: channels C, the last dimension of the input; by default what the memory says.
        output: return ``spk, mem`` (default), or ``mem`` alone.
        init_hidden: ``False`` (default): every call begins at rest. ``True``: a call goes on where the last
            one ended, until ``reset_mem()`` or a change of the batch size; refused by what is not causal:
            ``Bidirectional``, ``PSN``, and ``MaskedPSN`` until its ``lambda_`` is 1.

    Shapes:
        input_, spk: [T, B, *], of one dtype; mem: [T, B, *].

    Raises:
        TypeError: a part that is not a module, an argument or the input of the wrong type or dtype.
        ValueError: an unknown norm, ``init_hidden=True`` with what is not causal, or an input with other
            channels or too few dimensions.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling,
        arXiv 2504.17751 (2025).

    Example:
        >>> from snn_fr_plugin.memory import Resonator
        >>> from snn_fr_plugin.spiking import SlidingPSN
        >>> layer = SpikingLayer(Resonator(4), SlidingPSN(k=3), init_hidden=True)
        >>> spk, mem = layer(torch.randn(10, 2, 4))
        >>> spk.shape, mem.shape
        (torch.Size([10, 2, 4]), torch.Size([10, 2, 4]))
    """

    def __init__(
        self,
        memory: nn.Module,
        spiking: nn.Module,
        norm: Norm | nn.Module | None = None,
        *,
        d_model: int | None = None,
        output: bool = True,
        init_hidden: bool = False,
    ) -> None:
        super().__init__(systems.SpikingLayer(memory, spiking, norm, d_model=d_model), output, init_hidden)
        if init_hidden:
            self._check_causal()


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
        threshold: initial threshold, a float or one per channel. Default 1.0.
        learn_threshold: learn log(threshold) per channel. Default True.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        spike_grad: a surrogate of ``snn_fr_plugin.surrogate``, or any callable applied to
            ``mem - threshold``, snnTorch's own included. ``None`` (default) is ATan.
        output: return ``spk, mem`` (default), or ``mem`` alone.
        init_hidden: ``False`` (default): every call begins at rest. ``True``: a call goes on where the last
            one ended, until ``reset_mem()`` or a change of the batch size.
        backend: provider of the operators, "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

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
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        norm: Norm | nn.Module | None = None,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        output: bool = True,
        init_hidden: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        system = systems.SpikingFRSSM(
            d_model, d_state, refractory_period=refractory_period, scheme=scheme, threshold=threshold,
            learn_threshold=learn_threshold, norm=norm, backend=backend, device=device, dtype=dtype,
            **surrogate_option(spike_grad), **s4d,
        )  # fmt: skip
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
        norm: of the drive, before the bias: "batch", "layer", a module or ``None`` (default).
        spike_grad: a surrogate of ``snn_fr_plugin.surrogate``, or any callable applied to ``mem + bias``,
            snnTorch's own included. ``None`` (default) is ATan.
        output: return ``spk, mem`` (default), or ``mem`` alone.
        init_hidden: ``False`` (default): every call begins at rest. ``True``: a call goes on where the last
            one ended, until ``reset_mem()`` or a change of the batch size. ``psn="full"`` refuses it, and
            "masked" refuses to be called so until its ``lambda_`` is 1.
        backend: provider of the operators, "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

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
        norm: Norm | nn.Module | None = None,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        output: bool = True,
        init_hidden: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        if init_hidden and psn == "full":
            raise ValueError(
                "init_hidden must be False with psn='full', got True: each of its spikes depends on the "
                "whole sequence, so there is nothing to go on from"
            )
        system = systems.SpikingPSSM(
            d_model, d_state, k=k, psn=psn, T=T, norm=norm, backend=backend, device=device, dtype=dtype,
            **surrogate_option(spike_grad), **s4d,
        )  # fmt: skip
        super().__init__(system, output, init_hidden)
