"""Neurons with a fixed refractory period and parallel spiking layers as native types of snnTorch.

::

    from snn_fr_plugin.integrations import snntorch as fr

    lif = fr.FRLeaky(beta=0.9, refractory_period=2)       # in place of snn.Leaky(beta=0.9)
    spk, mem = lif(x, mem)
    ssm = fr.SpikingFRSSM(d_model=64)                     # any of the systems, or any pair: fr.SpikingLayer
    spk, mem = ssm(x_seq)                                 # [T, B, 64]

``reset(net)`` and ``detach(net)`` do for any network what ``snntorch.utils.reset`` and ``detach_hidden`` do
for its direct children.
"""

from __future__ import annotations

try:
    import snntorch as snn
except ModuleNotFoundError as error:
    if error.name != "snntorch":
        raise
    raise ImportError(
        "snn_fr_plugin.integrations.snntorch needs snnTorch: pip install 'snn-fr-plugin[snntorch]'"
    ) from error
from torch import nn

from snn_fr_plugin.integrations.snntorch.layers import (
    PMSN,
    PRF,
    BinaryS4D,
    PSpikeSSM,
    SequenceLayer,
    SPikESSM,
    SpikingFRSSM,
    SpikingLayer,
    SpikingPSSM,
    SpikingSSM,
)
from snn_fr_plugin.integrations.snntorch.neurons import (
    FRAlpha,
    FRLapicque,
    FRLeaky,
    FRRLeaky,
    FRRSynaptic,
    FRSynaptic,
)

__all__ = [
    "PMSN",
    "PRF",
    "BinaryS4D",
    "FRAlpha",
    "FRLapicque",
    "FRLeaky",
    "FRRLeaky",
    "FRRSynaptic",
    "FRSynaptic",
    "PSpikeSSM",
    "SPikESSM",
    "SpikingFRSSM",
    "SpikingLayer",
    "SpikingPSSM",
    "SpikingSSM",
    "detach",
    "reset",
]

_STATES = ("spk", "syn", "syn_exc", "syn_inh", "mem")  # buffers in which snnTorch's neurons keep their state


def reset(net: nn.Module) -> None:
    """Put every neuron and layer of ``net`` at rest: its own state zero, no neuron refractory.

    Unlike ``snntorch.utils.reset``, which resets every neuron in the process whose type is among the direct
    children of ``net``, this reaches nested and copied modules of ``net``, and nothing else. snnTorch's own
    neurons are reset too.

    Args:
        net: a network, or a single neuron or layer.
    """
    for module in net.modules():
        # a network may have a reset_mem of its own that calls this function
        if isinstance(module, (snn.SpikingNeuron, SequenceLayer)) and hasattr(module, "reset_mem"):
            module.reset_mem()


def detach(net: nn.Module) -> None:
    """Cut the own state of every neuron and layer of ``net`` from its autograd history, in place.

    For truncated backpropagation through time with ``init_hidden=True``: call it between two chunks.
    Refractory counters are kept.

    Args:
        net: a network, or a single neuron or layer.
    """
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            for name, state in module.named_buffers(recurse=False):
                if name in _STATES:
                    state.detach_()
        elif isinstance(module, SequenceLayer):
            module.detach_mem()
