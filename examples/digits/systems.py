"""The networks of ``compare_systems.py``: every system in the block of its paper, at equal parameters."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from snn_fr_plugin.spiking import LIF
from snn_fr_plugin.systems import (
    PMSN,
    PRF,
    BinaryS4D,
    PSpikeSSM,
    SPikESSM,
    SpikingFRSSM,
    SpikingLayer,
    SpikingPSSM,
    SpikingSSM,
    paper_block,
)

from .models import D_STATE, DT, Network, Stage, UnitInterval, decays, leaky_layer

PARAMETERS = 22_400  # of every network: what SpikingFRSSM has with 64 channels, to ten
REFRACTORY_PERIOD = 2


class NoMemory(nn.Module):
    """y = x: before a neuron that leaks and resets, and so is its own memory."""

    def forward(self, x_seq: Tensor, state: None = None) -> tuple[Tensor, None]:
        return x_seq, None

    def step(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return x, None

    def initial_state(self, x: Tensor) -> None:
        return None


def lif_layer(channels: int, backend: str) -> SpikingLayer:
    """LIF neurons with soft reset behind a norm. They learn decay and threshold, as ``leaky_layer`` does."""
    neuron = LIF(
        decays(channels),
        "subtract",
        threshold=torch.ones(channels),
        learn_threshold=True,
        backend=backend,
    )
    beta = nn.Parameter(neuron.beta)
    del neuron.beta  # a buffer
    neuron.beta = beta
    register_parametrization(neuron, "beta", UnitInterval())
    return SpikingLayer(NoMemory(), neuron, norm="batch", d_model=channels)


def prf_layer(channels: int, backend: str) -> SpikingLayer:
    """PRF with the time constants of the other memories."""
    return PRF(channels, tau=-1 / decays(channels).log(), backend=backend)


class System(NamedTuple):
    """A row of the table."""

    title: str
    memory: Literal["S4D", "other modes", "leaky"]  # its kind, by which the figure colours
    layer: Callable[[int, str], SpikingLayer]  # of so many channels, on a backend
    lr: float
    epochs: int
    is_control: bool = False


def _frssm(channels: int, backend: str) -> SpikingLayer:
    return SpikingFRSSM(channels, D_STATE, refractory_period=REFRACTORY_PERIOD, backend=backend, **DT)


def _pmsn(channels: int, backend: str) -> SpikingLayer:
    return PMSN(channels, backend=backend, **DT)


def _fr_lif(channels: int, backend: str) -> SpikingLayer:
    return leaky_layer(channels, REFRACTORY_PERIOD, backend)


def _leaky(channels: int, backend: str) -> SpikingLayer:
    return leaky_layer(channels, 0, backend)


def _of(system: Any) -> Callable[[int, str], SpikingLayer]:
    return lambda channels, backend: system(channels, D_STATE, backend=backend, **DT)


SYSTEMS: dict[str, System] = {
    "frssm": System("SpikingFRSSM", "S4D", _frssm, 1e-2, 20),
    "pssm": System("SpikingPSSM", "S4D", _of(SpikingPSSM), 1e-2, 20),
    "spikingssm": System("SpikingSSM", "S4D", _of(SpikingSSM), 1e-2, 20),
    "spikessm": System("SPikE-SSM", "S4D", _of(SPikESSM), 1e-2, 20),
    "pspikessm": System("P-SpikeSSM", "S4D", _of(PSpikeSSM), 1e-2, 20),
    "pmsn": System("PMSN", "other modes", _pmsn, 1e-2, 20),
    "prf": System("PRF", "other modes", prf_layer, 1e-2, 20),
    "fr-lif": System("FR-LIF", "leaky", _fr_lif, 2e-2, 30),
    "lif": System("LIF", "leaky", lif_layer, 2e-2, 30),
    "binary-s4d": System("S4D, plain threshold", "S4D", _of(BinaryS4D), 1e-2, 20, is_control=True),
    "leaky": System("LIF without reset", "leaky", _leaky, 2e-2, 30, is_control=True),
}


class PaperBlock(nn.Module):
    """The package's ``paper_block``, which gives the spikes of its layer as well."""

    def __init__(self, layer: SpikingLayer) -> None:
        super().__init__()
        self.block = paper_block(layer)
        self.spikes = torch.empty(0)
        layer.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: Any, outputs: tuple[Tensor, Any]) -> None:
        self.spikes = outputs[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.block(x)
        return y, self.spikes


class Plainly:
    """How ``Stage`` runs a layer of the package itself."""

    @staticmethod
    def run(layer: Any, x: Tensor) -> Tensor:
        """The spikes of a sequence, from rest."""
        spikes: Tensor = layer(x)[0]
        return spikes


def build(name: str, channels: int, backend: str = "auto") -> Network:
    """Two spiking layers of ``channels``, between a linear encoder and a linear readout.

    Each is in the block of its paper. PMSN's reads spikes and adds spikes to them, so its first layer stands
    directly behind the encoder and a norm.
    """
    first, second = (SYSTEMS[name].layer(channels, backend) for _ in range(2))
    if isinstance(first, PMSN):
        return Network(nn.Identity(), [Stage(1, channels, first, Plainly()), PaperBlock(second)], channels)
    return Network(nn.Linear(1, channels), [PaperBlock(first), PaperBlock(second)], channels)


def parameters(network: nn.Module) -> int:
    """How many numbers it learns. The 153 weights of SpikingSSM's frozen network are none of them."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def channels_for(name: str, budget: int = PARAMETERS) -> int:
    """The channels with which the network of a system comes closest to ``budget`` parameters.

    Raises:
        ValueError: even 2 channels are too many, or 255 too few.
    """

    def size(channels: int) -> int:
        return parameters(build(name, channels))

    above = bisect_left(range(256), budget, lo=2, key=size)
    if not 2 < above < 256:
        raise ValueError(f"budget must be between {size(2)} and {size(255)} parameters, got {budget}")
    return min(above - 1, above, key=lambda channels: abs(size(channels) - budget))


def deploy(network: nn.Module) -> None:
    """Put the exact neurons of SpikingSSM and SPikE-SSM in place of what made them parallel in training."""
    for module in network.modules():
        if hasattr(module, "exact"):
            module.exact = True
