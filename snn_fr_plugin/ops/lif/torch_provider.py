"""``ops.lif`` in plain torch: an in-place step loop over ``unbind`` views, and a backward without a graph.

Forward: only what is sequential is in the loop, each operation on its own (never addcmul), so the bits are
those of the reference. Backward: everything but one affine recursion over time is vectorised, in blocks that
stay in cache::

    Gh_t = w_t * (gm_t + c_t) + gs_t * q_t + gh_t        c_{t-1} = k_t * Gh_t

with q the gated surrogate derivative, w = dv/dh + dv/ds q, k = dh_t/dv_{t-1}, and gs, gm, gh the cotangents
of spikes, membrane and charged.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...surrogate import derivative
from .mode import EXTERNAL, Mode

SAVES_SPIKES = True

_BLOCK = (
    1 << 17
)  # elements of a backward block: a few temporaries of this size stay in the second-level cache


def saved_shapes(
    shape: torch.Size, mode: Mode, want_charged: bool, save: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of ``charged``, ``is_open`` and ``checkpoints``."""
    charged = tuple(shape) if want_charged or save else (0,)
    is_open = tuple(shape) if mode.kind == EXTERNAL or (save and mode.gated) else (0,)
    return charged, is_open, (0,)


def forward(
    x: Tensor,
    v0: Tensor,
    refractory0: Tensor,
    decay: Tensor,
    threshold: Tensor,
    magnitude: Tensor,
    mode: Mode,
    want_membrane: bool,
    want_charged: bool,
    save: bool,
) -> tuple[Tensor | None, ...]:
    """Outputs of the operator, in its order, ``None`` for one that was not asked for."""
    steps = x.shape[0]
    keep_open = mode.kind == EXTERNAL or (save and mode.gated)
    charged = v0.new_empty(x.shape) if want_charged or save else None
    membrane = v0.new_empty(x.shape) if want_membrane else None
    is_open = x.new_empty(x.shape, dtype=torch.bool) if keep_open else None
    spikes = x.new_empty(x.shape, dtype=torch.bool)
    h_rows, v_rows, open_rows = (
        _ring(like, steps) if rows is None else rows.unbind(0)
        for rows, like in ((charged, v0), (membrane, v0), (is_open, v0.bool()))
    )

    crosses = torch.ge if mode.inclusive else torch.gt
    rest = torch.full((), mode.v_reset, dtype=v0.dtype, device=v0.device)
    blocked_until = refractory0.clone()  # first step at which the neuron may fire
    v, pending = v0, None

    times = torch.arange(steps, dtype=torch.int32, device=x.device).unbind(
        0
    )  # a number would be wrapped each step
    for t, (x_t, h, s) in enumerate(zip(x.to(v0.dtype).unbind(0), h_rows, spikes.unbind(0), strict=True)):
        if mode.gated:
            torch.le(blocked_until, times[t], out=open_rows[t])
        if mode.delayed != "none":
            pending = blocked_until == t + mode.period if mode.period > 0 else crosses(v, threshold)
        if pending is not None and mode.reset == "zero":
            v = torch.where(pending, rest, v)

        if mode.charge == "beta":
            torch.mul(decay, v, out=h)
            torch.add(h, x_t, out=h)
        elif mode.charge == "tau_input":
            torch.sub(v, rest, out=h)
            torch.sub(x_t, h, out=h)
            torch.div(h, decay, out=h)
            torch.add(v, h, out=h)
        else:
            torch.sub(v, rest, out=h)
            torch.div(h, decay, out=h)
            torch.sub(v, h, out=h)
            torch.add(h, x_t, out=h)
        if mode.ignore and mode.gated:
            torch.where(open_rows[t], h, v, out=h)
        if pending is not None and mode.reset == "subtract":
            torch.where(pending, h - magnitude, h, out=h)

        crosses(h, threshold, out=s)
        if mode.gated:
            s.logical_and_(open_rows[t])
            blocked_until.masked_fill_(s, t + mode.period + 1)

        v = h
        if mode.immediate == "subtract":
            v = v_rows[t]
            torch.sub(h, magnitude, out=v)
            torch.where(s, v, h, out=v)
        elif mode.immediate == "zero":
            v = v_rows[t]
            torch.where(s, rest, h, out=v)

    if is_open is not None and not mode.gated:
        is_open.fill_(True)
    refractory = (blocked_until - steps).clamp_min_(0)
    return spikes.to(x.dtype), membrane, charged, is_open, v.clone(), refractory, None


