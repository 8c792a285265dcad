"""Argument errors of the whole package, in one wording: what was expected, and what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_channels",
    "check_choice",
    "check_dimension",
    "check_flag",
    "check_period",
    "check_sequence",
    "check_state",
    "check_step",
    "parameter",
    "state_dtype",
]

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _check_floating(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {x.dtype}")


def check_sequence(x: Any, name: str = "x") -> None:
    """``x`` is a floating tensor [T, N, *]."""
    _check_floating(name, x)
    if x.dim() < 2:
        raise ValueError(f"{name} must have shape [T, N, *], got {tuple(x.shape)}")


def check_step(x: Any, name: str = "x") -> None:
    """``x`` is a floating tensor [N, *]: one time step."""
    _check_floating(name, x)
    if x.dim() < 1:
        raise ValueError(f"{name} must have shape [N, *] in a single step, got {tuple(x.shape)}")


def check_channels(x: Tensor, d_model: int) -> None:
    """The last dimension of ``x`` is ``d_model``."""
    if x.shape[-1] != d_model:
        raise ValueError(
            f"x must have d_model={d_model} channels in its last dimension, got shape {tuple(x.shape)}"
        )


def check_period(period: Any, name: str = "refractory_period") -> None:
    """A refractory period in steps: a non-negative int."""
    if isinstance(period, bool) or not isinstance(period, int):
        raise TypeError(f"{name} must be an int >= 0, got {period!r} of type {type(period).__name__}")
    if not 0 <= period < 2**30:
        raise ValueError(f"{name} must be an int >= 0 (and < 2**30), got {period}")


def check_dimension(name: str, value: Any, *, even: bool = False) -> None:
    """A size: a positive int, even where complex pairs are counted."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a positive int, got {value!r} of type {type(value).__name__}")
    if value < 1 or (even and value % 2):
        raise ValueError(f"{name} must be a positive {'even ' if even else ''}int, got {value}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(repr(c) for c in choices[:-1]) + f" or {choices[-1]!r}"
        raise ValueError(f"{name} must be {listed}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r} of type {type(value).__name__}")


def state_dtype(x: Tensor) -> torch.dtype:
    """Dtype of the state that goes with ``x``: float64 for float64 input, float32 otherwise."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def parameter(
    name: str, value: float | Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``value`` as a tensor of ``dtype`` on ``device`` that broadcasts to ``shape`` without enlarging it."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a float or a tensor, got {type(value).__name__}")
        return torch.full((), value, dtype=dtype, device=device)
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
    own = tuple(value.shape)
    added = len(shape) - len(own)
    fits = added >= 0 and all(a in (1, b) for a, b in zip(own, shape[added:], strict=True))
    if not fits:
        raise ValueError(f"{name} must broadcast to the neurons' shape {tuple(shape)}, got shape {own}")
    return value.to(device=device, dtype=dtype)


def check_state(
    name: str, value: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> None:
    """A state tensor matches the input it will be used with."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}")
    if value.device != device:
        raise ValueError(f"{name} must be on {device}, got {value.device}")
