"""The parallel spiking sequence models: pairs of a memory and a spiking module, and their residual block.

================ ============= =====================================
system           memory        spiking module
================ ============= =====================================
SpikingFRSSM     S4D           FixedRefractory
SpikingPSSM      S4D           SlidingPSN, MaskedPSN or PSN
BinaryS4D        S4D           Threshold
================ ============= =====================================

Any other pair is a ``SpikingLayer(memory, spiking)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor, nn

from ._checks import check_channels, check_choice, check_sequence, check_step, parameter
from ._module import SpikingModule
from .memory import S4D
from .memory.s4d import Discretization, Init
from .ops.refractory import Scheme
from .spiking import PSN, FixedRefractory, MaskedPSN, SlidingPSN, Threshold
from .surrogate import ATan

__all__ = [
    "BinaryS4D",
    "S4DOptions",
    "SpikingBlock",
    "SpikingFRSSM",
    "SpikingLayer",
    "SpikingLayerState",
    "SpikingPSSM",
]

Norm = Literal["batch", "layer"]
_NORMS: tuple[Norm, ...] = ("batch", "layer")
_PSNS = ("sliding", "masked", "full")
_DEFAULT_SURROGATE = ATan()


class SpikingLayerState(NamedTuple):
    """State of a ``SpikingLayer``: those of its two parts."""

    memory: Any
    spiking: Any


class S4DOptions(TypedDict, total=False):
    """What the systems hand on to their ``memory.S4D``."""

    init: Init
    discretization: Discretization
    dt_min: float
    dt_max: float


class _BatchNorm(nn.BatchNorm1d):
    """Per channel (last dimension) over time and batch; affine in evaluation. Computes in its own dtype."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        return super().forward(x.flatten(0, -2)).view(x.shape) if x.numel() else x


