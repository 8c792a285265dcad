"""The CUDA kernels of ``fixed_refractory``, run on a CPU: neuron by neuron, and all of time at once.

Spikes, gate and state equal the loop's exactly, gradients to rounding; mutants must fail.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_fr_plugin import surrogate
from snn_fr_plugin.ops import _compile, fixed_refractory
from snn_fr_plugin.ops.refractory import SCHEMES, cupy_provider, torch_provider
from snn_fr_plugin.ops.refractory.operator import fixed_refractory_backward_op, fixed_refractory_op
from snn_fr_plugin.ops.refractory.reference import fixed_refractory as reference

from . import cuda_on_cpu
from .support import assert_close, assert_some_spikes, gradients, random_like
from .test_refractory_cpp import SURROGATES, drive_of, state_of

pytestmark = [
    pytest.mark.skipif(not _compile.available(), reason="no C++ compiler"),
    pytest.mark.usefixtures("kernels_on_cpu"),
]

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PATHS = ["one by one", "at once"]
SHAPES = [(300, 133), (129, 1), (64, 260), (97, 2, 5), (31, 3), (1, 1)]
# below, at and above the 32 steps of a chunk; the last that is mapped, and longer than any sequence
PERIODS = [0, 1, 5, 31, 32, 40, 2**30 - 1]


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two ways, whatever the sizes; the maps of the second span 64 steps."""
    at_once = request.param == "at once"
    monkeypatch.setattr(cupy_provider, "_FEW", 1 << 40 if at_once else 0)
    monkeypatch.setattr(cupy_provider, "_LONG", 0 if at_once else 1 << 40)
    monkeypatch.setattr(cupy_provider, "_SPAN", 64)


def both_ways(test: Any) -> Any:
    return pytest.mark.usefixtures("path")(pytest.mark.parametrize("path", PATHS, indirect=True)(test))


def _compare(drive: Tensor, threshold: Any, **kwargs: Any) -> Tensor:
    spikes, state = fixed_refractory(drive, threshold, backend="cupy", **kwargs)
    expected, final = reference(drive, threshold, **kwargs)
    assert spikes.dtype == drive.dtype and state.dtype == torch.int32
    assert torch.equal(spikes, expected), "spikes"
    assert torch.equal(state, final), "state"
    return spikes


@both_ways
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_equals_the_loop(scheme: Any, dtype: torch.dtype) -> None:
    """Every shape with every period, in one dtype or another."""
    cases = list(itertools.product(SHAPES, PERIODS))
    for turn, (shape, period) in enumerate(cases[DTYPES.index(dtype) :: len(DTYPES)]):
        drive = drive_of(*shape, dtype=dtype)
        threshold = torch.randn(shape[-1]).div(2).to(state_dtype(dtype)) if turn % 3 == 1 else 0.5
        state = state_of(scheme, min(period, 70), *shape[1:]) if turn % 3 == 2 else None
        spikes = _compare(
            drive, threshold, period=period, scheme=scheme, inclusive=turn % 2 == 0, state=state
        )
        if drive.numel() > 1000 and period < 10:
            assert_some_spikes(spikes)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@both_ways
def test_a_state_left_by_a_longer_period() -> None:
    """It is none of the states that the maps know, and runs out before they serve."""
    state = torch.randint(60, 150, (40,), dtype=torch.int32)
    spikes = _compare(drive_of(300, 40), 0.5, period=3, state=state)
    assert not spikes[:60].any()
    assert_some_spikes(spikes)


@both_ways
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gate_is_that_of_torch(scheme: str) -> None:
    args = (drive_of(150, 130), torch.tensor(0.5), state_of(scheme, 3, 130), 3, scheme, True)
    got, want = cupy_provider.forward(*args), torch_provider.forward(*args)
    assert got[1].dtype == torch.bool and 0 < got[1].double().mean() < 1
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@both_ways
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients(dtype: torch.dtype) -> None:
    """Every surrogate; partial sums over spans that end within the sequence and at its end."""
    for turn, by in enumerate(SURROGATES):
        drive = torch.randn(150 if turn % 2 else 128, 2, 67).to(dtype).requires_grad_()
        threshold = torch.rand(() if turn % 3 == 0 else (67,), dtype=state_dtype(dtype)).requires_grad_()
        _compare_gradients(drive, threshold, by)


def _compare_gradients(drive: Tensor, threshold: Tensor, by: surrogate.Surrogate) -> None:
    got = fixed_refractory(drive, threshold, period=2, surrogate=by, backend="cupy")[0]
    want = reference(drive, threshold, period=2, surrogate=by)[0]
    cotangents, leaves = random_like([got]), [drive, threshold]
    for a, b in zip(gradients([got], cotangents, leaves), gradients([want], cotangents, leaves), strict=True):
        assert a is not None and b is not None and a.dtype == b.dtype and b.any()
        assert_close(a, b)


