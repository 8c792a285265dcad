"""``snn_fr::fixed_refractory`` as the dispatcher sees it: spikes, the gate (bool), and the state.

Where nobody watches the dispatcher, ``fixed_refractory_direct`` does the same without it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import _eager
from . import cpp_provider, cupy_provider, torch_provider

_PROVIDERS: dict[str, ModuleType] = {
    "torch": torch_provider,
    "cpp": cpp_provider,
    "cupy": cupy_provider,
}


def _forward(
    drive: Tensor,
    threshold: Tensor,
    state: Tensor,
    period: int,
    scheme: str,
    inclusive: bool,
    kind: str,
    alpha: float,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _PROVIDERS[provider].forward(drive, threshold, state, period, scheme, inclusive)


fixed_refractory_op = torch.library.custom_op("snn_fr::fixed_refractory", _forward, mutates_args=())


@fixed_refractory_op.register_fake
def _(drive: Tensor, threshold: Tensor, state: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (
        drive.new_empty(drive.shape),
        drive.new_empty(drive.shape, dtype=torch.bool),
        state.new_empty(state.shape),
    )


def _gradients(
    grad_spikes: Tensor,
    drive: Tensor,
    threshold: Tensor,
    is_open: Tensor,
    kind: str,
    alpha: float,
    provider: str,
    need_threshold: bool,
) -> tuple[Tensor, Tensor | None]:
    return _PROVIDERS[provider].backward(grad_spikes, drive, threshold, is_open, kind, alpha, need_threshold)


@torch.library.custom_op("snn_fr::fixed_refractory_backward", mutates_args=())
def fixed_refractory_backward_op(
    grad_spikes: Tensor,
    drive: Tensor,
    threshold: Tensor,
    is_open: Tensor,
    kind: str,
    alpha: float,
    provider: str,
    need_threshold: bool = True,
) -> tuple[Tensor, Tensor]:
    grad_drive, grad_threshold = _gradients(
        grad_spikes, drive, threshold, is_open, kind, alpha, provider, need_threshold
    )
    return grad_drive, _eager.or_zeros(grad_threshold, threshold)


@fixed_refractory_backward_op.register_fake
def _(grad_spikes: Tensor, drive: Tensor, threshold: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return drive.new_empty(drive.shape), threshold.new_empty(threshold.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
    drive, threshold, *_, ctx.kind, ctx.alpha, ctx.provider = inputs
    _, is_open, state = output
    ctx.save_for_backward(drive, threshold, is_open)
    ctx.mark_non_differentiable(is_open, state)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_spikes: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if grad_spikes is None:
        return (None,) * 9
    drive, threshold, is_open = ctx.saved_tensors
    need_threshold = ctx.needs_input_grad[1]
    given = (grad_spikes, drive, threshold, is_open, ctx.kind, ctx.alpha, ctx.provider, need_threshold)
    if torch.is_grad_enabled() or _eager.watched(*given[:4]):
        grad_drive, grad_threshold = fixed_refractory_backward_op(*given)
    else:
        with _eager.as_operator("fixed_refractory_backward"):
            grad_drive, grad_threshold = _gradients(*given)
    return grad_drive, grad_threshold if need_threshold else None, *([None] * 7)


fixed_refractory_op.register_autograd(_backward, setup_context=_setup_context)
fixed_refractory_direct = _eager.direct("fixed_refractory", _forward, _setup_context, _backward)
