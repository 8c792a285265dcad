"""SpikingJelly's surrogate modules as those of ``snn_fr_plugin.surrogate``, which the operators fuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from spikingjelly.activation_based import surrogate as theirs
from torch import Tensor

from snn_fr_plugin import surrogate as ours

__all__ = ["translate"]

# theirs -> ours; not every release has every one
_NAMES = {
    "Sigmoid": ours.Sigmoid,
    "ATan": ours.ATan,
    "SoftSign": ours.SoftSign,
    "SuperSpike": ours.SuperSpike,
    "Erf": ours.Erf,
    "PiecewiseQuadratic": ours.PiecewiseQuadratic,
    "PiecewiseExp": ours.PiecewiseExp,
    "Rect": ours.Rectangle,
}
_FUSED: dict[type, Callable[[float], ours.Surrogate]] = {
    getattr(theirs, name): kind for name, kind in _NAMES.items() if hasattr(theirs, name)
}


def translate(function: Any) -> Callable[[Tensor], Tensor]:
    """Ours where ``function`` is exactly one of SpikingJelly's spiking surrogates, else ``function`` itself.

    A subclass may compute anything, ``spiking=False`` is not a spike, and a learnable ``alpha`` needs its
    gradient: these stay as they are.
    """
    kind = _FUSED.get(type(function))
    if kind is None or not function.spiking:
        return function
    alpha = function.alpha
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        return function
    return kind(alpha)
