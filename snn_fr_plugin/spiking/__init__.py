"""Spiking modules: which instants of a memory are sent on as binary spikes."""

from .bernoulli import BernoulliSampler
from .boundary import BoundaryCompressedLIF
from .cumulative import CumulativeThreshold
from .lif import LIF
from .psn import PSN, MaskedPSN, PSNState, SlidingPSN
from .refractory import FixedRefractory
from .sdn import SurrogateDynamics, SurrogateDynamicsLIF
from .threshold import Threshold

__all__ = [
    "LIF",
    "PSN",
    "BernoulliSampler",
    "BoundaryCompressedLIF",
    "CumulativeThreshold",
    "FixedRefractory",
    "MaskedPSN",
    "PSNState",
    "SlidingPSN",
    "SurrogateDynamics",
    "SurrogateDynamicsLIF",
    "Threshold",
]
