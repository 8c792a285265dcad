"""``ops.fixed_refractory`` by ``kernel.cpp``: one pass over memory forward, one backward.

Spikes and the gate are integer logic and equal the reference exactly. A neuron is computed by one thread, and
the gradient of the threshold is summed over time in spans of fixed length: results do not depend on the
thread count.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .. import _compile, _native
from .arguments import KINDS, SCHEMES, Arguments

_SOURCE = Path(__file__).with_name("kernel.cpp")
_SPAN = 1024  # steps over which the backward sums the gradient of the threshold


def forward(
    drive: Tensor, threshold: Tensor, state: Tensor, period: int, scheme: str, inclusive: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, gate (bool) and state."""
    spikes, final = _native.empty(drive), _native.empty(state)
    is_open = drive.new_empty(drive.shape, dtype=torch.bool)
    rules = Arguments(period=period, scheme=SCHEMES[scheme], inclusive=inclusive)
    _call(
        "forward",
        rules,
        threshold,
        {"drive": drive, "state": state},
        {"spikes": spikes, "is_open": is_open, "final_state": final},
    )
    return spikes, is_open, final


def backward(
    grad_spikes: Tensor,
    drive: Tensor,
    threshold: Tensor,
    is_open: Tensor,
    kind: str,
    alpha: float,
    need_threshold: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of drive and threshold (``None`` where not needed)."""
    outputs = {"grad_drive": _native.empty(drive)}
    if need_threshold:
        spans = threshold.new_empty((-(-drive.shape[0] // _SPAN), *drive.shape[1:]))
        outputs["grad_threshold"] = spans
    _call(
        "backward",
        Arguments(kind=KINDS[kind], alpha=alpha),
        threshold,
        {"drive": drive, "grad_spikes": grad_spikes, "was_open": is_open},
        outputs,
    )
    if not need_threshold:
        return outputs["grad_drive"], None
    sums = _native.sum_to(spans.sum(0, dtype=torch.float64), threshold.shape)
    return outputs["grad_drive"], sums.to(threshold.dtype)


def _call(
    name: str, arguments: Arguments, threshold: Tensor, inputs: dict[str, Tensor], outputs: dict[str, Tensor]
) -> None:
    drive = inputs["drive"]
    arguments.steps, arguments.neurons = drive.shape[0], drive.shape[1:].numel()
    arguments.threads = torch.get_num_threads()
    threshold, arguments.threshold_stride = _native.per_neuron(threshold, drive.shape[1:])
    kernel = getattr(_compile.load(_SOURCE, drive.dtype), f"snn_fr_refractory_{name}")
    _native.call(kernel, arguments, inputs | {"threshold": threshold}, outputs)
