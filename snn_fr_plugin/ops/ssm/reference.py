"""The specification of ``ops.diagonal_ssm``: a plain, differentiable loop over time."""

from __future__ import annotations

import torch
from torch import Tensor


def diagonal_ssm(
    x: Tensor, A_bar: Tensor, C_bar: Tensor, D: Tensor | None = None, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y [T, N, H] and h [N, H, n], arguments as in ``ops.diagonal_ssm``, unchecked."""
    h = x.new_zeros((*x.shape[1:], A_bar.shape[-1]), dtype=A_bar.dtype) if state is None else state.clone()
    y = []
    for x_t in x.to(A_bar.real.dtype).unbind(0):
        h = A_bar * h + x_t[..., None]
        y_t = (C_bar * h).sum(-1).real
        y.append(y_t if D is None else y_t + D * x_t)
    return (torch.stack(y).to(x.dtype) if y else torch.empty_like(x)), h
