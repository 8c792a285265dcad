"""What the compiled providers of ``ops.lif`` share: arguments of their kernels, and the tensors around them.

Forward keeps the state every 32 steps; backward replays each chunk of 32 from there, so that neither the
membrane nor the gate is stored.
"""

from __future__ import annotations

import ctypes
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
                *("decay_stride", "threshold_stride", "magnitude_stride"),
            )
        ),
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


def forward(
    run: Run,
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
    _call(
        run,
        "forward",
        mode,
        {"x": x, "v0": v0, "refractory0": refractory0},
        {"decay": decay, "threshold": threshold, "magnitude": magnitude},
        outputs,
    )
    return tuple(map(outputs.get, _OUTPUTS))


def backward(
    run: Run,
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
    parameters = {"decay": decay, "threshold": threshold, "magnitude": magnitude}
    needed = {"decay": need_decay, "threshold": need_threshold, "magnitude": need_magnitude}
    outputs = {"grad_x": _native.empty(x), "grad_v0": _native.empty(v0)}
    per_neuron = {name: _native.empty(v0) for name in parameters if needed[name]}
    _call(
        run,
        "backward",
        mode,
        _native.given(
            x=x,
            v0=v0,
            refractory0=refractory0,
            checkpoints=checkpoints,
            grad_spikes=grad_spikes,
            grad_membrane=grad_membrane,
            grad_charged=grad_charged,
            grad_v=grad_v,
        ),
        parameters,
        outputs | {f"grad_{name}": grad for name, grad in per_neuron.items()},
    )
    gradients = [
        _native.sum_to(per_neuron[name], p.shape).to(p.dtype) if needed[name] else None
        for name, p in parameters.items()
    ]
    return outputs["grad_x"], outputs["grad_v0"], gradients[0], gradients[1], gradients[2]


def _call(
    run: Run,
    name: str,
    mode: Mode,
    inputs: dict[str, Tensor],
    parameters: dict[str, Tensor],
    outputs: dict[str, Tensor],
) -> None:
    x, v0 = inputs["x"], inputs["v0"]
    arguments = Arguments(
        steps=x.shape[0],
        neurons=v0.numel(),
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
    for field, parameter in parameters.items():
        inputs[field], stride = _native.per_neuron(parameter, v0.shape)
        setattr(arguments, f"{field}_stride", stride)
    run(name, arguments, inputs, outputs)
