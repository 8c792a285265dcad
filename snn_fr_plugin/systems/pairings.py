"""The systems: named pairs of a memory and a spiking module, with the defaults of their papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from .._checks import check_choice, parameter
from ..memory import S4D, MultiCompartment, Resonator
from ..memory.s4d import Discretization, Init
from ..ops.refractory import Scheme
from ..spiking import (
    PSN,
    BernoulliSampler,
    BoundaryCompressedLIF,
    CumulativeThreshold,
    FixedRefractory,
    MaskedPSN,
    SlidingPSN,
    SurrogateDynamicsLIF,
    Threshold,
)
from ..surrogate import ATan, Triangle
from .layer import Norm, SpikingLayer, make_norm

__all__ = [
    "PMSN",
    "PRF",
    "BinaryS4D",
    "PSpikeSSM",
    "S4DOptions",
    "SPikESSM",
    "SpikingFRSSM",
    "SpikingPSSM",
    "SpikingSSM",
]

_PSNS = ("sliding", "masked", "full")
_DEFAULT_SURROGATE = ATan()
_TRIANGLE = Triangle()


class S4DOptions(TypedDict, total=False):
    """What the systems hand on to their ``memory.S4D``."""

    init: Init
    discretization: Discretization
    dt_min: float
    dt_max: float


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


class SpikingSSM(SpikingLayer):
    """S4D memory sampled by LIF neurons with hard reset, parallel by a surrogate dynamic network.

    ::

        drive = norm(S4D(x)) / threshold                           per channel
        s_t   = 1[SDN(drive before t) + drive_t >= 1]              about the spikes of a LIF with beta = 0.125

    ``exact=True`` runs the true neuron in place of the network. The paper's norm is meant to be there, though
    its released configurations bypass it: give one here, or use the block.

    Args:
        d_model: channels H.
        d_state: real state size per channel, even.
        exact: run the true LIF; see ``spiking.SurrogateDynamicsLIF``.
        threshold: initial threshold, a float or one per channel.
        learn_threshold: learn log(threshold) per channel.
        norm: of the drive, "batch", "layer", a module or ``None``.
        surrogate: a surrogate of this package, or any callable; the paper's triangle by default.
        backend: "auto", "torch", "cpp" or "cupy", for both parts.
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Shapes:
        x_seq, spikes: [T, N, H], of one dtype. State: ``SpikingLayerState``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a wrong value; the message says what was expected and what came.

    Reference:
        SpikingSSMs: Learning Long Sequences with Sparse and Parallel Spiking State Space Models, arXiv
        2408.14909 (2024).

    Example:
        >>> SpikingSSM(4, d_state=8)(torch.randn(10, 2, 4))[0].shape
        torch.Size([10, 2, 4])
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        exact: bool = False,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        norm: Norm | nn.Module | None = None,
        surrogate: Callable[[Tensor], Tensor] = _TRIANGLE,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        memory = S4D(d_model, d_state, backend=backend, device=device, dtype=dtype, **s4d)
        spiking = SurrogateDynamicsLIF(
            _per_channel(threshold, memory, learn_threshold),
            learn_threshold=learn_threshold,
            exact=exact,
            surrogate=surrogate,
            backend=backend,
        ).to(memory.D.device)
        super().__init__(memory, spiking, norm)


