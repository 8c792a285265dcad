"""State-space spiking layers for SpikingJelly: ``snn_fr_plugin.systems`` as ``base.MemoryModule`` types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from snn_fr_plugin import systems
from snn_fr_plugin._checks import check_channels, check_sequence, check_step
from snn_fr_plugin.integrations.spikingjelly._base import Memories, materialize
from snn_fr_plugin.integrations.spikingjelly._compat import MemoryModule, let_set_backend
from snn_fr_plugin.integrations.spikingjelly._surrogate import translate
from snn_fr_plugin.ops.refractory import Scheme
from snn_fr_plugin.spiking import PSN, PSNState
from snn_fr_plugin.systems import SpikingLayerState

__all__ = ["SpikingFRSSM", "SpikingPSSM"]

_States = tuple[Any, ...]


class _SpikingLayer(Memories, MemoryModule):
    """A ``systems.SpikingLayer`` whose state is held by SpikingJelly, one memory for each of its tensors."""

    def __init__(
        self,
        system: systems.SpikingLayer,
        d_model: int,
        sentinels: dict[str, float],
        step_mode: str,
        backend: str,
    ) -> None:
        super().__init__()
        self.system = system
        self.d_model = d_model
        for name, sentinel in sentinels.items():
            self.register_memory(name, sentinel)
        self.step_mode = step_mode
        self.backend = backend
        let_set_backend(system)

    def materialize_states(self, inputs: tuple[Tensor, ...], states: _States, step_mode: str) -> _States:
        x = inputs[0]
        multi = step_mode == "m"
        (check_sequence if multi else check_step)(x)
        if x.dim() != (3 if multi else 2):
            expected_shape = "[T, N, d_model]" if multi else "[N, d_model]"
            raise ValueError(
                f"x must have shape {expected_shape} in step mode {step_mode!r}, got {tuple(x.shape)}"
            )
        check_channels(x, self.d_model)
        shape = x.shape[1:] if multi else x.shape
        # what the state should look like; on the meta device it costs nothing to ask
        expected = _flat(self.system.initial_state(x.new_empty(shape, device="meta")))
        pairs = list(zip(states, expected, strict=True))
        if any(isinstance(v, Tensor) and v.shape != like.shape for v, like in pairs):
            states = (0,) * len(states)  # another batch: all of it starts again
        return tuple(
            materialize(name, v, 0, like.shape, like.dtype, x.device) if isinstance(like, Tensor) else v
            for name, v, like in zip(self._memories, states, expected, strict=True)
        )

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: _States, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], _States]:
        """One step [N, d_model] as a pure function of ``states``, in the order of the memories."""
        spikes, state = self.system.step(inputs[0], _nest(states))
        # no view: a recurrent container keeps it as a memory, and detaches it in place
        return (spikes.clone(),), _flat(state)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: _States, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], _States]:
        """A sequence [T, N, d_model] as a pure function of ``states``, in the order of the memories."""
        spikes, state = self.system(inputs[0], _nest(states))
        return (spikes,), _flat(state)


def _nest(states: _States) -> SpikingLayerState:
    memory, *spiking = states
    return SpikingLayerState(memory, spiking[0] if len(spiking) == 1 else PSNState(*spiking))


def _flat(state: SpikingLayerState) -> _States:
    spiking = state.spiking
    if not isinstance(spiking, PSNState):
        return state.memory, spiking
    return state.memory, spiking.recent.clone(), spiking.time  # detach_net refuses the view that PSN returns


class SpikingFRSSM(_SpikingLayer):
    r"""State-space memory sampled by a threshold with a fixed refractory period, as a SpikingJelly layer.

    ``systems.SpikingFRSSM``, which documents the equations::

        y = S4D(x)
        s_t = 1[norm(y)_t >= threshold] and silent for the last R steps

    In step mode 'm' a sequence is computed in parallel over time, in 's' one step after the other, with the
    same spikes in evaluation. Memories: ``h``, the modes of the memory (complex64, complex128 for float64
    input, [N, d_model, d_state / 2]), and ``gate``, the refractory state (int32, [N, d_model]). Both restart
    when the batch changes its size.

    Args:
        d_model: channels, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        step_mode: 's', x is [N, d_model] and a call is a step, or 'm', x is [T, N, d_model]. Default 's'.
        refractory_period: R >= 0, in steps. Default 1.
        scheme: "absolute" (default), "window", "strided" or "onset"; see ``ops.fixed_refractory``.
        surrogate_function: a surrogate of SpikingJelly or of ``snn_fr_plugin.surrogate``, or any callable.
            ``None`` (default) is the ATan of ``snn_fr_plugin``.
        backend: provider of the operators: "auto" (default), "torch", "cpp" or "cupy".
        options: the others of ``systems.SpikingFRSSM``: ``threshold``, ``learn_threshold``, ``norm``,
            ``init``, ``discretization``, ``dt_min``, ``dt_max``, ``device``, ``dtype``.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling,
        arXiv 2504.17751 (2025).

    Example:
        >>> import torch
        >>> layer = SpikingFRSSM(4, d_state=8, step_mode="m", refractory_period=2)
        >>> layer(torch.randn(10, 2, 4)).shape, layer.h.shape
        (torch.Size([10, 2, 4]), torch.Size([2, 4, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        step_mode: str = "s",
        refractory_period: int = 1,
        scheme: Scheme = "absolute",
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        backend: str = "auto",
        **options: Any,
    ) -> None:
        if surrogate_function is not None:
            options["surrogate"] = translate(surrogate_function)
        system = systems.SpikingFRSSM(
            d_model, d_state, refractory_period=refractory_period, scheme=scheme, backend=backend, **options
        )
        super().__init__(system, d_model, {"h": 0.0, "gate": 0}, step_mode, backend)


class SpikingPSSM(_SpikingLayer):
    r"""State-space memory sampled by a parallel spiking neuron, as a SpikingJelly layer.

    ``systems.SpikingPSSM``, which documents the equations::

        y = S4D(x)
        s_t = 1[norm(w * y)_t + bias >= 0]          w * y the filter of the PSN over time

    In step mode 'm' a sequence is computed in parallel over time, in 's' one step after the other, with the
    same spikes in evaluation; ``psn="full"`` reads the future and has 'm' only, ``psn="masked"`` steps once
    its ``lambda_`` is 1. Memories: ``h``, the modes of the memory (complex64, complex128 for float64 input,
    [N, d_model, d_state / 2]), ``recent``, the last inputs of the filter ([k - 1, N, d_model]), and, unless
    sliding, ``time``, the steps read. All restart when the batch changes its size.

    Args:
        d_model: channels, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        step_mode: 's', x is [N, d_model] and a call is a step, or 'm', x is [T, N, d_model]. Default 's',
            which ``psn="full"`` refuses.
        k: taps of the sliding filter, or steps that the masked one reads once closed. Default 8.
        psn: "sliding" (default), "masked" or "full".
        T: steps of every sequence; for "masked" and "full" only.
        surrogate_function: a surrogate of SpikingJelly or of ``snn_fr_plugin.surrogate``, or any callable.
            ``None`` (default) is the ATan of ``snn_fr_plugin``.
        backend: provider of the operators: "auto" (default), "torch", "cpp" or "cupy".
        options: the others of ``systems.SpikingPSSM``: ``norm``, ``init``, ``discretization``, ``dt_min``,
            ``dt_max``, ``device``, ``dtype``.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        E. Zhang, arXiv 2504.17751 (2025); W. Fang et al., arXiv 2304.12760 (2023).

    Example:
        >>> import torch
        >>> layer = SpikingPSSM(4, d_state=8, step_mode="m", k=4)
        >>> layer(torch.randn(10, 2, 4)).shape, layer.recent.shape
        (torch.Size([10, 2, 4]), torch.Size([3, 2, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        step_mode: str = "s",
        k: int = 8,
        psn: Literal["sliding", "masked", "full"] = "sliding",
        T: int | None = None,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        backend: str = "auto",
        **options: Any,
    ) -> None:
        if surrogate_function is not None:
            options["surrogate"] = translate(surrogate_function)
        system = systems.SpikingPSSM(d_model, d_state, k=k, psn=psn, T=T, backend=backend, **options)
        sentinels = {"h": 0.0, "recent": 0.0} | ({} if psn == "sliding" else {"time": 0})
        super().__init__(system, d_model, sentinels, step_mode, backend)

    def supported_step_mode(self) -> tuple[str, ...]:
        """'m' alone for the full PSN, otherwise both."""
        system = self._modules.get("system")
        return ("m",) if system is not None and isinstance(system.spiking, PSN) else ("s", "m")
