"""What the compiled providers of ``ops.lif`` share: arguments of their kernels, and the tensors around them.

A kernel that ``repeats`` (the CPU's) takes a parameter per channel as it is, and sums its gradient.

Forward keeps the state every 32 steps; backward replays each chunk of 32 from there, so that neither the
membrane nor the gate is stored.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ... import surrogate
from .. import _native
from .mode import EXTERNAL, Mode

CHUNK = 32  # steps between checkpoints
_CHARGES = {"beta": 0, "tau_input": 1, "tau": 2}
_RESETS = {
    ("none", False): 0,
    ("subtract", False): 1,
    ("zero", False): 2,
    ("subtract", True): 3,
    ("zero", True): 4,
}
_KINDS = {kind: i for i, kind in enumerate(surrogate.KINDS)} | {EXTERNAL: -1}
_OUTPUTS = ("spikes", "membrane", "charged", "is_open", "v", "refractory", "checkpoints")


class Arguments(ctypes.Structure):
    """``struct Arguments`` of ``arguments.h``, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "neurons")),
        *((name, ctypes.c_double) for name in ("v_reset", "alpha")),
        *(
            (name, ctypes.c_int)
            for name in (
                *("charge", "reset", "period", "integrate", "inclusive", "attached", "kind", "threads"),
            )
        ),
        *((name, ctypes.c_int64) for name in ("decay_values", "threshold_values", "magnitude_values")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("x", "v0", "decay", "threshold", "magnitude", "refractory0", "checkpoints"),
                *("spikes", "membrane", "charged", "v", "is_open", "refractory"),
                *("grad_spikes", "grad_membrane", "grad_charged", "grad_v"),
                *("grad_x", "grad_v0", "grad_decay", "grad_threshold", "grad_magnitude"),
            )
        ),
    )


# "forward" or "backward", the arguments but for their tensors, and the tensors by name
Run = Callable[[str, Arguments, dict[str, Tensor], dict[str, Tensor]], None]


def saved_shapes(
    shape: torch.Size, mode: Mode, want_charged: bool, save: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of ``charged``, ``is_open`` and ``checkpoints`` (v and refractory before steps 32, 64, ...)."""
    charged = tuple(shape) if want_charged else (0,)
    is_open = tuple(shape) if mode.kind == EXTERNAL else (0,)
    checkpoints = (max(shape[0] - 1, 0) // CHUNK, 2, *shape[1:]) if save else (0,)
    return charged, is_open, checkpoints


@functools.lru_cache
def _arguments(mode: Mode) -> Arguments:
    """The arguments that ``mode`` decides."""
    return Arguments(
        v_reset=mode.v_reset,
        alpha=mode.alpha,
        charge=_CHARGES[mode.charge],
        reset=_RESETS[mode.reset, mode.reset_delay and mode.reset != "none"],
        period=mode.period,
        integrate=not mode.ignore,
        inclusive=mode.inclusive,
        attached=not mode.detach_reset,
        kind=_KINDS[mode.kind],
    )


def _values(parameter: Tensor, shape: torch.Size, repeats: bool) -> Tensor:
    """A parameter as its kernel takes it: one value, one a neuron, or, if that ``repeats`` them, those of the
    last dimensions, which begin anew where they end.
    """
    if repeats and parameter.shape == shape[len(shape) - parameter.dim() :]:
        return parameter
    return _native.per_neuron(parameter, shape)[0]


def forward(
    run: Run,
    repeats: bool,
    x: Tensor,
    v0: Tensor,
    refractory0: Tensor,
    decay: Tensor,
    threshold: Tensor,
    magnitude: Tensor,
    mode: Mode,
    want_membrane: bool,
    want_charged: bool,
    save: bool,
) -> tuple[Tensor | None, ...]:
    """Outputs of the operator, in its order, ``None`` for one that was not asked for."""
    outputs = {"spikes": _native.empty(x), "v": _native.empty(v0), "refractory": _native.empty(refractory0)}
    if want_membrane:
        outputs["membrane"] = _native.empty(x, v0.dtype)
    if want_charged:
        outputs["charged"] = _native.empty(x, v0.dtype)
    if mode.kind == EXTERNAL:
        outputs["is_open"] = _native.empty(x, torch.bool)
    if save:
        outputs["checkpoints"] = v0.new_empty(saved_shapes(x.shape, mode, want_charged, save)[2])
    inputs = {"x": x, "v0": v0, "refractory0": refractory0}
    parameters = {"decay": decay, "threshold": threshold, "magnitude": magnitude}
    for name, parameter in parameters.items():
        inputs[name] = _values(parameter, v0.shape, repeats)
    _call(run, "forward", mode, inputs, outputs)
    return tuple(map(outputs.get, _OUTPUTS))


def backward(
    run: Run,
    repeats: bool,
    grad_spikes: Tensor | None,
    grad_membrane: Tensor | None,
    grad_charged: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    v0: Tensor,
    refractory0: Tensor,
    decay: Tensor,
    threshold: Tensor,
    magnitude: Tensor,
    spikes: Tensor | None,
    charged: Tensor | None,
    is_open: Tensor | None,
    checkpoints: Tensor,
    mode: Mode,
    need_decay: bool,
    need_threshold: bool,
    need_magnitude: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, v0, decay, threshold and magnitude (``None`` where not needed)."""
    inputs = _native.given(
        x=x,
        v0=v0,
        refractory0=refractory0,
        checkpoints=checkpoints,
        grad_spikes=grad_spikes,
        grad_membrane=grad_membrane,
        grad_charged=grad_charged,
        grad_v=grad_v,
    )
    outputs = {"grad_x": _native.empty(x), "grad_v0": _native.empty(v0)}
    parameters = (
        ("decay", decay, need_decay),
        ("threshold", threshold, need_threshold),
        ("magnitude", magnitude, need_magnitude),
    )
    for name, parameter, needed in parameters:
        inputs[name] = values = _values(parameter, v0.shape, repeats)
        if needed:
            outputs[f"grad_{name}"] = _native.empty(values if repeats else v0)
    _call(run, "backward", mode, inputs, outputs)
    grad_decay, grad_threshold, grad_magnitude = (
        _native.sum_to(outputs[f"grad_{name}"], parameter.shape).to(parameter.dtype) if needed else None
        for name, parameter, needed in parameters
    )
    return outputs["grad_x"], outputs["grad_v0"], grad_decay, grad_threshold, grad_magnitude


def _call(run: Run, name: str, mode: Mode, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    arguments = Arguments.from_buffer_copy(_arguments(mode))
    arguments.steps, arguments.neurons = inputs["x"].shape[0], inputs["v0"].numel()
    arguments.decay_values = inputs["decay"].numel()
    arguments.threshold_values = inputs["threshold"].numel()
    arguments.magnitude_values = inputs["magnitude"].numel()
    run(name, arguments, inputs, outputs)