class SPikESSM(SpikingLayer):
    """S4D memory sampled by LIF neurons with soft reset, parallel by closing bounds (PMBC).

    ::

        drive = norm(S4D(x))
        h_t   = beta v[t-1] + drive_t,   s_t = 1[h_t >= threshold],   v_t = h_t - rho s_t

    with threshold and rho learned per channel. Steps that the bounds leave open are guessed;
    ``exact=True`` runs the neuron step after step. A reconstruction from the published description, there is
    no official code: ``beta`` and the block around it are ours.

    Args:
        d_model: channels H.
        d_state: real state size per channel, even.
        beta: decay per step of the neurons.
        iterations: rounds of the bounds.
        exact: leave no step open; see ``spiking.BoundaryCompressedLIF``.
        threshold: initial threshold, a float or one per channel.
        learn_threshold: learn log(threshold) per channel.
        reset_magnitude: initial rho, a float or one per channel.
        learn_reset_magnitude: learn log(rho) per channel.
        norm: of the drive, "batch", "layer", a module or ``None``.
        surrogate: a surrogate of this package, or any callable applied to ``h - threshold``.
        backend: "auto", "torch", "cpp" or "cupy", for both parts.
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Shapes:
        x_seq, spikes: [T, N, H], of one dtype. State: ``SpikingLayerState``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a wrong value; the message says what was expected and what came.

    Reference:
        SPikE-SSM, arXiv 2410.17268 (2024).

    Example:
        >>> SPikESSM(4, d_state=8)(torch.randn(10, 2, 4))[0].shape
        torch.Size([10, 2, 4])
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        beta: float = 0.5,
        iterations: int = 3,
        exact: bool = False,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        reset_magnitude: float | Tensor = 1.0,
        learn_reset_magnitude: bool = True,
        norm: Norm | nn.Module | None = None,
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        memory = S4D(d_model, d_state, backend=backend, device=device, dtype=dtype, **s4d)
        spiking = BoundaryCompressedLIF(
            beta,
            threshold=_per_channel(threshold, memory, learn_threshold),
            learn_threshold=learn_threshold,
            reset_magnitude=_per_channel(reset_magnitude, memory, learn_reset_magnitude, "reset_magnitude"),
            learn_reset_magnitude=learn_reset_magnitude,
            iterations=iterations,
            exact=exact,
            surrogate=surrogate,
            backend=backend,
        )
        super().__init__(memory, spiking, norm)


class PSpikeSSM(SpikingLayer):
    """Random spikes into an S4 memory, random spikes out of it, each with the probability of a drive.

    ::

        z     ~ Bernoulli(input_norm(a_in x + b_in))
        drive = norm(a_out S4(z) + b_out)
        s     ~ Bernoulli(drive)                     both probabilities clamped to [0, 1]

    The memory reads binary spikes. It is S4D with the spectrum of HiPPO-LegS, the diagonal form of the
    paper's S4. The affine maps are per channel and start at 1 and 0. It samples in evaluation too, unless
    ``deterministic``.

    Args:
        d_model: channels H.
        d_state: real state size per channel, even.
        seed: of two generators of its own; ``None`` draws from torch's.
        deterministic: fire where a probability is above 1/2. May be set at any time.
        input_norm: before the first sampling, "batch", "layer", a module or ``None``.
        norm: of the drive, "batch", "layer", a module or ``None``.
        backend: "auto", "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init`` (default "legs"), ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Shapes:
        x_seq, spikes: [T, N, H], of one dtype. State: ``SpikingLayerState``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a wrong value; the message says what was expected and what came.

    Reference:
        P-SpikeSSM, arXiv 2406.02923 (2024), and its official code.

    Example:
        >>> PSpikeSSM(4, d_state=8, seed=0)(torch.randn(10, 2, 4))[0].shape
        torch.Size([10, 2, 4])
    """

    scale_in: nn.Parameter
    shift_in: nn.Parameter
    scale_out: nn.Parameter
    shift_out: nn.Parameter

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        seed: int | None = None,
        deterministic: bool = False,
        input_norm: Norm | nn.Module | None = "batch",
        norm: Norm | nn.Module | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        s4d.setdefault("init", "legs")
        memory = S4D(d_model, d_state, backend=backend, device=device, dtype=dtype, **s4d)
        spiking = BernoulliSampler(seed=seed, deterministic=deterministic, backend=backend)
        super().__init__(memory, spiking, norm)
        self.sampler = BernoulliSampler(
            seed=None if seed is None else seed + 1, deterministic=deterministic, backend=backend
        )
        for end in ("in", "out"):
            setattr(self, f"scale_{end}", nn.Parameter(torch.ones_like(memory.D.detach())))
            setattr(self, f"shift_{end}", nn.Parameter(torch.zeros_like(memory.D.detach())))
        if input_norm is not None and not isinstance(input_norm, nn.Module):
            input_norm = make_norm(input_norm, d_model, self)
        self.input_norm: nn.Module | None = input_norm

    @property
    def deterministic(self) -> bool:
        """Whether a threshold of 1/2 stands in for the sampling."""
        return bool(self.spiking.deterministic)

    @deterministic.setter
    def deterministic(self, value: bool) -> None:
        self.spiking.deterministic = self.sampler.deterministic = value

    def _encode(self, x_seq: Tensor) -> Tensor:
        p: Tensor = self.scale_in * x_seq + self.shift_in
        if self.input_norm is not None:
            p = self.input_norm(p)
        z, _ = self.sampler(p)
        return z.to(x_seq.dtype)

    def _decode(self, y_seq: Tensor) -> Tensor:
        drive: Tensor = self.scale_out * y_seq + self.shift_out
        return drive


class PMSN(SpikingLayer):
    """Four coupled compartments sampled by a cumulative threshold: a multi-compartment neuron in parallel.

    ::

        y = MultiCompartment(x)
        s = CumulativeThreshold(norm(y))          fires when the sum of relu(norm(y)) crosses a multiple

    Args:
        d_model: channels H.
        d_state: compartments per channel.
        threshold: a float > 0, or one per channel. Not learned.
        burst: count every crossing; see ``spiking.CumulativeThreshold``.
        norm: of the drive, "batch", "layer", a module or ``None``. The paper's stands before the memory; see
            ``SpikeResidualBlock``.
        surrogate: a surrogate of this package, or any callable; the paper's triangle by default.
        dt_min, dt_max: range of the initial steps of the memory.
        backend: "auto", "torch", "cpp" or "cupy", for both parts.
        device, dtype: of the parameters.

    Shapes:
        x_seq, spikes: [T, N, H], of one dtype. State: ``SpikingLayerState``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a wrong value; the message says what was expected and what came.

    Reference:
        PMSN, arXiv 2408.14917 (2024), and its official code.

    Example:
        >>> PMSN(4)(torch.randn(10, 2, 4))[0].shape
        torch.Size([10, 2, 4])
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 4,
        *,
        threshold: float | Tensor = 1.0,
        burst: bool = False,
        norm: Norm | nn.Module | None = None,
        surrogate: Callable[[Tensor], Tensor] = _TRIANGLE,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        memory = MultiCompartment(
            d_model, d_state, dt_min=dt_min, dt_max=dt_max, backend=backend, device=device, dtype=dtype
        )
        threshold = _per_channel(threshold, memory, False)
        spiking = CumulativeThreshold(threshold, burst=burst, surrogate=surrogate, backend=backend)
        super().__init__(memory, spiking, norm)


