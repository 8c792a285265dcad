"""The CuPy provider on a GPU: ``pytest -m gpu`` runs this, and ``test_lif.py`` and its like on the device.

Memory errors, with every tensor an allocation of its own::

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --target-processes all \\
        python -m pytest -m gpu tests/test_gpu.py -k is_that_of_the_cpu
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from snn_fr_plugin.ops import _cupy, _providers, diagonal_ssm, fixed_refractory, lif
from snn_fr_plugin.ops.refractory import SCHEMES

from .support import assert_close, assert_some_spikes, gradients, random_like

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
LIF: dict[str, Any] = {"beta": 0.9, "threshold": 0.8, "refractory_period": 2, "reset": "subtract"}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def _input(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device = GPU) -> Tensor:
    """The same numbers on every device."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.2).to(device, dtype)


def _matrices(channels: int, device: torch.device = GPU) -> tuple[Tensor, Tensor]:
    """A_bar and C_bar of two pairs a channel, with memories of 2 to 200 steps."""
    decay = torch.logspace(-2.3, -0.3, 2 * channels).view(channels, 2)
    a = torch.polar(torch.exp(-decay), 3 * decay).to(device).requires_grad_()
    c = torch.polar(decay, 1 + decay).to(device).requires_grad_()
    return a, c


def _lif(x: Tensor) -> Tensor:
    return lif(x, backend="cupy", **LIF)[0]


def _gate(x: Tensor) -> Tensor:
    return fixed_refractory(x, 0.5, period=2, backend="cupy")[0]


def _ssm(x: Tensor) -> Tensor:
    return diagonal_ssm(x, *_ssm_matrices(x.shape[2]), backend="cupy")[0]


@functools.cache
def _ssm_matrices(channels: int) -> tuple[Tensor, ...]:
    """Made once, since what comes from the CPU cannot be captured."""
    return tuple(m.detach() for m in _matrices(channels))


class Case(NamedTuple):
    """An operator at a shape."""

    run: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int]


CASES = {
    "lif, few": Case(_lif, (500, 3, 100)),
    "lif, many": Case(_lif, (70, 8, 4000)),
    "gate, at once": Case(_gate, (600, 3, 100)),
    "gate, one by one": Case(_gate, (70, 8, 4000)),
    "ssm, few and long": Case(_ssm, (4096, 1, 6)),
    "ssm, many": Case(_ssm, (70, 64, 128)),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _assert_same(got: Tensor, expected: Tensor, case: Case) -> None:
    """Exactly, of what is held to that."""
    if case.run is _ssm:
        assert_close(got, expected)
    else:
        assert torch.equal(got, expected)


def _both(case: Case, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient of x."""
    y = case.run(x)
    return y, torch.autograd.grad(y, x, _cotangent(case.shape))[0]


@functools.cache
def _cotangent(shape: tuple[int, ...]) -> Tensor:
    return _input(*shape).flip(0)


def _chain(x: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three operators."""
    spikes, membrane, _ = lif(x, return_membrane=True, **LIF)
    assert membrane is not None
    drive, _ = diagonal_ssm(spikes + membrane, a, c)
    return fixed_refractory(drive, 0.5, period=2)[0], drive, membrane


def test_cupy_works_here_and_is_chosen() -> None:
    _cupy.require()
    assert _providers.choose("auto", GPU) == "cupy"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 1), (16384, 1), (1000, 150), (33, 24_577), (33, 24_578), (4, 1_000_003)], ids=str
)
def test_lif_is_that_of_the_cpu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    results = []
    for device in (GPU, CPU):
        x = _input(*shape, dtype=dtype, device=device).requires_grad_()
        spikes, membrane, state = lif(
            x, return_membrane=True, backend="cupy" if device == GPU else "auto", **LIF
        )
        assert membrane is not None
        (grad,) = torch.autograd.grad(spikes, x, _input(*shape, dtype=dtype, device=device).flip(0))
        results.append([t.cpu() for t in (spikes, membrane, *state, grad)])
    if spikes.numel() > 100:
        assert_some_spikes(results[1][0])
    for got, expected in zip(results[0][:4], results[1][:4], strict=True):
        assert torch.equal(got, expected)
    assert_close(results[0][4], results[1][4])


def _compare_gate(shape: tuple[int, ...], dtype: torch.dtype, **kwargs: Any) -> Tensor:
    """Spikes, state and gradients of drive and threshold on the GPU and on the CPU."""
    results = []
    for device in (GPU, CPU):
        drive = _input(*shape, dtype=dtype, device=device).requires_grad_()
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        threshold = torch.full(shape[1:], 0.5, dtype=kind, device=device, requires_grad=True)
        state = torch.ones(shape[1:], dtype=torch.int32, device=device)
        spikes, final = fixed_refractory(
            drive, threshold, state=state, backend="cupy" if device == GPU else "auto", **kwargs
        )
        cotangent = _input(*shape, dtype=dtype, device=device).flip(0)
        grads = torch.autograd.grad(spikes, (drive, threshold), cotangent)
        results.append([t.cpu() for t in (spikes, final, *grads)])
    (spikes, final, *grads), (expected, expected_final, *expected_grads) = results
    assert torch.equal(spikes, expected) and torch.equal(final, expected_final)
    for p, q in zip(grads, expected_grads, strict=True):
        assert_close(p, q)
    return expected