class _LayerNorm(nn.LayerNorm):
    """Over the channels of each step. Computes in its own dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def _factory(module: nn.Module) -> dict[str, Any]:
    """Where, and in which dtype, the parameters of a module live."""
    first = next(module.parameters(), None)
    return {} if first is None else {"device": first.device, "dtype": first.dtype}


def _make_norm(norm: Norm, d_model: int | None, like: nn.Module) -> nn.Module:
    check_choice("norm", norm, _NORMS)
    if d_model is None:
        raise ValueError(
            f"norm={norm!r} needs d_model, the number of channels, which the memory does not tell"
        )
    return (_BatchNorm if norm == "batch" else _LayerNorm)(d_model, **_factory(like))


class SpikingLayer(nn.Module):
    """A memory module and a spiking module: real sequences in, binary spikes out.

    ::

        drive  = norm(spiking.integrate(memory(x)))
        spikes = spiking.fire(drive)

    ``integrate`` is the filter of a PSN and the identity of a threshold. The layer is as parallel over time
    as its parts, and holds no state: a sequence equals its steps, and its chunks with the state carried
    along, in evaluation (training statistics of a batch norm see the steps they are given).

    Args:
        memory: ``snn_fr_plugin.memory`` module, or any with ``forward``, ``step`` and ``initial_state``.
        spiking: ``snn_fr_plugin.spiking`` module, or any with ``integrate``, ``fire`` and ``initial_state``.
        norm: "batch" (per channel over batch and time), "layer", a module applied to the drive, or ``None``.
        d_model: channels; by default what the memory says.

    Shapes:
        x_seq, spikes: [T, N, d_model], of one dtype. State: ``SpikingLayerState``.

    Raises:
        TypeError: a part that is not a module, a state that is not a pair.
        ValueError: an unknown norm, or channels that differ from d_model.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling, arXiv
        2504.17751.

    Example:
        >>> from snn_fr_plugin.memory import Leaky
        >>> layer = SpikingLayer(Leaky(0.9), FixedRefractory(1))
        >>> layer(torch.full((6, 1), 0.6))[0].flatten().tolist()
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """

    def __init__(
        self,
        memory: nn.Module,
        spiking: nn.Module,
        norm: Norm | nn.Module | None = None,
        *,
        d_model: int | None = None,
    ) -> None:
        super().__init__()
        for name, part in (("memory", memory), ("spiking", spiking)):
            if not isinstance(part, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {type(part).__name__}")
        told = getattr(memory, "d_model", None)
        if None not in (d_model, told) and d_model != told:
            raise ValueError(f"d_model must be the memory's, {told}, got {d_model}")
        self.d_model: int | None = told if d_model is None else d_model
        self.memory: Any = memory
        self.spiking: Any = spiking
        if norm is not None and not isinstance(norm, nn.Module):
            norm = _make_norm(norm, self.d_model, self)
        self.norm: nn.Module | None = norm

    def forward(
        self, x_seq: Tensor, state: SpikingLayerState | tuple[Any, Any] | None = None
    ) -> tuple[Tensor, SpikingLayerState]:
        """Binary spikes [T, N, d_model] and the state."""
        spikes, _, after = self.forward_with_drive(x_seq, state)
        return spikes, after

    def forward_with_drive(
        self, x_seq: Tensor, state: SpikingLayerState | tuple[Any, Any] | None = None
    ) -> tuple[Tensor, Tensor, SpikingLayerState]:
        """Spikes, the drive that the threshold saw [T, N, d_model], and the state."""
        check_sequence(x_seq)
        if self.d_model is not None:
            check_channels(x_seq, self.d_model)
        memory_state, spiking_state = _pair(state)
        y_seq, memory_state = self.memory(x_seq, memory_state)
        drive, spiking_state = self.spiking.integrate(y_seq, spiking_state)
        if self.norm is not None:
            drive = self.norm(drive)
        spikes, spiking_state = self.spiking.fire(drive, spiking_state)
        return spikes.to(x_seq.dtype), drive, SpikingLayerState(memory_state, spiking_state)

    def step(
        self, x: Tensor, state: SpikingLayerState | tuple[Any, Any] | None = None
    ) -> tuple[Tensor, SpikingLayerState]:
        """Binary spikes [N, d_model] of one step, and the state."""
        check_step(x)
        self.check_causal()
        spikes, after = self.forward(x[None], state)
        return spikes[0], after

    def check_causal(self) -> None:
        """Raise a RuntimeError if the spiking module may read later inputs: it then has no single steps."""
        if isinstance(self.spiking, SpikingModule):
            self.spiking.check_causal()

    def initial_state(self, x: Tensor) -> SpikingLayerState:
        """The fresh state for inputs like ``x``, one step [N, d_model]."""
        return SpikingLayerState(self.memory.initial_state(x), self.spiking.initial_state(x))


def _pair(state: Any) -> tuple[Any, Any]:
    if state is None:
        return None, None
    if not isinstance(state, tuple) or len(state) != 2:
        raise TypeError(f"state must be a SpikingLayerState (memory, spiking), got {type(state).__name__}")
    return state


class SpikingFRSSM(SpikingLayer):
    """S4D memory sampled by a threshold with a fixed refractory period (SpikingFRssm).

    ::

        y = S4D(x)
        s_t = 1[norm(y)_t >= threshold] and silent for the last R steps

    A documented reconstruction: the paper's full equations and hyper-parameters are not public, and none of
    its results is claimed here.

    Args:
        d_model: channels H.
        d_state: real state size per channel, even.
        refractory_period: R >= 0, in steps. 0 is ``BinaryS4D``.
        scheme: "absolute", "window", "strided" or "onset"; see ``ops.fixed_refractory``.
        threshold: initial threshold, a float or one per channel.
        learn_threshold: learn log(threshold) per channel.
        norm: of the drive, "batch", "layer", a module or ``None``.
        surrogate: a surrogate of this package, or any callable applied to ``drive - threshold``.
        backend: "auto", "torch", "cpp" or "cupy", for both parts.
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Shapes:
        x_seq, spikes: [T, N, H], of one dtype. State: ``SpikingLayerState``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a wrong value; the message says what was expected and what came.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling, arXiv
        2504.17751 (2025).

    Example:
        >>> layer = SpikingFRSSM(4, d_state=8, refractory_period=2)
        >>> spikes, state = layer(torch.randn(10, 2, 4))
        >>> spikes.shape
        torch.Size([10, 2, 4])
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
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        memory = S4D(d_model, d_state, backend=backend, device=device, dtype=dtype, **s4d)
        spiking = FixedRefractory(
            refractory_period,
            scheme,
            threshold=_per_channel(threshold, memory, learn_threshold),
            learn_threshold=learn_threshold,
            surrogate=surrogate,
            backend=backend,
        )
        super().__init__(memory, spiking, norm)


