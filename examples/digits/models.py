"""The networks: plain or in residual blocks, made of the native types of snnTorch or SpikingJelly.

Nothing but ``SnnTorch`` and ``SpikingJelly`` below knows which framework is used: they make the neurons and
layers, and say how to run them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from snn_fr_plugin.memory import Leaky
from snn_fr_plugin.spiking import FixedRefractory
from snn_fr_plugin.systems import SpikingLayer

from .data import CLASSES

D_STATE = 16  # 8 pairs of complex modes a channel
DT = {"dt_min": 0.01, "dt_max": 0.5}  # modes that forget over 4 to 200 steps: a digit has 64
DECAY = 0.9  # initial decay per step of the leaky neurons; they learn it


class Framework(Protocol):
    """Native spiking types, each [T, B, C] -> spikes [T, B, C], for ``channels`` channels."""

    note: str
    refractory_period: int
    backend: str

    def lif(self, channels: int) -> nn.Module:
        """The framework's leaky integrate-and-fire neuron: learned decay, reset to zero."""

    def fr_lif(self, channels: int) -> nn.Module:
        """The same with a fixed refractory period."""

    def frssm(self, channels: int) -> nn.Module:
        """SpikingFRSSM with a norm on its drive."""

    def pssm(self, channels: int) -> nn.Module:
        """SpikingPSSM with a norm on its drive."""

    def run(self, spiking: Any, x: Tensor) -> Tensor:
        """The spikes of a sequence, from rest."""

    def membrane(self, neuron: Any, x: Tensor) -> Tensor:
        """The membrane of ``lif`` or ``fr_lif`` [T, B, C]."""


class SnnTorch:
    """snnTorch: a call returns ``spk, mem``; with ``multistep=True`` it is a sequence and begins at rest."""

    note = (
        "LIF is FRLeaky(refractory_period=0, multistep=True): snnTorch's Leaky to the last bit, without its "
        "loop, one learned decay a neuron"
    )

    def __init__(self, refractory_period: int, backend: str) -> None:
        from snn_fr_plugin.integrations import snntorch as fr

        self.fr, self.refractory_period, self.backend = fr, refractory_period, backend

    def _leaky(self, channels: int, refractory_period: int) -> nn.Module:
        return self.fr.FRLeaky(
            torch.full((channels,), DECAY),
            learn_beta=True,
            reset_mechanism="zero",
            refractory_period=refractory_period,
            multistep=True,
            backend=self.backend,
        )

    def lif(self, channels: int) -> nn.Module:
        return self._leaky(channels, 0)

    def fr_lif(self, channels: int) -> nn.Module:
        return self._leaky(channels, self.refractory_period)

    def frssm(self, channels: int) -> nn.Module:
        return self.fr.SpikingFRSSM(
            channels,
            D_STATE,
            refractory_period=self.refractory_period,
            norm="batch",
            backend=self.backend,
            **DT,
        )

    def pssm(self, channels: int) -> nn.Module:
        return self.fr.SpikingPSSM(channels, D_STATE, norm="batch", backend=self.backend, **DT)

    def run(self, spiking: Any, x: Tensor) -> Tensor:
        return spiking(x)[0]

    def membrane(self, neuron: Any, x: Tensor) -> Tensor:
        return neuron(x)[1]


