"""``snn_fr::lif`` as the dispatcher sees it: plain tensors, a fake, and a backward that is an operator too.

Forward outputs, in this order; an output that was not asked for has shape [0]:

    spikes       [T, N, *] dtype of x
    membrane     [T, N, *] v_t, if ``want_membrane``
    charged      [T, N, *] h_t, if ``want_charged`` (or saved for the backward)
    is_open      [T, N, *] bool: the gate, for surrogates evaluated outside (or saved for the backward)
    v, refractory          final state
    checkpoints            what else a provider saves for its backward

What is not a tensor is in ``call``, a ``Call`` as text. Where nobody watches the dispatcher, ``lif_direct``
does the same without it (``None`` for an output that was not asked for).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import _eager
from . import cpp_provider, cupy_provider, torch_provider
from .mode import Call

_PROVIDERS: dict[str, ModuleType] = {
    "torch": torch_provider,
    "cpp": cpp_provider,
    "cupy": cupy_provider,
}


def _forward(
    x: Tensor,
    v0: Tensor,
    refractory0: Tensor,
    decay: Tensor,
    threshold: Tensor,
    magnitude: Tensor,
    call: Call,
) -> tuple[Tensor | None, ...]:
    mode, want_membrane, want_charged, save, provider = call
    return _PROVIDERS[provider].forward(
        x, v0, refractory0, decay, threshold, magnitude, mode, want_membrane, want_charged, save
    )


@torch.library.custom_op("snn_fr::lif", mutates_args=())
def lif_op(
    x: Tensor,
    v0: Tensor,
    refractory0: Tensor,
    decay: Tensor,
    threshold: Tensor,
    magnitude: Tensor,
    call: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    spikes, membrane, charged, is_open, v, refractory, checkpoints = _forward(
        x, v0, refractory0, decay, threshold, magnitude, Call.from_text(call)
    )
    assert spikes is not None and v is not None and refractory is not None
    return (
        spikes,
        _eager.or_empty(membrane, v0),
        _eager.or_empty(charged, v0),
        _eager.or_empty(is_open, v0, torch.bool),
        v,
        refractory,
        _eager.or_empty(checkpoints, v0),
    )


@lif_op.register_fake
def _(
    x: Tensor,
    v0: Tensor,
    refractory0: Tensor,
    decay: Tensor,
    threshold: Tensor,
    magnitude: Tensor,
    call: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    mode, want_membrane, want_charged, save, provider = Call.from_text(call)
    charged, is_open, checkpoints = _PROVIDERS[provider].saved_shapes(x.shape, mode, want_charged, save)
    return (
        x.new_empty(x.shape),
        v0.new_empty(x.shape if want_membrane else (0,)),
        v0.new_empty(charged),
        x.new_empty(is_open, dtype=torch.bool),
        v0.new_empty(v0.shape),
        refractory0.new_empty(refractory0.shape),
        v0.new_empty(checkpoints),
    )


def _gradients(
    grad_spikes: Tensor | None,
    grad_membrane: Tensor | None,
    grad_charged: Tensor | None,
    grad_v: Tensor | None,
    *rest: Any,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, v0, decay, threshold and magnitude, ``None`` for a parameter that needs none."""
    *saved, call, need_decay, need_threshold, need_magnitude = rest
    # autograd may hand a zero-size gradient to an output that was not asked for
    cotangents = (
        g if g is not None and g.numel() else None for g in (grad_spikes, grad_membrane, grad_charged)
    )
    return _PROVIDERS[call.provider].backward(
        *cotangents, grad_v, *saved, call.mode, need_decay, need_threshold, need_magnitude
    )


@torch.library.custom_op("snn_fr::lif_backward", mutates_args=())
def lif_backward_op(
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
    spikes: Tensor | None,
    charged: Tensor | None,
    is_open: Tensor | None,
    checkpoints: Tensor | None,
    call: str,
    need_decay: bool,
    need_threshold: bool,
    need_magnitude: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gx, gv0, gdecay, gthreshold, gmagnitude = _gradients(
        grad_spikes, grad_membrane, grad_charged, grad_v, x, v0, refractory0, decay, threshold, magnitude,
        spikes, charged, is_open, checkpoints, Call.from_text(call), need_decay, need_threshold,
        need_magnitude,
    )  # fmt: skip
    assert gx is not None and gv0 is not None
    return (
        gx,
        gv0,
        _eager.or_zeros(gdecay, decay),
        _eager.or_zeros(gthreshold, threshold),
        _eager.or_zeros(gmagnitude, magnitude),
    )


@lif_backward_op.register_fake
def _(
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
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        v0.new_empty(v0.shape),
        decay.new_empty(decay.shape),
        threshold.new_empty(threshold.shape),
        magnitude.new_empty(magnitude.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
    spikes, _, charged, is_open, _, refractory, checkpoints = output
    *tensors, call = inputs
    ctx.call = call if isinstance(call, Call) else Call.from_text(call)
    kept = spikes if _PROVIDERS[ctx.call.provider].SAVES_SPIKES else None
    ctx.save_for_backward(*tensors, kept, charged, is_open, checkpoints)
    ctx.mark_non_differentiable(*(t for t in (is_open, refractory, checkpoints) if t is not None))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    grad_spikes, grad_membrane, grad_charged, _, grad_v, _, _ = grads
    given = (grad_spikes, grad_membrane, grad_charged, grad_v, *ctx.saved_tensors)
    need = ctx.needs_input_grad[3:6]
    if torch.is_grad_enabled() or _eager.watched(*given):
        gx, gv0, *zeros_too = lif_backward_op(*given, ctx.call.text, *need)
        parameters = [grad if needed else None for grad, needed in zip(zeros_too, need, strict=True)]
    else:
        with _eager.as_operator("lif_backward"):
            gx, gv0, *parameters = _gradients(*given, ctx.call, *need)
    return gx, gv0, None, *parameters, None


lif_op.register_autograd(_backward, setup_context=_setup_context)
lif_direct = _eager.direct("lif", _forward, _setup_context, _backward)