class SpikingPSSM(SpikingLayer):
    """S4D memory sampled by a parallel spiking neuron (SpikingPssm).

    ::

        y = S4D(x)
        s_t = 1[norm(w * y)_t + bias >= 0]          w * y the filter of the PSN over time

    Without a norm the sliding one is a single convolution with the kernel K convolved with w, then a
    threshold. A documented reconstruction: the paper's full equations and hyper-parameters are not public,
    and none of its results is claimed here.

    Args:
        d_model: channels H.
        d_state: real state size per channel, even.
        k: taps of the sliding filter, or steps that the masked one reads once closed; unused by "full".
        psn: "sliding" (causal, any length), "masked" (causal once its ``lambda_`` is 1) or "full" (not
            causal).
        T: steps of every sequence; needed by "masked" and "full", refused by "sliding".
        norm: of the drive, before the bias: "batch", "layer", a module or ``None``.
        surrogate: a surrogate of this package, or any callable applied to ``drive + bias``.
        backend: "auto", "torch", "cpp" or "cupy", for both parts.
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Shapes:
        x_seq, spikes: [T, N, H], of one dtype. State: ``SpikingLayerState``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a wrong value; the message says what was expected and what came.

    Reference:
        E. Zhang, arXiv 2504.17751 (2025); W. Fang et al., arXiv 2304.12760 (2023).

    Example:
        >>> layer = SpikingPSSM(4, d_state=8, k=4)
        >>> spikes, state = layer(torch.randn(10, 2, 4))
        >>> spikes.shape
        torch.Size([10, 2, 4])
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
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        check_choice("psn", psn, _PSNS)
        if (T is None) != (psn == "sliding"):
            raise ValueError(f"psn={psn!r} {'takes no T' if psn == 'sliding' else 'needs T'}, got T={T}")
        memory = S4D(d_model, d_state, backend=backend, device=device, dtype=dtype, **s4d)
        spiking: nn.Module
        if T is None:
            spiking = SlidingPSN(k, surrogate=surrogate, backend=backend, device=device, dtype=dtype)
        elif psn == "masked":
            spiking = MaskedPSN(k, T, surrogate=surrogate, backend=backend, device=device, dtype=dtype)
        else:
            spiking = PSN(T, surrogate=surrogate, backend=backend, device=device, dtype=dtype)
        super().__init__(memory, spiking, norm)


class BinaryS4D(SpikingLayer):
    """S4D memory behind a plain threshold: the binary network that the other systems refine.

    ::

        s_t = 1[norm(S4D(x))_t >= threshold]

    Args:
        d_model: channels H.
        d_state: real state size per channel, even.
        threshold: initial threshold, a float or one per channel.
        learn_threshold: learn log(threshold) per channel.
        norm: of the drive, "batch", "layer", a module or ``None``.
        surrogate: a surrogate of this package, or any callable applied to ``drive - threshold``.
        backend: "auto", "torch", "cpp" or "cupy", for both parts.
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Shapes:
        x_seq, spikes: [T, N, H], of one dtype. State: ``SpikingLayerState``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a wrong value; the message says what was expected and what came.

    Example:
        >>> BinaryS4D(4, d_state=8)(torch.randn(10, 2, 4))[0].shape
        torch.Size([10, 2, 4])
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        norm: Norm | nn.Module | None = None,
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        memory = S4D(d_model, d_state, backend=backend, device=device, dtype=dtype, **s4d)
        spiking = Threshold(
            _per_channel(threshold, memory, learn_threshold),
            learn_threshold=learn_threshold,
            surrogate=surrogate,
            backend=backend,
        )
        super().__init__(memory, spiking, norm)


