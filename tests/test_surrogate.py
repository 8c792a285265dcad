"""Surrogates: formulas against both frameworks and against finite differences of their primitives."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import snntorch.surrogate
import torch
from spikingjelly.activation_based import surrogate as spikingjelly_surrogate

from snn_fr_plugin import surrogate as sg

OURS: dict[str, sg.Surrogate] = {
    "atan": sg.ATan(),
    "sigmoid": sg.Sigmoid(),
    "fast_sigmoid": sg.FastSigmoid(),
    "super_spike": sg.SuperSpike(),
    "triangle": sg.Triangle(),
    "rectangle": sg.Rectangle(),
    "soft_sign": sg.SoftSign(),
    "erf": sg.Erf(),
    "piecewise_quadratic": sg.PiecewiseQuadratic(),
    "piecewise_exp": sg.PiecewiseExp(),
    "straight_through": sg.StraightThrough(),
}


def _gradient(surrogate: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    spikes = surrogate(x)
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    return spikes.detach(), gradient


def test_kinds_are_all_there() -> None:
    assert tuple(OURS) == sg.KINDS
    assert all(kind == s.kind for kind, s in OURS.items())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (sg.ATan(), spikingjelly_surrogate.ATan()),
        (sg.ATan(5.0), spikingjelly_surrogate.ATan(5.0)),
        (sg.Sigmoid(), spikingjelly_surrogate.Sigmoid()),
        (sg.SuperSpike(), spikingjelly_surrogate.SuperSpike()),
        (sg.SuperSpike(3.0), spikingjelly_surrogate.SuperSpike(3.0)),
        (sg.SoftSign(), spikingjelly_surrogate.SoftSign()),
        (sg.Erf(), spikingjelly_surrogate.Erf()),
        (sg.PiecewiseQuadratic(), spikingjelly_surrogate.PiecewiseQuadratic()),
        (sg.PiecewiseQuadratic(2.0), spikingjelly_surrogate.PiecewiseQuadratic(2.0)),
        (sg.PiecewiseExp(), spikingjelly_surrogate.PiecewiseExp()),
    ],
    ids=repr,
)
def test_equal_spikingjelly(ours: sg.Surrogate, theirs: Any) -> None:
    x = torch.cat([torch.linspace(-3, 3, 101, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    for a, b in zip(_gradient(ours, x), _gradient(theirs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (sg.ATan(), snntorch.surrogate.atan()),
        (sg.FastSigmoid(), snntorch.surrogate.fast_sigmoid()),
        (sg.FastSigmoid(slope=3.0), snntorch.surrogate.fast_sigmoid(slope=3)),
        (sg.Sigmoid(25.0), snntorch.surrogate.sigmoid()),
        (sg.StraightThrough(), snntorch.surrogate.straight_through_estimator()),
    ],
    ids=lambda s: repr(s) if isinstance(s, sg.Surrogate) else s.__qualname__.partition(".")[0],
)
def test_equal_snntorch(ours: sg.Surrogate, theirs: Any) -> None:
    x = torch.cat([torch.linspace(-1, 1, 101), torch.zeros(1)])
    for a, b in zip(_gradient(lambda v: ours(v, False), x), _gradient(theirs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_fast_sigmoid_is_not_super_spike() -> None:
    x = torch.tensor([0.5])
    assert sg.FastSigmoid(2.0).derivative(x).item() == pytest.approx(1 / 4)
    assert sg.SuperSpike(2.0).derivative(x).item() == pytest.approx(2 / 2.25)


def test_triangle_and_rectangle() -> None:
    x = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.25, 1.0])
    assert sg.Triangle().derivative(x).tolist() == [0.0, 0.0, 0.5, 1.0, 0.75, 0.0]
    assert sg.Rectangle().derivative(x).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    assert sg.Rectangle(2.0).derivative(x).tolist() == [0.0, 0.0, 0.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "kind",
    ["atan", "sigmoid", "rectangle", "soft_sign", "erf", "piecewise_quadratic", "piecewise_exp", "triangle"],
)
def test_unit_area(kind: str) -> None:
    """These are densities: the derivative of a function that climbs from 0 to 1."""
    x = torch.linspace(-2000, 2000, 8_000_001, dtype=torch.float64)
    assert torch.trapezoid(OURS[kind].derivative(x), x).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("surrogate", OURS.values(), ids=repr)
def test_heaviside_and_ties(surrogate: sg.Surrogate) -> None:
    x = torch.tensor([-1.0, 0.0, 1.0])
    assert surrogate(x).tolist() == [0.0, 1.0, 1.0]
    assert surrogate(x, inclusive=False).tolist() == [0.0, 0.0, 1.0]
    assert surrogate(x.half()).dtype == torch.float16


@pytest.mark.parametrize("surrogate", OURS.values(), ids=repr)
def test_objects_travel(surrogate: sg.Surrogate) -> None:
    for twin in (pickle.loads(pickle.dumps(surrogate)), copy.deepcopy(surrogate)):
        assert twin == surrogate and hash(twin) == hash(surrogate) and repr(twin) == repr(surrogate)
    assert eval(repr(surrogate), vars(sg)) == surrogate
    assert surrogate != "atan"


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_alpha_must_be_positive(value: float) -> None:
    with pytest.raises(ValueError, match="alpha must be finite and > 0, got"):
        sg.ATan(value)
    with pytest.raises(ValueError, match="slope must be finite and > 0, got"):
        sg.FastSigmoid(value)


def test_alpha_must_be_a_number() -> None:
    with pytest.raises(TypeError, match="alpha must be a number, got str"):
        sg.ATan("2")  # type: ignore[arg-type]
