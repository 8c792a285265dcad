"""A state of the core as a flat tuple, for what holds its tensors one by one, and back.

A state is a tensor, a number (the steps read by what is not causal), ``None`` (no history), or a tuple of
states, most often a NamedTuple. Its leaves are the tensors and numbers, from left to right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

__all__ = ["flatten", "paths", "unflatten", "with_tensors"]


def flatten(state: Any) -> tuple[Any, ...]:
    """The leaves of a state."""
    if state is None:
        return ()
    if isinstance(state, tuple):
        return tuple(leaf for part in state for leaf in flatten(part))
    return (state,)


def unflatten(like: Any, leaves: Iterable[Any]) -> Any:
    """The state of the structure of ``like`` that has these leaves."""
    return _take(like, iter(leaves))


def _take(like: Any, leaves: Iterator[Any]) -> Any:
    if like is None:
        return None
    if not isinstance(like, tuple):
        return next(leaves)
    parts = [_take(part, leaves) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def paths(state: Any, stem: str = "") -> tuple[str, ...]:
    """A name for each leaf: the fields that lead to it, joined by "_"."""
    if state is None:
        return ()
    if not isinstance(state, tuple):
        return (stem,)
    fields = getattr(state, "_fields", range(len(state)))
    names = [f"{stem}_{field}" if stem else str(field) for field in fields]
    return tuple(path for part, name in zip(state, names, strict=True) for path in paths(part, name))


def with_tensors(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """A state with ``function`` applied to each of its tensors."""
    leaves = (function(leaf) if isinstance(leaf, Tensor) else leaf for leaf in flatten(state))
    return unflatten(state, leaves)
