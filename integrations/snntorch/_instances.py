"""snnTorch's list of all neurons, ``SpikingNeuron.instances``, without keeping the neurons alive.

``utils.reset`` and ``backprop`` find the neurons in this list. It holds them for good; ours stand in it as
weak proxies, which pass ``isinstance`` as long as the neuron lives.
"""

from __future__ import annotations

import weakref
from typing import Any

import snntorch as snn

__all__ = ["hold_weakly", "register"]


def register(neuron: snn.SpikingNeuron) -> None:
    """Enter a neuron that no constructor has entered: a copy, or one read from a file."""
    snn.SpikingNeuron.instances.append(neuron)
    hold_weakly(neuron)


def hold_weakly(neuron: snn.SpikingNeuron) -> None:
    """Replace the neuron at the end of the list by a weak proxy."""
    instances = snn.SpikingNeuron.instances
    if instances and instances[-1] is neuron:  # a constructor may fail before it registers
        instances[:] = [entry for entry in instances[:-1] if entry is not None]
        instances.append(weakref.proxy(neuron, _forget))


def _forget(dead: Any) -> None:
    """Empty the place of a dead proxy: ``isinstance`` on it raises.

    The list keeps its length, because snnTorch walks it by index and a garbage collection may run in
    mid-walk; the place is freed at the next registration.
    """
    for i, entry in enumerate(snn.SpikingNeuron.instances):
        if entry is dead:
            snn.SpikingNeuron.instances[i] = None
