"""``snn_fr::lif`` as the dispatcher sees it: plain tensors, a fake, and a backward that is an operator too.

Forward outputs, in this order; an output that was not asked for has shape [0]:

    spikes       [T, N, *] dtype of x
    membrane     [T, N, *] v_t, if ``want_membrane``
    charged      [T, N, *] h_t, if ``want_charged`` (or saved for the backward)
    is_open      [T, N, *] bool: the gate, for surrogates evaluated outside (or saved for the backward)
    v, refractory          final state
    checkpoints            what else a provider saves for its backward

What is not a tensor is in ``call``, a ``Call`` as text.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import cpp_provider, cupy_provider, torch_provider
from .mode import Call

_PROVIDERS: dict[str, ModuleType] = {
    "torch": torch_provider,
    "cpp": cpp_provider,
    "cupy": cupy_provider,
}


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
    mode, want_membrane, want_charged, save, provider = Call.from_text(call)
    return _PROVIDERS[provider].forward(
        x, v0, refractory0, decay, threshold, magnitude, mode, want_membrane, want_charged, save
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
    charged: Tensor,
    is_open: Tensor,
    checkpoints: Tensor,
    call: str,
    need_decay: bool,
    need_threshold: bool,
    need_magnitude: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    mode, *_, provider = Call.from_text(call)
    # autograd may hand a zero-size gradient to an output that was not asked for
    cotangents = (
        g if g is not None and g.numel() else None for g in (grad_spikes, grad_membrane, grad_charged)
    )
    return _PROVIDERS[provider].backward(
        *cotangents, grad_v, x, v0, refractory0, decay, threshold, magnitude, spikes, charged, is_open,
        checkpoints, mode, need_decay, need_threshold, need_magnitude,
    )  # fmt: skip


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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    spikes, _, charged, is_open, _, refractory, checkpoints = output
    ctx.call = inputs[6]
    kept = spikes if _PROVIDERS[Call.from_text(ctx.call).provider].SAVES_SPIKES else None
    ctx.save_for_backward(*inputs[:6], kept, charged, is_open, checkpoints)
    ctx.mark_non_differentiable(is_open, refractory, checkpoints)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    grad_spikes, grad_membrane, grad_charged, _, grad_v, _, _ = grads
    need = ctx.needs_input_grad
    gx, gv0, gdecay, gthreshold, gmagnitude = lif_backward_op(
        grad_spikes, grad_membrane, grad_charged, grad_v, *ctx.saved_tensors, ctx.call, need[3], need[4],
        need[5],
    )  # fmt: skip
    return (
        gx,
        gv0,
        None,
        gdecay if need[3] else None,
        gthreshold if need[4] else None,
        gmagnitude if need[5] else None,
        None,
    )


lif_op.register_autograd(_backward, setup_context=_setup_context)
