"""``fixed_refractory`` compiled: spikes, gate and state equal the loop exactly, gradients to rounding."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snn_fr_plugin import surrogate
from snn_fr_plugin.ops import _compile, fixed_refractory
from snn_fr_plugin.ops.refractory import SCHEMES, cpp_provider, torch_provider
from snn_fr_plugin.ops.refractory.operator import fixed_refractory_backward_op, fixed_refractory_op
from snn_fr_plugin.ops.refractory.reference import fixed_refractory as reference

from .support import assert_close, assert_some_spikes, gradients, random_like

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def drive_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Multiples of 1/2: many lie exactly at a threshold of 0.5."""
    drive = (torch.randn(*shape) * 2).round().div(2).to(dtype)
    if drive.numel():
        drive.view(-1)[-1] = 0.5
    return drive


def state_of(scheme: str, period: int, *shape: int) -> Tensor:
    """A state that the scheme can be in."""
    state = torch.randint(0, period + 1, shape, dtype=torch.int32)
    if scheme == "window":  # at the first position nothing has fired yet
        state = 2 * state + torch.randint(0, 2, shape, dtype=torch.int32) * (state > 0)
    return state.to(torch.int32)


def _equal(drive: Tensor, threshold: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    spikes, state = fixed_refractory(drive, threshold, backend="cpp", **kwargs)
    expected, expected_state = reference(drive, threshold, **kwargs)
    assert spikes.dtype == drive.dtype and state.dtype == torch.int32
    assert torch.equal(spikes, expected) and torch.equal(state, expected_state)
    return spikes, state


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inclusive", [True, False])
def test_equals_the_loop(scheme: Any, dtype: torch.dtype, inclusive: bool) -> None:
    for shape in ((1, 5), (63, 3, 7), (40, 1), (33, 700), (20, 2, 3, 111), (5, 2100)):
        for period in (0, 1, 5, 2**30 - 1):
            drive = drive_of(*shape, dtype=dtype)
            kwargs: dict[str, Any] = {"period": period, "scheme": scheme, "inclusive": inclusive}
            spikes, _ = _equal(drive, 0.5, **kwargs)
            _equal(drive, torch.randn(shape[-1]).div(2), **kwargs)
            _equal(drive, 0.5, state=state_of(scheme, min(period, 9), *shape[1:]), **kwargs)
            if drive.numel() > 1000 and period < 10:
                assert_some_spikes(spikes)


@settings(deadline=None, max_examples=150)
@given(
    scheme=st.sampled_from(SCHEMES),
    dtype=st.sampled_from(DTYPES),
    period=st.integers(0, 7),
    steps=st.integers(0, 50),
    neurons=st.integers(0, 300),
    cuts=st.lists(st.integers(0, 50), max_size=4),
    inclusive=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_chunks_equal_the_loop(
    scheme: Any,
    dtype: torch.dtype,
    period: int,
    steps: int,
    neurons: int,
    cuts: list[int],
    inclusive: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    drive = drive_of(steps, neurons, dtype=dtype)
    kwargs: dict[str, Any] = {"period": period, "scheme": scheme, "inclusive": inclusive}
    expected, final = reference(drive, 0.5, **kwargs)
    pieces, state = [], None
    for start, end in itertools.pairwise([0, *sorted(min(c, steps) for c in cuts), steps]):
        before = None if state is None else state.clone()
        s, after = fixed_refractory(drive[start:end], 0.5, state=state, backend="cpp", **kwargs)
        assert before is None or torch.equal(before, state)  # the caller's state is left alone
        pieces.append(s)
        state = after
    assert state is not None
    assert torch.equal(torch.cat(pieces), expected) and torch.equal(state, final)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gate_is_that_of_torch(scheme: str) -> None:
    """The operator's second output, which the backward and foreign surrogates rest on."""
    args = (drive_of(50, 130), torch.tensor(0.5), state_of(scheme, 3, 130), 3, scheme, True)
    got, want = cpp_provider.forward(*args), torch_provider.forward(*args)
    assert got[1].dtype == torch.bool and 0 < got[1].double().mean() < 1
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


SURROGATES = [
    surrogate.ATan(),
    surrogate.Sigmoid(),
    surrogate.FastSigmoid(3.0),
    surrogate.SuperSpike(1.5),
    surrogate.Triangle(),
    surrogate.Rectangle(0.7),
    surrogate.SoftSign(),
    surrogate.Erf(1.3),
    surrogate.PiecewiseQuadratic(0.6),
    surrogate.PiecewiseExp(),
    surrogate.StraightThrough(),
]


def _compare_gradients(drive: Tensor, threshold: Tensor, by: surrogate.Surrogate, **kwargs: Any) -> None:
    drive, threshold = drive.requires_grad_(), threshold.requires_grad_()
    got = fixed_refractory(drive, threshold, surrogate=by, backend="cpp", **kwargs)[0]
    want = reference(drive, threshold, surrogate=by, **kwargs)[0]
    cotangents = random_like([got])
    for a, b in zip(
        gradients([got], cotangents, [drive, threshold]),
        gradients([want], cotangents, [drive, threshold]),
        strict=True,
    ):
        assert a is not None and b is not None and a.dtype == b.dtype and b.any()
        assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by", SURROGATES, ids=repr)
def test_gradients(by: surrogate.Surrogate, dtype: torch.dtype) -> None:
    drive, threshold = torch.randn(60, 3, 37).to(dtype), torch.rand(37)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    _compare_gradients(drive, threshold.to(wide), by, period=2)


def test_all_surrogates_are_compared() -> None:
    assert [s.kind for s in SURROGATES] == list(surrogate.KINDS)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1), (1, 7), (3, 7)], ids=str)
