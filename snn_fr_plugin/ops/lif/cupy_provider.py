"""``ops.lif`` by ``kernel.cu``: one pass over memory forward, one and a half backward.

A neuron is computed by one thread in one order, with the operations of ``step.h``, each rounded on its own:
spikes and membranes have the bits of the other providers. The kernels have been compiled for GPUs and run on
a CPU (``tests/cuda_shim.h``), not yet on a GPU.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from .. import _cupy
from . import compiled
from .compiled import Arguments, saved_shapes

__all__ = ["SAVES_SPIKES", "backward", "forward", "saved_shapes"]

SAVES_SPIKES = False  # the backward replays them

_SOURCE = Path(__file__).with_name("kernel.cu")
_THREADS = 64  # of a block
_FEW = 24_576  # neurons below which more loads in flight pay for the registers that they take
_HALF = ((1, 16), (2, 16), (2, 32))
# Lanes and tiles that kernels are compiled for; the longer tile is for few neurons. Two tiles of 32 words are
# what registers hold; a half on its own takes a word too, and more to unpack it.
SHAPES = {
    torch.float32: ((1, 16), (1, 32)),
    torch.float64: ((1, 4),),
    torch.float16: _HALF,
    torch.bfloat16: _HALF,
}

_RESETS_AT_ONCE = (1, 2)  # numbers of step.h
_BEYOND_X = {"grad_membrane", "grad_charged", "grad_decay", "grad_threshold", "grad_magnitude"}


def _run(name: str, arguments: Arguments, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    x, neurons = inputs["x"], arguments.neurons
    lanes = 1
    if x.dtype.itemsize == 2 and neurons % 2 == 0:
        rows = (inputs.get("x"), inputs.get("grad_spikes"), outputs.get("spikes"), outputs.get("grad_x"))
        lanes = 1 if any(row is not None and row.data_ptr() % 4 for row in rows) else 2
    tiles = [tile for wide, tile in SHAPES[x.dtype] if wide == lanes]
    tile = tiles[-1 if neurons < _FEW else 0]
    _cupy.launch(
        _SOURCE,
        f"snn_fr_lif_{name}{_variant(name, arguments, inputs, outputs)}",
        x.dtype,
        -(-neurons // (lanes * _THREADS)),
        _THREADS,
        arguments,
        inputs,
        outputs,
        flags=flags(arguments.charge, arguments.reset, lanes, tile),
    )


def _variant(
    name: str, arguments: Arguments, inputs: dict[str, Tensor], outputs: dict[str, Tensor]
) -> str:
    """Which kernel does no more than is asked for."""
    asked = {tensor for tensor, given in (inputs | outputs).items() if given.numel()}
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
def flags(charge: int, reset: int, lanes: int, tile: int) -> tuple[str, ...]:
    """What the kernels are compiled with: no contraction to FMA, and what they are specialised for."""
    return (
        "--fmad=false",
        f"-DSNN_FR_CHARGE={charge}",
        f"-DSNN_FR_RESET={reset}",
        f"-DSNN_FR_LANES={lanes}",
        f"-DSNN_FR_TILE={tile}",
    )


forward = partial(compiled.forward, _run)
backward = partial(compiled.backward, _run)
