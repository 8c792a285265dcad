"""The shared multistep backend: pure functions over time-major sequences [T, N, *] with explicit state.

An operator is one folder: its contract (``__init__``), a readable reference loop, its registration with
``torch.library``, and a file per provider. Choosing a provider never changes a spike of ``lif`` or
``fixed_refractory``.
"""

from .lif import LIFState, lif
from .refractory import fixed_refractory
from .ssm import diagonal_ssm

__all__ = ["LIFState", "diagonal_ssm", "fixed_refractory", "lif"]