class PRF(SpikingLayer):
    """A damped oscillation per channel behind a plain threshold: the parallel resonate-and-fire neuron.

    ::

        u_t = exp(dt (-1 / tau + i theta)) u[t-1] + dt x_t
        s_t = 1[norm(Re u)_t >= threshold]

    S4D with one mode per channel. The ranges of tau and theta, and the block around it, are ours.

    Args:
        d_model: channels H.
        tau, theta, dt: of ``memory.Resonator``.
        threshold: a float, or one per channel.
        learn_threshold: learn log(threshold) per channel.
        norm: of the drive, "batch", "layer", a module or ``None``.
        surrogate: a surrogate of this package, or any callable applied to ``drive - threshold``.
        backend: "auto", "torch", "cpp" or "cupy", for both parts.
        device, dtype: of the parameters.

    Shapes:
        x_seq, spikes: [T, N, H], of one dtype. State: ``SpikingLayerState``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a wrong value; the message says what was expected and what came.

    Reference:
        PRF: Parallel Resonate and Fire Neuron for Long Sequence Learning in Spiking Neural Networks,
        arXiv 2410.03530 (2024).

    Example:
        >>> PRF(4)(torch.randn(10, 2, 4))[0].shape
        torch.Size([10, 2, 4])
    """

    def __init__(
        self,
        d_model: int,
        *,
        tau: float | Tensor = 10.0,
        theta: float | Tensor | None = None,
        dt: float = 1.0,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        norm: Norm | nn.Module | None = None,
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        memory = Resonator(d_model, tau=tau, theta=theta, dt=dt, backend=backend, device=device, dtype=dtype)
        spiking = Threshold(
            _per_channel(threshold, memory, learn_threshold),
            learn_threshold=learn_threshold,
            surrogate=surrogate,
            backend=backend,
        )
        super().__init__(memory, spiking, norm)


def _per_channel(
    value: float | Tensor, memory: S4D | MultiCompartment | Resonator, learn: bool, name: str = "threshold"
) -> float | Tensor:
    """A learnable value is one parameter per channel; a fixed float stays a float."""
    if not learn and not isinstance(value, Tensor):
        return value
    like = (memory.log_tau if isinstance(memory, Resonator) else memory.D).detach()
    return parameter(name, value, like.shape, like.dtype, like.device).expand_as(like)
