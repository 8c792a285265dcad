"""``ops.lif`` by ``kernel.cpp``: one pass over memory forward, one and a half backward.

Every neuron is computed by one thread in one order: results do not depend on the thread count.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .. import _compile, _native
from . import compiled
from .compiled import Arguments, saved_shapes

__all__ = ["SAVES_SPIKES", "backward", "forward", "saved_shapes"]

SAVES_SPIKES = False  # the backward replays them

_SOURCE = Path(__file__).with_name("kernel.cpp")


def _run(name: str, arguments: Arguments, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    arguments.threads = torch.get_num_threads()
    library = _compile.load(_SOURCE, inputs["x"].dtype, f"-DSNN_FR_CHARGE={arguments.charge}")
    _native.call(getattr(library, f"snn_fr_lif_{name}"), arguments, inputs, outputs)


forward = partial(compiled.forward, _run)
backward = partial(compiled.backward, _run)
