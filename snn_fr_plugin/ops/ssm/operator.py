"""``snn_fr::diagonal_ssm`` as the dispatcher sees it: y, the final state, and what the backward starts from.

Where nobody watches the dispatcher, ``diagonal_ssm_direct`` does the same without it.
"""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import _eager
from . import cpp_provider, cupy_provider, torch_provider

_PROVIDERS: dict[str, ModuleType] = {"torch": torch_provider, "cpp": cpp_provider, "cupy": cupy_provider}


def _without_autocast(device: torch.device) -> Any:
    """A context in which the matrix products of a provider keep their precision."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _forward(
    x: Tensor, A_bar: Tensor, C_bar: Tensor, D: Tensor | None, state: Tensor | None, save: bool, provider: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    with _without_autocast(x.device):
        return _PROVIDERS[provider].forward(x, A_bar, C_bar, D, state, save)


@torch.library.custom_op("snn_fr::diagonal_ssm", mutates_args=())
def diagonal_ssm_op(
    x: Tensor, A_bar: Tensor, C_bar: Tensor, D: Tensor | None, state: Tensor | None, save: bool, provider: str
) -> tuple[Tensor, Tensor, Tensor]:
    y, last, checkpoints = _forward(x, A_bar, C_bar, D, state, save, provider)
    return y, last, _eager.or_empty(checkpoints, A_bar.real)


@diagonal_ssm_op.register_fake
def _(
    x: Tensor, A_bar: Tensor, C_bar: Tensor, D: Tensor | None, state: Tensor | None, save: bool, provider: str
) -> tuple[Tensor, Tensor, Tensor]:
    checkpoints = _PROVIDERS[provider].saved_shape(x.shape, A_bar.shape, save)
    return (
        x.new_empty(x.shape),
        A_bar.new_empty((*x.shape[1:], A_bar.shape[-1])),
        A_bar.real.new_empty(checkpoints),
    )


def _gradients(
    grad_y: Tensor | None, grad_state: Tensor | None, x: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, A_bar, C_bar, and of D and the initial state, if there are any."""
    *saved, provider = rest
    with _without_autocast(x.device):
        return _PROVIDERS[provider].backward(grad_y, grad_state, x, *saved)


@torch.library.custom_op("snn_fr::diagonal_ssm_backward", mutates_args=())
def diagonal_ssm_backward_op(
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    A_bar: Tensor,
    C_bar: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    checkpoints: Tensor | None,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_x, grad_A, grad_C, grad_D, grad_start = _gradients(
        grad_y, grad_state, x, A_bar, C_bar, D, state, checkpoints, provider
    )
    return (
        grad_x,
        grad_A,
        grad_C,
        _eager.or_empty(grad_D, A_bar.real),
        _eager.or_empty(grad_start, A_bar),
    )


@diagonal_ssm_backward_op.register_fake
def _(
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    A_bar: Tensor,
    C_bar: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    checkpoints: Tensor | None,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        A_bar.new_empty(A_bar.shape),
        C_bar.new_empty(C_bar.shape),
        A_bar.real.new_empty(0 if D is None else D.shape),
        A_bar.new_empty(0 if state is None else state.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
    *tensors, _, ctx.provider = inputs
    _, _, checkpoints = output
    ctx.save_for_backward(*tensors, checkpoints)
    if checkpoints is not None:
        ctx.mark_non_differentiable(checkpoints)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    given = (grad_y, grad_state, *ctx.saved_tensors)
    if torch.is_grad_enabled() or _eager.watched(*given):
        grads = diagonal_ssm_backward_op(*given, ctx.provider)
    else:
        with _eager.as_operator("diagonal_ssm_backward"):
            grads = _gradients(*given, ctx.provider)
    *_, D, state, _ = ctx.saved_tensors
    *always, grad_D, grad_start = grads
    return *always, None if D is None else grad_D, None if state is None else grad_start, None, None


diagonal_ssm_op.register_autograd(_backward, setup_context=_setup_context)
diagonal_ssm_direct = _eager.direct("diagonal_ssm", _forward, _setup_context, _backward)
