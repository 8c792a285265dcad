"""Discretization: what is exact is exact, what converges converges at its order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from snn_fr_plugin.discretize import bilinear, zoh

POLES = torch.tensor([-0.5 + 0j, -0.5 + 3.1j, -2 - 7j, 1j], dtype=torch.complex128)
GAIN = torch.tensor([1.0, 0.3 - 2j, -1.5j, 2.0], dtype=torch.complex128)


def response(A: Tensor, B: Tensor, time: float, start: Tensor) -> Tensor:
    """h(time) of dh/dt = A h + B from h(0) = start: what calculus says."""
    growth = torch.exp(A * time)
    return growth * start + (growth - 1) / A * B


def march(A_bar: Tensor, B_bar: Tensor, inputs: list[float], start: Tensor) -> Tensor:
    h = start
    for x in inputs:
        h = A_bar * h + B_bar * x
    return h


@pytest.mark.parametrize("dt", [0.5, 0.05])
def test_zoh_is_exact_for_piecewise_constant_input(dt: float) -> None:
    A_bar, B_bar = zoh(POLES, GAIN, dt)
    start = torch.randn(4, dtype=torch.complex128)
    steps = round(1 / dt)
    got = march(A_bar, B_bar, [0.7] * steps + [-1.3] * steps, start)
    expected = response(POLES, -1.3 * GAIN, 1.0, response(POLES, 0.7 * GAIN, 1.0, start))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


def test_zoh_of_a_real_matrix() -> None:
    A_bar, B_bar = zoh(torch.tensor([-2.0, 0.0], dtype=torch.float64), 3.0, 0.25)
    assert A_bar.dtype == B_bar.dtype == torch.float64
    torch.testing.assert_close(A_bar, torch.tensor([math.exp(-0.5), 1.0], dtype=torch.float64))
    torch.testing.assert_close(
        B_bar, torch.tensor([1.5 * (1 - math.exp(-0.5)), 0.75], dtype=torch.float64), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_zoh_of_an_integrator(dtype: torch.dtype) -> None:
    A_bar, B_bar = zoh(torch.zeros(2, dtype=dtype), torch.tensor([1.0, -2.0]), 0.25)
    assert A_bar.tolist() == [1, 1]
    assert B_bar.tolist() == [0.25, -0.5]


@pytest.mark.parametrize("dt", [1e-2, 1e-3, 1e-5, 1e-7])
def test_zoh_keeps_its_digits_at_small_steps(dt: float) -> None:
    A = torch.complex(torch.full((32,), -0.5), math.pi * torch.arange(32.0))
    step = torch.tensor(dt)
    exact = torch.expm1(step.double() * A.to(torch.complex128)) / A.to(torch.complex128)
    _, B_bar = zoh(A, 1.0, step)
    assert B_bar.dtype == torch.complex64
    assert ((B_bar - exact).abs() / exact.abs()).max() < 2.5e-7  # four roundings
    if dt < 1e-4:
        plain = (torch.exp(step * A) - 1) / A
        assert ((plain - exact).abs() / exact.abs()).max() > 1e-4  # what expm1 is for


def test_bilinear_converges_with_slope_two() -> None:
    start = torch.randn(4, dtype=torch.complex128)
    expected = response(POLES, GAIN, 1.0, start)
    steps = [64, 128, 256, 512]
    errors = [(march(*bilinear(POLES, GAIN, 1 / n), [1.0] * n, start) - expected).abs() for n in steps]
    log_dt = -torch.tensor(steps, dtype=torch.float64).log()
    log_error = torch.stack(errors).log()
    centred = log_dt - log_dt.mean()
    slope = (centred[:, None] * log_error).sum(0) / centred.square().sum()
    torch.testing.assert_close(slope, torch.full_like(slope, 2.0), rtol=0, atol=0.02)


def test_bilinear_maps_the_imaginary_axis_to_the_unit_circle() -> None:
    A = 1j * torch.linspace(-50, 50, 33, dtype=torch.float64)
    torch.testing.assert_close(bilinear(A, 1.0, 0.3)[0].abs(), torch.ones(33, dtype=torch.float64))
    assert (bilinear(A - 1, 1.0, 0.3)[0].abs() < 1).all()


@pytest.mark.parametrize("rule", [zoh, bilinear])
def test_broadcasts_one_step_per_channel(rule: object) -> None:
    dt = torch.tensor([0.1, 0.3], dtype=torch.float64)
    A_bar, B_bar = rule(POLES.expand(2, 4), GAIN, dt[:, None])  # type: ignore[operator]
    assert A_bar.shape == B_bar.shape == (2, 4)
    for row, step in enumerate(dt.tolist()):
        for got, expected in zip((A_bar, B_bar), rule(POLES, GAIN, step), strict=True):  # type: ignore[operator]
            torch.testing.assert_close(got[row], expected)


@pytest.mark.parametrize("rule", [zoh, bilinear])
def test_gradients(rule: object) -> None:
    A = torch.cat([POLES, torch.zeros(1, dtype=torch.complex128)]).requires_grad_()  # a pole at zero too
    B = torch.randn(5, dtype=torch.complex128, requires_grad=True)
    dt = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rule, (A, B, dt))  # type: ignore[arg-type]
