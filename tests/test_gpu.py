"""The CuPy provider on a GPU: ``pytest -m gpu`` runs this, and ``test_lif.py`` and its like on the device.

Memory errors: ``PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python -m pytest -m gpu``.

Written without a GPU: it has not been run yet.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from snn_fr_plugin.ops import _cupy, _providers, diagonal_ssm, fixed_refractory, lif

from .support import assert_close, assert_some_spikes, gradients, random_like

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

GPU = torch.device("cuda", 0)
LIF: dict[str, Any] = {"beta": 0.9, "threshold": 0.8, "refractory_period": 2, "reset": "subtract"}


def _input(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device = GPU) -> Tensor:
    """The same numbers on every device."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.2).to(device, dtype)


def _chain(x: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three operators."""
    spikes, membrane, _ = lif(x, return_membrane=True, **LIF)
    assert membrane is not None
    drive, _ = diagonal_ssm(spikes + membrane, a, c)
    return fixed_refractory(drive, 0.5, period=2)[0], drive, membrane


def _matrices(channels: int, device: torch.device = GPU) -> tuple[Tensor, Tensor]:
    a = torch.full((channels, 2), 0.5 + 0.3j, device=device, requires_grad=True)
    c = torch.full((channels, 2), 0.7 - 0.2j, device=device, requires_grad=True)
    return a, c


def test_cupy_works_here_and_is_chosen() -> None:
    _cupy.require()
    assert _providers.choose("auto", GPU) == "cupy"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 1), (16384, 1), (1000, 150), (33, 24_577), (33, 24_578), (4, 1_000_003)], ids=str
)
def test_spikes_are_those_of_the_cpu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = _input(*shape, dtype=dtype)
    results = []
    for device in (GPU, torch.device("cpu")):
        leaf = x.to(device).requires_grad_()
        spikes, membrane, state = lif(leaf, return_membrane=True, **LIF)
        cotangent = _input(*shape, dtype=dtype, device=device)
        results.append(
            [t.cpu() for t in (spikes, membrane, *state, *torch.autograd.grad(spikes, leaf, cotangent))]
        )
    if x.numel() > 100:
        assert_some_spikes(results[1][0])
    for got, expected in zip(results[0][:4], results[1][:4], strict=True):
        assert torch.equal(got, expected)
    assert_close(results[0][4], results[1][4])


def test_gradients_of_parameters_are_the_same_every_time() -> None:
    x = _input(200, 5000)
    grads = []
    for _ in range(3):
        beta, threshold = (torch.tensor(v, device=GPU, requires_grad=True) for v in (0.9, 0.8))
        spikes, _, _ = lif(x, beta, threshold, refractory_period=1, reset="zero")
        grads.append(torch.stack(torch.autograd.grad(spikes, (beta, threshold), _input(200, 5000))))
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2]) and grads[0].all()


def test_another_stream() -> None:
    """Kernels run in the stream that is current, behind what is in it already."""
    expected = lif(_input(500, 300), **LIF)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    x = torch.zeros(500, 300, device=GPU)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.copy_(_input(500, 300))
        spikes = lif(x, **LIF)[0]
    assert not stream.query()  # nothing has waited for the sleeping stream
    stream.synchronize()
    assert_some_spikes(expected)
    assert torch.equal(spikes, expected)


def test_graph_capture_and_replay() -> None:
    x, cotangent = _input(100, 1000).requires_grad_(), _input(100, 1000)

    def run() -> tuple[Tensor, Tensor]:
        spikes = lif(x, **LIF)[0]
        return spikes, torch.autograd.grad(spikes, x, cotangent)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # loads the kernels
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        spikes, grad = run()
    for scale in (1.0, -0.5, 2.0):
        with torch.no_grad():
            x.copy_(scale * _input(100, 1000))
        graph.replay()
        expected = run()
        assert torch.equal(spikes, expected[0]) and torch.equal(grad, expected[1])
    assert_some_spikes(spikes)


def test_a_capture_that_would_have_to_compile_is_refused() -> None:
    x = _input(10, 10)
    for cached in (_cupy._function, _cupy._module):
        cached.cache_clear()
    with (
        pytest.raises(RuntimeError, match="before the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        lif(x, **LIF)
    torch.cuda.synchronize()
    assert lif(x, **LIF)[0].shape == x.shape


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
    (spikes.sum() + gated.sum()).backward()
    assert linear.weight.grad is not None and linear.weight.grad.isfinite().all() and linear.weight.grad.any()


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


def test_memory_does_not_grow() -> None:
    x, cotangent = _input(50, 2000).requires_grad_(), _input(50, 2000)
    seen = []
    for step in range(1000):
        spikes = lif(x, **LIF)[0]
        torch.autograd.grad(spikes, x, cotangent)
        del spikes
        if step in (9, 999):
            torch.cuda.synchronize()
            seen.append(torch.cuda.memory_allocated())
    assert seen[0] == seen[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_more_elements_than_an_int_counts(dtype: torch.dtype) -> None:
    """The last neurons of [2049, 1,048,583] are what they are on their own, forward and backward."""
    steps, neurons = 2049, 2**20 + 7
    needed = 6 * steps * neurons * dtype.itemsize
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free memory on the GPU")
    assert steps * neurons > 2**31
    x = torch.randn(steps, neurons, device=GPU, dtype=dtype).add_(0.2).requires_grad_()
    cotangent = torch.randn(1, neurons, device=GPU, dtype=dtype).expand_as(x).contiguous()
    spikes, _, state = lif(x, **LIF)
    (grad,) = torch.autograd.grad(spikes, x, cotangent)
    for columns in (slice(0, 100), slice(-100, None)):
        part = x.detach()[:, columns].contiguous().requires_grad_()
        expected, _, final = lif(part, **LIF)
        assert_some_spikes(expected)
        assert torch.equal(spikes[:, columns], expected) and torch.equal(state.v[columns], final.v)
        assert torch.equal(grad[:, columns], torch.autograd.grad(expected, part, cotangent[:, columns])[0])