def _per_channel(threshold: float | Tensor, memory: S4D, learn: bool) -> float | Tensor:
    """A learnable threshold is one parameter per channel; a fixed float stays a float."""
    if not learn and not isinstance(threshold, Tensor):
        return threshold
    like = memory.D.detach()
    return parameter("threshold", threshold, like.shape, like.dtype, like.device).expand_as(like)


class SpikingBlock(nn.Module):
    """The residual block around a ``SpikingLayer``.

    ::

        s   = dropout(layer(x))                     memory -> norm -> spiking
        y   = dropout(GLU(W s + b))                 the synapse, W: H -> 2H, on binary spikes in evaluation
        out = norm(x + y)

    ``norm`` chooses two norms: one after the residual, and one on the drive of the layer (after its memory
    and the filter of its PSN, before its threshold). The latter becomes ``layer.norm``; a layer that already
    has a norm keeps its own. "batch" normalises each channel over batch and time; in evaluation it is affine,
    hence causal, and can be folded into its neighbours.

    Args:
        layer: any ``SpikingLayer`` that knows its ``d_model``. The block takes it over.
        norm: "batch", "layer" or ``None``.
        dropout: probability, on the spikes and on the output of the synapse.

    Shapes:
        x_seq, y_seq: [T, N, H], of one dtype. State: that of the layer.

    Raises:
        TypeError: ``layer`` is not a SpikingLayer.
        ValueError: an unknown norm, or a layer without ``d_model``.

    Reference:
        The recipe of SpikingSSM's block (arXiv 2408.14909) with a norm before the threshold and after the
        residual.

    Example:
        >>> block = SpikingBlock(SpikingFRSSM(4, d_state=8))
        >>> y, state = block(torch.randn(10, 2, 4))
        >>> y.shape
        torch.Size([10, 2, 4])
    """

    def __init__(self, layer: SpikingLayer, *, norm: Norm | None = "batch", dropout: float = 0.1) -> None:
        super().__init__()
        if not isinstance(layer, SpikingLayer):
            raise TypeError(f"layer must be a SpikingLayer, got {type(layer).__name__}")
        if layer.d_model is None:
            raise ValueError(
                "layer must know its number of channels: SpikingLayer(memory, spiking, d_model=...)"
            )
        self.d_model = layer.d_model
        self.layer = layer
        self.dropout = nn.Dropout(dropout)
        self.synapse = nn.Linear(self.d_model, 2 * self.d_model, **_factory(layer))
        self.norm = None if norm is None else _make_norm(norm, self.d_model, layer)
        if norm is not None and layer.norm is None:
            layer.norm = _make_norm(norm, self.d_model, layer)

    def forward(
        self, x_seq: Tensor, state: SpikingLayerState | tuple[Any, Any] | None = None
    ) -> tuple[Tensor, SpikingLayerState]:
        """Output [T, N, d_model] and the state."""
        spikes, after = self.layer(x_seq, state)
        current = self.synapse(self.dropout(spikes.to(self.synapse.weight.dtype)))
        y_seq = x_seq + self.dropout(nn.functional.glu(current, -1))
        if self.norm is not None:
            y_seq = self.norm(y_seq)
        return y_seq.to(x_seq.dtype), after

    def step(
        self, x: Tensor, state: SpikingLayerState | tuple[Any, Any] | None = None
    ) -> tuple[Tensor, SpikingLayerState]:
        """Output [N, d_model] of one step, and the state."""
        check_step(x)
        self.layer.check_causal()
        y_seq, after = self.forward(x[None], state)
        return y_seq[0], after

    def initial_state(self, x: Tensor) -> SpikingLayerState:
        """The fresh state for inputs like ``x``, one step [N, d_model]."""
        return self.layer.initial_state(x)
