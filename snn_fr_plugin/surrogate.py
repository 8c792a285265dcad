"""Surrogate gradients: what stands in for the derivative of the Heaviside step.

A surrogate is a small picklable object. Called, it returns the binary spike and carries the gradient:

    s = 1[x >= 0]        (``inclusive=False``: 1[x > 0], snnTorch's convention)
    ds/dx := surrogate.derivative(x)

``kind`` and ``alpha`` are all that a compiled provider needs to evaluate the derivative inside its fused
step, so the formulas below are the specification of the C and CUDA code: a provider numbers the kinds as
``KINDS`` does.

Any other callable (snnTorch's closures, SpikingJelly's modules, your own) is accepted wherever a surrogate
is; it is evaluated outside the fused step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "KINDS",
    "ATan",
    "Erf",
    "FastSigmoid",
    "PiecewiseExp",
    "PiecewiseQuadratic",
    "Rectangle",
    "Sigmoid",
    "SoftSign",
    "StraightThrough",
    "SuperSpike",
    "Surrogate",
    "Triangle",
    "derivative",
]

# kind -> derivative(x, alpha). The order is part of the contract with the compiled providers.
_DERIVATIVES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "atan": lambda x, a: (a / 2) / (1 + (math.pi / 2 * a * x).square()),
    "sigmoid": lambda x, a: a * torch.sigmoid(a * x) * torch.sigmoid(-a * x),
    "fast_sigmoid": lambda x, a: 1 / (1 + a * x.abs()).square(),
    "super_spike": lambda x, a: a / (1 + x.abs()).square(),
    "triangle": lambda x, a: (1 - x.abs()).clamp_min(0),
    "rectangle": lambda x, a: a * (x.abs() < 1 / (2 * a)).to(x.dtype),
    "soft_sign": lambda x, a: 1 / (2 * a * (1 / a + x.abs()).square()),
    "erf": lambda x, a: (a / math.sqrt(math.pi)) * torch.exp(-(a * x).square()),
    "piecewise_quadratic": lambda x, a: (a - a * a * x.abs()).clamp_min(0),
    "piecewise_exp": lambda x, a: (a / 2) * torch.exp(-a * x.abs()),
    "straight_through": lambda x, a: torch.ones_like(x),
}
KINDS: tuple[str, ...] = tuple(_DERIVATIVES)


def derivative(kind: str, x: Tensor, alpha: float) -> Tensor:
    """Derivative of the kind at ``x`` (distance from the threshold), elementwise, in the dtype of ``x``."""
    return _DERIVATIVES[kind](x, alpha)


class _Spike(torch.autograd.Function):
    """Heaviside forward, surrogate backward."""

    @staticmethod
    def forward(x: Tensor, kind: str, alpha: float, inclusive: bool) -> Tensor:
        return (x >= 0 if inclusive else x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.kind, ctx.alpha, _ = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return grad * derivative(ctx.kind, x, ctx.alpha), None, None, None


class Surrogate:
    """Base of the surrogates that fused operators evaluate themselves.

    Args:
        alpha: steepness, > 0; its meaning is given by each kind's formula.

    Raises:
        ValueError: ``alpha`` is not a finite positive number.
    """

    kind: str

    def __init__(self, alpha: float) -> None:
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise TypeError(f"{self._argument} must be a number, got {type(alpha).__name__}")
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"{self._argument} must be finite and > 0, got {alpha}")
        self.alpha = float(alpha)

    _argument = "alpha"

    def derivative(self, x: Tensor) -> Tensor:
        """ds/dx at ``x`` = membrane potential - threshold, elementwise."""
        return derivative(self.kind, x, self.alpha)

    def __call__(self, x: Tensor, inclusive: bool = True) -> Tensor:
        """Binary spikes of ``x`` = membrane potential - threshold, with the surrogate gradient."""
        return _Spike.apply(x, self.kind, self.alpha, inclusive)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._argument}={self.alpha:g})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Surrogate) and (self.kind, self.alpha) == (other.kind, other.alpha)

    def __hash__(self) -> int:
        return hash((self.kind, self.alpha))


class ATan(Surrogate):
    """alpha/2 / (1 + (pi/2 alpha x)^2). Default of both frameworks' ATan: alpha = 2."""

    kind = "atan"

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__(alpha)


class Sigmoid(Surrogate):
    """alpha sigmoid(alpha x) (1 - sigmoid(alpha x)). Default: SpikingJelly's; snnTorch's slope is 25."""

    kind = "sigmoid"

    def __init__(self, alpha: float = 4.0) -> None:
        super().__init__(alpha)


class FastSigmoid(Surrogate):
    """1 / (1 + slope |x|)^2, snnTorch's ``fast_sigmoid``. The slope is squared too: not ``SuperSpike``."""

    kind = "fast_sigmoid"
    _argument = "slope"

    def __init__(self, slope: float = 25.0) -> None:
        super().__init__(slope)

    @property
    def slope(self) -> float:
        """The steepness under snnTorch's name."""
        return self.alpha


class SuperSpike(Surrogate):
    """alpha / (1 + |x|)^2, SpikingJelly's ``SuperSpike``. alpha scales the whole: not ``FastSigmoid``."""

    kind = "super_spike"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)


class Rectangle(Surrogate):
    """alpha 1[|x| < 1 / (2 alpha)]: a box of unit area."""

    kind = "rectangle"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)


class SoftSign(Surrogate):
    """1 / (2 alpha (1/alpha + |x|)^2)."""

    kind = "soft_sign"

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__(alpha)


class Erf(Surrogate):
    """alpha / sqrt(pi) exp(-(alpha x)^2)."""

    kind = "erf"

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__(alpha)


class PiecewiseQuadratic(Surrogate):
    """max(0, alpha - alpha^2 |x|)."""

    kind = "piecewise_quadratic"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)


class PiecewiseExp(Surrogate):
    """alpha/2 exp(-alpha |x|)."""

    kind = "piecewise_exp"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)


class _Parameterless(Surrogate):
    def __init__(self) -> None:
        super().__init__(1.0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Triangle(_Parameterless):
    """max(0, 1 - |x|): peak 1, support (-1, 1)."""

    kind = "triangle"


class StraightThrough(_Parameterless):
    """1 everywhere: the gradient passes as if there were no threshold."""

    kind = "straight_through"
