"""Fixed-refractory neurons for SpikingJelly: ``neuron.BaseNode`` types that stay silent after a spike.

Each is its parent with one more rule: after a spike at step t the next comes at t + R + 1 at the earliest,
R = ``refractory_period``. With R = 0 it is the parent, spike for spike. A sequence (``step_mode='m'``) is one
fused operator whose cost does not depend on a loop of modules, and a step is the same operator with T = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snn_fr_plugin._checks import check_flag
from snn_fr_plugin.integrations.spikingjelly._base import FRNode, as_float
from snn_fr_plugin.integrations.spikingjelly._compat import lif_charge

__all__ = ["FRIFNode", "FRLIFNode", "FRParametricLIFNode"]


def _time_constant(name: str, value: Any) -> float:
    tau = as_float(name, value)
    if not tau > 1.0:
        raise ValueError(f"{name} must be > 1, got {tau}")
    return tau


class FRIFNode(FRNode):
    r"""Integrate-and-fire neuron with a fixed refractory period; ``IFNode`` at R = 0.

    With :math:`R` the refractory period and :math:`\Theta` the Heaviside function::

        H[t] = V[t-1] + X[t]                          "ignore": while refractory, H[t] = V[t-1]
        S[t] = Theta(H[t] - v_threshold) * (refractory[t-1] == 0)
        V[t] = v_reset where S[t] else H[t]           v_reset=None: H[t] - v_threshold * S[t]
        refractory[t] = R where S[t] else max(refractory[t-1] - 1, 0)

    Two memories: ``v`` (float32 for half input too, where SpikingJelly keeps half; float64 for float64) and
    ``refractory`` (int32, the steps left). Both restart when the shape of the input changes.

    Args:
        v_threshold: firing threshold; inclusive, as in SpikingJelly. Default 1.0.
        v_reset: what a spike resets ``v`` to, and where ``v`` starts; ``None`` takes ``v_threshold`` off
            instead and starts at 0. Default 0.0.
        surrogate_function: a surrogate of SpikingJelly or of ``snn_fr_plugin.surrogate``; its spiking
            ``Sigmoid``, ``ATan``, ``SoftSign``, ``SuperSpike``, ``Erf``, ``PiecewiseQuadratic``,
            ``PiecewiseExp`` and ``Rect`` run inside the fused step. Any other callable, ``spiking=False``
            included, is applied to ``H[t] - v_threshold`` in a loop over the steps, in training and in
            evaluation alike. ``None`` (default) is SpikingJelly's ``Sigmoid(alpha=4.0)``.
        detach_reset: no gradient through the spike of the reset. Default False.
        step_mode: 's', x is [N, \*] and a call is a step, or 'm', x is [T, N, \*]. Default 's'.
        store_v_seq: keep the membrane potential of every step in ``v_seq``. Default False. As in the parent
            it may be positional after ``step_mode`` (on SpikingJelly 0.0.0.0.14, ``backend`` and then it).
        refractory_period: R >= 0, steps of silence after a spike. Default 1.
        refractory_input: "integrate" (default), or "ignore": while refractory ``v`` is held.
        backend: provider of the operator: "auto" (default), "torch", "cpp" or "cupy". A named one is obeyed
            or refused at the call. ``functional.set_backend`` of 0.0.0.0.14 sets it.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has too few dimensions.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling,
        arXiv 2504.17751 (2025).

    Example:
        >>> node = FRIFNode(refractory_period=2, step_mode="m")
        >>> node(torch.full((6, 1), 0.6)).flatten().tolist()
        [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
        >>> node.refractory.tolist()
        [1]
    """

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        *trailing: Any,
        store_v_seq: bool = False,
        refractory_period: int = 1,
        refractory_input: str = "integrate",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            v_threshold, v_reset, surrogate_function, detach_reset, step_mode, trailing, store_v_seq,
            refractory_period, refractory_input, backend,
        )  # fmt: skip

    def _charge(self, dtype: torch.dtype) -> dict[str, Any]:
        return {"beta": 1.0}


class FRLIFNode(FRNode):
    r"""Leaky integrate-and-fire neuron with a fixed refractory period; ``LIFNode`` at R = 0.

    ``FRIFNode`` with the charge::

        H[t] = V[t-1] + (X[t] - (V[t-1] - v_reset)) / tau      decay_input=True
               V[t-1] - (V[t-1] - v_reset) / tau + X[t]        decay_input=False

    (``v_reset=None`` rests at 0).

    Args:
        tau: membrane time constant in steps, > 1. Default 2.0.
        decay_input: whether the input is divided by ``tau`` too. Default True.

        The others are those of ``FRIFNode``, in the same order.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has too few dimensions.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling,
        arXiv 2504.17751 (2025).

    Example:
        >>> node = FRLIFNode(tau=2.0, refractory_period=1, step_mode="m")
        >>> node(torch.full((6, 1), 2.5)).flatten().tolist()
        [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    """

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        *trailing: Any,
        store_v_seq: bool = False,
        refractory_period: int = 1,
        refractory_input: str = "integrate",
        backend: str = "auto",
    ) -> None:
        tau = _time_constant("tau", tau)
        check_flag("decay_input", decay_input)
        super().__init__(
            v_threshold, v_reset, surrogate_function, detach_reset, step_mode, trailing, store_v_seq,
            refractory_period, refractory_input, backend,
        )  # fmt: skip
        self.tau = tau
        self.decay_input = decay_input

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tau={self.tau}"

    def _charge(self, dtype: torch.dtype) -> dict[str, Any]:
        return lif_charge(self.tau, self.decay_input, self.v_reset, self.training)


class FRParametricLIFNode(FRNode):
    r"""``FRLIFNode`` that learns its time constant; ``ParametricLIFNode`` at R = 0, up to rounding.

    :math:`1 / \tau = \mathrm{sigmoid}(w)` with one learnable ``w``, the parent's only parameter, under the
    same name: the state_dict is the parent's.

    Args:
        init_tau: initial time constant in steps, > 1. Default 2.0.
        decay_input: whether the input is divided by tau too. Default True.

        The others are those of ``FRIFNode``, in the same order.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has too few dimensions.

    Reference:
        W. Fang et al., Incorporating Learnable Membrane Time Constant to Enhance Learning of Spiking Neural
        Networks, arXiv 2007.05785 (2021), for the parent.

    Example:
        >>> node = FRParametricLIFNode(init_tau=2.0, refractory_period=1, step_mode="m")
        >>> node(torch.full((6, 1), 2.5)).flatten().tolist()
        [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
        >>> list(node.state_dict())
        ['w']
    """

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        *trailing: Any,
        store_v_seq: bool = False,
        refractory_period: int = 1,
        refractory_input: str = "integrate",
        backend: str = "auto",
    ) -> None:
        init_tau = _time_constant("init_tau", init_tau)
        check_flag("decay_input", decay_input)
        super().__init__(
            v_threshold, v_reset, surrogate_function, detach_reset, step_mode, trailing, store_v_seq,
            refractory_period, refractory_input, backend,
        )  # fmt: skip
        self.decay_input = decay_input
        self.w = nn.Parameter(torch.as_tensor(-math.log(init_tau - 1.0)))

    def extra_repr(self) -> str:
        with torch.no_grad():
            return f"{super().extra_repr()}, tau={self._tau(torch.float32)}"

    def _tau(self, dtype: torch.dtype) -> Tensor:
        w = self.w if self.w.dtype == torch.float64 else self.w.float()
        return w.sigmoid().to(dtype).reciprocal()

    def _charge(self, dtype: torch.dtype) -> dict[str, Any]:
        return {"tau": self._tau(dtype), "decay_input": self.decay_input}
