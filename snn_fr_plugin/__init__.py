"""Fixed-refractory spiking neurons and parallel state-space spiking layers for snnTorch and SpikingJelly."""

from . import ops, surrogate
from ._version import __version__

__all__ = ["__version__", "ops", "surrogate"]
