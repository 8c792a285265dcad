"""What the compiled providers share: tensors as the kernels see them, and sums in one order."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["call", "empty", "fill", "given", "per_neuron", "sum_to"]


def empty(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Contiguous memory for the shape, dtype and device of a tensor; sooner than by ``new_empty``."""
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)


def given(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Those that there are, by name."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def fill(
    arguments: ctypes.Structure, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> list[Tensor]:
    """Put the addresses of the tensors into the fields of ``arguments`` that bear their names.

    Inputs are made contiguous; a tensor without elements is a null pointer, as is a field not named.

    Returns:
        The inputs that the addresses point to: keep them until the kernel has run (or has been put into the
        stream from which their memory comes).
    """
    rows = [tensor.contiguous() for tensor in inputs.values()]
    for field, row in zip(inputs, rows, strict=True):
        setattr(arguments, field, row.data_ptr())  # 0 without elements
    for field, row in outputs.items():
        setattr(arguments, field, row.data_ptr())
    return rows


def call(
    function: Callable[..., Any],
    arguments: ctypes.Structure,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
) -> None:
    """Run a CPU kernel on ``arguments``, filled with the addresses of the tensors."""
    rows = fill(arguments, inputs, outputs)
    function(ctypes.byref(arguments))
    del rows  # until here


def per_neuron(parameter: Tensor, shape: torch.Size) -> tuple[Tensor, int]:
    """A parameter as one number or a value a neuron, and its stride: 0 or 1."""
    return (parameter, 0) if parameter.numel() == 1 else (parameter.expand(shape), 1)


def sum_to(row: Tensor, shape: torch.Size) -> Tensor:
    """``row`` summed in double to a shape that broadcasts to it, in an order that no thread count changes."""
    if row.shape == shape:
        return row
    # on a CPU torch splits a sum of all elements between its threads
    if row.device.type == "cpu" and shape.numel() == 1 and row.numel():
        return row.flatten().cumsum(0, dtype=torch.float64)[-1].view(shape)
    leading = row.dim() - len(shape)
    if row.shape[leading:] == shape:
        return row.sum(tuple(range(leading)), dtype=torch.float64)
    return row.double().sum_to_size(shape)
