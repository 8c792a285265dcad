"""Positive values of a spiking module, such as its threshold: fixed, or learned as their logarithm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._checks import check_flag

__all__ = ["get_positive", "register_positive", "show_positive"]


def register_positive(
    module: nn.Module, name: str, value: float | Tensor, learn: bool, *, must_be_positive: bool = True
) -> None:
    """Keep ``value`` as the parameter ``log_<name>``, or unlearned as the buffer or float ``_<name>``.

    A fixed value is a float, or a tensor in the state_dict, and may be of any sign unless
    ``must_be_positive``.
    """
    check_flag(f"learn_{name}", learn)
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float or a tensor, got {type(value).__name__}")
    start = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
    if (learn or must_be_positive) and not bool((start > 0).all()):
        raise ValueError(f"{'a learnable ' if learn else ''}{name} must be > 0, got {value}")
    if learn:
        setattr(module, f"log_{name}", nn.Parameter(start.log()))
    elif isinstance(value, Tensor):
        module.register_buffer(f"_{name}", start.clone())
    else:
        setattr(module, f"_{name}", float(value))


def get_positive(module: nn.Module, name: str) -> float | Tensor:
    """What ``register_positive`` keeps under ``name``."""
    learned = module._parameters.get(f"log_{name}")
    value: float | Tensor = getattr(module, f"_{name}") if learned is None else torch.exp(learned)
    return value


def show_positive(module: nn.Module, name: str) -> str:
    """The same for a repr: a number, or the shape of a tensor."""
    learned = module._parameters.get(f"log_{name}")
    value = getattr(module, f"_{name}") if learned is None else learned
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}=tensor{tuple(value.shape)}"
