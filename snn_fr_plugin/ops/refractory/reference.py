"""The specification of ``ops.fixed_refractory``: a plain, differentiable loop over time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...surrogate import ATan, Surrogate


def fixed_refractory(
    drive: Tensor,
    threshold: float | Tensor = 1.0,
    *,
    period: int,
    scheme: str = "absolute",
    inclusive: bool = True,
    surrogate: Callable[[Tensor], Tensor] = ATan(),  # noqa: B008 (immutable)
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Spikes [T, N, *] and the state, arguments as in ``ops.fixed_refractory``, unchecked."""
    dtype = torch.float64 if drive.dtype == torch.float64 else torch.float32
    threshold = torch.as_tensor(threshold, dtype=dtype, device=drive.device)
    state = drive.new_zeros(drive.shape[1:], dtype=torch.int32) if state is None else state.clone()

    spikes = []
    for drive_t in drive.to(dtype).unbind(0):
        distance = drive_t - threshold
        candidate = distance >= 0 if inclusive else distance > 0
        if scheme == "window":
            position, fired = state // 2, state % 2
            is_open = fired == 0
        else:
            is_open = state == 0
        s = surrogate(distance, inclusive) if isinstance(surrogate, Surrogate) else surrogate(distance)
        s = s * is_open
        if scheme == "absolute":
            state = torch.where(candidate & is_open, period, (state - 1).clamp_min(0))
        elif scheme == "onset":
            state = torch.where(candidate, period, (state - 1).clamp_min(0))
        elif scheme == "strided":
            state = torch.where(state == 0, period, state - 1)
        else:
            fired = torch.where(candidate | (fired > 0), 1, 0)
            last = position == period
            state = torch.where(last, 0, 2 * (position + 1) + fired)
        state = state.to(torch.int32)
        spikes.append(s.to(drive.dtype))
    return (torch.stack(spikes) if spikes else torch.empty_like(drive)), state
