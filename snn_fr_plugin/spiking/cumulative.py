"""The parallel reset of PMSN: fire whenever a running sum crosses a multiple of the threshold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops
from .._checks import check_flag, check_sequence, check_state, check_step, parameter, state_dtype
from .._module import SpikingModule
from ..surrogate import Triangle
from ._positive import get_positive, register_positive, show_positive

__all__ = ["CumulativeThreshold"]

_DEFAULT_SURROGATE = Triangle()
_BITS = 48  # of the fraction, in int64: float32 inputs from 2^-25 of the threshold on are held exactly
_LARGEST = 2.0**14  # of one input, in thresholds: below the sign bit, and no matter for what remains


class CumulativeThreshold(SpikingModule):
    """Integrates the rectified drive and fires when the sum crosses a multiple of the threshold.

    ::

        v_t = v[t-1] + relu(x_t)
        s_t = 1[v_t >= threshold]                        burst: floor(v_t / threshold) spikes at once
        v_t = v_t - floor(v_t / threshold) threshold     what remains, in [0, threshold)

    This is not a soft reset: however many thresholds were crossed, all of them are taken off, so v is the
    running sum modulo the threshold, and parallel over time. The sum is kept in integers of 2^-48 thresholds,
    which wrap around without harm: the remainder is exact after any number of steps, whatever the order of
    summation, where a running sum in floats loses it. Hence a sequence, its steps and its chunks agree to
    the last bit. At a tie, v_t = threshold, it fires.

    The gradient is local, surrogate'(v_t - threshold) to x_t where x_t > 0: none through the running sum. A
    burst has that of its first spike.

    Args:
        threshold: a float > 0, or a tensor broadcastable to one step of the drive (kept in the state_dict).
        burst: emit every crossing as a spike: the output counts them.
        surrogate: a surrogate of this package, or any callable applied to ``v - threshold``. Default:
            triangle.
        backend: "auto", "torch", "cpp" or "cupy".

    Shapes:
        x_seq, spikes: [T, N, *], of one dtype. State: what remains, int64 [N, *], in 2^-48 thresholds.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a threshold that is not positive.

    Reference:
        PMSN, arXiv 2408.14917 (2024), and its official code, which writes s_t as
        clip(floor((c_t - floor(c[t-1] / threshold) threshold) / threshold), 0, 1) of the running sum c.

    Example:
        >>> y = torch.tensor([0.4, 0.4, 0.4, -0.3, 0.9, 2.3, 0.1])[:, None]
        >>> CumulativeThreshold()(y)[0].flatten().int().tolist()
        [0, 0, 1, 0, 1, 1, 0]
        >>> CumulativeThreshold(burst=True)(y)[0].flatten().int().tolist()
        [0, 0, 1, 0, 1, 2, 0]
    """

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        *,
        burst: bool = False,
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
    ) -> None:
        super().__init__(backend=backend)
        check_flag("burst", burst)
        if not callable(surrogate):
            raise TypeError(f"surrogate must be callable, got {type(surrogate).__name__}")
        register_positive(self, "threshold", threshold, False)
        self.burst, self.surrogate = burst, surrogate

    @property
    def threshold(self) -> float | Tensor:
        """What the running sum is measured in."""
        return get_positive(self, "threshold")

    def fire(self, drive_seq: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spikes [T, N, *] of a drive [T, N, *], and what remains."""
        check_sequence(drive_seq)
        shape, dtype, device = drive_seq.shape[1:], state_dtype(drive_seq), drive_seq.device
        threshold = parameter("threshold", self.threshold, shape, dtype, device)
        if state is None:
            state = torch.zeros(shape, dtype=torch.int64, device=device)
        else:
            check_state("state", state, shape, torch.int64, device)
        rectified = torch.minimum(torch.relu(drive_seq.to(dtype)), _LARGEST * threshold)
        with torch.no_grad():
            units = ((rectified / threshold).nan_to_num(0.0) * 2.0**_BITS).round().to(torch.int64)
            remainder = (state + units.cumsum(0)) & (2**_BITS - 1)
            reached = torch.cat([state[None], remainder])[:-1] + units  # v_t before it is reduced
            # as an integer first: its sign, hence the spike, survives the rounding to a float
            distance = (reached - 2**_BITS).to(dtype) * 2.0**-_BITS * threshold
        local = distance + (rectified - rectified.detach())
        spikes, _ = ops.fixed_refractory(local, 0.0, period=0, surrogate=self.surrogate, backend=self.backend)
        if self.burst:
            spikes = spikes + ((reached >> _BITS) - 1).clamp_min(0).to(dtype)
        final = remainder[-1].clone() if len(remainder) else state.clone()
        return spikes.to(drive_seq.dtype), final

    def initial_state(self, x: Tensor) -> Tensor:
        """Zeros, int64 [N, *], for one step ``x`` [N, *]."""
        check_step(x)
        return torch.zeros(x.shape, dtype=torch.int64, device=x.device)

    def extra_repr(self) -> str:
        return f"{show_positive(self, 'threshold')}, burst={self.burst}"
