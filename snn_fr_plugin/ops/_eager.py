"""The way past torch's dispatcher, for calls in which nobody is there to be told of an operator.

Most of a short call through ``torch.library.custom_op`` is the dispatcher's and the wrappers' around it. They
are there for whoever watches operators: tracers, transforms, modes, tensors of other types. A call that
nobody watches goes to the provider straight, through one ``torch.autograd.Function`` if gradients are wanted.
Both ways run the same code of the provider, with the same rules for autograd, and have one name in profiles.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.nn import Parameter
from torch.utils._device import DeviceContext

__all__ = ["as_operator", "direct", "or_empty", "or_zeros", "wants_graph", "watched"]

# Private names of torch, which are the same from 2.6 on; a release without one of them takes the operators.
_NAMES = (
    "_AutoDispatchBelowAutograd",
    "_are_functorch_transforms_active",
    "_get_function_stack_at",
    "_len_torch_dispatch_stack",
    "_len_torch_function_stack",
)
_KNOWN = all(hasattr(torch._C, name) for name in _NAMES)


def watched(*tensors: Tensor | None) -> bool:
    """Whether something would see, or has to see, the operator that these tensors are given to."""
    if torch.compiler.is_compiling() or not _KNOWN:
        return True
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
    ):
        return True
    # what ``with torch.device(...)`` and ``torch.set_default_device`` push concerns new tensors alone
    for i in range(torch._C._len_torch_function_stack()):
        if type(torch._C._get_function_stack_at(i)) is not DeviceContext:
            return True
    # what is special about a tensor to the dispatcher: another type, no memory, a sign not yet applied
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) is not Tensor and type(tensor) is not Parameter:
            return True
        if tensor.is_meta or tensor.is_neg() or tensor.is_conj():
            return True
    return False


def wants_graph(*tensors: Tensor | None) -> bool:
    """Whether autograd follows what is computed from these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def as_operator(name: str) -> Any:
    """A context as that of a custom operator's code: no history, and its name in profiles."""
    without_history = torch._C._AutoDispatchBelowAutograd()
    if not profiler._is_profiler_enabled:
        return without_history
    contexts = contextlib.ExitStack()
    contexts.enter_context(profiler.record_function(f"snn_fr::{name}"))
    contexts.enter_context(without_history)
    return contexts


def direct(
    name: str,
    forward: Callable[..., tuple[Tensor | None, ...]],
    setup_context: Callable[[Any, tuple[Any, ...], tuple[Tensor | None, ...]], None],
    backward: Callable[..., tuple[Any, ...]],
) -> Callable[..., tuple[Any, ...]]:
    """The function that takes the place of an operator where it is not ``watched``.

    Its first argument is whether a graph is wanted, the others are those of ``forward``. ``setup_context``
    and ``backward`` are what the operator registers for autograd.
    """

    def without_graph(*inputs: Any) -> tuple[Any, ...]:
        with as_operator(name):
            return forward(*inputs)

    # in the form that has no ``setup_context``, with which a call takes four times as long
    def forward_in(ctx: Any, *inputs: Any) -> tuple[Any, ...]:
        output = without_graph(*inputs)
        setup_context(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(forward_in), "backward": staticmethod(backward)}
    function: Any = types.new_class(
        f"snn_fr_{name}", (torch.autograd.Function,), exec_body=lambda body: body.update(methods)
    )
    return lambda graph, *inputs: (function.apply if graph else without_graph)(*inputs)


def or_empty(output: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What an operator returns for an output that was not asked for, as it cannot return ``None``."""
    return like.new_empty(0, dtype=dtype) if output is None else output


def or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    """What the backward of an operator returns for a gradient that is not needed."""
    return torch.zeros_like(like) if gradient is None else gradient
