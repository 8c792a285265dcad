"""What differs between SpikingJelly 2.0 and 0.0.0.0.14, its last release before; the only file that knows.

2.0 splits a step of a ``MemoryModule`` into ``materialize_states`` (sentinels become tensors) and a pure
``*_step_functional_forward`` (states in, states out). 0.0.0.0.14 has neither, so they are driven from here,
and the classes of this package are written once, in 2.0's terms.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from snn_fr_plugin.ops._providers import BACKENDS

try:
    from spikingjelly.activation_based import base, neuron
except ModuleNotFoundError as error:
    raise ImportError(
        "snn_fr_plugin.integrations.spikingjelly needs SpikingJelly: "
        "pip install 'snn-fr-plugin[spikingjelly]'"
    ) from error

__all__ = ["BaseNode", "MemoryModule", "let_set_backend", "lif_charge", "trailing_arguments"]

_FUNCTIONAL = hasattr(base.MemoryModule, "functional_forward")  # 2.0


class _FunctionalSteps:
    """Drives the pure steps of a memory module, as 2.0's ``MemoryModule`` does."""

    _memories: dict[str, Any]

    def single_step_forward(self, x: Tensor, *args: Tensor, **kwargs: Any) -> Any:
        return self._advance((x, *args), "s", kwargs)

    def multi_step_forward(self, x_seq: Tensor, *args: Tensor, **kwargs: Any) -> Any:
        return self._advance((x_seq, *args), "m", kwargs)

    def _advance(self, inputs: tuple[Tensor, ...], step_mode: str, kwargs: dict[str, Any]) -> Any:
        self_: Any = self
        names = [name for name in self._memories if name != "v_seq"]  # a trace, not a state
        states = self_.materialize_states(inputs, tuple(self._memories[n] for n in names), step_mode)
        single = step_mode == "s"
        step = self_.single_step_functional_forward if single else self_.multi_step_functional_forward
        outputs, states = step(inputs, states, **kwargs)
        self._memories.update(zip(names, states, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs


BaseNode: Any
MemoryModule: Any
if _FUNCTIONAL:
    BaseNode, MemoryModule = neuron.BaseNode, base.MemoryModule
else:
    BaseNode = type("BaseNode", (_FunctionalSteps, neuron.BaseNode), {})
    MemoryModule = type("MemoryModule", (_FunctionalSteps, base.MemoryModule), {})


def trailing_arguments(given: tuple[Any, ...], backend: str, store_v_seq: bool) -> tuple[str, bool]:
    """``backend`` and ``store_v_seq`` of a neuron whose constructor got ``given`` behind ``step_mode``.

    They are positional in the parents, in an order that depends on the release.
    """
    names = ("store_v_seq",) if _FUNCTIONAL else ("backend", "store_v_seq")
    if len(given) > len(names):
        raise TypeError(f"expected at most {', '.join(names)} behind step_mode by position, got {given!r}")
    by_name: dict[str, Any] = {"backend": backend, "store_v_seq": store_v_seq}
    by_position = dict(zip(names, given, strict=False))
    for name, default in (("backend", "auto"), ("store_v_seq", False)):
        if name in by_position and by_name[name] != default:
            raise TypeError(
                f"got multiple values for argument {name!r}: {by_position[name]!r}, {by_name[name]!r}"
            )
    values = by_name | by_position
    return values["backend"], values["store_v_seq"]


def let_set_backend(part: nn.Module) -> None:
    """Let ``functional.set_backend`` of 0.0.0.0.14 walk over the modules of the core.

    It asks every module that has a ``backend`` for its ``supported_backends``.
    """
    if not _FUNCTIONAL:
        for module in part.modules():
            if hasattr(module, "backend"):
                module.supported_backends = BACKENDS  # type: ignore[assignment]


def lif_charge(tau: float, decay_input: bool, v_reset: float | None, training: bool) -> dict[str, Any]:
    """Arguments of ``ops.lif`` whose charge rounds like that of the installed ``LIFNode``.

    Without ``decay_input`` and with a rest of zero, 0.0.0.0.14 writes ``v (1 - 1/tau) + x``; in evaluation it
    does so for the soft reset only.
    """
    at_rest_zero = v_reset is None or (training and v_reset == 0.0)
    if not _FUNCTIONAL and not decay_input and at_rest_zero:
        return {"beta": 1.0 - 1.0 / tau}
    return {"tau": tau, "decay_input": decay_input}