# neurons and steps on either side of what separates one neuron after the other from all chunks at once
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "period"),
    [
        *(((16384, 1), period) for period in (0, 1, 31, 32, 2**30 - 1)),
        *(((1100, 7), period) for period in (0, 1, 31, 32, 100)),
        ((513, 16_383), 3),
        ((600, 16_384), 3),
        ((511, 7), 3),
        ((1, 1), 3),
        ((4, 1_000_003), 2),
    ],
    ids=str,
)
def test_fixed_refractory_is_that_of_the_cpu(shape: tuple[int, int], period: int, dtype: torch.dtype) -> None:
    spikes = _compare_gate(shape, dtype, period=period)
    assert spikes.any() or shape == (1, 1)


@pytest.mark.parametrize("shape", [(1100, 3, 50), (70, 4, 5000)], ids=["at once", "one by one"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_that_of_the_cpu(scheme: str, shape: tuple[int, ...]) -> None:
    assert_some_spikes(_compare_gate(shape, torch.float32, period=3, scheme=scheme, inclusive=False))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 2, 3), (63, 2, 5), (300, 16, 64), (70, 64, 129), (4096, 1, 3), (1025, 2, 33)], ids=str
)
def test_diagonal_ssm_is_that_of_the_cpu_in_float64(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Outputs and every gradient, by the tolerance of the dtype, of the largest value each."""
    _, batch, channels = shape
    results = []
    for device in (GPU, CPU):
        exact = device == CPU or dtype == torch.float64
        real, complex_ = (torch.float64, torch.complex128) if exact else (torch.float32, torch.complex64)
        x = _input(*shape, dtype=dtype, device=device)
        x = (x.double() if device == CPU else x).requires_grad_()
        a, c = (m.detach().to(complex_).requires_grad_() for m in _matrices(channels, device))
        d = _input(channels, device=device).to(real).requires_grad_()
        h = torch.complex(
            _input(batch, channels, 2, device=CPU), _input(batch, channels, 2, device=CPU) - 0.3
        )
        h = h.to(device, complex_).requires_grad_()
        y, final = diagonal_ssm(x, a, c, d, state=h, backend="cupy" if device == GPU else "torch")
        # the same numbers for both
        cotangents = [_input(*shape, dtype=dtype, device=device).flip(0).to(y.dtype), (0.5 - 1j) * h.detach()]
        results.append([t.detach().cpu() for t in (y, final)])
        results[-1] += [g.cpu() for g in torch.autograd.grad((y, final), (x, a, c, d, h), cotangents)]
    for name, got, expected in zip(("y", "state", "x", "A", "C", "D", "h"), *results, strict=True):
        scale = expected.abs().max()
        assert scale > 0
        assert_close((got.to(expected.dtype) / scale).to(got.dtype), expected / scale, name)


def test_gradients_of_parameters_are_the_same_every_time() -> None:
    x = _input(200, 5000)
    grads = []
    for _ in range(3):
        beta, threshold = (torch.tensor(v, device=GPU, requires_grad=True) for v in (0.9, 0.8))
        spikes, _, _ = lif(x, beta, threshold, refractory_period=1, reset="zero")
        grads.append(torch.stack(torch.autograd.grad(spikes, (beta, threshold), _input(200, 5000))))
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2]) and grads[0].all()


@cases
def test_another_stream(case: Case) -> None:
    """Kernels run in the stream that is current, behind what is in it already."""
    source = _input(*case.shape)
    x, expected = torch.zeros_like(source), case.run(source)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.run(source)  # an allocation of memory for the stream may wait for it
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(400_000_000)
        x.copy_(source)
        y = case.run(x)
        waited = stream.query()
    assert not waited, "something has waited for the sleeping stream"
    stream.synchronize()
    assert expected.any()
    _assert_same(y, expected, case)


@cases
def test_graph_capture_and_replay(case: Case) -> None:
    inputs = [scale * _input(*case.shape) for scale in (1.0, -0.5, 2.0)]
    x = inputs[0].clone().requires_grad_()
    stream = torch.cuda.Stream()
    _cotangent(case.shape)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _both(case, x)  # loads the kernels
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, grad = _both(case, x)
    for value in inputs:
        with torch.no_grad():
            x.copy_(value)
        graph.replay()
        expected = _both(case, x)
        assert expected[0].any() and expected[1].any()
        _assert_same(y, expected[0], case)
        _assert_same(grad, expected[1], case)


@cases
def test_a_capture_that_would_have_to_compile_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    x = _input(*case.shape)
    case.run(x)
    monkeypatch.setattr(_cupy, "_function", functools.cache(_cupy._function.__wrapped__))  # nothing loaded
    torch.cuda.synchronize()
    held = torch.zeros_like(x)
    with (
        pytest.raises(RuntimeError, match="before the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        held.add_(1)  # a graph without anything in it is warned of
        case.run(x)
    torch.cuda.synchronize()
    assert case.run(x).shape == x.shape


@two_devices
def test_two_devices_and_a_current_device_that_is_not_the_tensors() -> None:
    expected = [t.cpu() for t in _chain(_input(60, 4, 30), *_matrices(30))]
    second = torch.device("cuda", 1)
    for current in (0, 1):
        with torch.cuda.device(current):
            got = _chain(_input(60, 4, 30, device=second), *_matrices(30, second))
            assert torch.cuda.current_device() == current
            assert all(t.device == second for t in got)
            assert torch.equal(got[0].cpu(), expected[0]) and torch.equal(got[2].cpu(), expected[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    linear = torch.nn.Linear(40, 30, device=GPU)
    a, c = _matrices(30)
    with torch.autocast("cuda", dtype=dtype):
        current = linear(_input(50, 4, 40))
        spikes, _, state = lif(current, beta=0.9, threshold=0.3, refractory_period=1)
        y, _ = diagonal_ssm(current, a, c)
        gated, _ = fixed_refractory(y, 0.2, period=1)
    assert_some_spikes(spikes)
    assert_some_spikes(gated)
    assert current.dtype == spikes.dtype == y.dtype == gated.dtype == dtype
    assert state.v.dtype == torch.float32
    assert torch.equal(spikes, lif(current, beta=0.9, threshold=0.3, refractory_period=1, backend="torch")[0])
    assert_close(y, diagonal_ssm(current, a, c, backend="torch")[0])
    assert torch.equal(gated, fixed_refractory(y, 0.2, period=1, backend="torch")[0])
    (spikes.sum() + gated.sum()).backward()
    assert linear.weight.grad is not None and linear.weight.grad.isfinite().all() and linear.weight.grad.any()


# what PyTorch says of a GPU that could multiply float32 matrices with fewer bits
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compile(mode: str) -> None:
    compiled = torch.compile(_chain, fullgraph=True, mode=mode)
    for seed in range(4):
        torch.manual_seed(seed)
        x = (torch.randn(40, 4, 30, device=GPU) + 0.3).requires_grad_()
        a, c = _matrices(30)
        torch.compiler.cudagraph_mark_step_begin()
        got = compiled(x, a, c)
        cotangents = random_like(got)
        got_gradients = [None if g is None else g.clone() for g in gradients(got, cotangents, [x, a, c])]
        expected = _chain(x, a, c)
        assert_some_spikes(expected[0])
        assert torch.equal(got[0], expected[0]) and torch.equal(got[2], expected[2])
        for p, q in zip(got_gradients, gradients(expected, cotangents, [x, a, c]), strict=True):
            assert_close(p, q)


@cases
def test_memory_does_not_grow(case: Case) -> None:
    x = _input(*case.shape).requires_grad_()
    seen = []
    for step in range(1000):
        _both(case, x)
        if step in (9, 999):
            torch.cuda.synchronize()
            seen.append(torch.cuda.memory_allocated())
    assert seen[0] == seen[1]


def _free_memory(needed: int) -> None:
    """Skips where the GPU has less."""
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free memory on the GPU")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("run", "steps", "neurons"),
    [(_lif, 2049, 2**20 + 7), (_gate, 2049, 2**20 + 7), (_gate, 135_000, 16_001)],
    ids=["lif", "gate, one by one", "gate, at once"],
)
def test_more_elements_than_an_int_counts(
    run: Callable[[Tensor], Tensor], steps: int, neurons: int, dtype: torch.dtype
) -> None:
    """The first and last neurons are what they are on their own, forward and backward."""
    assert steps * neurons > 2**31
    _free_memory(8 * steps * neurons * dtype.itemsize)
    x = torch.randn(steps, neurons, device=GPU, dtype=dtype).add_(0.2).requires_grad_()
    cotangent = torch.randn(1, neurons, device=GPU, dtype=dtype).expand_as(x).contiguous()
    spikes = run(x)
    (grad,) = torch.autograd.grad(spikes, x, cotangent)
    for columns in (slice(0, 100), slice(-100, None)):
        part = x.detach()[:, columns].contiguous().requires_grad_()
        expected = run(part)
        assert_some_spikes(expected)
        assert torch.equal(spikes[:, columns], expected)
        assert torch.equal(grad[:, columns], torch.autograd.grad(expected, part, cotangent[:, columns])[0])


def test_more_elements_of_a_state_space_than_an_int_counts() -> None:
    """The first and last sequences of [2049, 1024, 1025] are what they are on their own."""
    steps, batch, channels = 2049, 1024, 1025
    assert steps * batch * channels > 2**31
    _free_memory(10 * steps * batch * channels * 2)
    x = torch.randn(steps, batch, channels, device=GPU, dtype=torch.bfloat16).requires_grad_()
    y = _ssm(x)
    (grad,) = torch.autograd.grad(y, x, x.detach())
    for rows in (slice(0, 2), slice(-2, None)):
        part = x.detach()[:, rows].contiguous().requires_grad_()
        expected = _ssm(part)
        assert expected.any()
        assert_close(y[:, rows], expected)
        assert_close(grad[:, rows], torch.autograd.grad(expected, part, part.detach())[0])
