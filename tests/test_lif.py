"""``ops.lif``: the contract of the operator, on the torch provider, against the reference loop."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snn_fr_plugin import surrogate as sg
from snn_fr_plugin.ops import LIFState, lif
from snn_fr_plugin.ops.lif.reference import lif as reference

from .support import (
    PROVIDERS_AND_CUDA,
    assert_close,
    assert_some_spikes,
    gradients,
    graph_size,
    lif_arguments,
    lif_modes,
    random_like,
)

pytestmark = [
    pytest.mark.usefixtures("provider"),
    pytest.mark.parametrize("provider", PROVIDERS_AND_CUDA, indirect=True),
]

MODES = list(lif_modes())


def _label(mode: dict[str, Any]) -> str:
    return "-".join(str(v) for v in mode.values())


def _compare_with_reference(x: Tensor, kwargs: dict[str, Any], leaves: dict[str, Tensor]) -> Tensor:
    got = lif(x, return_membrane=True, **kwargs)
    expected = reference(x, **kwargs)
    for name, a, b in (
        ("spikes", got[0], expected[0]),
        ("membrane", got[1], expected[1]),
        ("v", got[2].v, expected[2][0]),
        ("refractory", got[2].refractory, expected[2][1]),
    ):
        assert a is not None and torch.equal(a, b), name
    outputs, expected_outputs = (got[0], got[1], got[2].v), (expected[0], expected[1], expected[2][0])
    cotangents = random_like(outputs)
    inputs = [x, *leaves.values()]
    for name, a, b in zip(
        ["x", *leaves],
        gradients(outputs, cotangents, inputs),
        gradients(expected_outputs, cotangents, inputs),
        strict=True,
    ):
        assert_close(a, b, name)
    return got[0]


@pytest.mark.parametrize("seed", range(8))
def test_equals_reference_in_every_mode(seed: int) -> None:
    """Spikes, membranes, states bit for bit; every gradient as by autograd through the reference."""
    rng = random.Random(seed)
    fired = []
    for mode in MODES[seed::8]:
        kwargs, leaves = lif_arguments(
            mode, (3, 5), torch.float64, per_neuron=rng.random() < 0.5, with_state=rng.random() < 0.5
        )
        x = (torch.randn(rng.choice((1, 2, 31, 33)), 3, 5, dtype=torch.float64) + 0.4).requires_grad_()
        try:
            fired.append(_compare_with_reference(x, kwargs, leaves))
        except AssertionError as error:
            raise AssertionError(f"{_label(mode)}: {error}") from error
    assert_some_spikes(torch.cat(fired))


@pytest.mark.parametrize("mode", MODES[::7], ids=_label)
def test_float32_bits(mode: dict[str, Any]) -> None:
    kwargs, _ = lif_arguments(mode, (7, 9), torch.float32, per_neuron=True, with_state=True)
    x = torch.randn(70, 7, 9) + 0.3
    spikes, membrane, state = lif(x, return_membrane=True, **kwargs)
    expected = reference(x, **kwargs)
    assert_some_spikes(spikes)
    assert torch.equal(spikes, expected[0]) and membrane is not None and torch.equal(membrane, expected[1])
    assert torch.equal(state.v, expected[2][0]) and torch.equal(state.refractory, expected[2][1])


@pytest.mark.parametrize("shape", [(5, 7), (33, 1, 3), (63, 2, 3, 5), (1000, 150)], ids=str)
def test_blocks_of_the_backward(shape: tuple[int, ...]) -> None:
    """Sequences longer than a block of the backward, and shapes other than [T, N, C]."""
    x = (torch.randn(shape, dtype=torch.float64) + 0.3).requires_grad_()
    threshold = torch.rand(shape[-1], dtype=torch.float64).add(0.5).requires_grad_()
    kwargs: dict[str, Any] = {
        "beta": 0.8,
        "threshold": threshold,
        "reset": "subtract",
        "refractory_period": 2,
    }
    assert_some_spikes(_compare_with_reference(x, kwargs, {"threshold": threshold}))


@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
@pytest.mark.parametrize("delay", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("period", [0, 2])
def test_foreign_surrogates(reset: str, delay: bool, detach: bool, period: int) -> None:
    """Any callable, applied outside the kernel or by the reference loop, equals the fused surrogate."""
    x = (torch.randn(40, 2, 3, dtype=torch.float64) + 0.4).requires_grad_()
    threshold = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    kwargs: dict[str, Any] = {
        "threshold": threshold, "beta": 0.8, "reset": reset, "reset_delay": delay, "detach_reset": detach,
        "refractory_period": period, "return_membrane": True,
    }  # fmt: skip
    results = []
    fused = sg.SuperSpike(2.0)
    for surrogate in (fused, lambda d: fused(d)):
        spikes, membrane, state = lif(x, surrogate=surrogate, **kwargs)
        outputs = (spikes, membrane, state.v)
        torch.manual_seed(1)
        results.append((outputs, gradients(outputs, random_like(outputs), [x, threshold])))
    assert_some_spikes(results[0][0][0])
    for a, b in zip(results[0][0], results[1][0], strict=True):
        assert a is not None and b is not None and torch.equal(a, b)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert_close(a, b)


def test_graded_callable_reaches_the_spikes() -> None:
    """What a foreign callable returns is what the caller gets (a graded spike, here)."""
    x = torch.randn(20, 4) + 0.5
    spikes, _, _ = lif(x, beta=0.9, surrogate=lambda d: 0.5 * sg.ATan()(d), refractory_period=1)
    expected, _, _ = lif(x, beta=0.9, refractory_period=1)
    assert_some_spikes(expected)
    assert torch.equal(spikes, 0.5 * expected)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_chunks_and_steps_equal_the_whole(data: st.DataObject) -> None:
    """Any split of a sequence, down to single steps, carries on exactly, gradients included."""
    mode = data.draw(st.sampled_from(MODES))
    steps = data.draw(st.integers(0, 24))
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=5)))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    kwargs, leaves = lif_arguments(mode, (2, 3), torch.float64, per_neuron=True, with_state=True)
    x = (torch.randn(steps, 2, 3, dtype=torch.float64) + 0.4).requires_grad_()
    state = kwargs.pop("state")
    whole = lif(x, state=state, return_membrane=True, **kwargs)
    spikes, membranes = [], []
    for start, end in zip([0, *cuts], [*cuts, steps], strict=True):
        s, m, state = lif(x[start:end], state=state, return_membrane=True, **kwargs)
        assert m is not None
        spikes.append(s)
        membranes.append(m)
    chunked = torch.cat(spikes), torch.cat(membranes), state
    assert whole[1] is not None
    assert torch.equal(whole[0], chunked[0]) and torch.equal(whole[1], chunked[1])
    assert torch.equal(whole[2].v, chunked[2].v) and torch.equal(whole[2].refractory, chunked[2].refractory)
    a, b = (whole[0], whole[1], whole[2].v), (chunked[0], chunked[1], chunked[2].v)
    cotangents = random_like(a)
    inputs = [x, *leaves.values()]
    for name, p, q in zip(
        ["x", *leaves], gradients(a, cotangents, inputs), gradients(b, cotangents, inputs), strict=True
    ):
        assert_close(p, q, name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_keeps_float32_state(dtype: torch.dtype) -> None:
    x = (torch.randn(50, 3, 7) + 0.3).to(dtype).requires_grad_()
    spikes, membrane, state = lif(x, tau=2.0, threshold=0.7, refractory_period=1, return_membrane=True)
    exact, exact_membrane, _ = lif(
        x.float(), tau=2.0, threshold=0.7, refractory_period=1, return_membrane=True
    )
    assert_some_spikes(spikes)
    assert membrane is not None and exact_membrane is not None
    assert spikes.dtype == dtype and membrane.dtype == torch.float32 and state.v.dtype == torch.float32
    assert torch.equal(spikes.float(), exact) and torch.equal(membrane, exact_membrane)
    steps, carried = [], None
    for x_t in x.unbind(0):
        s, _, carried = lif(x_t[None], tau=2.0, threshold=0.7, refractory_period=1, state=carried)
        steps.append(s)
    assert torch.equal(torch.cat(steps), spikes)
    spikes.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all() and x.grad.any()


@settings(deadline=None, max_examples=60)
@given(
    period=st.integers(0, 6),
    reset=st.sampled_from(["none", "subtract", "zero"]),
    delay=st.booleans(),
    ignore=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_minimum_interspike_interval(period: int, reset: Any, delay: bool, ignore: bool, seed: int) -> None:
    torch.manual_seed(seed)
    spikes, _, _ = lif(
        torch.randn(60, 5) + 1.0,
        beta=0.9,
        refractory_period=period,
        reset=reset,
        reset_delay=delay,
        refractory_input="ignore" if ignore else "integrate",
    )
    windows = spikes.unfold(0, period + 1, 1).sum(-1)
    assert windows.max() == 1


def test_refractory_period_leaves_the_memory_alone() -> None:
    """Without reset the membrane is the linear memory, whatever the period."""
    x = torch.randn(100, 4)
    memories = [lif(x, beta=0.9, refractory_period=r, return_membrane=True)[1] for r in (0, 1, 7)]
    assert memories[0] is not None
    assert all(m is not None and torch.equal(memories[0], m) for m in memories)


@pytest.mark.parametrize("exponent", [-3, 1, 5])
@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
def test_scale_invariance_in_powers_of_two(exponent: int, reset: Any) -> None:
    """f(I; theta) = f(aI; a theta) bit for bit for a = 2^k."""
    a = 2.0**exponent
    x = torch.randn(80, 6) + 0.3
    spikes = lif(x, beta=0.9, threshold=1.1, reset=reset, refractory_period=1)[0]
    assert_some_spikes(spikes)
    assert torch.equal(spikes, lif(a * x, beta=0.9, threshold=a * 1.1, reset=reset, refractory_period=1)[0])


def test_subnormal_membranes_are_not_flushed() -> None:
    x = torch.zeros(1200, 3)
    x[0] = 0.5
    membrane = lif(x, beta=0.9, return_membrane=True)[1]
    assert membrane is not None
    tiny = torch.finfo(torch.float32).tiny
    assert ((membrane[900] > 0) & (membrane[900] < tiny)).all()
    assert torch.equal(membrane, reference(x, 0.9)[1])


def test_empty_sequence_returns_a_copy_of_the_state() -> None:
    v, r = torch.randn(2, 3, requires_grad=True), torch.ones(2, 3, dtype=torch.int32)
    spikes, membrane, state = lif(torch.empty(0, 2, 3), beta=0.9, state=(v, r), return_membrane=True)
    assert spikes.shape == (0, 2, 3) and membrane is not None and membrane.shape == (0, 2, 3)
    assert torch.equal(state.v, v) and torch.equal(state.refractory, r)
    assert state.v.data_ptr() != v.data_ptr() and state.refractory.data_ptr() != r.data_ptr()
    state.v.sum().backward()
    assert v.grad is not None and torch.equal(v.grad, torch.ones(2, 3))


def test_arguments_are_not_modified() -> None:
    x, v, r = torch.randn(9, 2, 3), torch.randn(2, 3), torch.ones(2, 3, dtype=torch.int32)
    copies = x.clone(), v.clone(), r.clone()
    lif(x, beta=0.9, state=(v, r), refractory_period=2, reset="zero", reset_delay=True)
    assert all(torch.equal(a, b) for a, b in zip((x, v, r), copies, strict=True))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "channels_last"])
def test_any_layout(layout: str) -> None:
    base = torch.randn(20, 4, 6, 8) + 0.4
    x = {
        "transposed": base.permute(0, 3, 1, 2),
        "sliced": base[:, :, ::2, 1:5],
        "expanded": base[:, :1].expand(20, 5, 6, 8),
        "channels_last": base.flatten(0, 1).to(memory_format=torch.channels_last_3d)
        if base.dim() == 5
        else base.contiguous(memory_format=torch.channels_last),
    }[layout]
    spikes = lif(x, beta=0.9, reset="subtract", refractory_period=1)[0]
    assert_some_spikes(spikes)
    assert torch.equal(spikes, lif(x.contiguous(), beta=0.9, reset="subtract", refractory_period=1)[0])


def test_neurons_are_independent() -> None:
    x, order = torch.randn(30, 6) + 0.3, torch.randperm(6)
    beta = torch.rand(6)
    spikes = lif(x, beta, refractory_period=2)[0]
    assert_some_spikes(spikes)
    assert torch.equal(spikes[:, order], lif(x[:, order], beta[order], refractory_period=2)[0])


def test_graph_does_not_grow_with_time() -> None:
    def nodes(steps: int) -> int:
        x = torch.randn(steps, 2, 3, requires_grad=True)
        spikes, membrane, _ = lif(x, beta=0.9, reset="zero", refractory_period=1, return_membrane=True)
        assert membrane is not None
        return graph_size((spikes + membrane).sum())

    assert nodes(4) == nodes(64)


def test_non_finite_input_propagates() -> None:
    x = torch.zeros(5, 3)
    x[1] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    spikes, membrane, _ = lif(x, beta=0.9, refractory_period=1, return_membrane=True)
    assert membrane is not None
    assert membrane[2].isnan().tolist() == [True, False, False]
    assert spikes[1].tolist() == [0.0, 1.0, 0.0]


# tensors on the CPU, which every device's providers would have to refuse in the same words
GOOD = {"x": torch.zeros(3, 2, 4), "beta": 0.9, "backend": "torch"}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"refractory_period": -1}, ValueError, "refractory_period must be an int >= 0.*got -1"),
    ({"refractory_period": 1.5}, TypeError, "refractory_period must be an int.*got 1.5"),
    ({"refractory_period": True}, TypeError, "refractory_period must be an int"),
    ({"reset": "hard"}, ValueError, "reset must be 'none', 'subtract' or 'zero', got 'hard'"),
    (
        {"refractory_input": "hold"},
        ValueError,
        "refractory_input must be 'integrate' or 'ignore', got 'hold'",
    ),
    ({"backend": "cuda"}, ValueError, "backend must be 'auto', 'torch', 'cpp' or 'cupy', got 'cuda'"),
    ({"backend": "cupy"}, ValueError, "backend='cupy' serves cuda tensors, got a tensor on cpu"),
    ({"x": torch.zeros(3)}, ValueError, r"x must have shape \[T, N, \*\], got \(3,\)"),
    ({"x": torch.zeros(3, 2, 4, dtype=torch.int64)}, TypeError, "x must be float32.*got torch.int64"),
    ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
    ({"beta": None}, ValueError, "exactly one of beta and tau"),
    ({"tau": 2.0}, ValueError, "exactly one of beta and tau"),
    (
        {"beta": torch.zeros(3)},
        ValueError,
        r"beta must broadcast to the neurons' shape \(2, 4\), got shape \(3,\)",
    ),
    ({"beta": torch.zeros(5, 2, 4)}, ValueError, "beta must broadcast"),
    ({"beta": torch.zeros(4, dtype=torch.int32)}, TypeError, "beta must be a floating-point tensor"),
    ({"beta": "0.9"}, TypeError, "beta must be a float or a tensor, got str"),
    ({"threshold": torch.zeros(2)}, ValueError, "threshold must broadcast"),
    ({"reset_magnitude": torch.zeros(2)}, ValueError, "reset_magnitude must broadcast"),
    ({"reset_delay": 1}, TypeError, "reset_delay must be a bool, got 1"),
    ({"surrogate": "atan"}, TypeError, "surrogate must be callable, got str"),
    ({"state": torch.zeros(2, 2, 4)}, TypeError, r"state must be LIFState\(v, refractory\), got Tensor"),
    (
        {"state": (torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int32))},
        ValueError,
        r"state.v must have shape \(2, 4\), got \(2, 3\)",
    ),
    (
        {"state": (torch.zeros(2, 4).double(), torch.zeros(2, 4, dtype=torch.int32))},
        TypeError,
        "state.v must be torch.float32, got torch.float64",
    ),
    (
        {"state": (torch.zeros(2, 4), torch.zeros(2, 4))},
        TypeError,
        "state.refractory must be torch.int32, got torch.float32",
    ),
    (
        {"state": (torch.zeros(2, 4, device="meta"), torch.zeros(2, 4, dtype=torch.int32))},
        ValueError,
        "state.v must be on cpu, got meta",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for _, _, m in BAD])
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lif(**{**GOOD, **change})


def test_state_is_a_named_tuple() -> None:
    state = lif(torch.ones(4, 2), beta=1.0, refractory_period=3)[2]
    assert isinstance(state, LIFState)
    assert state.refractory.tolist() == [0, 0] or state.refractory.dtype == torch.int32
    assert state.v.tolist() == [4.0, 4.0]


def test_graded_surrogate_counts_crossings() -> None:
    """A foreign surrogate whose values are not binary: the counter follows the threshold, not the value."""
    x = torch.randn(30, 4) + 0.4
    v, silent = torch.zeros(4), torch.full((4,), 9)
    graded = lif(x, beta=0.8, refractory_period=2, reset="subtract", surrogate=torch.sigmoid)[0]
    assert_some_spikes((graded > 0).float())
    for x_t, s_t in zip(x, graded, strict=True):
        h = 0.8 * v + x_t
        is_open = silent > 2
        assert torch.equal(s_t, torch.sigmoid(h - 1) * is_open)
        v = h - s_t
        silent = torch.where((h >= 1) & is_open, 1, silent + 1)
