"""Native types for SpikingJelly, 2.0 and 0.0.0.0.14: modules named as SpikingJelly names its own.

``neuron``: ``FRIFNode``, ``FRLIFNode``, ``FRParametricLIFNode`` (``neuron.BaseNode``).
``layer``: ``SpikingFRSSM``, ``SpikingPSSM``, the systems they are compared with, and ``SpikingLayer`` for any
other pair of memory and spiking module (``base.MemoryModule``).
"""

from snn_fr_plugin.integrations.spikingjelly import layer, neuron

__all__ = ["layer", "neuron"]
