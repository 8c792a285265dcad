"""Memory modules: linear, without reset, holding all the history of a sequence."""

from .bidirectional import Bidirectional
from .compartments import MultiCompartment
from .leaky import Leaky
from .resonator import Resonator
from .s4d import S4D

__all__ = ["S4D", "Bidirectional", "Leaky", "MultiCompartment", "Resonator"]
