"""``ops.lif`` by ``forward.cu`` and ``backward.cu``: one pass over memory forward, one and a half backward.

A neuron is computed by one thread in one order, with the operations of ``step.h``, each rounded on its own:
spikes and membranes have the bits of the other providers. Shapes are those that were fastest on an H200.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

from torch import Tensor

from .. import _cupy
from . import compiled
from .compiled import Arguments, saved_shapes

__all__ = ["SAVES_SPIKES", "backward", "forward", "saved_shapes"]

SAVES_SPIKES = False  # the backward replays them

_SOURCES = {name: Path(__file__).with_name(f"{name}.cu") for name in ("forward", "backward")}
_THREADS = 64  # of a block
_MANY = 49_152  # neurons from which on a thread of the forward takes two in half precision
ALONE = 4  # the reset (number of step.h) with which two do not fit the registers

_RESETS_AT_ONCE = (1, 2)  # numbers of step.h
_BEYOND_X = {"grad_membrane", "grad_charged", "grad_decay", "grad_threshold", "grad_magnitude"}


def _run(name: str, arguments: Arguments, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    neurons = arguments.neurons
    lanes = 1
    if name == "forward" and arguments.reset != ALONE:
        lanes = _lanes(inputs["x"], outputs["spikes"], neurons)
    _cupy.launch(
        _SOURCES[name],
        f"snn_fr_lif_{name}{_variant(name, arguments, inputs, outputs)}",
        inputs["x"].dtype,
        -(-neurons // (lanes * _THREADS)),
        _THREADS,
        arguments,
        inputs,
        outputs,
        flags=flags(arguments.charge, arguments.reset, lanes),
    )


def _lanes(x: Tensor, spikes: Tensor, neurons: int) -> int:
    """Neurons of a thread of the forward."""
    if x.dtype.itemsize != 2 or neurons < _MANY or neurons % 2:
        return 1
    return 1 if x.data_ptr() % 4 or spikes.data_ptr() % 4 else 2


def _variant(name: str, arguments: Arguments, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> str:
    """Which kernel does no more than is asked for."""
    asked = inputs.keys() | outputs.keys()
    if name == "backward":
        plain = "grad_spikes" in asked and asked.isdisjoint(_BEYOND_X)
        return "" if plain and arguments.integrate else "_full"
    traces = len(asked & {"membrane", "charged"})
    if traces == 2 or "is_open" in asked or not arguments.integrate:
        return "_full"
    if traces and arguments.reset in _RESETS_AT_ONCE and "charged" in asked:
        return "_full"  # which is not the membrane there
    return "_membrane" if traces else ""


@cache
def flags(charge: int, reset: int, lanes: int) -> tuple[str, ...]:
    """What a kernel is compiled with: no contraction to FMA, and what it is specialised for."""
    return (
        "--fmad=false",
        f"-DSNN_FR_CHARGE={charge}",
        f"-DSNN_FR_RESET={reset}",
        f"-DSNN_FR_LANES={lanes}",
    )


forward = partial(compiled.forward, _run, False)
backward = partial(compiled.backward, _run, False)
