"""``ops.fixed_refractory``: the four schemes against the reference loop, and the laws between them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_fr_plugin.ops import fixed_refractory
from snn_fr_plugin.ops.refractory.reference import fixed_refractory as reference
from snn_fr_plugin.surrogate import FastSigmoid

from .support import (
    ON_GPU,
    PROVIDERS,
    assert_close,
    assert_some_spikes,
    gradients,
    graph_size,
    random_like,
)

pytestmark = [
    pytest.mark.usefixtures("provider"),
    pytest.mark.parametrize("provider", [*PROVIDERS, *ON_GPU], indirect=True),
]

SCHEMES: tuple[Any, ...] = ("absolute", "window", "strided", "onset")


def _bits(text: str) -> torch.Tensor:
    return torch.tensor([float(c) for c in text.replace(" ", "")])[:, None]


@pytest.mark.parametrize("implementation", [fixed_refractory, reference])
@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("absolute", "0100 0100 1000 1001"),
        ("window", "0101 0010 0100 1001"),
        ("strided", "0001 0010 0100 1001"),
        ("onset", "0100 0000 0000 1000"),
    ],
)
def test_vectors(implementation: Any, scheme: Any, expected: str) -> None:
    spikes = implementation(_bits("0111 0111 1100 1011"), period=2, scheme=scheme)[0]
    assert torch.equal(spikes, _bits(expected))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("period", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("inclusive", [True, False])
def test_equals_reference(scheme: Any, period: int, inclusive: bool) -> None:
    drive = (
        (torch.randn(63, 3, 7, dtype=torch.float64) * 2).round().div(2).requires_grad_()
    )  # ties at the threshold
    threshold = torch.full((7,), 0.5, dtype=torch.float64, requires_grad=True)
    kwargs: dict[str, Any] = {"period": period, "scheme": scheme, "inclusive": inclusive}
    assert (drive == threshold).any()
    spikes, state = fixed_refractory(drive, threshold, **kwargs)
    expected, expected_state = reference(drive, threshold, **kwargs)
    assert_some_spikes(spikes)
    assert torch.equal(spikes, expected) and torch.equal(state, expected_state)
    assert state.dtype == torch.int32
    cotangents = random_like([spikes])
    for got, want in zip(
        gradients([spikes], cotangents, [drive, threshold]),
        gradients([expected], cotangents, [drive, threshold]),
        strict=True,
    ):
        assert_close(got, want)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_foreign_surrogate(scheme: Any) -> None:
    drive = torch.randn(30, 4, requires_grad=True)
    threshold = torch.tensor(0.3, requires_grad=True)
    fused, results = FastSigmoid(5.0), []
    for surrogate in (fused, lambda d: fused(d)):
        spikes, state = fixed_refractory(drive, threshold, period=2, scheme=scheme, surrogate=surrogate)
        torch.manual_seed(1)
        results.append((spikes, state, *gradients([spikes], random_like([spikes]), [drive, threshold])))
    assert_some_spikes(results[0][0])
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert_close(results[0][2], results[1][2])
    assert_close(results[0][3], results[1][3])


@settings(deadline=None, max_examples=120)
@given(
    scheme=st.sampled_from(SCHEMES),
    period=st.integers(0, 7),
    steps=st.integers(0, 40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    rate=st.floats(0.1, 0.9),
    seed=st.integers(0, 2**16),
)
def test_chunks_equal_the_whole(
    scheme: Any, period: int, steps: int, cuts: list[int], rate: float, seed: int
) -> None:
    torch.manual_seed(seed)
    drive = (torch.rand(steps, 5) < rate).float()
    whole, final = fixed_refractory(drive, period=period, scheme=scheme)
    bounds = [0, *sorted(min(c, steps) for c in cuts), steps]
    pieces, state = [], None
    for start, end in itertools.pairwise(bounds):
        s, state = fixed_refractory(drive[start:end], period=period, scheme=scheme, state=state)
        pieces.append(s)
    assert state is not None
    assert torch.equal(torch.cat(pieces), whole) and torch.equal(state, final)


@settings(deadline=None, max_examples=60)
@given(period=st.integers(0, 7), rate=st.floats(0.1, 0.9), seed=st.integers(0, 2**16))
def test_laws(period: int, rate: float, seed: int) -> None:
    """Subsets: onset of absolute of the candidates. One spike in R + 1 steps. R = 0 is the threshold."""
    torch.manual_seed(seed)
    drive = (torch.rand(80, 6) < rate).float()
    spikes = {s: fixed_refractory(drive, period=period, scheme=s)[0] for s in SCHEMES}
    assert all(((drive - s) >= 0).all() for s in spikes.values())
    assert ((spikes["absolute"] - spikes["onset"]) >= 0).all()
    for scheme in ("absolute", "onset", "strided"):
        assert spikes[scheme].unfold(0, period + 1, 1).sum(-1).max() <= 1
    blocks = spikes["window"][: 80 // (period + 1) * (period + 1)].unflatten(0, (-1, period + 1))
    assert torch.equal(
        blocks.sum(1), (drive[: blocks.shape[0] * (period + 1)].view_as(blocks).sum(1) > 0).float()
    )
    if period == 0:
        assert all(torch.equal(s, drive) for s in spikes.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    drive = torch.randn(40, 5).to(dtype).requires_grad_()
    spikes, _ = fixed_refractory(drive, 0.7, period=1)
    assert_some_spikes(spikes)
    assert spikes.dtype == dtype
    assert torch.equal(spikes.float(), fixed_refractory(drive.float(), 0.7, period=1)[0])
    spikes.sum().backward()
    assert drive.grad is not None and drive.grad.dtype == dtype


def test_spikes_without_a_cotangent() -> None:
    """What reads the spikes may have no gradient for them: then there is none for the drive."""

    class Constant(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, s: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(s)

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> None:
            return None

    drive = torch.randn(7, 3, requires_grad=True)
    threshold = torch.tensor(0.1, requires_grad=True)
    spikes, _ = fixed_refractory(drive, threshold, period=1)
    Constant.apply(spikes).sum().backward()
    assert drive.grad is None and threshold.grad is None


def test_gradient_of_the_drive_alone() -> None:
    """It is the same whether or not the threshold learns."""
    drive, cotangent = torch.randn(70, 3, 5, requires_grad=True), torch.randn(70, 3, 5)
    grads = []
    for learns in (False, True):
        threshold = torch.tensor(0.1, requires_grad=learns)
        spikes, _ = fixed_refractory(drive, threshold, period=1)
        grads.append(torch.autograd.grad(spikes, drive, cotangent)[0])
    assert grads[0].any() and torch.equal(*grads)


def test_graph_does_not_grow_with_time() -> None:
    def nodes(steps: int) -> int:
        return graph_size(fixed_refractory(torch.randn(steps, 3, requires_grad=True), period=2)[0])

    assert nodes(4) == nodes(100)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_non_contiguous(scheme: Any) -> None:
    drive = torch.randn(6, 4, 30).permute(2, 0, 1)[:, ::2]
    spikes, state = fixed_refractory(drive, 0.2, period=2, scheme=scheme)
    expected, expected_state = fixed_refractory(drive.contiguous(), 0.2, period=2, scheme=scheme)
    assert_some_spikes(spikes)
    assert torch.equal(spikes, expected) and torch.equal(state, expected_state)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"period": -1}, ValueError, "period must be an int >= 0.*got -1"),
    ({"period": 2.0}, TypeError, "period must be an int >= 0, got 2.0 of type float"),
    (
        {"scheme": "greedy"},
        ValueError,
        "scheme must be 'absolute', 'window', 'strided' or 'onset', got 'greedy'",
    ),
    ({"drive": torch.zeros(4)}, ValueError, r"drive must have shape \[T, N, \*\], got \(4,\)"),
    ({"drive": torch.zeros(4, 3, dtype=torch.long)}, TypeError, "drive must be float32"),
    ({"threshold": torch.zeros(2)}, ValueError, r"threshold must broadcast to the neurons' shape \(3,\)"),
    ({"state": torch.zeros(4, dtype=torch.int32)}, ValueError, r"state must have shape \(3,\), got \(4,\)"),
    ({"state": torch.zeros(3)}, TypeError, "state must be torch.int32, got torch.float32"),
    ({"backend": "triton"}, ValueError, "backend must be .* got 'triton'"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for _, _, m in BAD])
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    drive = torch.zeros(4, 3, device="cpu")  # where the tensors of BAD are
    with pytest.raises(error, match=message):
        fixed_refractory(**{"drive": drive, "period": 1, "backend": "torch", **change})
