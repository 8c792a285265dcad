"""What distinguishes one ``lif`` from another, and one call of it from another, apart from its tensors."""

from __future__ import annotations

import functools
from typing import NamedTuple

EXTERNAL = "external"  # `kind` of a surrogate evaluated outside the kernel, on `charged` and `is_open`


class Mode(NamedTuple):
    """Which neuron it is."""

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


class Call(NamedTuple):
    """The arguments of the operator that are no tensors.

    Through the dispatcher they travel as one string: torch spends time quadratic in how many arguments
    an operator has, and a short sequence feels it.
    """

    mode: Mode
    want_membrane: bool
    want_charged: bool
    save: bool  # for a backward
    provider: str

    @staticmethod
    @functools.lru_cache
    def from_text(text: str) -> Call:
        """The call whose ``text`` this is."""
        charge, reset, period, v_reset, *words = text.split()
        *gates, kind, alpha, membrane, charged, save, provider = words
        delay, ignore, inclusive, detach, gated = (word == "True" for word in gates)
        mode = Mode(
            charge, reset, int(period), float(v_reset), delay, ignore, inclusive, detach, gated, kind,
            float(alpha),
        )  # fmt: skip
        return Call(mode, membrane == "True", charged == "True", save == "True", provider)

    @property
    def text(self) -> str:
        """All of it in one string, floats to the last bit."""
        mode = self.mode
        return (
            f"{mode.charge} {mode.reset} {mode.period} {mode.v_reset} {mode.reset_delay} {mode.ignore} "
            f"{mode.inclusive} {mode.detach_reset} {mode.gated} {mode.kind} {mode.alpha} "
            f"{self.want_membrane} {self.want_charged} {self.save} {self.provider}"
        )
