"""``ops.lif``: leaky integrator, threshold, reset and refractory period in one fused operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..._checks import (
    check_choice,
    check_flag,
    check_period,
    check_sequence,
    check_state,
    parameter,
    state_dtype,
)
from ...surrogate import ATan, Surrogate
from .. import _eager, _providers
from .mode import EXTERNAL, Call, Mode
from .operator import lif_direct, lif_op
from .reference import lif as _reference

__all__ = ["LIFState", "lif"]

Reset = Literal["none", "subtract", "zero"]
RefractoryInput = Literal["integrate", "ignore"]
_DEFAULT_SURROGATE = ATan()


class LIFState(NamedTuple):
    """State of ``lif`` between two steps."""

    v: Tensor  # [N, *] membrane potential, float32 (float64 for float64 input)
    refractory: Tensor  # [N, *] int32, steps left before the neuron may fire


def lif(
    x: Tensor,
    beta: float | Tensor | None = None,
    threshold: float | Tensor = 1.0,
    *,
    tau: float | Tensor | None = None,
    decay_input: bool = True,
    refractory_period: int = 0,
    reset: Reset = "none",
    reset_magnitude: float | Tensor | None = None,
    v_reset: float = 0.0,
    reset_delay: bool = False,
    refractory_input: RefractoryInput = "integrate",
    inclusive: bool = True,
    detach_reset: bool = False,
    surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
    state: LIFState | tuple[Tensor, Tensor] | None = None,
    return_membrane: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None, LIFState]:
    """Leaky integrate-and-fire neurons with an optional fixed refractory period, over a whole sequence.

    With ``open_t = (r[t-1] == 0)`` and R = ``refractory_period``::

        h_t = beta * v[t-1] + x_t                        "ignore": while not open, h_t = v[t-1]
              v[t-1] + (x_t - (v[t-1] - v_reset)) / tau  with ``tau``: SpikingJelly's charge
              v[t-1] - (v[t-1] - v_reset) / tau + x_t    with ``tau`` and ``decay_input=False``
        s_t = (h_t >= threshold) and open_t              ``inclusive=False``: h_t > threshold (snnTorch)
        v_t = h_t                                        reset "none"
              h_t - reset_magnitude * s_t                reset "subtract"
              v_reset where s_t else h_t                 reset "zero"
        r_t = R where s_t else max(r[t-1] - 1, 0)

    After a spike at t the next can come at t + R + 1 at the earliest. ``reset_delay=True`` is snnTorch's
    timing: the reset of the spike at t is applied in step t + 1 ("subtract": after the charge; "zero": the
    old v is replaced before the charge; both even when that step's input is ignored), so the membrane
    reported at t is the one before the reset. A reset is pending when ``refractory == R`` for R > 0, when v
    crosses the threshold for R = 0.

    Every operation is rounded on its own, in this order: float32 and float64 spikes and membranes equal a
    plain PyTorch loop bit for bit on every provider. Running a sequence in chunks, carrying the state, equals
    running it whole.

    Gradient: ``ds_t/dh_t = open_t * surrogate.derivative(h_t - threshold)``; the gate itself carries none.
    Without delay, and unless ``detach_reset``, ds enters v_t with factor ``-reset_magnitude`` or
    ``v_reset - h_t``; with delay the reset carries no spike gradient. x, beta, tau, threshold,
    reset_magnitude and the initial v have gradients.

    Args:
        x: input current [T, N, *], float32, float64, float16 or bfloat16. T = 0 is legal.
        beta: decay per step. Give ``beta`` or ``tau``, not both; ``beta=1.0`` is the perfect integrator (IF).
        threshold: firing threshold, in units of the membrane.
        tau: membrane time constant in steps.
        decay_input: with ``tau``, whether the input is divided by tau as well.
        refractory_period: R >= 0, in steps. 0 is the plain neuron.
        reset: "none", "subtract" or "zero".
        reset_magnitude: what "subtract" takes off; the threshold by default.
        v_reset: resting potential of the tau charge, and the value that "zero" resets to.
        reset_delay: apply the reset one step later (snnTorch's default).
        refractory_input: "integrate", or "ignore": the membrane is held, neither leaking nor charged, while
            refractory.
        inclusive: whether a membrane exactly at the threshold fires.
        detach_reset: no gradient through the spike of the reset.
        surrogate: a surrogate of this package (fused), or any callable applied to ``h - threshold``. The
            latter is evaluated outside the kernel for reset "none", delayed or detached; otherwise the
            reference loop serves it.
        state: ``(v, refractory)`` of the last call, shapes ``x.shape[1:]``, v float32 (float64 for float64
            input) and refractory int32; ``None`` is zeros.
        return_membrane: also return v_t for every step.
        backend: "auto", "torch", "cpp" or "cupy". A named backend is obeyed or refused.

        ``beta``, ``tau``, ``threshold`` and ``reset_magnitude`` are floats or tensors broadcastable to
        ``x.shape[1:]``.

    Returns:
        Spikes [T, N, *] in the dtype of x; membrane [T, N, *] in the dtype of the state, or ``None``; final
        state.

    Raises:
        TypeError: an argument of the wrong type or dtype (integer x, a non-integer period).
        ValueError: a wrong value or shape; the message says what was expected and what came.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling, arXiv
        2504.17751 (2025): the fixed refractory neuron is reset "none" with R > 0.

    Example:
        >>> x = torch.full((6, 1), 0.6)
        >>> spikes, _, state = lif(x, beta=0.9, refractory_period=2)
        >>> spikes.flatten().tolist(), state.refractory.tolist()
        ([0.0, 1.0, 0.0, 0.0, 1.0, 0.0], [1])
    """
    check_sequence(x)
    check_period(refractory_period)
    check_choice("reset", reset, ("none", "subtract", "zero"))
    check_choice("refractory_input", refractory_input, ("integrate", "ignore"))
    for name, flag in (
        ("decay_input", decay_input),
        ("reset_delay", reset_delay),
        ("inclusive", inclusive),
        ("detach_reset", detach_reset),
        ("return_membrane", return_membrane),
    ):
        check_flag(name, flag)
    if (beta is None) == (tau is None):
        raise ValueError(f"give exactly one of beta and tau, got beta={beta!r} and tau={tau!r}")
    if not callable(surrogate):
        raise TypeError(f"surrogate must be callable, got {type(surrogate).__name__}")
    provider = _providers.choose(backend, x.device)
    shape, dtype = x.shape[1:], state_dtype(x)
    if beta is not None:
        charge, decay = "beta", parameter("beta", beta, shape, dtype, x.device)
    else:
        assert tau is not None
        charge, decay = "tau_input" if decay_input else "tau", parameter("tau", tau, shape, dtype, x.device)
    threshold = parameter("threshold", threshold, shape, dtype, x.device)
    if reset_magnitude is None:
        magnitude = threshold
    else:
        magnitude = parameter("reset_magnitude", reset_magnitude, shape, dtype, x.device)
    if state is not None:
        if not isinstance(state, tuple) or len(state) != 2:
            raise TypeError(f"state must be LIFState(v, refractory), got {type(state).__name__}")
        v, refractory = state
        check_state("state.v", v, shape, dtype, x.device)
        check_state("state.refractory", refractory, shape, torch.int32, x.device)
        gated = True
    else:
        v = torch.zeros(shape, dtype=dtype, device=x.device)
        refractory = torch.zeros(shape, dtype=torch.int32, device=x.device)
        gated = refractory_period > 0

    immediate = reset != "none" and not reset_delay
    fused = isinstance(surrogate, Surrogate)
    if not fused and immediate and not detach_reset:
        spikes, membrane, final = _reference(
            x, beta, threshold, tau=tau, decay_input=decay_input, refractory_period=refractory_period,
            reset=reset, reset_magnitude=magnitude, v_reset=v_reset, refractory_input=refractory_input,
            inclusive=inclusive, surrogate=surrogate, state=(v, refractory),
        )  # fmt: skip
        return spikes, membrane if return_membrane else None, LIFState(*final)

    # where no reset follows the spike in its own step, the membrane v_t is the charged one, h_t
    tensors = (x, v, refractory, decay, threshold, magnitude)
    save = _eager.wants_graph(*tensors)
    mode = Mode(
        charge, reset, refractory_period, float(v_reset), reset_delay, refractory_input == "ignore",
        inclusive, detach_reset, gated, surrogate.kind if isinstance(surrogate, Surrogate) else EXTERNAL,
        surrogate.alpha if isinstance(surrogate, Surrogate) else 0.0,
    )  # fmt: skip
    want_charged = not fused or (return_membrane and not immediate)
    call = Call(mode, return_membrane and immediate, want_charged, save, provider)
    spikes, membrane, charged, is_open, v, refractory, _ = (
        lif_op(*tensors, call.text) if _eager.watched(*tensors) else lif_direct(save, *tensors, call)
    )
    if not fused:
        spikes = (surrogate(charged - threshold) * is_open).to(x.dtype)
    returned = membrane if immediate else charged
    return spikes, returned if return_membrane else None, LIFState(v, refractory)
