"""The published vectors of the systems' parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snn_fr_plugin.memory import MultiCompartment
from snn_fr_plugin.spiking import LIF, BernoulliSampler, BoundaryCompressedLIF, CumulativeThreshold
from snn_fr_plugin.spiking import SurrogateDynamicsLIF as SDN

from .support import assert_some_spikes


def bits(spikes: Tensor) -> str:
    return "".join(str(int(s)) for s in spikes.flatten())


def test_compartments() -> None:
    memory = MultiCompartment(1, dt_min=0.01, dt_max=0.01).double()
    modes = torch.tensor([-18.2514077, -4.10927208, 4.10927208, 18.2514077], dtype=torch.float64)
    torch.testing.assert_close(memory.A_imag[0], modes, rtol=0, atol=1e-6)
    torch.nn.init.zeros_(memory.D)
    torch.nn.init.constant_(memory.log_dt, math.log(0.01))
    impulse = torch.eye(5, 1, dtype=torch.float64)[..., None]
    expected = torch.tensor([0.00921681, 0.0076319, 0.00605111, 0.00451613, 0.00306642]).double()
    torch.testing.assert_close(memory(impulse)[0].flatten(), expected, rtol=0, atol=1e-8)


def test_lif_and_its_stand_ins() -> None:
    x = torch.tensor([0.5, 0.9, 1.2, 0.2, 0.99, 0.1, 0.95])[:, None]
    for neuron in (LIF(0.125), SDN(exact=True), SDN()):
        assert bits(neuron(x)[0]) == "0010100"


def test_the_network_agrees_with_the_neuron_on_fresh_traces() -> None:
    x = torch.randn(1024, 200)
    spikes = LIF(0.125)(x)[0]
    assert torch.equal(SDN(exact=True)(x)[0], spikes)
    assert (SDN()(x)[0] == spikes).double().mean() >= 0.999


def test_bounds_hold_the_truth_and_resolve_what_is_published() -> None:
    x = torch.randn(1000, 50, dtype=torch.float64)
    for beta, fraction in ((0.125, 0.9999), (0.5, 0.989), (0.9, 0.74)):
        neuron = BoundaryCompressedLIF(beta)
        truth = LIF(beta, "subtract")(x)[0]
        assert_some_spikes(truth)
        lo, hi = neuron.bounds(x)
        assert (lo <= truth).all() and (truth <= hi).all()
        assert abs(neuron.resolved(x).item() - fraction) < 0.02
        assert torch.equal(BoundaryCompressedLIF(beta, exact=True)(x)[0], truth)


def test_cumulative_threshold() -> None:
    y = torch.tensor([0.4, 0.4, 0.4, -0.3, 0.9, 2.3, 0.1])[:, None]
    assert bits(CumulativeThreshold()(y)[0]) == "0010110"
    assert bits(CumulativeThreshold()(torch.full((4, 1), 0.5))[0]) == "0101"  # ties fire


def test_bernoulli_mean_and_gradient_are_those_of_clamp() -> None:
    p = torch.tensor([-0.5, 0.0, 0.3, 0.7, 1.0, 1.5], requires_grad=True)
    spikes, _ = BernoulliSampler(seed=0)(p.expand(40_000, 6))
    torch.testing.assert_close(spikes.mean(0), p.clamp(0, 1), rtol=0, atol=0.01)
    (got,) = torch.autograd.grad(spikes.mean(0).sum(), p)
    torch.testing.assert_close(got, torch.tensor([0.0, 1, 1, 1, 1, 0]), rtol=1e-4, atol=0)
