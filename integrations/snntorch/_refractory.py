"""The mixin that makes any of snnTorch's neurons refractory.

A neuron of snnTorch runs a step as ``mem_reset``, ``state_function``, ``fire`` (or ``fire_inhibition``).
The mixin overrides these hooks, and keeps the counter of every membrane it has handed out; the equations stay
in the parent, and for whole sequences in ``snn_fr_plugin.ops``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import snntorch as snn
import torch
from torch import Tensor

from snn_fr_plugin._checks import (
    check_choice,
    check_flag,
    check_period,
    check_sequence,
    check_step,
    parameter,
    state_dtype,
)
from snn_fr_plugin.integrations.snntorch._counters import CounterRegistry
from snn_fr_plugin.integrations.snntorch._instances import hold_weakly, register
from snn_fr_plugin.ops import LIFState, fixed_refractory, lif
from snn_fr_plugin.ops._providers import check_backend, choose
from snn_fr_plugin.surrogate import ATan, Surrogate

__all__ = ["RefractoryMixin", "Result", "Start", "floating"]

# the parents choose one of these methods when they are built
_RESET_OF = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
# what a fused sequence does without calling: a subclass that overrides one of them is served by the loop
_STEP_HOOKS = ("fire", "mem_reset", "state_function", "_base_state_function", *_RESET_OF)

# shown in the repr where they differ
_DEFAULTS = {
    "refractory_input": "integrate",
    "reset_delay": True,
    "init_hidden": False,
    "inhibition": False,
    "output": False,
    "multistep": False,
    "backend": "auto",
}


class Start(NamedTuple):
    """Where a call begins."""

    states: dict[str, Tensor]  # by name, each of the shape of one step; empty at rest
    refractory: Tensor | None  # int32 steps left, None at rest and for R = 0
    dtype: torch.dtype  # of the computation: float32 or float64

    @property
    def at_rest(self) -> bool:
        """A sequence that begins with zeros, which nobody has made yet."""
        return not self.states


class Result(NamedTuple):
    """What a whole sequence gives."""

    spikes: Tensor  # [T, B, *]
    states: dict[str, Tensor]  # by name, each [T, B, *]
    final: dict[str, Tensor]  # by name, each [B, *], no view of another tensor
    refractory: Tensor | None


class RefractoryMixin(snn.SpikingNeuron):
    """Adds a fixed refractory period to the neuron that follows it in the bases of a class.

    After a spike at step t the neuron can fire again at t + R + 1 at the earliest. The reset follows the
    spikes that were emitted, not the threshold crossings that the refractory period suppressed. R = 0 is the
    parent, to the last bit in float32.

    A subclass names its states in the order in which the parent's ``forward`` takes them, and may offer a
    fused sequence (``_fused``); a sequence without one runs step by step.

    Args:
        *args: the parent's arguments, in the parent's order.
        refractory_period: R >= 0, in steps; default 1.
        refractory_input: "integrate" (default), or "ignore": the membrane is held, neither leaking nor
            charged, while the neuron is refractory. Synaptic currents go on in both.
        multistep: ``False`` (default): one step a call, as the parent. ``True``: a call takes a sequence
            [T, B, *] and returns the parent's tuple with sequences in place of steps.
        backend: provider of the fused operators, "auto", "torch", "cpp" or "cupy".
        **kwargs: the parent's arguments by name. ``spike_grad=None`` is ``snn_fr_plugin.surrogate.ATan()``:
            the parent's default formula, as an object that can be pickled.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a wrong value; the message says what was expected and what came.
    """

    _states: ClassVar[tuple[str, ...]]
    _constants: ClassVar[tuple[str, ...]] = ("beta", "threshold")
    _shown: ClassVar[tuple[str, ...]] = ("beta", "threshold")
    _hooks_intact: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._hooks_intact = cls._hooks_intact and not any(hook in cls.__dict__ for hook in _STEP_HOOKS)
        if "__init__" not in cls.__dict__:
            theirs = list(inspect.signature(super().__init__).parameters.values())
            ours = inspect.signature(RefractoryMixin.__init__).parameters.values()
            keyword_only = [p for p in ours if p.kind is inspect.Parameter.KEYWORD_ONLY]
            cls.__signature__ = inspect.Signature([*theirs[1:], *keyword_only])

    def __init__(
        self,
        *args: Any,
        refractory_period: int = 1,
        refractory_input: str = "integrate",
        multistep: bool = False,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        check_period(refractory_period)
        check_choice("refractory_input", refractory_input, ("integrate", "ignore"))
        check_flag("multistep", multistep)
        check_backend(backend)
        bound = inspect.signature(super().__init__).bind(*args, **kwargs)
        self._check_modes(refractory_input, bound.arguments)
        if bound.arguments.get("spike_grad") is None:
            bound.arguments["spike_grad"] = ATan()
        try:
            super().__init__(*bound.args, **bound.kwargs)
        finally:
            hold_weakly(self)
        self.refractory_period = refractory_period
        self.refractory_input = refractory_input
        self.multistep = multistep
        self.backend = backend
        self._refractory: Tensor | None = None  # counter of the step that is running
        self._handed: tuple[Tensor, Tensor] | None = None  # last membrane handed out, and its counter
        self._counters = CounterRegistry()

    def _check_modes(self, refractory_input: str, arguments: dict[str, Any]) -> None:
        """Refuse what this type cannot do, before anything is built."""

    # The parent keeps a bound method here: copies and replicas would go on driving the original.

    @property
    def state_function(self) -> Callable[[Tensor], Any]:
        """The parent's charge and reset of one step, chosen by its ``reset_mechanism``."""
        chosen = self._state_function
        return getattr(self, chosen) if isinstance(chosen, str) else chosen

    @state_function.setter
    def state_function(self, function: Callable[[Tensor], Any]) -> None:
        own = getattr(function, "__self__", None) is self
        self._state_function = function.__name__ if own else function

    # One step: the hooks that the parent's forward calls.

    def mem_reset(self, mem: Tensor) -> Tensor:
        """1 where a reset lands in this step."""
        if self._refractory is None:
            return self._spike(mem - self.threshold).detach()
        if not self._reset_delay:
            return torch.zeros_like(mem)  # the parent resets in the step of the spike, nothing is left over
        return (self._refractory == self.refractory_period).to(mem.dtype)

    def fire(self, mem: Tensor) -> Tensor:
        """Spikes of the neurons that are above the threshold and not refractory."""
        if self.state_quant:
            mem = self.state_quant(mem)
        return self._emit(self._spike(mem - self.threshold)) * self.graded_spikes_factor

    def fire_inhibition(self, batch_size: int, mem: Tensor) -> Tensor:
        """As ``fire``, for the highest membrane of each sample among the neurons that are not refractory."""
        shift = mem - self.threshold
        eligible = shift if self._refractory is None else shift.masked_fill(self._refractory > 0, -torch.inf)
        winner = torch.zeros_like(shift)
        winner[torch.arange(batch_size), torch.argmax(eligible, dim=1)] = 1
        return self._emit(self._spike(shift) * winner)

    def _base_state_function(self, input_: Tensor) -> Any:
        return self._hold(super()._base_state_function(input_))

    def _base_state_reset_zero(self, input_: Tensor) -> Any:
        return self._hold(super()._base_state_reset_zero(input_))

    def _hold(self, charged: Any) -> Any:
        """The parent's states after the charge (the membrane last), the membrane held while refractory."""
        if self._refractory is None or self.refractory_input == "integrate":
            return charged
        if isinstance(charged, tuple):
            return *charged[:-1], self._hold(charged[-1])
        return torch.where(self._refractory == 0, charged, self.mem)

    def _spike(self, shift: Tensor) -> Tensor:
        if isinstance(self.spike_grad, Surrogate):
            return self.spike_grad(shift, inclusive=False)
        return self.spike_grad(shift)

    def _emit(self, candidates: Tensor) -> Tensor:
        if self._refractory is None:
            return candidates
        spikes = candidates * (self._refractory == 0)
        waited = (self._refractory - 1).clamp_min(0)
        self._refractory = torch.where(spikes.detach() > 0, self.refractory_period, waited)
        return spikes

    # A call.

    def _run(self, input_: Tensor, given: tuple[Tensor | None, ...]) -> Any:
        """The parent's call, for one step or for a sequence."""
        if self.multistep:
            check_sequence(input_, "input_")
            shape = input_.shape[1:]
        else:  # the parent takes a step of any shape, none included
            check_step(input_[None] if isinstance(input_, Tensor) else input_, "input_")
            shape = input_.shape
        choose(self.backend, input_.device)
        self._check_states(given, shape, input_.device)
        self._check_constants(shape, input_.device)
        start = self._start(given, shape, input_)
        if self.multistep:
            spk, states = self._run_sequence(input_, start)
        else:
            spk, refractory = self._advance(input_, start)
            self._handed = None if refractory is None else (self.mem, refractory)
            states = self._own_states()
        if self.init_hidden and not self.output:
            return spk
        return spk, *(state for name, state in states.items() if name != "spk")

    def _check_states(
        self, given: tuple[Tensor | None, ...], shape: torch.Size, device: torch.device
    ) -> None:
        for name, state in zip(self._states, given, strict=True):
            if state is None:
                continue
            if self.init_hidden:
                raise TypeError(
                    f"{name} must not be passed with init_hidden=True: the module keeps its own state"
                )
            if not isinstance(state, Tensor) or not state.is_floating_point():
                kind = state.dtype if isinstance(state, Tensor) else type(state).__name__
                raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
            if self.multistep and state.numel() and state.shape != shape:
                raise ValueError(
                    f"{name} must have the shape of one step, {tuple(shape)}, got {tuple(state.shape)}: "
                    f"a sequence goes on from the last row, {name}[-1]"
                )
            if state.shape == shape and state.device != device:
                raise ValueError(f"{name} must be on {device}, got {state.device}")

    def _check_constants(self, shape: torch.Size, device: torch.device) -> None:
        for name in (*self._constants, "graded_spikes_factor"):
            value = getattr(self, name)
            if value.dim() > 0:
                parameter(name, floating(value), shape, value.dtype, value.device)

    def _own_states(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._states}

    def _start(self, given: tuple[Tensor | None, ...], shape: torch.Size, input_: Tensor) -> Start:
        """The states given, else the module's own, else zeros. As in the parent, a state of another shape is
        dropped, and one step goes on from the module's own state whether or not ``init_hidden``.
        """
        self._settle()
        own: dict[str, Tensor] = self._own_states() if self.init_hidden or not self.multistep else {}
        passed = {n: state for n, state in zip(self._states, given, strict=True) if state is not None}
        kept = {n: state for n, state in {**own, **passed}.items() if state.shape == shape}

        dtype = state_dtype(input_)
        elementwise = [*kept.values(), *(getattr(self, name) for name in self._constants)]
        if any(t.dtype == torch.float64 and t.dim() > 0 for t in elementwise):
            dtype = torch.float64
        start = Start(kept, None, dtype)
        return start if self.multistep and start.at_rest else self._filled(start, shape, input_)

    def _filled(self, start: Start, shape: torch.Size, input_: Tensor) -> Start:
        """``start`` with every state, zeros for those that it lacks, and the counter."""
        states = {}
        for name in self._states:
            wanted = input_.dtype if name == "spk" else start.dtype
            if name in start.states:
                states[name] = start.states[name].to(wanted)
            else:
                states[name] = torch.zeros(shape, dtype=wanted, device=input_.device)
        refractory = None
        if self.refractory_period > 0:
            refractory = self._counter_of(start.states["mem"]) if "mem" in start.states else None
            if refractory is None:
                refractory = torch.zeros(shape, dtype=torch.int32, device=input_.device)
        return Start(states, refractory, start.dtype)

    def _advance(self, input_: Tensor, start: Start) -> tuple[Tensor, Tensor | None]:
        """One step by the parent's forward: spikes and counter; the new states are on the module."""
        for name, state in start.states.items():
            setattr(self, name, state)
        self._refractory = start.refractory
        out = super().forward(input_.to(start.dtype))
        refractory, self._refractory = self._refractory, None
        spk = (out if isinstance(out, Tensor) else out[0]).to(input_.dtype)
        if "spk" in start.states:
            self.spk = spk
        return spk, refractory

    def _run_sequence(self, input_: Tensor, start: Start) -> tuple[Tensor, dict[str, Tensor]]:
        result = self._fused(input_, start) if self._can_fuse() else None
        if result is None:
            if self.backend not in ("auto", "torch"):
                raise ValueError(
                    f"backend must be 'auto' or 'torch' for this {type(self).__name__}, whose sequences run "
                    f"step by step, got {self.backend!r}"
                )
            result = self._loop(input_, start)
            spikes = result.spikes
        else:
            spikes = self._graded(result.spikes, input_.dtype)
        if self.init_hidden:
            for name, state in result.final.items():
                setattr(self, name, state)
            self._handed = None if result.refractory is None else (self.mem, result.refractory)
        elif result.refractory is not None and len(input_) and not torch.compiler.is_compiling():
            self._counters.bind_last(result.states["mem"], result.refractory)
        return spikes, result.states

    def _graded(self, spikes: Tensor, dtype: torch.dtype) -> Tensor:
        """``spikes * graded_spikes_factor`` in ``dtype``. The product, which takes longer than the fused
        sequence, is left out where the factor is the constant 1 and can be read at no cost: on the CPU.
        """
        factor = self.graded_spikes_factor
        readable = factor.is_cpu and factor.numel() == 1 and not torch.compiler.is_compiling()
        if not (readable and not factor.requires_grad and factor.item() == 1):
            spikes = spikes * factor
        return spikes.to(dtype)

    def _loop(self, input_: Tensor, start: Start) -> Result:
        """The sequence step by step; the module's own states are left as they were."""
        own = self._own_states()
        if start.at_rest:
            start = self._filled(start, input_.shape[1:], input_)
        spikes: list[Tensor] = []
        states: dict[str, list[Tensor]] = {name: [] for name in self._states}
        try:
            for x in input_.unbind(0):
                spk, refractory = self._advance(x, start)
                start = start._replace(states=self._own_states(), refractory=refractory)
                spikes.append(spk)
                for name, state in start.states.items():
                    states[name].append(state)
        finally:
            for name, state in own.items():
                setattr(self, name, state)
        if not spikes:
            empty = {n: state.new_zeros(input_.shape) for n, state in start.states.items()}
            return Result(torch.zeros_like(input_), empty, start.states, start.refractory)
        stacked = {name: torch.stack(rows) for name, rows in states.items()}
        return Result(torch.stack(spikes), stacked, start.states, start.refractory)

    # Whole sequences through the operators.

    @property
    def _reset_delay(self) -> bool:
        return getattr(self, "reset_delay", True)  # Lapicque and Alpha know no other timing

    @property
    def _reset(self) -> str | None:
        """The reset of a step, by its name; ``None``: not one of the parent's."""
        chosen = self._state_function
        if not isinstance(chosen, str) or chosen not in _RESET_OF:
            return None
        return _RESET_OF[chosen] if self._reset_delay else self.reset_mechanism

    def _can_fuse(self) -> bool:
        """Whether the operators compute exactly what the steps do."""
        if self.state_quant or self.inhibition or not self._hooks_intact or self._reset is None:
            return False
        if not isinstance(self.spike_grad, Surrogate) and torch.compiler.is_compiling():
            return False  # whether it is a step function is seen from its values
        immediate = not self._reset_delay and self._reset != "none"
        # At R = 0 the parent resets a membrane that its reset left above the threshold once more.
        return not immediate or (self.refractory_period > 0 and isinstance(self.spike_grad, Surrogate))

    def _fused(self, input_: Tensor, start: Start) -> Result | None:
        """The whole sequence by the operators, spikes still ungraded; ``None``: they cannot."""
        return None

    def _lif(self, current: Tensor, decay: Tensor, start: Start) -> tuple[Tensor, Tensor, LIFState] | None:
        """Charge ``decay * mem + current``, reset and firing; ``None`` if ``spike_grad`` is no step."""
        threshold = floating(self.threshold)
        spikes, mem, final = lif(
            _widened(current, start.dtype),
            decay,
            threshold,
            refractory_period=self.refractory_period,
            reset=self._reset,  # type: ignore[arg-type]
            reset_delay=self._reset_delay,
            refractory_input=self.refractory_input,  # type: ignore[arg-type]
            inclusive=False,
            surrogate=self.spike_grad,
            state=self._lif_state("mem", start, start.refractory),
            return_membrane=True,
            backend=self.backend,
        )
        assert mem is not None
        if not self._fires_as_counted(spikes, mem, start):
            return None
        return spikes, mem, final

    def _fires_as_counted(self, spikes: Tensor, mem: Tensor, start: Start) -> bool:
        """Whether a foreign ``spike_grad`` fired where the operator, which only knows the strict comparison,
        took it to fire. Stochastic, leaky and ``>=`` ones need not.
        """
        if isinstance(self.spike_grad, Surrogate):
            return True
        expected, _ = fixed_refractory(
            mem.detach(),
            floating(self.threshold).detach(),
            period=self.refractory_period,
            inclusive=False,
            state=start.refractory,
            backend=self.backend,
        )
        return torch.equal(spikes.detach().to(expected.dtype), expected)

    def _current(self, name: str, input_: Tensor, decay: Tensor, start: Start) -> tuple[Tensor, Tensor]:
        """The synaptic current ``decay * current + input_`` [T, B, *], and its last value."""
        _, current, final = lif(
            _widened(input_, start.dtype),
            decay,
            reset="none",
            state=self._lif_state(name, start),
            return_membrane=True,
            backend=self.backend,
        )
        assert current is not None
        return current, final.v

    @staticmethod
    def _lif_state(name: str, start: Start, refractory: Tensor | None = None) -> LIFState | None:
        """Where the operator begins with the state of that name; without ``refractory`` its gate is open."""
        if start.at_rest:
            return None
        state = start.states[name]
        if refractory is None:
            refractory = torch.zeros_like(state, dtype=torch.int32)
        return LIFState(state, refractory)

    # Where the counters are.

    def _counter_of(self, mem: Tensor) -> Tensor | None:
        """The counter that belongs to ``mem``; ``None``: this module never handed it out."""
        if torch.compiler.is_compiling():  # storages cannot be traced
            return self._handed[1] if self._handed is not None and mem is self._handed[0] else None
        return self._counters.find(mem)

    def _settle(self) -> None:
        """File the counter of the last membrane handed out, which a compiled call cannot do itself."""
        if self._handed is not None and not torch.compiler.is_compiling():
            self._counters.bind(*self._handed)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self._settle()
        refractory = self._counter_of(self.mem)
        super()._apply(fn, recurse)
        if refractory is not None:
            self._handed = (self.mem, refractory.to(self.mem.device))
        return self

    def _replicate_for_data_parallel(self) -> Any:
        replica = super()._replicate_for_data_parallel()
        replica._counters = self._counters.copy()
        return replica

    def __getstate__(self) -> dict[str, Any]:
        # no autograd history: neither deepcopy nor another process could follow it
        state = self.__dict__.copy()
        state["_buffers"] = buffers = self._buffers.copy()
        buffers.update({name: getattr(self, name).detach() for name in self._states})
        self._settle()
        refractory = self._counter_of(self.mem)
        state["_handed"] = None if refractory is None else (buffers["mem"], refractory)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        register(self)

    def extra_repr(self) -> str:
        """The constants, the refractory period, the reset, and what differs from the defaults."""
        parts = [f"{name}={_shown(getattr(self, name))}" for name in self._shown]
        parts.append(f"refractory_period={self.refractory_period}")
        parts.append(f"reset_mechanism={self.reset_mechanism!r}")
        for name, default in _DEFAULTS.items():
            value = getattr(self, name, default)
            if value != default:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)


def _widened(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in float64 where the computation is; half precision is left to the operators."""
    return x.to(dtype) if dtype == torch.float64 else x


def floating(value: Tensor) -> Tensor:
    """A constant of the neuron as a floating-point tensor: ``threshold=1`` is an integer in the parent."""
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


def _shown(value: Tensor) -> str:
    if value.numel() == 1 and not value.is_meta:
        return f"{value.item():g}"
    return f"tensor{list(value.shape)}"