def _ring(like: Tensor, steps: int) -> list[Tensor]:
    """Two rows used in turn, where no sequence is kept: a step never overwrites the one it reads."""
    rows = torch.empty_like(like), torch.empty_like(like)
    return [rows[t % 2] for t in range(steps)]


def _crosses(v: Tensor, threshold: Tensor, mode: Mode) -> Tensor:
    return v >= threshold if mode.inclusive else v > threshold


class _Block(NamedTuple):
    """The forward pass replayed for consecutive steps, each [steps, N, *] (``None``: it has no part)."""

    h: Tensor  # charged membrane
    s: Tensor  # bool, spikes
    gate: Tensor | None  # bool, may fire
    v: Tensor  # v[t-1] as the charge saw it
    pending: Tensor | None  # bool, a delayed reset lands in this step


def _replay(
    start: int,
    end: int,
    charged: Tensor,
    spikes: Tensor,
    is_open: Tensor | None,
    v0: Tensor,
    refractory0: Tensor,
    threshold: Tensor,
    magnitude: Tensor,
    mode: Mode,
) -> _Block:
    before = slice(max(0, start - 1), end - 1)
    v, fired = charged[before], spikes[before] != 0
    pending = None
    if mode.delayed != "none":
        if mode.period > 0:
            pending = (
                fired if start else torch.cat([torch.zeros_like(refractory0, dtype=torch.bool)[None], fired])
            )
            since = torch.arange(start, end, device=v.device).view(-1, *[1] * v0.dim())
            pending = pending | (refractory0 == mode.period + since)  # a spike before this call
        else:
            pending = _crosses(v if start else torch.cat([v0[None], v]), threshold, mode)
    if mode.immediate == "subtract":
        v = torch.where(fired, v - magnitude, v)
    elif mode.immediate == "zero":
        v = torch.where(fired, mode.v_reset, v)
    if start == 0:
        v = torch.cat([v0[None], v])
    if mode.delayed == "zero":
        assert pending is not None
        v = torch.where(pending, mode.v_reset, v)
    now = slice(start, end)
    gate = is_open[now] if is_open is not None and mode.gated else None
    return _Block(charged[now], spikes[now] != 0, gate, v, pending)


