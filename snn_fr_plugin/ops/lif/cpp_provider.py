"""``ops.lif`` by ``kernel.cpp``: one pass over memory forward, one and a half backward.

Every neuron is computed by one thread in one order: results do not depend on the thread count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

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
    _native.call(_kernel(name, inputs["x"].dtype, arguments.charge), arguments, inputs, outputs)


@cache
def _kernel(name: str, dtype: torch.dtype, charge: int) -> Callable[..., Any]:
    library = _compile.load(_SOURCE, dtype, f"-DSNN_FR_CHARGE={charge}")
    kernel: Callable[..., Any] = getattr(library, f"snn_fr_lif_{name}")
    return kernel


forward = partial(compiled.forward, _run, True)
backward = partial(compiled.backward, _run, True)
