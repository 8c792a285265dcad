"""``ops.fixed_refractory``: the spiking module alone, for any memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..._checks import (
    check_choice,
    check_flag,
    check_period,
    check_sequence,
    check_state,
    parameter,
    state_dtype,
)
from ...surrogate import ATan, Surrogate
from .. import _eager, _providers
from .operator import fixed_refractory_direct, fixed_refractory_op

__all__ = ["SCHEMES", "Scheme", "fixed_refractory"]

Scheme = Literal["absolute", "window", "strided", "onset"]
SCHEMES: tuple[Scheme, ...] = ("absolute", "window", "strided", "onset")
_DEFAULT_SURROGATE = ATan()


def fixed_refractory(
    drive: Tensor,
    threshold: float | Tensor = 1.0,
    *,
    period: int,
    scheme: Scheme = "absolute",
    inclusive: bool = True,
    surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Threshold with a fixed refractory period: sparse samples of a dense train of threshold crossings.

    With candidates ``d_t = drive_t >= threshold`` and R = ``period``:

    =========== ================================================== ==================================
    scheme      fires at                                           0111 0111 1100 1011, R = 2
    =========== ================================================== ==================================
    absolute    a candidate, silent for the last R steps (greedy)  0100 0100 1000 1001
    window      the first candidate of every block of R + 1 steps  0101 0010 0100 1001
    strided     a candidate at t with t mod (R + 1) = 0            0001 0010 0100 1001
    onset       a candidate with none in the R steps before it     0100 0000 0000 1000
    =========== ================================================== ==================================

    R = 0 is the plain threshold for every scheme. Gradient: ``surrogate.derivative(drive - threshold)`` where
    the gate is open (a candidate would pass), zero elsewhere; straight to ``drive`` and, negated, to
    ``threshold``.

    Args:
        drive: the memory's output [T, N, *], float32, float64, float16 or bfloat16; T = 0 is legal.
        threshold: float or tensor broadcastable to ``drive.shape[1:]``.
        period: R >= 0, in steps.
        scheme: see the table.
        inclusive: whether a drive exactly at the threshold is a candidate.
        surrogate: a surrogate of this package, or any callable applied to ``drive - threshold`` (outside the
            kernel).
        state: int32 [N, *], zeros = fresh. absolute and onset: steps left blocked; strided: steps to the next
            sampling instant; window: 2 * (position in the block) + (already fired).
        backend: "auto", "torch", "cpp" or "cupy".

    Returns:
        Spikes [T, N, *] in the dtype of ``drive``, and the state.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong value or shape; the message says what was expected and what came.

    Reference:
        E. Zhang, arXiv 2504.17751 (2025); the schemes beside ``absolute`` are reconstructions of its
        "specialised discretization".

    Example:
        >>> d = torch.tensor([0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 0, 1, 1.0])[:, None]
        >>> fixed_refractory(d, period=2)[0].flatten().int().tolist()
        [0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1]
    """
    check_sequence(drive, "drive")
    check_period(period, "period")
    check_choice("scheme", scheme, SCHEMES)
    check_flag("inclusive", inclusive)
    if not callable(surrogate):
        raise TypeError(f"surrogate must be callable, got {type(surrogate).__name__}")
    provider = _providers.choose(backend, drive.device)
    shape = drive.shape[1:]
    threshold = parameter("threshold", threshold, shape, state_dtype(drive), drive.device)
    if state is None:
        state = torch.zeros(shape, dtype=torch.int32, device=drive.device)
    else:
        check_state("state", state, shape, torch.int32, drive.device)
    if isinstance(surrogate, Surrogate):
        tensors, kind, alpha = (drive, threshold, state), surrogate.kind, surrogate.alpha
    else:
        tensors, kind, alpha = (drive.detach(), threshold.detach(), state), "straight_through", 1.0
    rules = (period, scheme, inclusive, kind, alpha, provider)
    if _eager.watched(*tensors):
        spikes, is_open, state = fixed_refractory_op(*tensors, *rules)
    else:
        graph = _eager.wants_graph(*tensors)
        spikes, is_open, state = fixed_refractory_direct(graph, *tensors, *rules)
    if not isinstance(surrogate, Surrogate):
        spikes = (surrogate(drive.to(threshold.dtype) - threshold) * is_open).to(drive.dtype)
    return spikes, state
