"""What distinguishes one ``lif`` from another, apart from its tensors."""

from __future__ import annotations

import functools
from typing import NamedTuple

EXTERNAL = "external"  # `kind` of a surrogate evaluated outside the kernel, on `charged` and `is_open`


class Mode(NamedTuple):
    """The non-tensor arguments of the operator.

    Through the dispatcher they travel as one string: torch spends time quadratic in how many arguments
    an operator has, and a short sequence feels it.
    """

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

    @staticmethod
    @functools.lru_cache
    def from_text(text: str) -> Mode:
        """The mode whose ``text`` this is."""
        charge, reset, period, v_reset, *words, kind, alpha = text.split()
        delay, ignore, inclusive, detach, gated = (word == "True" for word in words)
        return Mode(
            charge,
            reset,
            int(period),
            float(v_reset),
            delay,
            ignore,
            inclusive,
            detach,
            gated,
            kind,
            float(alpha),
        )

    @property
    def text(self) -> str:
        """All of it in one string, floats to the last bit."""
        return (
            f"{self.charge} {self.reset} {self.period} {self.v_reset} {self.reset_delay} {self.ignore} "
            f"{self.inclusive} {self.detach_reset} {self.gated} {self.kind} {self.alpha}"
        )

    @property
    def immediate(self) -> str:
        """The reset applied in the step of its spike."""
        return "none" if self.reset_delay else self.reset

    @property
    def delayed(self) -> str:
        """The reset applied one step after its spike."""
        return self.reset if self.reset_delay else "none"
