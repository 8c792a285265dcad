"""The plain threshold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops
from .._checks import check_flag, check_step
from .._module import SpikingModule
from ..ops.refractory import Scheme
from ..surrogate import ATan
from ._positive import get_positive, register_positive, show_positive

__all__ = ["Threshold"]

_DEFAULT_SURROGATE = ATan()


class Threshold(SpikingModule):
    """Fires whenever the drive reaches the threshold.

    ::

        s_t = 1[x_t >= threshold]          inclusive=False: x_t > threshold

    A learnable threshold is kept positive as ``threshold = exp(log_threshold)``.

    Args:
        threshold: a float, or a tensor broadcastable to one step of the drive (one threshold per channel). A
            tensor is kept in the state_dict.
        learn_threshold: learn ``log_threshold``, starting from the given threshold, which must be > 0.
        inclusive: whether a drive exactly at the threshold fires.
        surrogate: a surrogate of this package, or any callable applied to ``x - threshold``.
        backend: "auto", "torch", "cpp" or "cupy".

    Shapes:
        x_seq, spikes: [T, N, *], of one dtype. State: int32 [N, *], always zero: a threshold holds no
        history.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a learnable threshold that is not positive.

    Example:
        >>> Threshold(0.5)(torch.tensor([[0.4], [0.5], [0.6]]))[0].flatten().tolist()
        [0.0, 1.0, 1.0]
    """

    refractory_period = 0
    scheme: Scheme = "absolute"

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        *,
        learn_threshold: bool = False,
        inclusive: bool = True,
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
    ) -> None:
        super().__init__(backend=backend)
        check_flag("inclusive", inclusive)
        if not callable(surrogate):
            raise TypeError(f"surrogate must be callable, got {type(surrogate).__name__}")
        register_positive(self, "threshold", threshold, learn_threshold, must_be_positive=False)
        self.learn_threshold, self.inclusive, self.surrogate = learn_threshold, inclusive, surrogate

    @property
    def threshold(self) -> float | Tensor:
        """What the drive is compared with."""
        return get_positive(self, "threshold")

    def fire(self, drive_seq: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spikes [T, N, *] of a drive [T, N, *], and the steps left blocked [N, *]."""
        return ops.fixed_refractory(
            drive_seq,
            self.threshold,
            period=self.refractory_period,
            scheme=self.scheme,
            inclusive=self.inclusive,
            surrogate=self.surrogate,
            state=state,
            backend=self.backend,
        )

    def initial_state(self, x: Tensor) -> Tensor:
        """Zeros, int32 [N, *], for one step ``x`` [N, *]."""
        check_step(x)
        return torch.zeros(x.shape, dtype=torch.int32, device=x.device)

    def extra_repr(self) -> str:
        return f"{show_positive(self, 'threshold')}, learn_threshold={self.learn_threshold}"
