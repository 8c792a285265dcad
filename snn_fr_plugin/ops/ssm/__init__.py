"""``ops.diagonal_ssm``: diagonal complex state-space memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._checks import check_sequence, check_state, state_dtype
from .. import _eager, _providers
from .cupy_provider import MOST_PAIRS
from .operator import diagonal_ssm_direct, diagonal_ssm_op

__all__ = ["diagonal_ssm"]

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def diagonal_ssm(
    x: Tensor,
    A_bar: Tensor,
    C_bar: Tensor,
    D: Tensor | None = None,
    *,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Diagonal complex state-space model over a whole sequence, one input and one output per channel.

    ::

        h_t = A_bar * h[t-1] + x_t
        y_t = Re(sum_n C_bar_n h_t,n) + D * x_t

    ``C_bar`` already holds B_bar, and the factor 2 of conjugate pairs. The states never reach memory as a
    tensor [T, N, H, n], forward or backward. ``A_bar = 0`` is legal. Sums are reordered: providers agree to a
    tolerance.

    Args:
        x: input [T, N, H], float32, float64, float16 or bfloat16; T = 0 is legal.
        A_bar: discrete state matrix [H, n], complex; of complex128 for float64 input, complex64 otherwise.
        C_bar: output matrix [H, n], complex, same dtype.
        D: feed-through [H], real, or ``None``.
        state: h of the last call [N, H, n], complex; ``None`` is zeros.
        backend: "auto", "torch", "cpp" or "cupy". The last serves n up to 256; beyond, "auto" takes "torch".

    Returns:
        y [T, N, H] in the dtype of x, and the final state [N, H, n].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device, or a backend that does not serve the tensors; the message says
            what was expected and what came.

    Reference:
        A. Gu et al., On the Parameterization and Initialization of Diagonal State Space Models, arXiv
        2206.11893.

    Example:
        >>> x = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
        >>> A_bar, C_bar = torch.full((1, 1), 0.5 + 0j), torch.full((1, 1), 1.0 + 0j)
        >>> [round(v, 4) for v in diagonal_ssm(x, A_bar, C_bar)[0].flatten().tolist()]
        [1.0, 0.5, 0.25]
    """
    check_sequence(x)
    if x.dim() != 3:
        raise ValueError(f"x must have shape [T, N, H], got {tuple(x.shape)}")
    provider = _providers.choose(backend, x.device)
    channels, dtype = x.shape[2], state_dtype(x)
    for name, matrix in (("A_bar", A_bar), ("C_bar", C_bar)):
        if not isinstance(matrix, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(matrix).__name__}")
        if matrix.dtype != _COMPLEX[dtype]:
            raise TypeError(f"{name} must be {_COMPLEX[dtype]} for {x.dtype} input, got {matrix.dtype}")
        if matrix.dim() != 2 or matrix.shape[0] != channels:
            raise ValueError(f"{name} must have shape [H={channels}, n], got {tuple(matrix.shape)}")
        if matrix.device != x.device:
            raise ValueError(f"{name} must be on {x.device}, got {matrix.device}")
    if A_bar.shape != C_bar.shape:
        raise ValueError(
            f"C_bar must have the shape of A_bar, {tuple(A_bar.shape)}, got {tuple(C_bar.shape)}"
        )
    if provider == "cupy" and A_bar.shape[1] > MOST_PAIRS:
        if backend == "cupy":
            raise ValueError(
                f"backend='cupy' serves up to {MOST_PAIRS} complex pairs a channel, got n={A_bar.shape[1]}: "
                "use backend='auto' or 'torch'"
            )
        provider = "torch"
    if D is not None:
        check_state("D", D, (channels,), dtype, x.device)
    if state is not None:
        check_state("state", state, (*x.shape[1:], A_bar.shape[1]), _COMPLEX[dtype], x.device)
    tensors = (x, A_bar, C_bar, D, state)
    save = _eager.wants_graph(*tensors)
    if _eager.watched(*tensors):
        y, final, _ = diagonal_ssm_op(*tensors, save, provider)
    else:
        y, final, _ = diagonal_ssm_direct(save, *tensors, save, provider)
    return y, final
