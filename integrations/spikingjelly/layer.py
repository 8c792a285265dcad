"""Parallel spiking layers for SpikingJelly: ``snn_fr_plugin.systems`` as ``base.MemoryModule`` types.

In step mode 'm' a sequence is computed as parallel over time as its parts, in 's' one step after the other,
with the same spikes in evaluation. Every tensor of the state is a memory, which begins at zero and restarts
when the batch changes its size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from snn_fr_plugin import systems
from snn_fr_plugin.integrations.spikingjelly._paired import PairedLayer, surrogate_option
from snn_fr_plugin.integrations.spikingjelly._peers import (
    PMSN,
    PRF,
    BinaryS4D,
    PSpikeSSM,
    SPikESSM,
    SpikingSSM,
)
from snn_fr_plugin.ops.refractory import Scheme
from snn_fr_plugin.systems import S4DOptions
from snn_fr_plugin.systems.layer import Norm

__all__ = [
    "PMSN",
    "PRF",
    "BinaryS4D",
    "PSpikeSSM",
    "SPikESSM",
    "SpikingFRSSM",
    "SpikingLayer",
    "SpikingPSSM",
    "SpikingSSM",
]


class SpikingLayer(PairedLayer):
    r"""Any memory in front of any spiking module, as a SpikingJelly layer.

    ``systems.SpikingLayer``, which documents the equations::

        drive  = norm(spiking.integrate(memory(x)))
        spikes = spiking.fire(drive)

    What reads the future, ``Bidirectional`` and ``PSN``, has step mode 'm' only; ``MaskedPSN`` steps once its
    ``lambda_`` is 1. Memories are named by their place in the state: ``memory`` and ``spiking``, and
    ``spiking_v``, ``spiking_refractory`` for ``LIF``, ``spiking_recent``, ``spiking_time`` for ``PSN`` and
    ``MaskedPSN``; ``BernoulliSampler`` has none.

    Args:
        memory: ``Leaky``, ``S4D``, ``Resonator``, ``MultiCompartment`` or ``Bidirectional`` of
            ``snn_fr_plugin.memory``, or a module of your own with ``forward`` and ``initial_state``.
        spiking: a module of ``snn_fr_plugin.spiking``, or of your own with ``integrate``, ``fire`` and
            ``initial_state``. It brings its surrogate, and both bring their ``backend``; setting that of the
            layer, or ``functional.set_backend`` of 0.0.0.0.14, sets theirs.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        d_model: channels, the last dimension of the input; by default what the memory says.
        step_mode: 's', x is [N, d_model] and a call is a step, or 'm', x is [T, N, d_model]; [N, \*] and
            [T, N, \*] where d_model is not known. Default 's', which ``Bidirectional`` and ``PSN`` refuse.

    Raises:
        TypeError: a part that is not a module, the input is of the wrong type or dtype.
        ValueError: an unknown norm, a state of your own that does not begin at zero, or the input has other
            channels or too few dimensions.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling,
        arXiv 2504.17751 (2025).

    Example:
        >>> from snn_fr_plugin.memory import Resonator
        >>> from snn_fr_plugin.spiking import LIF
        >>> layer = SpikingLayer(Resonator(4), LIF(0.9), step_mode="m")
        >>> layer(torch.randn(10, 2, 4)).shape, layer.memory.shape, layer.spiking_v.shape
        (torch.Size([10, 2, 4]), torch.Size([2, 4, 1]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        memory: nn.Module,
        spiking: nn.Module,
        norm: Norm | nn.Module | None = None,
        *,
        d_model: int | None = None,
        step_mode: str = "s",
    ) -> None:
        super().__init__(systems.SpikingLayer(memory, spiking, norm, d_model=d_model), step_mode)


class SpikingFRSSM(PairedLayer):
    r"""State-space memory sampled by a threshold with a fixed refractory period, as a SpikingJelly layer.

    ``systems.SpikingFRSSM``, which documents the equations::

        y = S4D(x)
        s_t = 1[norm(y)_t >= threshold] and silent for the last R steps

    Memories: ``h``, the modes of the memory (complex64, complex128 for float64 input,
    [N, d_model, d_state / 2]), and ``gate``, the refractory state (int32, [N, d_model]).

    Args:
        d_model: channels, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        step_mode: 's', x is [N, d_model] and a call is a step, or 'm', x is [T, N, d_model]. Default 's'.
        refractory_period: R >= 0, in steps. Default 1.
        scheme: "absolute" (default), "window", "strided" or "onset"; see ``ops.fixed_refractory``.
        threshold: initial threshold, a float or one per channel. Default 1.0.
        learn_threshold: learn log(threshold) per channel. Default True.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        surrogate_function: a surrogate of SpikingJelly or of ``snn_fr_plugin.surrogate``, or any callable.
            ``None`` (default) is the ATan of ``snn_fr_plugin``.
        backend: provider of the operators: "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling,
        arXiv 2504.17751 (2025).

    Example:
        >>> layer = SpikingFRSSM(4, d_state=8, step_mode="m", refractory_period=2)
        >>> layer(torch.randn(10, 2, 4)).shape, layer.h.shape
        (torch.Size([10, 2, 4]), torch.Size([2, 4, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        step_mode: str = "s",
        refractory_period: int = 1,
        scheme: Scheme = "absolute",
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        norm: Norm | nn.Module | None = None,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        system = systems.SpikingFRSSM(
            d_model, d_state, refractory_period=refractory_period, scheme=scheme, threshold=threshold,
            learn_threshold=learn_threshold, norm=norm, backend=backend, device=device, dtype=dtype,
            **surrogate_option(surrogate_function), **s4d,
        )  # fmt: skip
        super().__init__(system, step_mode, ("h", "gate"))


class SpikingPSSM(PairedLayer):
    r"""State-space memory sampled by a parallel spiking neuron, as a SpikingJelly layer.

    ``systems.SpikingPSSM``, which documents the equations::

        y = S4D(x)
        s_t = 1[norm(w * y)_t + bias >= 0]          w * y the filter of the PSN over time

    ``psn="full"`` reads the future and has step mode 'm' only, ``psn="masked"`` steps once its ``lambda_`` is
    1. Memories: ``h``, the modes of the memory (complex64, complex128 for float64 input,
    [N, d_model, d_state / 2]), ``recent``, the last inputs of the filter ([k - 1, N, d_model]), and, unless
    sliding, ``time``, the steps read.

    Args:
        d_model: channels, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        step_mode: 's', x is [N, d_model] and a call is a step, or 'm', x is [T, N, d_model]. Default 's',
            which ``psn="full"`` refuses.
        k: taps of the sliding filter, or steps that the masked one reads once closed. Default 8.
        psn: "sliding" (default), "masked" or "full".
        T: steps of every sequence; for "masked" and "full" only.
        norm: of the drive, before the bias: "batch", "layer", a module or ``None`` (default).
        surrogate_function: a surrogate of SpikingJelly or of ``snn_fr_plugin.surrogate``, or any callable.
            ``None`` (default) is the ATan of ``snn_fr_plugin``.
        backend: provider of the operators: "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        E. Zhang, arXiv 2504.17751 (2025); W. Fang et al., arXiv 2304.12760 (2023).

    Example:
        >>> layer = SpikingPSSM(4, d_state=8, step_mode="m", k=4)
        >>> layer(torch.randn(10, 2, 4)).shape, layer.recent.shape
        (torch.Size([10, 2, 4]), torch.Size([3, 2, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        step_mode: str = "s",
        k: int = 8,
        psn: Literal["sliding", "masked", "full"] = "sliding",
        T: int | None = None,
        norm: Norm | nn.Module | None = None,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        system = systems.SpikingPSSM(
            d_model, d_state, k=k, psn=psn, T=T, norm=norm, backend=backend, device=device, dtype=dtype,
            **surrogate_option(surrogate_function), **s4d,
        )  # fmt: skip
        super().__init__(system, step_mode, ("h", "recent") if psn == "sliding" else ("h", "recent", "time"))
