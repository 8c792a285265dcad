"""States of any structure, flattened for the frameworks and put together again."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from snn_fr_plugin.integrations._state import flatten, paths, unflatten, with_tensors


class Inner(NamedTuple):
    v: Any
    count: int


class Outer(NamedTuple):
    memory: Any
    spiking: Any


A, B = torch.randn(2), torch.arange(3)
STATES: list[tuple[Any, tuple[Any, ...], tuple[str, ...]]] = [
    (Outer(A, B), (A, B), ("memory", "spiking")),
    (Outer(A, None), (A,), ("memory",)),
    (Outer(7, Inner(A, 2)), (7, A, 2), ("memory", "spiking_v", "spiking_count")),
    (Outer((A, (None, B)), Inner(None, 0)), (A, B, 0), ("memory_0", "memory_1_1", "spiking_count")),
    (Outer((), None), (), ()),
    (None, (), ()),
]


@pytest.mark.parametrize(("state", "leaves", "names"), STATES)
def test_there_and_back(state: Any, leaves: tuple[Any, ...], names: tuple[str, ...]) -> None:
    assert len(flatten(state)) == len(leaves)
    assert all(got is expected for got, expected in zip(flatten(state), leaves, strict=True))
    assert paths(state) == names
    again = unflatten(state, leaves)
    assert type(again) is type(state) and repr(again) == repr(state)
    assert flatten(unflatten(state, names)) == names  # a state may hold anything in the place of its leaves
    doubled = flatten(with_tensors(lambda leaf: leaf * 2, state))
    for got, leaf in zip(doubled, leaves, strict=True):
        assert torch.equal(got, leaf * 2) if isinstance(leaf, Tensor) else got == leaf
