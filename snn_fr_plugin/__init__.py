"""Fixed-refractory spiking neurons and parallel state-space spiking layers for snnTorch and SpikingJelly."""

from . import discretize, memory, ops, spiking, surrogate, systems
from ._alloc import enable_fast_alloc
from ._version import __version__
from .memory import S4D, Leaky, Resonator
from .spiking import PSN, FixedRefractory, MaskedPSN, SlidingPSN, Threshold
from .systems import BinaryS4D, SpikingBlock, SpikingFRSSM, SpikingLayer, SpikingPSSM

__all__ = [
    "PSN",
    "S4D",
    "BinaryS4D",
    "FixedRefractory",
    "Leaky",
    "MaskedPSN",
    "Resonator",
    "SlidingPSN",
    "SpikingBlock",
    "SpikingFRSSM",
    "SpikingLayer",
    "SpikingPSSM",
    "Threshold",
    "__version__",
    "discretize",
    "enable_fast_alloc",
    "memory",
    "ops",
    "spiking",
    "surrogate",
    "systems",
]
