"""The parallel spiking sequence models: pairs of a memory and a spiking module, and their residual blocks.

================ ================= =====================================
system           memory            spiking module
================ ================= =====================================
SpikingFRSSM     S4D               FixedRefractory
SpikingPSSM      S4D               SlidingPSN, MaskedPSN or PSN
SpikingSSM       S4D               SurrogateDynamicsLIF
SPikESSM         S4D               BoundaryCompressedLIF
PSpikeSSM        S4D (LegS)        BernoulliSampler
PMSN             MultiCompartment  CumulativeThreshold
PRF              Resonator         Threshold
BinaryS4D        S4D               Threshold
================ ================= =====================================

Any other pair is a ``SpikingLayer(memory, spiking)``.
"""

from .blocks import SpikeResidualBlock, SpikingBlock, paper_block
from .layer import SpikingLayer, SpikingLayerState
from .optim import param_groups
from .pairings import (
    PMSN,
    PRF,
    BinaryS4D,
    PSpikeSSM,
    S4DOptions,
    SPikESSM,
    SpikingFRSSM,
    SpikingPSSM,
    SpikingSSM,
)

__all__ = [
    "PMSN",
    "PRF",
    "BinaryS4D",
    "PSpikeSSM",
    "S4DOptions",
    "SPikESSM",
    "SpikeResidualBlock",
    "SpikingBlock",
    "SpikingFRSSM",
    "SpikingLayer",
    "SpikingLayerState",
    "SpikingPSSM",
    "SpikingSSM",
    "paper_block",
    "param_groups",
]
