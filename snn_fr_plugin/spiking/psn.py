"""The parallel spiking neurons: a learned filter over time, then a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_dimension, check_flag, check_sequence, check_state, check_step, state_dtype
from .._module import SpikingModule
from ..surrogate import ATan

__all__ = ["PSN", "MaskedPSN", "PSNState", "SlidingPSN"]

_DEFAULT_SURROGATE = ATan()


class PSNState(NamedTuple):
    """State of ``PSN`` and ``MaskedPSN``, whose weights depend on the time."""

    recent: Tensor  # [k-1, N, *] the last inputs, float32 (float64 for float64 input); none of them for PSN
    time: int  # steps read so far


class _PSN(SpikingModule):
    """h = W x over time; s = 1[h + bias >= 0]. What the three have in common."""

    bias: nn.Parameter

    def __init__(self, surrogate: Callable[[Tensor], Tensor], backend: str) -> None:
        super().__init__(backend=backend)
        if not callable(surrogate):
            raise TypeError(f"surrogate must be callable, got {type(surrogate).__name__}")
        self.surrogate = surrogate

    def _fire(self, h_seq: Tensor, bias: Tensor) -> Tensor:
        dtype = state_dtype(h_seq)
        spikes, _ = ops.fixed_refractory(
            h_seq.to(dtype) + bias.to(dtype), 0.0, period=0, surrogate=self.surrogate, backend=self.backend
        )
        return spikes.to(h_seq.dtype)


class SlidingPSN(_PSN):
    """Parallel spiking neuron with one causal filter of k taps for all steps.

    ::

        h_t = sum_{i<k} weight_i x_{t-k+1+i}           (zeros before the sequence)
        s_t = 1[h_t + bias >= 0]

    Costs O(T k) time and O(T) memory: no [T, T] matrix is built. Parameters, signs and initial values are
    those of SpikingJelly's SlidingPSN.

    Args:
        k: taps.
        exp_init: start from weight = (..., 1/4, 1/2, 1); otherwise Kaiming uniform.
        surrogate: a surrogate of this package, or any callable applied to ``h + bias``.
        backend: "auto", "torch", "cpp" or "cupy", for the threshold.
        device, dtype: of the parameters.

    Parameters ``weight`` [k], ``bias`` [] (-1: a threshold of 1).

    Shapes:
        x_seq, spikes: [T, N, *], of one dtype. State: the last k - 1 inputs [k-1, N, *], float32 (float64 for
        float64 input).

    Reference:
        W. Fang et al., Parallel Spiking Neurons with High Efficiency and Ability to Learn Long-term
        Dependencies, arXiv 2304.12760 (2023).

    Example:
        >>> SlidingPSN(k=2)(torch.tensor([[0.9], [0.6], [0.6]]))[0].flatten().tolist()
        [0.0, 1.0, 0.0]
    """

    def __init__(
        self,
        k: int = 8,
        exp_init: bool = True,
        *,
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(surrogate, backend)
        check_dimension("k", k)
        check_flag("exp_init", exp_init)
        self.k, self.exp_init = k, exp_init
        self.weight = nn.Parameter(torch.empty(k, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the initial parameters again."""
        if self.exp_init:
            lag = torch.arange(self.k - 1, -1, -1, device=self.weight.device)
            self.weight.copy_(torch.exp2(-lag.to(self.weight.dtype)))
        else:
            nn.init.kaiming_uniform_(self.weight[None], a=math.sqrt(5))
        nn.init.constant_(self.bias, -1.0)

    def integrate(self, y_seq: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The filtered sequence h [T, N, *], in the dtype of the state, and the last k - 1 inputs."""
        padded = _after_recent(y_seq, state, self.k)
        return _Filter.apply(padded, self.weight.to(padded.dtype)), padded[len(y_seq) :].clone()

    def fire(self, drive_seq: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Spikes of a filtered sequence; the state passes through."""
        return self._fire(drive_seq, self.bias), state

    def initial_state(self, x: Tensor) -> Tensor:
        """Zeros [k-1, N, *] for one step ``x`` [N, *]."""
        check_step(x)
        return torch.zeros((self.k - 1, *x.shape), dtype=state_dtype(x), device=x.device)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class PSN(_PSN):
    """Parallel spiking neuron: every step reads the whole sequence, the future included.

    ::

        h = weight x          over time, weight [T, T]
        s_t = 1[h_t + bias_t >= 0]

    It can neither step nor be run in chunks, and takes sequences of its own length only. Parameters, signs
    and initial values are those of SpikingJelly's PSN.

    Args:
        T: steps of every sequence.
        surrogate: a surrogate of this package, or any callable applied to ``h + bias``.
        backend: "auto", "torch", "cpp" or "cupy", for the threshold.
        device, dtype: of the parameters.

    Parameters ``weight`` [T, T], ``bias`` [T, 1] (-1: a threshold of 1).

    Shapes:
        x_seq, spikes: [T, N, *], of one dtype. State: a ``PSNState`` that says only that the sequence was
        read.

    Raises:
        ValueError: a sequence of another length, or one that continues an earlier one.
        RuntimeError: ``step``.

    Reference:
        W. Fang et al., arXiv 2304.12760 (2023).

    Example:
        >>> PSN(T=4)(torch.randn(4, 2, 3))[0].shape
        torch.Size([4, 2, 3])
    """

    def __init__(
        self,
        T: int,
        *,
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(surrogate, backend)
        check_dimension("T", T)
        self.T = T
        self.weight = nn.Parameter(torch.empty(T, T, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(T, 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial parameters again."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.constant_(self.bias, -1.0)

    def integrate(self, y_seq: Tensor, state: PSNState | None = None) -> tuple[Tensor, PSNState]:
        """The filtered sequence h [T, N, *] and the state."""
        check_sequence(y_seq)
        time = _time(state)
        if time or y_seq.shape[0] != self.T:
            raise ValueError(
                f"PSN(T={self.T}) reads a whole sequence of T={self.T} steps, got shape {tuple(y_seq.shape)}"
                + (f" after {time} steps" if time else "")
            )
        return _apply(self.weight, y_seq), self.initial_state(y_seq[0])._replace(time=self.T)

    def fire(self, drive_seq: Tensor, state: PSNState | None = None) -> tuple[Tensor, PSNState | None]:
        """Spikes of a filtered sequence; the state passes through."""
        return self._fire(drive_seq, _rows(self.bias, drive_seq)), state

    def check_causal(self) -> None:
        """Always raises."""
        raise RuntimeError(
            "PSN cannot run step by step: each of its spikes depends on the whole sequence. "
            "Use forward on a sequence, or SlidingPSN"
        )

    def initial_state(self, x: Tensor) -> PSNState:
        """The state before a sequence of steps like ``x`` [N, *]."""
        check_step(x)
        return PSNState(torch.zeros((0, *x.shape), dtype=state_dtype(x), device=x.device), 0)

    def extra_repr(self) -> str:
        return f"T={self.T}"


class MaskedPSN(_PSN):
    """Parallel spiking neuron whose weights close, while training, from the whole sequence to k steps.

    ::

        h = (weight * mask) x          mask = lambda_ * [j <= i < j + k] + (1 - lambda_)
        s_t = 1[h_t + bias_t >= 0]

    Set ``lambda_`` from 0 to 1 during training. From 1 on the neuron is causal: it can step, and run in
    chunks of up to T steps in all. Parameters, buffers, signs and initial values are those of SpikingJelly's
    MaskedPSN.

    Args:
        k: steps read once the mask is closed.
        T: steps of every sequence.
        lambda_init: initial ``lambda_``, >= 0.
        surrogate: a surrogate of this package, or any callable applied to ``h + bias``.
        backend: "auto", "torch", "cpp" or "cupy", for the threshold.
        device, dtype: of the parameters.

    Parameters ``weight`` [T, T], ``bias`` [T, 1] (-1: a threshold of 1). Buffers ``_lambda_``, ``mask0``
    (closed), ``mask1`` (open).

    Shapes:
        x_seq, spikes: [T, N, *], of one dtype. State: ``PSNState``.

    Raises:
        ValueError: more than T steps; an incomplete or continued sequence while ``lambda_ < 1``.
        RuntimeError: ``step`` while ``lambda_ < 1``.

    Reference:
        W. Fang et al., arXiv 2304.12760 (2023).

    Example:
        >>> neuron = MaskedPSN(k=2, T=4, lambda_init=1.0)
        >>> spikes, state = neuron.step(torch.randn(3, 5))
        >>> spikes.shape, state.time
        (torch.Size([3, 5]), 1)
    """

    _lambda_: Tensor
    mask0: Tensor
    mask1: Tensor

    def __init__(
        self,
        k: int,
        T: int,
        lambda_init: float = 0.0,
        *,
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(surrogate, backend)
        check_dimension("k", k)
        check_dimension("T", T)
        self.k, self.T = k, T
        self.weight = nn.Parameter(torch.empty(T, T, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(T, 1, device=device, dtype=dtype))
        every = torch.ones(T, T, device=device, dtype=dtype)
        self.register_buffer("_lambda_", torch.zeros((), device=device, dtype=dtype))
        self.register_buffer("mask0", torch.tril(every) * torch.triu(every, 1 - k))
        self.register_buffer("mask1", every)
        self.lambda_ = lambda_init
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial parameters again."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.constant_(self.bias, -1.0)

    @property
    def lambda_(self) -> Tensor:
        """How far the mask is closed: 0 open, 1 closed."""
        return self._lambda_

    @lambda_.setter
    def lambda_(self, value: float | Tensor) -> None:
        if not value >= 0:
            raise ValueError(f"lambda_ must be >= 0, got {value}")
        self._lambda_.fill_(value)

    def masked_weight(self) -> Tensor:
        """weight * mask [T, T]."""
        closed = self._lambda_.clamp(max=1)
        return (closed * self.mask0 + (1 - closed) * self.mask1) * self.weight

    def integrate(self, y_seq: Tensor, state: PSNState | None = None) -> tuple[Tensor, PSNState]:
        """The filtered sequence h [T, N, *] and the state."""
        check_sequence(y_seq)
        time, steps = _time(state), y_seq.shape[0]
        if time + steps > self.T:
            raise ValueError(
                f"MaskedPSN(T={self.T}) reads T={self.T} steps in all, got {steps} after {time} steps"
            )
        padded = _after_recent(y_seq, None if state is None else state.recent, self.k)
        weight = self.masked_weight()
        if steps == self.T:
            h_seq = _apply(weight, y_seq)
        else:
            if self._lambda_ < 1:
                raise ValueError(
                    f"MaskedPSN(T={self.T}) reads a whole sequence of T={self.T} steps while lambda_ < 1, "
                    f"got shape {tuple(y_seq.shape)}" + (f" after {time} steps" if time else "")
                )
            # columns of the k - 1 steps before the chunk come first, zeros before the sequence
            columns = nn.functional.pad(weight, (self.k - 1, 0))[:, time : time + self.k - 1 + steps]
            h_seq = _apply(columns[time : time + steps], padded)
        return h_seq, PSNState(padded[steps:].clone(), time + steps)

    def fire(self, drive_seq: Tensor, state: PSNState | None = None) -> tuple[Tensor, PSNState | None]:
        """Spikes of a filtered sequence that ends at ``state.time`` (``None``: T); the state is passed on."""
        end = self.T if state is None else state.time
        return self._fire(drive_seq, _rows(self.bias[end - len(drive_seq) : end], drive_seq)), state

    def check_causal(self) -> None:
        """Raises while the mask is not closed."""
        if self._lambda_ < 1:
            raise RuntimeError(
                "MaskedPSN can run step by step only when lambda_ >= 1: until then its spikes depend on the "
                f"whole sequence; got lambda_={float(self._lambda_):g}"
            )

    def initial_state(self, x: Tensor) -> PSNState:
        """Zeros [k-1, N, *] at time 0, for one step ``x`` [N, *]."""
        check_step(x)
        return PSNState(torch.zeros((self.k - 1, *x.shape), dtype=state_dtype(x), device=x.device), 0)

    def extra_repr(self) -> str:
        return f"k={self.k}, T={self.T}, lambda_={float(self._lambda_):g}"


class _Filter(torch.autograd.Function):
    """``_filter`` with a graph of one node: autograd would keep a sequence for every tap."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(padded, weight)
        return _filter(padded, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,), (padded, weight) = grads, ctx.saved_tensors
        k, row = len(weight), grad.reshape(-1)
        grad_padded = grad_weight = None
        if ctx.needs_input_grad[0]:
            around = grad.new_zeros((k - 1, *grad.shape[1:]))
            grad_padded = _filter(torch.cat([around, grad, around]), weight.flip(0))
        if ctx.needs_input_grad[1]:
            grad_weight = torch.stack([row.dot(padded[i : i + len(grad)].reshape(-1)) for i in range(k)])
        return grad_padded, grad_weight


def _filter(padded: Tensor, weight: Tensor) -> Tensor:
    """sum_i weight_i padded[t + i], for every t where all taps have an input."""
    first, *taps = weight.unbind(0)
    steps = len(padded) - len(taps)
    h_seq = first * padded[:steps]
    for i, tap in enumerate(taps, 1):
        h_seq.addcmul_(tap, padded[i : i + steps])
    return h_seq


def _after_recent(x_seq: Tensor, recent: Tensor | None, k: int) -> Tensor:
    """The last k - 1 inputs before a sequence, and the sequence, in the dtype of the state."""
    check_sequence(x_seq)
    shape, dtype = (k - 1, *x_seq.shape[1:]), state_dtype(x_seq)
    if recent is None:
        recent = torch.zeros(shape, dtype=dtype, device=x_seq.device)
    else:
        check_state("state", recent, shape, dtype, x_seq.device)
    return torch.cat([recent, x_seq.to(dtype)])


def _time(state: PSNState | None) -> int:
    if state is None:
        return 0
    if not isinstance(state, PSNState):
        raise TypeError(f"state must be a PSNState, got {type(state).__name__}")
    return state.time


def _apply(weight: Tensor, x_seq: Tensor) -> Tensor:
    """A matrix over time [S, T] on [T, N, *], in the dtype of the state."""
    dtype = state_dtype(x_seq)
    return (weight.to(dtype) @ x_seq.to(dtype).flatten(1)).unflatten(1, x_seq.shape[1:])


def _rows(bias: Tensor, like: Tensor) -> Tensor:
    """[T, 1] against [T, N, *]."""
    return bias.view(-1, *[1] * (like.dim() - 1))
