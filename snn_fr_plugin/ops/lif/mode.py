"""What distinguishes one ``lif`` from another, apart from its tensors."""

from __future__ import annotations

from typing import NamedTuple

EXTERNAL = "external"  # `kind` of a surrogate evaluated outside the kernel, on `charged` and `is_open`


class Mode(NamedTuple):
    """The non-tensor arguments of the operator, in its own order."""

    charge: str  # "beta", "tau_input" or "tau"
    reset: str  # "none", "subtract" or "zero"
    period: int  # refractory period R
    v_reset: float
    reset_delay: bool
    ignore: bool  # the input is not integrated while refractory
    inclusive: bool
    detach_reset: bool
    gated: bool  # False: no neuron can be refractory, the gate need not be computed
    kind: str  # surrogate kind, or EXTERNAL
    alpha: float

    @property
    def immediate(self) -> str:
        """The reset applied in the step of its spike."""
        return "none" if self.reset_delay else self.reset

    @property
    def delayed(self) -> str:
        """The reset applied one step after its spike."""
        return self.reset if self.reset_delay else "none"
