"""The threshold with a fixed refractory period."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .._checks import check_choice, check_period
from ..ops.refractory import SCHEMES, Scheme
from ..surrogate import ATan
from .threshold import Threshold

__all__ = ["FixedRefractory"]

_DEFAULT_SURROGATE = ATan()


class FixedRefractory(Threshold):
    """Threshold with a fixed refractory period: a sparse sample of the threshold crossings of any memory.

    After a spike at t the next comes at t + R + 1 at the earliest (scheme "absolute"); the memory goes on
    untouched. The schemes are tabulated in ``ops.fixed_refractory``. R = 0 is ``Threshold``.

    Args:
        refractory_period: R >= 0, in steps.
        scheme: "absolute", "window", "strided" or "onset".
        threshold, learn_threshold, inclusive, surrogate, backend: as in ``Threshold``.

    Shapes:
        x_seq, spikes: [T, N, *], of one dtype. State: int32 [N, *] as in ``ops.fixed_refractory``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a negative period, an unknown scheme, a learnable threshold that is not positive.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling, arXiv
        2504.17751 (2025); the schemes beside "absolute" are reconstructions.

    Example:
        >>> import torch
        >>> drive = torch.tensor([0, 1, 1, 1, 0, 1, 1, 1.0])[:, None]
        >>> FixedRefractory(2)(drive)[0].flatten().int().tolist()
        [0, 1, 0, 0, 0, 1, 0, 0]
    """

    def __init__(
        self,
        refractory_period: int = 1,
        scheme: Scheme = "absolute",
        *,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = False,
        inclusive: bool = True,
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            threshold,
            learn_threshold=learn_threshold,
            inclusive=inclusive,
            surrogate=surrogate,
            backend=backend,
        )
        check_period(refractory_period)
        check_choice("scheme", scheme, SCHEMES)
        self.refractory_period, self.scheme = refractory_period, scheme

    def extra_repr(self) -> str:
        return f"refractory_period={self.refractory_period}, scheme={self.scheme!r}, {super().extra_repr()}"
