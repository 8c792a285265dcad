"""``ops.fixed_refractory`` in plain torch.

Only the absolute scheme is sequential (three in-place operations a step); the gates of the others are found
at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...surrogate import derivative


def forward(
    drive: Tensor, threshold: Tensor, state: Tensor, period: int, scheme: str, inclusive: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, gate (bool) and state."""
    compute = drive.to(threshold.dtype)
    candidate = compute >= threshold if inclusive else compute > threshold
    is_open, state = _GATES[scheme](candidate, state, period)
    return (candidate & is_open).to(drive.dtype), is_open, state


def backward(
    grad_spikes: Tensor,
    drive: Tensor,
    threshold: Tensor,
    is_open: Tensor,
    kind: str,
    alpha: float,
    need_threshold: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of drive and threshold (``None`` where not needed)."""
    local = derivative(kind, drive.to(threshold.dtype) - threshold, alpha) * is_open
    grad = grad_spikes.to(threshold.dtype) * local
    by_threshold = -grad.sum(0).sum_to_size(threshold.shape) if need_threshold else None
    return grad.to(drive.dtype, copy=True), by_threshold


def _absolute(candidate: Tensor, state: Tensor, period: int) -> tuple[Tensor, Tensor]:
    is_open = torch.empty_like(candidate)
    blocked_until = state.clone()  # first step at which the neuron may fire
    for t, (candidate_t, open_t) in enumerate(zip(candidate.unbind(0), is_open.unbind(0), strict=True)):
        torch.le(blocked_until, t, out=open_t)
        blocked_until.masked_fill_(candidate_t & open_t, t + period + 1)
    return is_open, (blocked_until - len(candidate)).clamp_min_(0)


def _onset(candidate: Tensor, state: Tensor, period: int) -> tuple[Tensor, Tensor]:
    if len(candidate) == 0:
        return torch.empty_like(candidate), state.clone()
    t = _time(candidate)
    never = state - period - 1  # the time of a last candidate that leaves `state` steps blocked
    last = torch.where(candidate, t, never).cummax(0).values  # latest candidate up to and including t
    before = torch.cat([never[None], last[:-1]])
    return t - before > period, (last[-1] + period + 1 - len(candidate)).clamp_min(0).to(torch.int32)


def _strided(candidate: Tensor, state: Tensor, period: int) -> tuple[Tensor, Tensor]:
    is_open = (_time(candidate) - state).remainder(period + 1) == 0
    return is_open, (state - len(candidate)).remainder(period + 1).to(torch.int32)


def _window(candidate: Tensor, state: Tensor, period: int) -> tuple[Tensor, Tensor]:
    if len(candidate) == 0:
        return torch.empty_like(candidate), state.clone()
    position, fired = state // 2, state % 2
    t = _time(candidate)
    begin = t - (t + position).remainder(
        period + 1
    )  # first step of t's block; < 0 where it began in an earlier call
    count = torch.cat(
        [torch.zeros_like(fired)[None], candidate.cumsum(0, dtype=torch.int32)]
    )  # candidates before t
    in_block = count[:-1] - count.gather(0, begin.clamp_min(0).long()) + torch.where(begin < 0, fired, 0)
    is_open = in_block == 0
    position = (position + len(candidate)).remainder(period + 1)
    fired = (in_block[-1] + candidate[-1] > 0) & (position > 0)
    return is_open, (2 * position + fired).to(torch.int32)


def _time(candidate: Tensor) -> Tensor:
    t = torch.arange(len(candidate), dtype=torch.int32, device=candidate.device)
    return t.view(-1, *[1] * (candidate.dim() - 1))


_GATES = {"absolute": _absolute, "window": _window, "strided": _strided, "onset": _onset}
