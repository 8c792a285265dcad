"""Spiking modules: which instants of a memory are sent on as binary spikes."""

from .psn import PSN, MaskedPSN, PSNState, SlidingPSN
from .refractory import FixedRefractory
from .threshold import Threshold

__all__ = ["PSN", "FixedRefractory", "MaskedPSN", "PSNState", "SlidingPSN", "Threshold"]
