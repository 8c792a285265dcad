"""The encoding theorem: the spikes of a neuron with reset or refractory period are samples of its memory.

Let ``m_t = beta m[t-1] + I_t`` be the leaky memory, never reset, and h_t the membrane that a neuron of the
same decay, input and start (``ops.lif``) compares with theta. Then h_t >= theta exactly where the memory
reaches a *moving threshold*, m_t >= theta + D_t. After the spike at t_k, for t > t_k + R::

    D_t = beta^(t - q) (m_q - v_k)        before the first spike D_t = 0

    q   = t_k          "integrate"        v_k = m_k - D_k          reset "none"      m_k, D_k: m and D at t_k
          t_k + R      "ignore"                 m_k - D_k - rho    "subtract"
                                                0                  "zero"

so that the next spike is at ``t_{k+1} = min{t > t_k + R : m_t >= theta + D_t}``. The FR neuron ("none",
"integrate") has D = 0 and samples the memory at theta itself; with hard reset and the input ignored the rule
is ``m_t - beta^(t - t_k - R) m_{t_k + R} >= theta``.

Proof. Let v be the membrane after the reset, and D = m - h. A step that integrates gives h_t = beta v[t-1]
+ I_t; the input is that of the memory, so D_t = beta (m[t-1] - v[t-1]). Up to the first spike v = h, and
both began alike: D stays 0. The spike at t_k turns h_k = m_k - D_k into v_k, which is held through q. From
there on v = h until the next spike, so D starts as beta (m_q - v_k) and every step multiplies it by beta.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_choice, check_flag, check_period, check_sequence, parameter, state_dtype
from .ops.lif import RefractoryInput, Reset

__all__ = ["MemorySamples", "spike_times_from_memory"]

_FIRST_WINDOW = 16


class MemorySamples(NamedTuple):
    """Where a neuron samples its memory; K is the number of spikes of the busiest neuron."""

    times: Tensor  # [K, N, *] int64: the step of the k-th spike; T where there is none
    spikes: Tensor  # [T, N, *] 0 or 1, in the dtype of m
    moving_threshold: Tensor  # [T, N, *] theta + D_t; inf while refractory


class _Neurons(NamedTuple):
    """The neurons that may have spikes left, and what their last one did: all fields [n]."""

    column: Tensor  # of the memory [T, neurons]
    beta: Tensor
    theta: Tensor
    rho: Tensor
    opens: Tensor  # t_k + R + 1, the first step in which the next spike may come
    q: Tensor  # the last step in which the membrane is v_k
    lead: Tensor  # m_q - v_k

    def select(self, which: Tensor) -> _Neurons:
        return _Neurons(*(field[which] for field in self))

    def deficit(self, t: Tensor) -> Tensor:
        """D_t."""
        return self.beta ** (t - self.q) * self.lead


@torch.no_grad()
def spike_times_from_memory(
    m: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    *,
    refractory_period: int = 0,
    reset: Reset = "none",
    reset_magnitude: float | Tensor | None = None,
    refractory_input: RefractoryInput = "integrate",
    inclusive: bool = True,
) -> MemorySamples:
    """Spikes of a neuron with reset or refractory period, from the memory it would have without either.

    With R = ``refractory_period`` and the D_t of this module's theorem::

        m_t     = beta * m[t-1] + I_t                       the membrane of ops.lif(I, beta)
        t_1     = min{t           : m_t >= theta}
        t_{k+1} = min{t > t_k + R : m_t >= theta + D_t}     inclusive=False: >

    These are the spikes of ``ops.lif(I, beta, threshold, ...)`` with the same arguments, but no membrane is
    run: the search jumps from spike to spike, in all neurons at once. It makes as many jumps as the busiest
    neuron has spikes, and one more to see that none is left. A jump looks ahead in windows of 16, 32, 64,
    ... steps, so that a neuron with K spikes costs at most 2 T + 16 (K + 1) evaluations of its threshold.
    Memory is O(T N). This is a tool of analysis; ``ops.lif`` is the way to run a network.

    The theorem speaks of real numbers. In floats theta + D_t rounds otherwise than a membrane: where the
    membrane is within rounding of the threshold (constant input that just reaches it, say) a spike may come
    at another step than in ``ops.lif``, and so may those after it. Use float64. The FR neuron is compared
    with theta itself and has the spikes of ``ops.lif`` in any dtype.

    Args:
        m: memory [T, N, *], finite; float32 or float64, or float16 or bfloat16, which are widened to float32.
            T = 0 is legal.
        beta: decay of the memory per step, in [0, 1].
        threshold: theta, the firing threshold, in units of the memory.
        refractory_period: R >= 0, in steps.
        reset: "none" (with R > 0 the FR neuron), "subtract" or "zero".
        reset_magnitude: rho, what "subtract" takes off; the threshold by default.
        refractory_input: "integrate", or "ignore": the neuron's membrane is held while refractory (m is the
            memory that goes on).
        inclusive: whether a membrane exactly at the threshold fires.

        ``beta``, ``threshold`` and ``reset_magnitude`` are floats or tensors broadcastable to
        ``m.shape[1:]``.

    Returns:
        Spike times, spike train and moving threshold, without gradients. ``spikes`` is 1 exactly where
        ``m >= moving_threshold`` (inclusive=False: >), which is float32 (float64 for float64 m).

    Raises:
        TypeError: an argument of the wrong type or dtype (integer m, a non-integer period).
        ValueError: a wrong value or shape, a beta outside [0, 1], a magnitude without "subtract".

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling, arXiv
        2504.17751 (2025). Theorem and proof are a reconstruction: the paper's own statement was not
        available.

    Example:
        >>> m = torch.tensor([0.5, 1.25, 1.5, 2.0, 2.5, 1.25], dtype=torch.float64)[:, None]
        >>> samples = spike_times_from_memory(m, beta=0.5, reset="zero", refractory_period=1)
        >>> samples.times.flatten().tolist(), samples.moving_threshold.flatten().tolist()
        ([1, 3], [1.0, 1.0, inf, 1.3125, inf, 1.5])
    """
    check_sequence(m, "m")
    check_period(refractory_period)
    check_choice("reset", reset, ("none", "subtract", "zero"))
    check_choice("refractory_input", refractory_input, ("integrate", "ignore"))
    check_flag("inclusive", inclusive)
    if reset != "subtract" and reset_magnitude is not None:
        raise ValueError(
            f"reset_magnitude is for reset='subtract', got {reset_magnitude} with reset={reset!r}"
        )
    shape, dtype = m.shape[1:], state_dtype(m)
    if reset_magnitude is None:
        reset_magnitude = threshold if reset == "subtract" else 0.0
    decay, theta, rho = (
        parameter(name, value, shape, dtype, m.device).expand(shape).flatten()
        for name, value in (
            ("beta", beta),
            ("threshold", threshold),
            ("reset_magnitude", reset_magnitude),
        )
    )
    outside = decay[~((decay >= 0) & (decay <= 1))]
    if outside.numel():
        raise ValueError(f"beta must lie in [0, 1], got {outside[0].item()}")

    steps, held = len(m), refractory_period if refractory_input == "ignore" else 0
    memory = m.to(dtype).reshape(steps, decay.numel())
    spikes = torch.zeros_like(memory, dtype=m.dtype)
    moving_threshold = torch.full_like(memory, torch.inf)
    column = torch.arange(decay.numel(), device=m.device)
    first = torch.zeros_like(column)
    neurons = _Neurons(column, decay, theta, rho, opens=first, q=first, lead=torch.zeros_like(theta))
    times: list[Tensor] = []
    while True:
        t = _next_spikes(neurons, memory, inclusive, moving_threshold)
        fired = t < steps
        if not fired.any():
            break
        neurons, t = neurons.select(fired), t[fired]
        spikes[t, neurons.column] = 1
        times.append(torch.full_like(column, steps).index_copy(0, neurons.column, t))
        v_k = memory[t, neurons.column] - neurons.deficit(t) - neurons.rho
        if reset == "zero":
            v_k = torch.zeros_like(v_k)
        m_q = memory[(t + held).clamp_max(steps - 1), neurons.column]
        neurons = neurons._replace(opens=t + refractory_period + 1, q=t + held, lead=m_q - v_k)
    table = torch.stack(times) if times else column.new_empty((0, len(column)))
    return MemorySamples(
        table.reshape(len(times), *shape), spikes.reshape(m.shape), moving_threshold.reshape(m.shape)
    )


def _next_spikes(neurons: _Neurons, memory: Tensor, inclusive: bool, moving_threshold: Tensor) -> Tensor:
    """The first step of each neuron, from ``opens`` on, in which its memory reaches theta + D_t; T for none.

    What the memory was compared with on the way is written to ``moving_threshold``.
    """
    steps = len(memory)
    spike_times = torch.full_like(neurons.opens, steps)
    waiting = (neurons.opens < steps).nonzero().flatten()
    offset, width = 0, _FIRST_WINDOW
    while waiting.numel():
        some = neurons.select(waiting)
        t = some.opens + torch.arange(offset, offset + width, device=memory.device)[:, None]
        inside = t < steps
        t = t.clamp_max(steps - 1)
        value, level = memory[t, some.column], some.theta + some.deficit(t)
        reached = inside & (value >= level if inclusive else value > level)
        spike = torch.where(reached, t, steps).amin(0)
        seen = inside & (t <= spike)
        moving_threshold[t[seen], some.column.expand_as(t)[seen]] = level[seen]
        spike_times[waiting] = spike
        waiting = waiting[(spike == steps) & inside[-1]]
        offset, width = offset + width, 2 * width
    return spike_times
