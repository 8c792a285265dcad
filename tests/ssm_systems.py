"""Random state-space systems, and their comparison with the loop in double precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snn_fr_plugin.ops import diagonal_ssm
from snn_fr_plugin.ops.ssm.reference import diagonal_ssm as reference

from .support import gradients, random_like

# greatest error, relative to the greatest value
PRECISION = {torch.float64: 1e-12, torch.float32: 5e-6}
COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def make_system(
    shape: Sequence[int],
    pairs: int,
    dtype: torch.dtype = torch.float64,
    *,
    feed_through: bool = True,
    with_state: bool = True,
    radius: float | None = None,
) -> dict[str, Any]:
    """Random arguments, by default with |A| from 0.5 to 0.9999; one A is zero."""
    channels = shape[-1]
    sizes = (
        1 - 10 ** -torch.rand(channels, pairs, dtype=dtype).mul(3.7).add(0.3)
        if radius is None
        else torch.full((channels, pairs), radius, dtype=dtype)
    )
    matrix = torch.polar(sizes, (torch.rand(channels, pairs, dtype=dtype) * 2 - 1) * math.pi)
    matrix[:1, :1] = 0
    system: dict[str, Any] = {
        "x": torch.randn(*shape, dtype=dtype),
        "A_bar": matrix,
        "C_bar": torch.randn(channels, pairs, dtype=COMPLEX[dtype]),
    }
    if feed_through:
        system["D"] = torch.randn(channels, dtype=dtype)
    if with_state:
        system["state"] = torch.randn(*shape[1:], pairs, dtype=COMPLEX[dtype])
    return {name: value.requires_grad_() for name, value in system.items()}


def in_double(system: dict[str, Tensor]) -> dict[str, Any]:
    wide = {
        n: v.detach().to(torch.complex128 if v.is_complex() else torch.float64) for n, v in system.items()
    }
    return {name: value.requires_grad_() for name, value in wide.items()}


def error(got: Tensor | None, want: Tensor | None) -> float:
    if want is None or want.numel() == 0:
        return 0.0
    assert got is not None and got.shape == want.shape
    got, want = got.detach(), want.detach()
    scale = want.abs().max()
    return float((got - want).abs().max() / scale) if scale else float(got.abs().max())


def run(
    system: dict[str, Any], backend: str, cotangents: Sequence[Tensor | None] | None = None
) -> list[Tensor | None]:
    """Outputs and gradients, in the order of the arguments."""
    outputs = diagonal_ssm(**system, backend=backend)
    if cotangents is None:
        torch.manual_seed(1)
        cotangents = random_like(outputs)
    return [*outputs, *gradients(outputs, cotangents, list(system.values()))]


def compare(system: dict[str, Any], backend: str) -> None:
    """Outputs and gradients against those of the loop."""
    dtype = system["x"].dtype
    outputs, exact = diagonal_ssm(**system, backend=backend), in_double(system)
    expected = reference(**exact)
    assert outputs[0].dtype == dtype and outputs[1].dtype == COMPLEX[dtype]
    cotangents = random_like(outputs)
    got = gradients(outputs, cotangents, list(system.values()))
    want = gradients(
        expected, [c.to(e.dtype) for c, e in zip(cotangents, expected, strict=True)], list(exact.values())
    )
    names = ["y", "last", *system]
    for name, a, b in zip(names, [*outputs, *got], [*expected, *want], strict=True):
        assert error(a, b) < PRECISION[dtype], name