def backward(
    grad_spikes: Tensor | None,
    grad_membrane: Tensor | None,
    grad_charged: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    v0: Tensor,
    refractory0: Tensor,
    decay: Tensor,
    threshold: Tensor,
    magnitude: Tensor,
    spikes: Tensor,
    charged: Tensor,
    is_open: Tensor | None,
    checkpoints: Tensor | None,
    mode: Mode,
    need_decay: bool,
    need_threshold: bool,
    need_magnitude: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, v0, decay, threshold and magnitude (``None`` where not needed)."""
    dtype = v0.dtype
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    carry = torch.zeros_like(v0) if grad_v is None else grad_v.to(dtype, copy=True)
    grad_decay, grad_threshold, grad_magnitude = (
        torch.zeros_like(parameter) if needed else None
        for parameter, needed in (
            (decay, need_decay),
            (threshold, need_threshold),
            (magnitude, need_magnitude),
        )
    )
    block_steps = max(1, _BLOCK // max(1, v0.numel()))

    for end in range(x.shape[0], 0, -block_steps):
        now = slice(max(0, end - block_steps), end)
        step = _replay(now.start, end, charged, spikes, is_open, v0, refractory0, threshold, magnitude, mode)
        gm = None if grad_membrane is None else grad_membrane[now]
        q = _gated_derivative(step, threshold, mode)
        into_spike = None if mode.detach_reset else _reset_by_spike(step, magnitude, mode)  # dv_t/ds_t
        w = 1 - step.s.to(dtype) if mode.immediate == "zero" else None  # dv_t/dh_t, None is one
        if into_spike is not None:
            w = into_spike * q + (1 if w is None else w)
        into_x, into_v = _charge_derivatives(step, decay, mode)

        grad_h = torch.zeros_like(step.h) if grad_spikes is None else grad_spikes[now].to(dtype) * q
        if gm is not None:
            grad_h += gm if w is None else w * gm
        if grad_charged is not None:
            grad_h += grad_charged[now]
        carries = torch.empty_like(grad_h)  # c_t
        carries[-1] = carry
        c, g = carries.unbind(0), grad_h.unbind(0)
        ws = None if w is None else w.unbind(0)
        ks = into_v.unbind(0) if into_v.dim() > v0.dim() else [into_v] * len(g)
        carry = torch.empty_like(v0)
        for i in range(len(g) - 1, -1, -1):
            if ws is None:
                g[i].add_(c[i])
            else:
                g[i].addcmul_(ws[i], c[i])
            torch.mul(g[i], ks[i], out=c[i - 1] if i else carry)

        grad_x[now] = grad_h if into_x is None else grad_h * into_x
        grad_after = carries if gm is None else carries + gm  # dL/dv_t
        if grad_threshold is not None:
            grad_s = grad_after * into_spike if into_spike is not None else torch.zeros_like(grad_h)
            if grad_spikes is not None:
                grad_s = grad_s + grad_spikes[now].to(dtype)
            grad_threshold -= (grad_s * q).sum(0).sum_to_size(threshold.shape)
        if grad_magnitude is not None and mode.reset == "subtract":
            taken = grad_after * step.s if step.pending is None else grad_h * step.pending
            grad_magnitude -= taken.sum(0).sum_to_size(magnitude.shape)
        if grad_decay is not None:
            local = _charge_by_decay(x[now].to(dtype), step, decay, mode)
            grad_decay += (grad_h * local).sum(0).sum_to_size(decay.shape)

    return grad_x, carry, grad_decay, grad_threshold, grad_magnitude


def _gated_derivative(step: _Block, threshold: Tensor, mode: Mode) -> Tensor:
    """ds_t/dh_t."""
    if mode.kind == EXTERNAL:
        return torch.zeros_like(step.h)
    q = derivative(mode.kind, step.h - threshold, mode.alpha)
    return q if step.gate is None else q * step.gate


def _reset_by_spike(step: _Block, magnitude: Tensor, mode: Mode) -> Tensor | None:
    """dv_t/ds_t, None where the reset is not in this step."""
    if mode.immediate == "subtract":
        return -magnitude
    return mode.v_reset - step.h if mode.immediate == "zero" else None


def _charge_derivatives(step: _Block, decay: Tensor, mode: Mode) -> tuple[Tensor | None, Tensor]:
    """dh_t/dx_t (None is one) and dh_t/dv_{t-1}, the latter through a delayed reset to zero too."""
    into_x: Tensor | None = 1 / decay if mode.charge == "tau_input" else None
    into_v = decay if mode.charge == "beta" else 1 - 1 / decay
    if mode.ignore and step.gate is not None:
        into_x = step.gate.to(step.h.dtype) if into_x is None else step.gate * into_x
        into_v = torch.where(step.gate, into_v, 1.0)
    if mode.delayed == "zero":
        assert step.pending is not None
        into_v = torch.where(step.pending, 0.0, into_v)
    return into_x, into_v


def _charge_by_decay(x: Tensor, step: _Block, decay: Tensor, mode: Mode) -> Tensor:
    """dh_t/dbeta or dh_t/dtau."""
    if mode.charge == "beta":
        local = step.v
    else:
        leak = step.v - mode.v_reset
        local = (leak - x if mode.charge == "tau_input" else leak) / decay.square()
    return local * step.gate if mode.ignore and step.gate is not None else local
