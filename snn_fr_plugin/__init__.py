"""Fixed-refractory spiking neurons and parallel state-space spiking layers for snnTorch and SpikingJelly."""

from . import discretize, encoding, memory, ops, spiking, surrogate, systems
from ._alloc import enable_fast_alloc
from ._version import __version__
from .memory import S4D, Bidirectional, Leaky, MultiCompartment, Resonator
from .spiking import (
    LIF,
    PSN,
    BernoulliSampler,
    BoundaryCompressedLIF,
    CumulativeThreshold,
    FixedRefractory,
    MaskedPSN,
    SlidingPSN,
    SurrogateDynamicsLIF,
    Threshold,
)
from .systems import (
    PMSN,
    PRF,
    BinaryS4D,
    PSpikeSSM,
    SPikESSM,
    SpikingBlock,
    SpikingFRSSM,
    SpikingLayer,
    SpikingPSSM,
    SpikingSSM,
)

__all__ = [
    "LIF",
    "PMSN",
    "PRF",
    "PSN",
    "S4D",
    "BernoulliSampler",
    "Bidirectional",
    "BinaryS4D",
    "BoundaryCompressedLIF",
    "CumulativeThreshold",
    "FixedRefractory",
    "Leaky",
    "MaskedPSN",
    "MultiCompartment",
    "PSpikeSSM",
    "Resonator",
    "SPikESSM",
    "SlidingPSN",
    "SpikingBlock",
    "SpikingFRSSM",
    "SpikingLayer",
    "SpikingPSSM",
    "SpikingSSM",
    "SurrogateDynamicsLIF",
    "Threshold",
    "__version__",
    "discretize",
    "enable_fast_alloc",
    "encoding",
    "memory",
    "ops",
    "spiking",
    "surrogate",
    "systems",
]
