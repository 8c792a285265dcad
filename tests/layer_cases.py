"""The layers that both adapters are tested on: every system, and pairs of memories with spiking modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_fr_plugin import memory, spiking, systems
from snn_fr_plugin import surrogate as ours
from snn_fr_plugin._module import MemoryModule

STEPS, BATCH, CHANNELS = 24, 3, 5

_S4D: dict[str, Any] = {"d_state": 8, "dt_min": 0.05, "dt_max": 0.5}


def _s4d() -> memory.S4D:
    return memory.S4D(CHANNELS, **_S4D)


class Sum(MemoryModule):
    """Two memories added: a module of a user's own, whose state is a plain tuple."""

    def __init__(self, *parts: Any) -> None:
        super().__init__()
        self.d_model = CHANNELS
        self.parts: Any = torch.nn.ModuleList(parts)

    def forward(self, x_seq: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs = [part(x_seq, s) for part, s in zip(self.parts, state or (None, None), strict=True)]
        return outputs[0][0] + outputs[1][0], tuple(after for _, after in outputs)

    def initial_state(self, x: Tensor) -> Any:
        return tuple(part.initial_state(x) for part in self.parts)


def _system(cls: str, *positional: Any, **arguments: Any) -> tuple[str, Callable[[], tuple[Any, ...]], Any]:
    return cls, lambda: (CHANNELS, *positional), arguments


def _pair(*parts: Callable[[], Any], **arguments: Any) -> tuple[str, Callable[[], tuple[Any, ...]], Any]:
    return "SpikingLayer", lambda: tuple(part() for part in parts), arguments


# name: class, its positional arguments, the others
CAUSAL = {
    **{
        scheme: _system("SpikingFRSSM", refractory_period=2, scheme=scheme, threshold=0.3, **_S4D)
        for scheme in ("absolute", "window", "strided", "onset")
    },
    "normed": _system("SpikingFRSSM", norm="batch", threshold=0.3, **_S4D),
    "sliding": _system("SpikingPSSM", k=3, **_S4D),
    "masked": _system("SpikingPSSM", k=3, psn="masked", T=STEPS, **_S4D),
    "BinaryS4D": _system("BinaryS4D", threshold=0.3, **_S4D),
    "SpikingSSM": _system("SpikingSSM", threshold=0.3, **_S4D),
    "SpikingSSM-exact": _system("SpikingSSM", exact=True, threshold=0.3, **_S4D),
    "SPikESSM": _system("SPikESSM", threshold=0.3, reset_magnitude=0.5, **_S4D),
    "SPikESSM-exact": _system("SPikESSM", exact=True, threshold=0.3, **_S4D),
    "PSpikeSSM": _system("PSpikeSSM", deterministic=True, **_S4D),
    "PMSN": _system("PMSN", threshold=0.5, dt_min=0.05, dt_max=0.5),
    "PRF": _system("PRF"),
    "Leaky-LIF": _pair(lambda: memory.Leaky(0.8, learn_beta=True), lambda: spiking.LIF(0.5, "subtract")),
    "Leaky-Bernoulli": _pair(lambda: memory.Leaky(0.5), lambda: spiking.BernoulliSampler(deterministic=True)),
    "Resonator-sliding": _pair(
        lambda: memory.Resonator(CHANNELS), lambda: spiking.SlidingPSN(3), norm="layer"
    ),
    "compartments-refractory": _pair(
        lambda: memory.MultiCompartment(CHANNELS), lambda: spiking.FixedRefractory(3, threshold=0.2)
    ),
    "S4D-masked": _pair(_s4d, lambda: spiking.MaskedPSN(3, STEPS)),
    "sum-cumulative": _pair(lambda: Sum(_s4d(), memory.Leaky(0.7)), spiking.CumulativeThreshold),
}
NOT_CAUSAL = {
    "full": _system("SpikingPSSM", psn="full", T=STEPS, **_S4D),
    "Leaky-PSN": _pair(lambda: memory.Leaky(0.8), lambda: spiking.PSN(STEPS)),
    "bidirectional-LIF": _pair(lambda: memory.Bidirectional(_s4d(), _s4d()), lambda: spiking.LIF(0.5)),
    "bidirectional-masked": _pair(
        lambda: memory.Bidirectional(memory.Leaky(0.5), memory.Leaky(0.7)),
        lambda: spiking.MaskedPSN(3, STEPS),
    ),
}
EVERY = {**CAUSAL, **NOT_CAUSAL}


def build(namespace: Any, name: str, **arguments: Any) -> Any:
    """The layer ``name`` of an adapter, or of ``systems``, in float64 and evaluation, its mask closed.

    The same parameters whatever the namespace.
    """
    cls, positional, own = EVERY[name]
    torch.manual_seed(3)
    layer = getattr(namespace, cls)(*positional(), **own, **arguments).double().eval()
    for module in layer.modules():
        if isinstance(module, (spiking.PSN, spiking.MaskedPSN)):
            torch.nn.init.constant_(module.bias, -0.2)  # few spikes reach the initial -1
        if isinstance(module, spiking.MaskedPSN):
            module.lambda_ = 1.0
    return layer


def currents(steps: int = STEPS, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(steps, BATCH, CHANNELS, dtype=torch.float64) * 1.5 + 0.5).to(dtype)


# a value that is not the default for every argument of every system
_SHARED: dict[str, Any] = {
    "d_model": CHANNELS, "norm": "layer", "backend": "torch", "device": "cpu", "dtype": torch.float64,
}  # fmt: skip
_DT: dict[str, Any] = {"dt_min": 0.01, "dt_max": 0.2}
_MEMORY = {**_SHARED, **_DT, "d_state": 8, "init": "inv", "discretization": "bilinear"}
_THRESHOLD = {"threshold": 0.7, "learn_threshold": False, "surrogate": ours.Erf()}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "SpikingFRSSM": {**_MEMORY, **_THRESHOLD, "refractory_period": 3, "scheme": "window"},
    "SpikingPSSM": {**_MEMORY, "k": 3, "psn": "masked", "T": 7, "surrogate": ours.Erf()},
    "BinaryS4D": {**_MEMORY, **_THRESHOLD},
    "SpikingSSM": {**_MEMORY, **_THRESHOLD, "exact": True},
    "SPikESSM": {
        **_MEMORY, **_THRESHOLD, "beta": 0.3, "iterations": 2, "exact": True, "reset_magnitude": 0.6,
        "learn_reset_magnitude": False,
    },
    "PSpikeSSM": {**_MEMORY, "seed": 4, "deterministic": True, "input_norm": None},
    "PMSN": {**_SHARED, **_DT, "d_state": 3, "threshold": 0.7, "burst": True, "surrogate": ours.Erf()},
    "PRF": {**_SHARED, **_THRESHOLD, "tau": 5.0, "theta": 0.1, "dt": 0.5},
}  # fmt: skip
every_system = pytest.mark.parametrize("cls", ARGUMENTS)


