"""Discretization of diagonal linear systems: from dh/dt = A h + B x to h_t = A_bar h[t-1] + B_bar x_t.

``A`` holds the diagonal, so everything is elementwise: A, B and dt are tensors (or floats) that broadcast
against each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bilinear", "zoh"]


def zoh(A: Tensor, B: Tensor | float, dt: Tensor | float) -> tuple[Tensor, Tensor]:
    """Zero-order hold: exact for an input that is constant within each step.

    ::

        A_bar = exp(dt A)
        B_bar = (exp(dt A) - 1) / A * B        dt * B where A = 0

    The difference is taken by ``expm1``, so that small steps keep their digits (at dt = 1e-5 the plain
    difference loses three of them in complex64).

    Args:
        A: diagonal of the state matrix, real or complex, any shape, in 1 / time.
        B: input matrix, broadcastable to A.
        dt: step in units of time, > 0, broadcastable to A.

    Returns:
        A_bar and B_bar, of the broadcast shape.

    Reference:
        A. Gu et al., On the Parameterization and Initialization of Diagonal State Space Models, arXiv
        2206.11893, section 3.1.

    Example:
        >>> A_bar, B_bar = zoh(torch.tensor([-1.0, 0.0]), 1.0, 0.5)
        >>> [round(v, 4) for v in A_bar.tolist()], [round(v, 4) for v in B_bar.tolist()]
        ([0.6065, 1.0], [0.3935, 0.5])
    """
    z = dt * A
    # phi(z) = (exp(z) - 1) / z, continued through zero so that its gradient holds there too
    at_zero = z == 0
    divisor = torch.where(at_zero, 1, z)
    phi = torch.where(at_zero, 1 + z / 2, _expm1(divisor) / divisor)
    return torch.exp(z), dt * phi * B


def bilinear(A: Tensor, B: Tensor | float, dt: Tensor | float) -> tuple[Tensor, Tensor]:
    """Bilinear (Tustin) rule: second order in dt, and it maps the left half plane into the unit disc.

    ::

        A_bar = (1 + dt A / 2) / (1 - dt A / 2)
        B_bar = dt B / (1 - dt A / 2)

    Args:
        A: diagonal of the state matrix, real or complex, any shape, in 1 / time.
        B: input matrix, broadcastable to A.
        dt: step in units of time, > 0, broadcastable to A.

    Returns:
        A_bar and B_bar, of the broadcast shape.

    Reference:
        A. Gu et al., arXiv 2206.11893, section 3.1.

    Example:
        >>> A_bar, B_bar = bilinear(torch.tensor([-1.0]), 1.0, 0.5)
        >>> A_bar.tolist(), B_bar.tolist()
        ([0.6000000238418579], [0.4000000059604645])
    """
    half = dt * A / 2
    return (1 + half) / (1 - half), dt * B / (1 - half)


def _expm1(z: Tensor) -> Tensor:
    """exp(z) - 1 without cancellation; written out for complex z, where not every device has it."""
    if not z.is_complex():
        return torch.expm1(z)
    real, imag = z.real, z.imag
    return torch.complex(
        torch.expm1(real) * torch.cos(imag) - 2 * torch.sin(imag / 2).square(),
        torch.exp(real) * torch.sin(imag),
    )
