"""The base of the layers: a ``systems.SpikingLayer`` whose state SpikingJelly holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snn_fr_plugin import systems
from snn_fr_plugin._checks import check_channels, check_sequence, check_step
from snn_fr_plugin.integrations._state import flatten, paths, unflatten
from snn_fr_plugin.integrations.spikingjelly._base import Memories, materialize
from snn_fr_plugin.integrations.spikingjelly._compat import MemoryModule, let_set_backend
from snn_fr_plugin.integrations.spikingjelly._surrogate import translate
from snn_fr_plugin.memory import Bidirectional
from snn_fr_plugin.ops._providers import check_backend
from snn_fr_plugin.spiking import PSN

__all__ = ["PairedLayer", "surrogate_option"]

_States = tuple[Any, ...]


class PairedLayer(Memories, MemoryModule):
    """One memory for each tensor (or number) of the state, and a pure step of each mode over them.

    ``memories`` names them in the order of the state; ``None`` names them by their place in it.
    """

    def __init__(
        self, system: systems.SpikingLayer, step_mode: str, memories: tuple[str, ...] | None = None
    ) -> None:
        super().__init__()
        self.system = system
        self.d_model = system.d_model
        state = system.initial_state(torch.zeros(1, self.d_model or 1, device="cpu"))
        if any(isinstance(leaf, Tensor) and leaf.any() for leaf in flatten(state)):
            raise ValueError(f"the initial state of memory and spiking must be zeros, got {state}")
        self._names = unflatten(state, memories or paths(state))  # a state of names
        for name, leaf in zip(flatten(self._names), flatten(state), strict=True):
            self.register_memory(name, _sentinel(leaf))
        self.step_mode = step_mode
        let_set_backend(system)

    def supported_step_mode(self) -> tuple[str, ...]:
        """'m' alone for what reads the future, otherwise both; a masked PSN steps once it is closed."""
        system = self._modules.get("system")  # 0.0.0.0.14 asks before there is one
        parts = () if system is None else system.modules()
        return ("m",) if any(isinstance(part, (PSN, Bidirectional)) for part in parts) else ("s", "m")

    @property
    def backend(self) -> str | None:
        """The provider that every part names, ``None`` where they name several. Setting it sets them all."""
        named = {part.backend for part in self._served()}
        return named.pop() if len(named) == 1 else None

    @backend.setter
    def backend(self, value: str) -> None:
        check_backend(value)
        for part in self._served():
            part.backend = value

    def _served(self) -> list[Any]:
        """The parts that name a provider."""
        return [part for part in self.system.modules() if hasattr(part, "backend")]

    def materialize_states(self, inputs: tuple[Tensor, ...], states: _States, step_mode: str) -> _States:
        x = inputs[0]
        multi = step_mode == "m"
        (check_sequence if multi else check_step)(x)
        if self.d_model is not None:
            if x.dim() != (3 if multi else 2):
                expected_shape = "[T, N, d_model]" if multi else "[N, d_model]"
                raise ValueError(
                    f"x must have shape {expected_shape} in step mode {step_mode!r}, got {tuple(x.shape)}"
                )
            check_channels(x, self.d_model)
        shape = x.shape[1:] if multi else x.shape
        # what the state should look like; on the meta device it costs nothing to ask
        expected = flatten(self.system.initial_state(x.new_empty(shape, device="meta")))
        pairs = list(zip(states, expected, strict=True))
        if any(isinstance(v, Tensor) and v.shape != like.shape for v, like in pairs):
            states = tuple(self._memories_rv[name] for name in self._memories)  # another batch: all restart
        return tuple(
            materialize(name, v, 0, like.shape, like.dtype, x.device) if isinstance(like, Tensor) else v
            for name, v, like in zip(self._memories, states, expected, strict=True)
        )

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: _States, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], _States]:
        """One step [N, *] as a pure function of ``states``, in the order of the memories."""
        spikes, state = self.system.step(inputs[0], unflatten(self._names, states))
        # no view: a recurrent container keeps it as a memory, and detaches it in place
        return (spikes.clone(),), flatten(state)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: _States, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], _States]:
        """A sequence [T, N, *] as a pure function of ``states``, in the order of the memories."""
        spikes, state = self.system(inputs[0], unflatten(self._names, states))
        return (spikes,), flatten(state)


def _sentinel(leaf: Any) -> Any:
    """What stands for a fresh memory until the shape of the input is known."""
    if not isinstance(leaf, Tensor):
        return leaf
    return 0.0 if leaf.is_floating_point() or leaf.is_complex() else 0


def surrogate_option(surrogate_function: Callable[[Tensor], Tensor] | None) -> dict[str, Any]:
    """The argument ``surrogate`` of a system; ``None`` leaves it the system's own."""
    return {} if surrogate_function is None else {"surrogate": translate(surrogate_function)}
