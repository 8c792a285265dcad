"""What the compiled providers share: tensors as the kernels see them, and sums in one order."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["call", "per_neuron", "sum_to"]


def call(
    function: Callable[..., Any],
    arguments: ctypes.Structure,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
) -> None:
    """Run a kernel on ``arguments``, whose fields named here get the addresses of the tensors.

    Inputs are made contiguous; a tensor without elements is a null pointer, as is a field not named.
    """
    rows = {name: tensor.contiguous() for name, tensor in inputs.items()}  # copies outlive the call
    for field, tensor in (*rows.items(), *outputs.items()):
        setattr(arguments, field, tensor.data_ptr() if tensor.numel() else None)
    function(ctypes.byref(arguments))


def per_neuron(parameter: Tensor, shape: torch.Size) -> tuple[Tensor, int]:
    """A parameter as one number or a value a neuron, and its stride: 0 or 1."""
    return (parameter, 0) if parameter.numel() == 1 else (parameter.expand(shape), 1)


def sum_to(row: Tensor, shape: torch.Size) -> Tensor:
    """``row`` summed to a shape that broadcasts to it, in an order that no thread count changes."""
    if shape.numel() == 1 and row.numel():  # torch splits a sum of all elements between its threads
        return row.flatten().cumsum(0)[-1].view(shape)
    return row.sum_to_size(shape)
