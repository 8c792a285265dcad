"""What every type of this package does with its memories: make them, keep their dtype, copy them."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor

from snn_fr_plugin._checks import (
    check_choice,
    check_flag,
    check_period,
    check_sequence,
    check_step,
    state_dtype,
)
from snn_fr_plugin.integrations.spikingjelly._compat import BaseNode, trailing_arguments
from snn_fr_plugin.integrations.spikingjelly._surrogate import translate
from snn_fr_plugin.ops import LIFState, lif
from snn_fr_plugin.ops._providers import BACKENDS, check_backend
from snn_fr_plugin.ops.lif.reference import lif as reference
from snn_fr_plugin.surrogate import Surrogate

__all__ = ["FRNode", "Memories", "as_float", "materialize"]

_States = tuple[Any, ...]


def as_float(name: str, value: Any) -> float:
    """``value`` as a Python float: SpikingJelly's base class asserts that it is one."""
    if isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point():
        if value.requires_grad:
            raise TypeError(
                f"{name} must be a float, which cannot be learned, got a tensor that requires grad"
            )
        return float(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a float, got {value!r} of type {type(value).__name__}")
    return float(value)


def materialize(
    name: str,
    value: Any,
    initial: float,
    shape: torch.Size | tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """A memory as a tensor: a number fills it, a tensor of another shape starts again at ``initial``."""
    if isinstance(value, Tensor):
        if value.shape == torch.Size(shape):
            return value.to(dtype=dtype, device=device)
        value = initial
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float or a torch.Tensor, got {type(value).__name__}")
    return torch.full(shape, value, dtype=dtype, device=device)


class Memories:
    """Mixin of the memory modules: states that keep their dtype, copies that leave the graph."""

    _memories: dict[str, Any]

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """The values that ``backend`` takes."""
        return BACKENDS

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> Any:
        """Parameters change device and dtype; a state follows to the device and keeps its dtype."""
        memories = self._memories
        self._memories = {}
        try:
            module = super()._apply(fn)  # type: ignore[misc]
        finally:
            self._memories = memories
        for name, value in memories.items():
            if isinstance(value, Tensor):
                memories[name] = value.to(fn(value.new_zeros((), dtype=torch.float32)).device)
        return module

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles keep the values of the states, not the graph they came from."""
        module: Any = super()
        state: dict[str, Any] = dict(module.__getstate__())
        state["_memories"] = {name: _detached(value) for name, value in state["_memories"].items()}
        if "v_seq" in state:
            state["v_seq"] = _detached(state["v_seq"])
        return state


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


class FRNode(Memories, BaseNode):
    """Base of the fixed-refractory neurons: SpikingJelly's node with a counter, stepped by ``ops.lif``.

    A subclass gives its charge by ``_charge``; threshold, reset and refractory period are the same for all.
    """

    v: float | Tensor
    refractory: int | Tensor
    _backend: str

    def __init__(
        self,
        v_threshold: float,
        v_reset: float | None,
        surrogate_function: Callable[[Tensor], Tensor] | None,
        detach_reset: bool,
        step_mode: str,
        trailing: tuple[Any, ...],
        store_v_seq: bool,
        refractory_period: int,
        refractory_input: str,
        backend: str,
    ) -> None:
        backend, store_v_seq = trailing_arguments(trailing, backend, store_v_seq)
        check_flag("detach_reset", detach_reset)
        check_flag("store_v_seq", store_v_seq)
        check_period(refractory_period)
        check_choice("refractory_input", refractory_input, ("integrate", "ignore"))
        check_backend(backend)
        if surrogate_function is None:
            surrogate_function = surrogate.Sigmoid()
        elif not callable(surrogate_function):
            raise TypeError(f"surrogate_function must be callable, got {type(surrogate_function).__name__}")
        super().__init__(
            as_float("v_threshold", v_threshold),
            None if v_reset is None else as_float("v_reset", v_reset),
            surrogate_function,
            detach_reset,
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )
        self.register_memory("refractory", 0)
        self.refractory_period = refractory_period
        self.refractory_input = refractory_input
        self.backend = backend

    @property
    def backend(self) -> str:
        """The provider of the operator; whether it can serve the input shows when it is called."""
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        check_backend(value)
        self._backend = value

    def _charge(self, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of ``ops.lif`` that make its charge this neuron's, for a state of ``dtype``."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        own = f"refractory_period={self.refractory_period}, refractory_input={self.refractory_input}"
        return f"{super().extra_repr()}, {own}"

    def materialize_states(self, inputs: tuple[Tensor, ...], states: _States, step_mode: str) -> _States:
        x = inputs[0]
        if step_mode == "m":
            check_sequence(x)
            shape = x.shape[1:]
        else:
            check_step(x)
            shape = x.shape
        v, refractory, *others = states
        rest = 0.0 if self.v_reset is None else self.v_reset
        return (
            materialize("v", v, rest, shape, state_dtype(x), x.device),
            materialize("refractory", refractory, 0, shape, torch.int32, x.device),
            *others,
        )

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: _States, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], _States]:
        """One step [N, *] as a pure function of ``states``, (v, refractory)."""
        spikes, _, final = self._run(inputs[0].unsqueeze(0), states, False)
        # no view: a recurrent container keeps it as a memory, and detaches it in place
        return (spikes[0].clone(),), (*final, *states[2:])

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: _States, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], _States]:
        """A sequence [T, N, *] as a pure function of ``states``, (v, refractory)."""
        spikes, _, final = self._run(inputs[0], states, False)
        return (spikes,), (*final, *states[2:])

    def multi_step_forward(self, x_seq: Tensor, *args: Tensor, **kwargs: Any) -> Tensor:
        if not self.store_v_seq:
            return super().multi_step_forward(x_seq, *args, **kwargs)
        states = self.materialize_states((x_seq, *args), (self.v, self.refractory), "m")
        spikes, membrane, final = self._run(x_seq, states, True)
        self.v, self.refractory = final
        self.v_seq = membrane
        return spikes

    def _run(
        self, x_seq: Tensor, states: _States, return_membrane: bool
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]:
        """Spikes, membrane after reset and final (v, refractory) of a sequence."""
        hard = self.v_reset is not None
        surrogate_function = translate(self.surrogate_function)
        arguments: dict[str, Any] = {
            **self._charge(states[0].dtype),
            "threshold": self.v_threshold,
            "refractory_period": self.refractory_period,
            "reset": "zero" if hard else "subtract",
            "v_reset": self.v_reset if hard else 0.0,
            "refractory_input": self.refractory_input,
            "detach_reset": self.detach_reset,
            "surrogate": surrogate_function,
            "state": LIFState(states[0], states[1]),
        }
        if isinstance(surrogate_function, Surrogate) or not self.detach_reset:
            return lif(x_seq, **arguments, return_membrane=return_membrane, backend=self.backend)
        # ops.lif resets by the binary spike here; SpikingJelly by whatever the callable returned
        lif(x_seq[:0], **arguments, backend=self.backend)  # for its checks of the arguments
        return reference(x_seq, **arguments)