@both_ways
def test_gradient_of_the_drive_alone() -> None:
    """It is the same whether or not the threshold learns."""
    drive, cotangent = torch.randn(150, 2, 67, requires_grad=True), torch.randn(150, 2, 67)
    grads = []
    for learns in (False, True):
        threshold = torch.full((67,), 0.1, requires_grad=learns)
        spikes, _ = fixed_refractory(drive, threshold, period=1, backend="cupy")
        grads.append(torch.autograd.grad(spikes, drive, cotangent)[0])
    assert grads[0].any() and torch.equal(*grads)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@both_ways
def test_opcheck() -> None:
    drive, threshold = torch.randn(70, 2, 3, requires_grad=True), torch.full((3,), 0.4, requires_grad=True)
    args = (drive, threshold, state_of("absolute", 2, 2, 3), 2, "absolute", True, "atan", 2.0, "cupy")
    torch.library.opcheck(fixed_refractory_op, args)
    is_open = fixed_refractory_op(*args)[1]
    backward = (torch.randn(70, 2, 3), drive.detach(), threshold.detach(), is_open, "atan", 2.0, "cupy")
    torch.library.opcheck(fixed_refractory_backward_op, backward)


def test_which_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of neurons and of steps."""
    seen: list[str] = []
    monkeypatch.setattr(cupy_provider, "_launch", lambda kernel, *rest: seen.append(kernel))
    at_once = ["pack", "tabulate", "chain", "emit"]
    for shape, period, scheme, expected in (
        ((2000, 16384), 2, "absolute", ["forward"]),
        ((511, 4), 2, "absolute", ["forward"]),
        ((2000, 4), 2, "absolute", at_once),
        ((2000, 4), 32, "absolute", ["pack", "chain", "emit"]),
        ((2000, 4), 2, "window", ["pack", "chain", "emit"]),
    ):
        seen.clear()
        args = torch.empty(shape), torch.tensor(0.5), torch.zeros(shape[1:], dtype=torch.int32)
        cupy_provider.forward(*args, period, scheme, True)
        assert seen == expected, (shape, period, scheme)


# ---- mutants: each must be noticed by the comparisons above

# what stands there, what is put in its place
MUTANTS = {
    "neurons beyond the last": ("    if (neuron >= a.neurons) return;\n", ""),
    "the same rows again": ("a.neurons, start + TILE, a.steps, ahead)", "a.neurons, start, a.steps, ahead)"),
    "rows beyond the last": ("if (!WHOLE && start + i >= a.steps) break;", ""),
    "reads beyond the last row": ("if (start + i < end) rows[i]", "rows[i]"),
    "a threshold for all": ("a.threshold_stride ? neuron : 0", "0"),
    "the threshold itself": ("a.inclusive && value == threshold", "value == threshold"),
    "the gate is left open": ("fired = candidate && open;", "fired = candidate;"),
    "a step too long": ("state = fired ? period : waited;", "state = fired ? period + 1 : waited;"),
    "a spike too early in a chunk": ("__ffs(int(rest)) + period", "__ffs(int(rest)) + period - 1"),
    "the last spike of a chunk": ("period - __clz(int(word))", "period - __ffs(int(word))"),
    "a window that never ends": ("if (position <= period) return", "if (true) return"),
    "a chunk's steps": ("const int late = CHUNK - state;", "const int late = CHUNK - 1 - state;"),
    "the state before a chunk": ("entries[(chunk + i) * a.neurons + neuron] = state;\n            state =",
                                 "entries[(chunk + i) * a.neurons + neuron] = 0;\n            state ="),
    "the map of another span": ("a.exits[(s * (a.period + 1)", "a.exits[(0 * (a.period + 1)"),
    "a state that no map knows": ("(unsigned int)state <= (unsigned int)a.period", "true"),
    "bits of another step": ("<< i;\n        a.words", "<< (31 - i);\n        a.words"),
    "the final state of another chunk": ("start + count == a.steps) a.final", "start == 0) a.final"),
    "the gate is left out of the slope": ("* real(open[i]);", ";"),
    "the sign of a gradient": ("sum -= grad;", "sum += grad;"),
    "sums beyond the span": ("smaller((span + 1) * a.span, a.steps)", "a.steps"),
}  # fmt: skip


@pytest.mark.parametrize("what", MUTANTS)
def test_mutants_are_noticed(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = cuda_on_cpu.mutant(cupy_provider._SOURCE, *MUTANTS[what], tmp_path)
    monkeypatch.setattr(cupy_provider, "_SOURCE", source)
    monkeypatch.setattr(cupy_provider, "_SPAN", 64)
    with pytest.raises(AssertionError):
        for long in (1 << 40, 0):
            monkeypatch.setattr(cupy_provider, "_LONG", long)
            for scheme in SCHEMES:
                _compare(drive_of(300, 133), torch.randn(133).div(2), period=5, scheme=scheme)
                _compare(drive_of(150, 133), 0.5, period=1, scheme=scheme, inclusive=False)
            late = torch.full((133,), 70, dtype=torch.int32)
            _compare(drive_of(300, 133), 0.5, period=3, state=late)
        _compare_gradients(
            torch.randn(150, 67).requires_grad_(), torch.rand(67).requires_grad_(), surrogate.ATan()
        )
