"""The plain threshold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_flag, check_step
from .._module import SpikingModule
from ..ops.refractory import Scheme
from ..surrogate import ATan

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
        check_flag("learn_threshold", learn_threshold)
        check_flag("inclusive", inclusive)
        if not callable(surrogate):
            raise TypeError(f"surrogate must be callable, got {type(surrogate).__name__}")
        if isinstance(threshold, Tensor):
            if not threshold.is_floating_point():
                raise TypeError(f"threshold must be a floating-point tensor, got {threshold.dtype}")
        elif isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
            raise TypeError(f"threshold must be a float or a tensor, got {type(threshold).__name__}")
        self.learn_threshold, self.inclusive, self.surrogate = learn_threshold, inclusive, surrogate
        if learn_threshold:
            start = threshold.detach() if isinstance(threshold, Tensor) else torch.tensor(float(threshold))
            if not bool((start > 0).all()):
                raise ValueError(f"a learnable threshold must be > 0, got {threshold}")
            self.log_threshold = nn.Parameter(start.log())
        elif isinstance(threshold, Tensor):
            self.register_buffer("_threshold", threshold.detach().clone())
        else:
            self._threshold = float(threshold)

    @property
    def threshold(self) -> float | Tensor:
        """What the drive is compared with."""
        return torch.exp(self.log_threshold) if self.learn_threshold else self._threshold

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
        value = self.log_threshold if self.learn_threshold else self._threshold
        shown = f"{value:g}" if isinstance(value, float) else f"tensor{tuple(value.shape)}"
        return f"threshold={shown}, learn_threshold={self.learn_threshold}"
