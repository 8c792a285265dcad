"""The specification of ``ops.lif``: a plain, differentiable loop over time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...surrogate import ATan, Surrogate


def lif(
    x: Tensor,
    beta: float | Tensor | None = None,
    threshold: float | Tensor = 1.0,
    *,
    tau: float | Tensor | None = None,
    decay_input: bool = True,
    refractory_period: int = 0,
    reset: str = "none",
    reset_magnitude: float | Tensor | None = None,
    v_reset: float = 0.0,
    reset_delay: bool = False,
    refractory_input: str = "integrate",
    inclusive: bool = True,
    detach_reset: bool = False,
    surrogate: Callable[[Tensor], Tensor] = ATan(),  # noqa: B008 (immutable)
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Spikes [T, N, *], membrane [T, N, *] and (v, refractory), arguments as in ``ops.lif``, unchecked."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    threshold = torch.as_tensor(threshold, dtype=dtype, device=x.device)
    magnitude = (
        threshold
        if reset_magnitude is None
        else torch.as_tensor(reset_magnitude, dtype=dtype, device=x.device)
    )
    decay = torch.as_tensor(tau if beta is None else beta, dtype=dtype, device=x.device)

    def charge(v: Tensor, x_t: Tensor) -> Tensor:
        if beta is not None:
            return decay * v + x_t
        if decay_input:
            return v + (x_t - (v - v_reset)) / decay
        return v - (v - v_reset) / decay + x_t

    def crosses(v: Tensor) -> Tensor:
        return v >= threshold if inclusive else v > threshold

    def fire(distance: Tensor) -> Tensor:
        return surrogate(distance, inclusive) if isinstance(surrogate, Surrogate) else surrogate(distance)

    if state is None:
        v = x.new_zeros(x.shape[1:], dtype=dtype)
        refractory = x.new_zeros(x.shape[1:], dtype=torch.int32)
    else:
        v, refractory = (s.clone() for s in state)

    spikes, membrane = [], []
    for x_t in x.to(dtype).unbind(0):
        is_open = refractory == 0
        pending = (refractory == refractory_period if refractory_period > 0 else crosses(v)).to(dtype)
        if reset_delay and reset == "zero":
            v = (1 - pending) * v + pending * v_reset
        h = charge(v, x_t)
        if refractory_input == "ignore":
            h = torch.where(is_open, h, v)
        if reset_delay and reset == "subtract":
            h = h - magnitude * pending
        s = fire(h - threshold) * is_open
        v = h
        if not reset_delay:
            s_reset = s.detach() if detach_reset else s
            if reset == "subtract":
                v = h - magnitude * s_reset
            elif reset == "zero":
                v = (1 - s_reset) * h + s_reset * v_reset
        fired = crosses(h) & is_open
        refractory = torch.where(fired, refractory_period, (refractory - 1).clamp_min(0)).to(torch.int32)
        spikes.append(s.to(x.dtype))
        membrane.append(v)
    if not spikes:
        return torch.empty_like(x), x.new_empty(x.shape, dtype=dtype), (v, refractory)
    return torch.stack(spikes), torch.stack(membrane), (v, refractory)