class SpikingJelly:
    """SpikingJelly: ``step_mode="m"``, and modules keep their state until ``functional.reset_net``."""

    note = (
        "LIF is FRParametricLIFNode(refractory_period=0): SpikingJelly's ParametricLIFNode up to rounding, "
        "one learned decay for a layer"
    )

    def __init__(self, refractory_period: int, backend: str) -> None:
        from spikingjelly.activation_based import functional, surrogate

        from snn_fr_plugin.integrations.spikingjelly import layer, neuron

        self.layer, self.neuron = layer, neuron
        self.functional, self.surrogate = functional, surrogate
        self.refractory_period, self.backend = refractory_period, backend

    def _lif(self, period: int) -> nn.Module:
        return self.neuron.FRParametricLIFNode(
            init_tau=1 / (1 - DECAY),
            decay_input=False,
            surrogate_function=self.surrogate.ATan(),
            step_mode="m",
            refractory_period=period,
            backend=self.backend,
        )

    def lif(self, channels: int) -> nn.Module:
        return self._lif(0)

    def fr_lif(self, channels: int) -> nn.Module:
        return self._lif(self.refractory_period)

    def frssm(self, channels: int) -> nn.Module:
        return self.layer.SpikingFRSSM(
            channels,
            D_STATE,
            step_mode="m",
            refractory_period=self.refractory_period,
            norm="batch",
            backend=self.backend,
            **DT,
        )

    def pssm(self, channels: int) -> nn.Module:
        return self.layer.SpikingPSSM(
            channels, D_STATE, step_mode="m", norm="batch", backend=self.backend, **DT
        )

    def run(self, spiking: Any, x: Tensor) -> Tensor:
        self.functional.reset_net(spiking)
        out = spiking(x)
        return out[0] if isinstance(spiking, SpikingLayer) else out  # the core's return their state as well

    def membrane(self, neuron: Any, x: Tensor) -> Tensor:
        neuron.store_v_seq = True
        self.run(neuron, x)
        v_seq: Tensor = neuron.v_seq
        neuron.store_v_seq = False
        return v_seq


FRAMEWORKS: dict[str, type[SnnTorch] | type[SpikingJelly]] = {
    "snntorch": SnnTorch,
    "spikingjelly": SpikingJelly,
}


def decays(channels: int) -> Tensor:
    """Random decays per step with the time constants of the S4D modes."""
    dt = torch.empty(channels).uniform_(math.log(DT["dt_min"]), math.log(DT["dt_max"])).exp()
    return torch.exp(-dt)


class UnitInterval(nn.Module):
    """Keeps a learned decay between 0 and 1."""

    def forward(self, logit: Tensor) -> Tensor:
        return logit.sigmoid()

    def right_inverse(self, decay: Tensor) -> Tensor:
        return decay.logit()


def leaky_layer(channels: int, refractory_period: int, backend: str) -> SpikingLayer:
    """SpikingFRSSM with leaky integrators in place of its S4D memory; the core's, in either framework.

    As nothing resets the memory, the norm can stand between it and the threshold. The integrators start
    with the time constants of the S4D modes, and learn them.
    """
    memory = Leaky(decays(channels), learn_beta=True, backend=backend)
    register_parametrization(memory, "beta", UnitInterval())
    spiking = FixedRefractory(
        refractory_period, threshold=torch.ones(channels), learn_threshold=True, backend=backend
    )
    return SpikingLayer(memory, spiking, norm="batch", d_model=channels)


