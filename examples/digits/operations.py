"""What an inference costs: the arithmetic of one sequence, step by step, and its energy by convention.

An operation on real values is a multiply-accumulate (MAC), 4.6 pJ; a spike that enters a synapse is an
accumulate (AC), 0.9 pJ, for every target it reaches: the customary figures for 32-bit floats in a 45 nm
process (M. Horowitz, ISSCC 2014). Every network is counted in the recurrent form in which it would run
step by step:

===================================== ==========================================================
linear map, real input                a MAC for each input and output
linear map, spikes                    an AC for each spike and output; whole numbers count as so many spikes
S4D, MultiCompartment                 6 MACs for each complex mode and step: 4 multiply the state, 2 read it;
                                      D as a linear map to one output
Resonator                             4 MACs: the read-out of Re u is free, its factor folded
Leaky, neurons that leak              1 MAC: the decay
SlidingPSN                            k MACs
GLU, GELU                             1 MAC: the product; not the sigmoid or the distribution function
norm, affine map                      0 behind a linear map, into which they are folded; 1 MAC elsewhere
===================================== ==========================================================

Not counted: memory access, plain additions (biases, residuals, the reset, the mean over time), comparisons,
random numbers. The memories compute in floating point, which no neuromorphic chip does for nothing: where
they dominate, fewer spikes save little energy.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snn_fr_plugin.memory import S4D, Leaky, MultiCompartment, Resonator
from snn_fr_plugin.spiking import LIF, BoundaryCompressedLIF, SlidingPSN, SurrogateDynamicsLIF
from snn_fr_plugin.systems import PSpikeSSM, SpikingBlock

from .models import Network
from .systems import NoMemory

PJ_PER_MAC, PJ_PER_AC = 4.6, 0.9


class Operations(NamedTuple):
    """Of one inference, in the mean over sequences."""

    macs: float
    acs: float  # synaptic operations: spikes times the targets they reach

    @property
    def energy(self) -> float:
        """In nJ."""
        return (PJ_PER_MAC * self.macs + PJ_PER_AC * self.acs) / 1000


@singledispatch
def macs_per_channel(module: nn.Module) -> int:
    """MACs for each channel and step that do not depend on what the module reads."""
    return 0


@macs_per_channel.register
def _(module: S4D) -> int:
    return 6 * (module.d_state // 2)


@macs_per_channel.register
def _(module: MultiCompartment) -> int:
    return 6 * module.d_state


@macs_per_channel.register
def _(module: Resonator) -> int:
    return 4


@macs_per_channel.register(Leaky)
@macs_per_channel.register(LIF)
@macs_per_channel.register(SurrogateDynamicsLIF)
@macs_per_channel.register(BoundaryCompressedLIF)
@macs_per_channel.register(NoMemory)  # the norm behind it has no linear map to be folded into
@macs_per_channel.register(PSpikeSSM)  # its affine map and norm before the sampling
def _(module: nn.Module) -> int:
    return 1


@macs_per_channel.register
def _(module: SlidingPSN) -> int:
    return module.k


@macs_per_channel.register
def _(module: SpikingBlock) -> int:
    return 1 + (module.norm is not None)  # the product of GLU or GELU, the norm behind the residual


@singledispatch
def outputs_per_input(module: nn.Module) -> int:
    """How many outputs each number reaches that enters a linear map."""
    return 0


@outputs_per_input.register
def _(module: nn.Linear) -> int:
    return module.out_features


@outputs_per_input.register(S4D)
@outputs_per_input.register(MultiCompartment)
def _(module: nn.Module) -> int:
    return 1  # D


@torch.no_grad()
def count(network: Network, x: Tensor) -> Operations:
    """The operations of a network in evaluation, in the mean over the sequences x [T, N, *]."""
    steps, sequences = x.shape[:2]
    channels = network.readout.in_features  # of every layer
    macs = sequences * steps * channels * sum(map(macs_per_channel, network.modules()))
    acs = 0.0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        nonlocal macs, acs
        read, outputs = inputs[0], outputs_per_input(module)
        if torch.equal(read, read.round()):
            acs += outputs * read.double().sum().item()
        else:
            macs += outputs * read.numel()

    maps = [module for module in network.modules() if outputs_per_input(module)]
    hooks = [module.register_forward_hook(add) for module in maps]
    try:
        network.eval()(x)
    finally:
        for hook in hooks:
            hook.remove()
    return Operations(macs / sequences, acs / sequences)
