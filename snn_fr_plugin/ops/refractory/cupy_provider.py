"""``ops.fixed_refractory`` by ``kernel.cu``: one pass over memory forward, one backward.

A thread takes one neuron through time. Where the neurons are too few to keep a GPU busy, all chunks of the
sequence are computed at once: the gate is an automaton, and what it does to a chunk can be found before the
state is known in which the chunk begins. Both ways are exact. Nothing depends on the order in which threads
run.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from .. import _cupy, _native
from .arguments import KINDS, SCHEMES, Arguments

_SOURCE = Path(__file__).with_name("kernel.cu")
_FLAGS = ("--fmad=false", "--ftz=false", "--prec-div=true")  # surrogates and thresholds as everywhere
_THREADS = 128
_GRID = 65535  # blocks along the dimensions of a grid beyond the first, at most
_CHUNK = 32  # steps, as in kernel.cu
_SPAN = 1024  # steps; in 16,384 steps a neuron looks up 16 maps, each a latency of the second-level cache
_SHORT_SPAN = 64  # steps of a partial sum in the backward where neurons are few

# From 16,384 neurons on, 16 rows in flight for each are 1 MB, what the memory of a large GPU delivers within
# its latency: more threads would not make it faster.
_FEW = 16384
# A step of a neuron on its own costs some 40 ns, most of it latency; below 512 steps that is less than the
# launches and the second pass that chunks need.
_LONG = 512
# A chunk has at most one spike of a longer period, and crossing it is a few instructions whatever the state:
# one thread then goes through the chunks of a neuron faster than period + 1 threads could map them.
_MAPPED = 32


class _Arguments(Arguments):
    """``struct Arguments`` of ``kernel.cu``."""

    _fields_ = (
        ("span", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("words", "exits", "entries")),
    )


def forward(
    drive: Tensor, threshold: Tensor, state: Tensor, period: int, scheme: str, inclusive: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, gate (bool) and state."""
    spikes, final = drive.new_empty(drive.shape), state.new_empty(state.shape)
    is_open = drive.new_empty(drive.shape, dtype=torch.bool)
    outputs = {"spikes": spikes, "is_open": is_open, "final_state": final}
    steps, neurons = drive.shape[0], state.numel()
    arguments = _Arguments(
        steps=steps, neurons=neurons, period=period, scheme=SCHEMES[scheme], inclusive=inclusive
    )
    given, arguments.threshold_stride = _native.per_neuron(threshold, drive.shape[1:])
    inputs = {"drive": drive, "threshold": given}
    columns = -(-neurons // _THREADS)

    def launch(
        kernel: str, grid: tuple[int, ...], read: dict[str, Tensor], written: dict[str, Tensor]
    ) -> None:
        _launch(kernel, drive.dtype, (columns, *grid), arguments, read, written)

    if neurons >= _FEW or steps < _LONG:
        launch("forward", (), inputs | {"state": state}, outputs)
        return spikes, is_open, final

    chunks = -(-steps // _CHUNK)
    mapped = scheme == "absolute" and period < _MAPPED
    arguments.span = _SPAN if mapped else chunks * _CHUNK
    spans = -(-steps // arguments.span)
    words = {"words": state.new_empty((chunks, neurons))}
    exits = {"exits": state.new_empty((spans - 1, period + 1, neurons) if mapped else 0, dtype=torch.uint8)}
    entries = {"entries": state.new_empty((chunks, neurons))}
    across = min(chunks, _GRID)
    launch("pack", (across,), inputs, words)
    if mapped:
        launch("tabulate", (period + 1, min(spans - 1, _GRID)), words, exits)
    launch("chain", (min(spans, _GRID),), {"state": state, **words, **exits}, entries)
    launch("emit", (across,), words | entries, outputs)
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
    steps, neurons = drive.shape[0], drive.shape[1:].numel()
    span = _SPAN if neurons >= _FEW else _SHORT_SPAN
    spans = -(-steps // span)
    outputs = {"grad_drive": drive.new_empty(drive.shape)}
    if need_threshold:
        outputs["grad_threshold"] = threshold.new_empty((spans, *drive.shape[1:]))
    arguments = _Arguments(steps=steps, neurons=neurons, span=span, kind=KINDS[kind], alpha=alpha)
    given, arguments.threshold_stride = _native.per_neuron(threshold, drive.shape[1:])
    _launch(
        "backward",
        drive.dtype,
        (-(-neurons // _THREADS), min(spans, _GRID)),
        arguments,
        {"drive": drive, "threshold": given, "grad_spikes": grad_spikes, "was_open": is_open},
        outputs,
    )
    if not need_threshold:
        return outputs["grad_drive"], None
    sums = _native.sum_to(outputs["grad_threshold"].sum(0, dtype=torch.float64), threshold.shape)
    return outputs["grad_drive"], sums.to(threshold.dtype)


def _launch(
    kernel: str,
    dtype: torch.dtype,
    grid: tuple[int, ...],
    arguments: _Arguments,
    inputs: dict[str, Tensor],
    outputs: dict[str, Tensor],
) -> None:
    _cupy.launch(
        _SOURCE,
        f"snn_fr_refractory_{kernel}",
        dtype,
        grid,
        _THREADS,
        arguments,
        inputs,
        outputs,
        flags=_FLAGS,
    )