class ChannelNorm(nn.BatchNorm1d):
    """Batch norm of each channel over time and batch; affine in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view(x.shape)


class Stage(nn.Module):
    """A classic spiking stage: ``spikes = spiking(norm(W x + b))``, which are its output."""

    def __init__(self, d_in: int, channels: int, spiking: nn.Module, framework: Framework) -> None:
        super().__init__()
        self.prepare = nn.Sequential(nn.Linear(d_in, channels), ChannelNorm(channels))
        self.spiking, self.framework = spiking, framework

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes = self.framework.run(self.spiking, self.prepare(x))
        return spikes, spikes


class Block(nn.Module):
    """``snn_fr_plugin.systems.SpikingBlock`` around any spiking type, native ones included.

    ::

        spikes = spiking(prepare(x))
        out    = norm(x + dropout(GLU(W dropout(spikes) + b)))         W: H -> 2H

    ``prepare`` is the norm in front of a neuron with reset. The layers bring their own, between their memory
    and their threshold.
    """

    def __init__(
        self, channels: int, spiking: nn.Module, framework: Framework, prepare: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        self.prepare, self.spiking, self.framework = prepare, spiking, framework
        self.dropout = nn.Dropout(dropout)
        self.synapse = nn.Linear(channels, 2 * channels)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes = self.framework.run(self.spiking, self.prepare(x))
        current = nn.functional.glu(self.synapse(self.dropout(spikes)), -1)
        return self.norm(x + self.dropout(current)), spikes


class Network(nn.Module):
    """Two spiking stages or blocks, and a linear readout of their output's mean over time."""

    def __init__(self, encoder: nn.Module, stages: Sequence[nn.Module], channels: int) -> None:
        super().__init__()
        self.encoder, self.stages = encoder, nn.ModuleList(stages)
        self.readout = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Class scores [B, 10] of sequences [T, B, 1], and the spikes [T, B, C] of every stage."""
        x, every = self.encoder(x), []
        for stage in self.stages:
            x, spikes = stage(x)
            every.append(spikes)
        return self.readout(x.mean(0)), every


class Model(NamedTuple):
    """A row of the table: a spiking type in a network, with what trained it best on the validation part."""

    title: str
    spiking: Callable[[Framework, int], nn.Module]
    network: Callable[[Framework, int, Model], Network]
    epochs: int
    lr: float
    dropout: float = 0.1


def plain(framework: Framework, channels: int, model: Model) -> Network:
    """Two classic stages."""
    stages = [Stage(d, channels, model.spiking(framework, channels), framework) for d in (1, channels)]
    return Network(nn.Identity(), stages, channels)


def blocks(framework: Framework, channels: int, model: Model) -> Network:
    """Two blocks."""
    stages = []
    for _ in range(2):
        spiking = model.spiking(framework, channels)
        normed = any(isinstance(module, nn.BatchNorm1d) for module in spiking.modules())
        prepare = nn.Identity() if normed else ChannelNorm(channels)
        stages.append(Block(channels, spiking, framework, prepare, model.dropout))
    return Network(nn.Linear(1, channels), stages, channels)


MODELS: dict[str, Model] = {
    "lif": Model("LIF, plain", lambda f, c: f.lif(c), plain, 60, 5e-2),
    "fr-lif": Model("FR-LIF, plain", lambda f, c: f.fr_lif(c), plain, 60, 5e-2),
    "lif-block": Model("LIF, same block", lambda f, c: f.lif(c), blocks, 30, 2e-2, dropout=0.0),
    "leaky-block": Model(
        "LIF without reset, same block", lambda f, c: leaky_layer(c, 0, f.backend), blocks, 30, 2e-2
    ),
    "fr-lif-block": Model(
        "FR-LIF without reset, same block",
        lambda f, c: leaky_layer(c, f.refractory_period, f.backend),
        blocks,
        30,
        2e-2,
    ),
    "frssm": Model("SpikingFRSSM", lambda f, c: f.frssm(c), blocks, 20, 1e-2),
    "pssm": Model("SpikingPSSM", lambda f, c: f.pssm(c), blocks, 20, 1e-2),
}


def build(name: str, framework: Framework, channels: int = 64) -> Network:
    """The network of ``MODELS[name]``, freshly initialised."""
    model = MODELS[name]
    return model.network(framework, channels, model)


class Trace(NamedTuple):
    """What one stage of a network did with one sequence, on the CPU."""

    spikes: Tensor  # [T, C]
    memory: Tensor  # [T, C], what was compared with the threshold
    threshold: Tensor  # [C]
    refractory_period: int


@torch.no_grad()
def trace(network: Network, x: Tensor, stage: int = 0) -> Trace:
    """What a stage does with one sequence [T, 1, 1], in evaluation."""
    network.eval()
    x = network.encoder(x)
    for before in list(network.stages)[:stage]:
        x, _ = before(x)
    at: Any = network.stages[stage]
    x = at.prepare(x)
    spikes = at.framework.run(at.spiking, x)
    # what is inside an adapter's layer; a neuron has no such thing
    system = at.spiking if isinstance(at.spiking, SpikingLayer) else getattr(at.spiking, "system", None)
    if system is None:
        memory, threshold = at.framework.membrane(at.spiking, x), torch.ones(())
    else:
        memory, threshold = system.forward_with_drive(x)[1], _threshold(system.spiking)
    period = getattr(at.spiking if system is None else system.spiking, "refractory_period", 0)
    return Trace(spikes[:, 0].cpu(), memory[:, 0].cpu(), threshold.expand(spikes.shape[2]).cpu(), int(period))


def _threshold(spiking: Any) -> Tensor:
    """A PSN adds its bias to the drive and fires from 0 on."""
    return -spiking.bias if hasattr(spiking, "bias") else spiking.threshold