def test_thresholds_that_broadcast(shape: tuple[int, ...]) -> None:
    """More than 1024 steps: the gradient of the threshold is gathered in more than one span."""
    drive, threshold = torch.randn(1030, 3, 7, dtype=torch.float64), torch.rand(shape, dtype=torch.float64)
    _equal(drive, threshold, period=2)
    _compare_gradients(drive, threshold, surrogate.ATan(), period=2)


def test_foreign_surrogate() -> None:
    drive, threshold = torch.randn(30, 4, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    results = []
    for by in (surrogate.FastSigmoid(5.0), lambda d: surrogate.FastSigmoid(5.0)(d)):
        spikes, state = fixed_refractory(drive, threshold, period=2, surrogate=by, backend="cpp")
        torch.manual_seed(1)
        results.append((spikes, state, *gradients([spikes], random_like([spikes]), [drive, threshold])))
    assert_some_spikes(results[0][0])
    for a, b in zip(*results, strict=True):
        assert_close(a.double(), b.double())


@pytest.mark.parametrize("shape", [(700, 130), (3000, 5, 9), (40, 40000)], ids=str)
@pytest.mark.parametrize("per_neuron", [False, True])
def test_threads_change_no_bit(shape: tuple[int, ...], per_neuron: bool) -> None:
    """In double: where sums are rounded to single, another order of summation does not show."""
    drive = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    threshold = torch.full(shape[-1:] if per_neuron else (), 0.4, dtype=torch.float64, requires_grad=True)
    cotangent, before, results = torch.randn_like(drive), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            spikes, state = fixed_refractory(drive, threshold, period=2, backend="cpp")
            results.append((spikes, state, *gradients([spikes], [cotangent], [drive, threshold])))
    finally:
        torch.set_num_threads(before)
    assert_some_spikes(results[0][0])
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            assert a is not None and b is not None and torch.equal(a, b)


def _views(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values of x in other layouts."""
    yield "permuted", x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    yield "sliced", torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]
    yield "offset by one element", torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    yield "negated lazily", torch.complex(x, -x).conj().imag
    yield "channels last", x[..., None].contiguous(memory_format=torch.channels_last)[..., 0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_layouts(scheme: Any) -> None:
    drive, cotangent = drive_of(40, 6, 5), torch.randn(40, 6, 5)
    threshold = torch.rand(6, 10)[:, ::2]
    state = state_of(scheme, 2, 5, 6).t()

    def run(drive: Tensor, cotangent: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        drive = drive.detach().requires_grad_()
        spikes, final = fixed_refractory(
            drive, given[0], state=given[1], period=2, scheme=scheme, backend="cpp"
        )
        (grad,) = torch.autograd.grad(spikes, drive, cotangent)
        return spikes, final, grad

    expected = run(drive, cotangent, threshold.contiguous(), state.contiguous())
    assert_some_spikes(expected[0])
    assert all(
        torch.equal(a, b) for a, b in zip(run(drive, cotangent, threshold, state), expected, strict=True)
    )
    for (name, view), (_, given_view) in zip(_views(drive), _views(cotangent), strict=True):
        got = run(view, given_view, threshold, state)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), name
    one = torch.ones(()).expand(40, 6, 5)
    assert torch.equal(
        run(drive, one, threshold, state)[2], run(drive, one.contiguous(), threshold, state)[2]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_outputs(dtype: torch.dtype) -> None:
    """Outputs that bypass the cache, rows that are whole cache lines or not, equal those of their halves."""
    for columns in (2048, 2050):
        drive = torch.randn(4200, columns).to(dtype).requires_grad_()
        assert drive.numel() * drive.element_size() >= 2**24
        spikes, state = fixed_refractory(drive, 0.5, period=2, backend="cpp")
        assert_some_spikes(spikes)
        cotangent = torch.randn(4200, columns).to(dtype)
        grad = gradients([spikes], [cotangent], [drive])[0]
        assert grad is not None
        for part in (slice(0, 900), slice(900, columns)):
            few = drive.detach()[:, part].contiguous().requires_grad_()
            s, r = fixed_refractory(few, 0.5, period=2, backend="torch")
            assert torch.equal(spikes[:, part], s) and torch.equal(state[part], r)
            assert_close(grad[:, part], gradients([s], [cotangent[:, part]], [few])[0])


@pytest.mark.parametrize("shape", [(0, 3), (0, 2, 2), (4, 0), (4, 2, 0)], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_zero_sizes(shape: tuple[int, ...], scheme: Any) -> None:
    drive, threshold = torch.randn(shape, requires_grad=True), torch.ones((), requires_grad=True)
    given = state_of(scheme, 2, *shape[1:])
    spikes, state = fixed_refractory(drive, threshold, period=2, scheme=scheme, state=given, backend="cpp")
    assert spikes.shape == shape and torch.equal(state, given)
    assert state.data_ptr() != given.data_ptr() or not given.numel()
    spikes.sum().backward()
    assert drive.grad is not None and drive.grad.shape == shape
    assert threshold.grad is not None and threshold.grad == 0


def test_non_finite_values() -> None:
    drive = torch.tensor([math.nan, math.inf, -math.inf, math.inf, math.nan, 1.0])[:, None].requires_grad_()
    spikes, state = fixed_refractory(drive, period=0, backend="cpp")
    assert spikes.flatten().tolist() == [0, 1, 0, 1, 0, 1] and state.item() == 0
    spikes.sum().backward()
    assert drive.grad is not None
    assert drive.grad.flatten().isnan().tolist() == [True, False, False, False, True, False]


def test_constants_agree() -> None:
    """The kernel fills as many spans as the provider makes room for."""
    kernel = (Path(cpp_provider.__file__).parent / "kernel.cpp").read_text()
    assert f"SPAN = {cpp_provider._SPAN};" in kernel


NARROWER = ["-mno-avx512f", "-mno-avx"] if platform.machine() in ("x86_64", "AMD64") else ["-O1"]


@pytest.mark.parametrize("flag", NARROWER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_other_instruction_sets(flag: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same source for narrower vectors than this machine has."""
    load = _compile.load
    monkeypatch.setattr(_compile, "load", lambda source, dtype, *flags: load(source, dtype, *flags, flag))
    for scheme in SCHEMES:
        _equal(drive_of(40, 531, dtype=dtype), 0.5, period=2, scheme=scheme)
    _compare_gradients(torch.randn(20, 531).to(dtype), torch.rand(531), surrogate.Sigmoid(), period=2)


# opcheck itself reads .grad of its non-leaf copies
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
@pytest.mark.parametrize("scheme", ["absolute", "window"])
def test_opcheck(scheme: str, shape: tuple[int, ...]) -> None:
    drive, threshold = torch.randn(6, 2, 3, requires_grad=True), torch.full(shape, 0.4, requires_grad=True)
    args = (drive, threshold, state_of(scheme, 2, 2, 3), 2, scheme, True, "atan", 2.0, "cpp")
    torch.library.opcheck(fixed_refractory_op, args)
    is_open = fixed_refractory_op(*args)[1]
    backward = (torch.randn(6, 2, 3), drive.detach(), threshold.detach(), is_open, "atan", 2.0, "cpp")
    torch.library.opcheck(fixed_refractory_backward_op, backward)


def test_compile_fullgraph() -> None:
    drive, threshold = torch.randn(30, 2, 5, requires_grad=True), torch.full((5,), 0.4, requires_grad=True)

    def run(drive: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        return fixed_refractory(drive, threshold, period=2, backend="cpp")

    # Inductor has its turn in test_torch_native.py
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(drive, threshold)
    want = run(drive, threshold)
    assert_some_spikes(want[0])
    cotangents, inputs = random_like(want[:1]), [drive, threshold]
    for a, b in zip(
        [*got, *gradients(got[:1], cotangents, inputs)],
        [*want, *gradients(want[:1], cotangents, inputs)],
        strict=True,
    ):
        assert a is not None and b is not None and torch.equal(a, b)