def assert_arguments_are_the_systems(
    namespace: Any, cls: str, surrogate: str, own: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constructor has its system's arguments and defaults, beside its ``own``, and hands every one on."""
    real, adapted = getattr(systems, cls), getattr(namespace, cls)
    expected = dict(inspect.signature(real).parameters)
    got = dict(inspect.signature(adapted).parameters)
    has_surrogate = expected.pop("surrogate", None) is not None
    assert (got.pop(surrogate, None) is not None) == has_surrogate
    for name in own:
        del got[name]
    assert {n: (p.kind, p.default) for n, p in got.items()} == {
        n: (p.kind, p.default) for n, p in expected.items()
    }

    received: dict[str, Any] = {}

    def recorded(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(real).bind(*args, **kwargs).arguments
        received.update(bound.pop("s4d", {}), **bound)
        return real(*args, **kwargs)

    monkeypatch.setattr(systems, cls, recorded)
    given = dict(ARGUMENTS[cls])
    names = set(expected) - {"s4d"} | (systems.S4DOptions.__optional_keys__ if "s4d" in expected else set())
    assert set(given) - {"surrogate"} == names, "ARGUMENTS misses an argument"
    translated = {surrogate if n == "surrogate" else n: value for n, value in given.items()}
    adapted(**translated)
    assert received == given
