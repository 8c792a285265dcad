"""``snn_fr::diagonal_ssm`` as the dispatcher sees it. An empty ``D`` or ``state`` stands for none."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import cpp_provider, cupy_provider, torch_provider

_PROVIDERS: dict[str, ModuleType] = {"torch": torch_provider, "cpp": cpp_provider, "cupy": cupy_provider}


@torch.library.custom_op("snn_fr::diagonal_ssm", mutates_args=())
def diagonal_ssm_op(
    x: Tensor, A_bar: Tensor, C_bar: Tensor, D: Tensor, state: Tensor, save: bool, provider: str
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(
        x.device.type, enabled=False
    ):  # the matrix products of a provider keep their precision
        return _PROVIDERS[provider].forward(x, A_bar, C_bar, D, state, save)


@diagonal_ssm_op.register_fake
def _(
    x: Tensor, A_bar: Tensor, C_bar: Tensor, D: Tensor, state: Tensor, save: bool, provider: str
) -> tuple[Tensor, Tensor, Tensor]:
    checkpoints = _PROVIDERS[provider].saved_shape(x.shape, A_bar.shape, save)
    return (
        x.new_empty(x.shape),
        A_bar.new_empty((*x.shape[1:], A_bar.shape[-1])),
        A_bar.real.new_empty(checkpoints),
    )


@torch.library.custom_op("snn_fr::diagonal_ssm_backward", mutates_args=())
def diagonal_ssm_backward_op(
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    A_bar: Tensor,
    C_bar: Tensor,
    D: Tensor,
    state: Tensor,
    checkpoints: Tensor,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        return _PROVIDERS[provider].backward(grad_y, grad_state, x, A_bar, C_bar, D, state, checkpoints)


@diagonal_ssm_backward_op.register_fake
def _(
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    A_bar: Tensor,
    C_bar: Tensor,
    D: Tensor,
    state: Tensor,
    checkpoints: Tensor,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        A_bar.new_empty(A_bar.shape),
        C_bar.new_empty(C_bar.shape),
        D.new_empty(D.shape),
        state.new_empty(state.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], output[2])
    ctx.provider = inputs[6]
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    grads = diagonal_ssm_backward_op(grad_y, grad_state, *ctx.saved_tensors, ctx.provider)
    return *grads, None, None


diagonal_ssm_op.register_autograd(_backward, setup_context=_setup_context)
