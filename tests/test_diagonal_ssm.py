"""``ops.diagonal_ssm``: convolution against recurrence, forward and backward."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from snn_fr_plugin.ops import diagonal_ssm
from snn_fr_plugin.ops.ssm.reference import diagonal_ssm as reference

from .support import PROVIDERS_AND_CUDA, assert_close, gradients, graph_size, random_like

pytestmark = [
    pytest.mark.usefixtures("provider"),
    pytest.mark.parametrize("provider", PROVIDERS_AND_CUDA, indirect=True),
]

DOUBLE, COMPLEX = torch.float64, torch.complex128


def _system(
    steps: int,
    batch: int,
    channels: int,
    pairs: int,
    *,
    feed_through: bool,
    with_state: bool,
    dtype: Any = DOUBLE,
) -> dict[str, torch.Tensor | None]:
    complex_dtype = (
        torch.empty((), dtype=dtype).to(torch.complex64 if dtype == torch.float32 else COMPLEX).dtype
    )
    radius = 1 - 10 ** -torch.empty(channels, pairs, dtype=dtype).uniform_(0.3, 4)
    a = torch.polar(radius, torch.empty_like(radius).uniform_(-math.pi, math.pi))
    a[0, 0] = 0
    return {
        "x": torch.randn(steps, batch, channels, dtype=dtype).requires_grad_(),
        "A_bar": a.requires_grad_(),
        "C_bar": torch.randn(channels, pairs, dtype=complex_dtype).requires_grad_(),
        "D": torch.randn(channels, dtype=dtype).requires_grad_() if feed_through else None,
        "state": torch.randn(batch, channels, pairs, dtype=complex_dtype).requires_grad_()
        if with_state
        else None,
    }


def _compare(system: dict[str, Any], **tolerance: float) -> None:
    y, h = diagonal_ssm(**system)
    expected_y, expected_h = reference(**system)
    assert y.dtype == expected_y.dtype and h.dtype == expected_h.dtype
    scale = expected_y.abs().max().clamp_min(1) if expected_y.numel() else 1.0
    torch.testing.assert_close(y / scale, expected_y / scale, **tolerance)
    torch.testing.assert_close(h, expected_h, **tolerance)
    inputs = [v for v in system.values() if v is not None]
    cotangents = random_like([y, h])
    for name, got, want in zip(
        [k for k, v in system.items() if v is not None],
        gradients([y, h], cotangents, inputs),
        gradients([expected_y, expected_h], cotangents, inputs),
        strict=True,
    ):
        assert got is not None and want is not None
        scale = want.abs().max().clamp_min(1) if want.numel() else 1.0
        torch.testing.assert_close(got / scale, want / scale, msg=lambda m, n=name: f"{n}\n{m}", **tolerance)


@pytest.mark.parametrize("steps", [1, 2, 3, 31, 33, 64, 100, 257])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("feed_through", [False, True])
def test_equals_recurrence_in_double(steps: int, with_state: bool, feed_through: bool) -> None:
    _compare(
        _system(steps, 2, 3, 5, feed_through=feed_through, with_state=with_state), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(("batch", "channels", "pairs"), [(1, 1, 1), (1, 7, 2), (5, 1, 3)])
def test_odd_sizes(batch: int, channels: int, pairs: int) -> None:
    _compare(_system(63, batch, channels, pairs, feed_through=True, with_state=True), rtol=1e-10, atol=1e-10)


def test_equals_recurrence_in_single() -> None:
    _compare(
        _system(1000, 2, 8, 16, feed_through=True, with_state=True, dtype=torch.float32), rtol=2e-4, atol=2e-4
    )


@pytest.mark.parametrize("cuts", [[1], [40], [7, 8, 9, 33], list(range(1, 50))], ids=str)
def test_chunks_and_steps_equal_the_whole(cuts: list[int]) -> None:
    system: dict[str, Any] = _system(50, 2, 3, 4, feed_through=True, with_state=True)
    y, h = diagonal_ssm(**system)
    x, state, pieces = system["x"], system["state"], []
    for start, end in zip([0, *cuts], [*cuts, 50], strict=True):
        piece, state = diagonal_ssm(**{**system, "x": x[start:end], "state": state})
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces), y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, h, rtol=1e-10, atol=1e-10)
    inputs = [v for v in system.values() if v is not None]
    cotangents = random_like([y, h])
    for a, b in zip(
        gradients([y, h], cotangents, inputs),
        gradients([torch.cat(pieces), state], cotangents, inputs),
        strict=True,
    ):
        assert_close(a, b)


def test_only_one_output_used() -> None:
    """The gradient of y alone, and of the state alone."""
    system: dict[str, Any] = _system(20, 2, 3, 4, feed_through=True, with_state=True)
    inputs = [v for v in system.values() if v is not None]
    for index in (0, 1):
        got, want = diagonal_ssm(**system)[index], reference(**system)[index]
        cotangents = random_like([got])
        for a, b in zip(
            gradients([got], cotangents, inputs), gradients([want], cotangents, inputs), strict=True
        ):
            assert_close(a, b)


def test_gradcheck() -> None:
    system: dict[str, Any] = _system(6, 1, 2, 2, feed_through=True, with_state=True)
    assert torch.autograd.gradcheck(
        lambda x, a, c, d, h: diagonal_ssm(x, a, c, d, state=h), tuple(system.values()), atol=1e-6
    )


def test_empty_sequence_returns_a_copy_of_the_state() -> None:
    system: dict[str, Any] = _system(0, 2, 3, 4, feed_through=True, with_state=True)
    y, h = diagonal_ssm(**system)
    assert y.shape == (0, 2, 3) and torch.equal(h, system["state"])
    assert h.data_ptr() != system["state"].data_ptr()
    h.real.sum().backward()
    assert torch.equal(system["state"].grad, torch.ones_like(h))
    fresh = diagonal_ssm(**{**system, "state": None})[1]
    assert fresh.shape == (2, 3, 4) and not fresh.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input(dtype: torch.dtype) -> None:
    system: dict[str, Any] = _system(40, 2, 3, 4, feed_through=True, with_state=False, dtype=torch.float32)
    x = system["x"].detach().to(dtype).requires_grad_()
    y, h = diagonal_ssm(**{**system, "x": x})
    exact, _ = diagonal_ssm(**{**system, "x": x.detach().float()})
    assert y.dtype == dtype and h.dtype == torch.complex64
    assert torch.equal(y, exact.to(dtype))
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all()


def test_non_contiguous() -> None:
    system: dict[str, Any] = _system(30, 4, 6, 3, feed_through=True, with_state=False)
    x = torch.randn(4, 12, 30, dtype=DOUBLE).permute(2, 0, 1)[..., ::2]
    y = diagonal_ssm(**{**system, "x": x})[0]
    assert_close(y, diagonal_ssm(**{**system, "x": x.contiguous()})[0])


def test_graph_does_not_grow_with_time() -> None:
    def nodes(steps: int) -> int:
        system: dict[str, Any] = _system(steps, 1, 2, 2, feed_through=True, with_state=True)
        return graph_size(diagonal_ssm(**system)[0])

    assert nodes(2) == nodes(200)


def test_no_states_in_memory() -> None:
    """Peak memory of a long sequence stays far below the [T, N, H, n] tensor of its states."""
    steps, channels, pairs = 4096, 8, 64
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.numel())
            return out

    system: dict[str, Any] = _system(
        steps, 1, channels, pairs, feed_through=True, with_state=True, dtype=torch.float32
    )
    with Watch():
        y, _ = diagonal_ssm(**system)
        y.sum().backward()
    assert 0 < largest <= steps * channels * pairs / 8


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.zeros(3, 2)}, ValueError, r"x must have shape \[T, N, H\], got \(3, 2\)"),
    ({"x": torch.zeros(3, 2, 4, dtype=torch.int32)}, TypeError, "x must be float32"),
    ({"x": torch.zeros(3, 2, 5)}, ValueError, r"A_bar must have shape \[H=5, n\], got \(4, 2\)"),
    ({"A_bar": torch.zeros(4, 2)}, TypeError, "A_bar must be torch.complex64 for torch.float32 input"),
    ({"A_bar": 0.5}, TypeError, "A_bar must be a torch.Tensor, got float"),
    (
        {"C_bar": torch.zeros(4, 3, dtype=torch.complex64)},
        ValueError,
        r"C_bar must have the shape of A_bar, \(4, 2\)",
    ),
    ({"D": torch.zeros(3)}, ValueError, r"D must have shape \(4,\), got \(3,\)"),
    (
        {"state": torch.zeros(2, 4, 3, dtype=torch.complex64)},
        ValueError,
        r"state must have shape \(2, 4, 2\), got \(2, 4, 3\)",
    ),
    ({"state": torch.zeros(2, 4, 2)}, TypeError, "state must be torch.complex64, got torch.float32"),
    ({"backend": "gpu"}, ValueError, "backend must be"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for _, _, m in BAD])
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    x = torch.zeros(3, 2, 4, device="cpu")  # where the tensors of BAD are
    matrix = torch.zeros(4, 2, dtype=torch.complex64, device="cpu")
    with pytest.raises(error, match=message):
        diagonal_ssm(**{"x": x, "A_bar": matrix, "C_bar": matrix, "backend": "torch", **change})


def test_empty_batch() -> None:
    system: dict[str, Any] = _system(7, 0, 3, 4, feed_through=True, with_state=True)
    y, h = diagonal_ssm(**system)
    assert y.shape == (7, 0, 3) and h.shape == (0, 3, 4)
    y.sum().backward()
    assert not system["A_bar"].grad.any()
