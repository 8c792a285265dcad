"""The leaky integrate-and-fire neuron with reset: sequential, and the truth the parallel ones are held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .. import ops
from .._checks import check_choice, check_flag, check_period, check_sequence, check_step, state_dtype
from .._module import SpikingModule
from ..surrogate import ATan
from ._positive import get_positive, register_positive, show_positive

__all__ = ["LIF"]

_DEFAULT_SURROGATE = ATan()
_RESETS = ("zero", "subtract")


class LIF(SpikingModule):
    """Leaky integrate-and-fire neuron with reset: ``ops.lif`` as a spiking module.

    ::

        h_t = beta * v[t-1] + x_t
        s_t = 1[h_t >= threshold] and silent for the last R steps
        v_t = 0 where s_t else h_t                        reset "zero" (hard)
              h_t - reset_magnitude * s_t                 reset "subtract" (soft)

    The reset makes it a recurrence that no scan can parallelise: one fused pass over time, step after step.
    beta = 1 is the perfect integrator (IF).

    Args:
        beta: decay per step, a float or a tensor broadcastable to one step of the drive (kept in the
            state_dict).
        reset: "zero" or "subtract".
        threshold: a float, or a tensor broadcastable to one step of the drive.
        learn_threshold: learn ``log_threshold``, starting from the given threshold, which must be > 0.
        reset_magnitude: what "subtract" takes off; ``None`` is the threshold.
        learn_reset_magnitude: learn ``log_reset_magnitude``, starting from the given one, which must be > 0.
        refractory_period: R >= 0, in steps, during which the membrane still integrates.
        detach_reset: no gradient through the spike of the reset.
        inclusive: whether a membrane exactly at the threshold fires.
        surrogate: a surrogate of this package (fused), or any callable applied to ``h - threshold``.
        backend: "auto", "torch", "cpp" or "cupy".

    Shapes:
        x_seq, spikes: [T, N, *], of one dtype. State: ``ops.LIFState``, the membrane [N, *] and the steps
        left blocked [N, *].

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown reset, a learnable value that is not positive, a magnitude without "subtract".

    Example:
        >>> x = torch.tensor([0.5, 0.9, 1.2, 0.2, 0.99, 0.1, 0.95])[:, None]
        >>> LIF(beta=0.125)(x)[0].flatten().int().tolist()
        [0, 0, 1, 0, 1, 0, 0]
    """

    beta: float | Tensor

    def __init__(
        self,
        beta: float | Tensor = 0.9,
        reset: Literal["zero", "subtract"] = "zero",
        *,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = False,
        reset_magnitude: float | Tensor | None = None,
        learn_reset_magnitude: bool = False,
        refractory_period: int = 0,
        detach_reset: bool = False,
        inclusive: bool = True,
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
    ) -> None:
        super().__init__(backend=backend)
        check_choice("reset", reset, _RESETS)
        check_period(refractory_period)
        check_flag("detach_reset", detach_reset)
        check_flag("inclusive", inclusive)
        check_flag("learn_reset_magnitude", learn_reset_magnitude)
        if not callable(surrogate):
            raise TypeError(f"surrogate must be callable, got {type(surrogate).__name__}")
        if reset == "zero" and reset_magnitude is not None:
            raise ValueError(
                f"reset_magnitude is for reset='subtract', got {reset_magnitude} with reset='zero'"
            )
        if reset_magnitude is None and learn_reset_magnitude:
            raise ValueError("learn_reset_magnitude needs a reset_magnitude to start from, got None")
        if isinstance(beta, Tensor):
            if not beta.is_floating_point():
                raise TypeError(f"beta must be a floating-point tensor, got {beta.dtype}")
            self.register_buffer("beta", beta.detach().clone())
        elif isinstance(beta, bool) or not isinstance(beta, (int, float)):
            raise TypeError(f"beta must be a float or a tensor, got {type(beta).__name__}")
        else:
            self.beta = float(beta)
        register_positive(self, "threshold", threshold, learn_threshold, must_be_positive=False)
        self.has_magnitude = reset_magnitude is not None
        if reset_magnitude is not None:
            register_positive(
                self, "reset_magnitude", reset_magnitude, learn_reset_magnitude, must_be_positive=False
            )
        # not ``reset``: SpikingJelly 0.0.0.0.14 calls an attribute of that name
        self.reset_mechanism, self.refractory_period = reset, refractory_period
        self.detach_reset, self.inclusive, self.surrogate = detach_reset, inclusive, surrogate

    @property
    def threshold(self) -> float | Tensor:
        """What the membrane is compared with."""
        return get_positive(self, "threshold")

    @property
    def reset_magnitude(self) -> float | Tensor | None:
        """What a spike takes off the membrane; ``None``: the threshold."""
        return get_positive(self, "reset_magnitude") if self.has_magnitude else None

    def fire(
        self, drive_seq: Tensor, state: ops.LIFState | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, ops.LIFState]:
        """Spikes [T, N, *] of an input current [T, N, *], and the state."""
        check_sequence(drive_seq)
        spikes, _, state = ops.lif(
            drive_seq,
            self.beta,
            self.threshold,
            reset=self.reset_mechanism,
            reset_magnitude=self.reset_magnitude,
            refractory_period=self.refractory_period,
            detach_reset=self.detach_reset,
            inclusive=self.inclusive,
            surrogate=self.surrogate,
            state=state,
            backend=self.backend,
        )
        return spikes, state

    def initial_state(self, x: Tensor) -> ops.LIFState:
        """Membrane zero and not refractory, for one step ``x`` [N, *]."""
        check_step(x)
        return ops.LIFState(
            torch.zeros(x.shape, dtype=state_dtype(x), device=x.device),
            torch.zeros(x.shape, dtype=torch.int32, device=x.device),
        )

    def extra_repr(self) -> str:
        beta = f"{self.beta:g}" if isinstance(self.beta, float) else f"tensor{tuple(self.beta.shape)}"
        parts = [f"beta={beta}, reset={self.reset_mechanism!r}", show_positive(self, "threshold")]
        if self.has_magnitude:
            parts.append(show_positive(self, "reset_magnitude"))
        return ", ".join([*parts, f"refractory_period={self.refractory_period}"])
