"""The encoding theorem: from the memory alone come the spikes that ``ops.lif`` finds step by step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from snn_fr_plugin import encoding
from snn_fr_plugin.encoding import MemorySamples, spike_times_from_memory
from snn_fr_plugin.ops import lif

from .support import assert_close, assert_some_spikes

RESETS = ("none", "subtract", "zero")
REFRACTORY_INPUTS = ("integrate", "ignore")
TIE = 1e-9


class Case(NamedTuple):
    x: Tensor  # [T, N, *] float64
    beta: float | Tensor
    threshold: float | Tensor
    options: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Input and neurons in every mode of the theorem; parameters are floats or one for each neuron."""
    neurons = draw(st.sampled_from([(1,), (7,), (3, 5), (2, 3, 4)]))
    torch.manual_seed(draw(st.integers(0, 2**16)))

    def value(numbers: st.SearchStrategy[float], low: float, high: float) -> float | Tensor:
        if draw(st.booleans()):
            return draw(numbers)
        shape = draw(st.sampled_from([neurons, neurons[-1:], (*neurons[:-1], 1)]))
        sixteenths = (low + (high - low) * torch.rand(shape, dtype=torch.float64)).mul(16).round()
        return sixteenths / 16  # so that the ends occur

    beta = value(st.sampled_from([0.0, 1.0]) | st.floats(0.0, 1.0), 0.0, 1.0)
    threshold = value(st.floats(0.2, 2.0), 0.5, 1.5)
    options: dict[str, Any] = {
        "refractory_period": draw(st.integers(0, 8)),
        "reset": draw(st.sampled_from(RESETS)),
        "refractory_input": draw(st.sampled_from(REFRACTORY_INPUTS)),
        "inclusive": draw(st.booleans()),
    }
    if options["reset"] == "subtract" and draw(st.booleans()):
        options["reset_magnitude"] = value(st.floats(0.1, 2.0), 0.1, 1.5)
    x = torch.randn(draw(st.integers(0, 100)), *neurons, dtype=torch.float64) + draw(st.floats(-0.2, 0.8))
    return Case(x, beta, threshold, options)


def memory_of(x: Tensor, beta: float | Tensor) -> Tensor:
    memory = lif(x, beta, return_membrane=True)[1]
    assert memory is not None
    return memory


def compared_membrane(case: Case) -> tuple[Tensor, Tensor]:
    """Spikes of ``ops.lif``, and the membrane that it compared with the threshold, before the reset."""
    spikes, v, _ = lif(case.x, case.beta, case.threshold, return_membrane=True, **case.options)
    assert v is not None
    charged = case.beta * torch.cat([torch.zeros_like(v[:1]), v[:-1]]) + case.x
    return spikes, torch.where(spikes > 0, charged, v)


def test_spikes_are_those_of_lif_away_from_ties() -> None:
    """In float64, wherever no membrane comes within 1e-9 of the threshold: hardly a case is left out."""
    kept, trains = [], []

    @settings(deadline=None, max_examples=150)
    @given(case=cases())
    def check(case: Case) -> None:
        expected, h = compared_membrane(case)
        away = bool(((h - case.threshold).abs() > TIE).all())
        kept.append(away)
        assume(away)
        m = memory_of(case.x, case.beta)
        times, spikes, moving_threshold = spike_times_from_memory(
            m, case.beta, case.threshold, **case.options
        )
        assert torch.equal(spikes, expected)
        assert torch.equal(spikes > 0, m >= moving_threshold)
        is_open = moving_threshold.isfinite()
        assert_close(m[is_open], (h + moving_threshold - case.threshold)[is_open], "m = h + D")
        check_times(times, spikes, case.options["refractory_period"])
        trains.append(spikes.flatten())

    check()
    assert sum(kept) > 0.95 * len(kept)
    assert_some_spikes(torch.cat(trains))


def check_times(times: Tensor, spikes: Tensor, period: int) -> None:
    """Times are those of the spike train, in order, padded with T; between two lie R + 1 steps or more."""
    steps, counts = len(spikes), spikes.sum(0)
    assert times.dtype == torch.int64 and times.shape == (
        int(counts.max()) if steps else 0,
        *spikes.shape[1:],
    )
    assert torch.equal((times < steps).sum(0), counts.long())
    train = torch.zeros(steps + 1, *spikes.shape[1:], dtype=spikes.dtype).scatter(0, times, 1)
    assert torch.equal(train[:-1], spikes)
    assert (times.diff(dim=0)[times[1:] < steps] > period).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inclusive", [True, False])
def test_fr_neuron_samples_at_the_threshold_itself(dtype: torch.dtype, inclusive: bool) -> None:
    """Bit for bit in any dtype, ties of constant input included."""
    x = torch.cat([torch.randn(300, 4, 3), torch.full((100, 4, 3), 0.5)]).to(dtype)
    m = memory_of(x, 0.5)
    assert (m[-1] == 1).all()
    for period in (0, 2, 5):
        options: dict[str, Any] = {"refractory_period": period, "inclusive": inclusive}
        expected = lif(x, 0.5, **options)[0]
        _, spikes, moving_threshold = spike_times_from_memory(m, 0.5, **options)
        assert_some_spikes(spikes)
        assert torch.equal(spikes, expected.to(m.dtype))
        assert set(moving_threshold.unique().tolist()) <= {1.0, math.inf}


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("refractory_input", REFRACTORY_INPUTS)
@pytest.mark.parametrize("reset", RESETS)
def test_ties_without_rounding(beta: float, inclusive: bool, refractory_input: Any, reset: Any) -> None:
    """Where every number is a dyadic fraction nothing rounds, and ``inclusive`` decides the tie."""
    x = torch.full((24, 2), 0.75, dtype=torch.float64)
    threshold = 0.75 + 0.75 * beta  # met exactly in the second step
    options: dict[str, Any] = {
        "refractory_period": 2, "reset": reset, "refractory_input": refractory_input, "inclusive": inclusive,
    }  # fmt: skip
    times, spikes, _ = spike_times_from_memory(memory_of(x, beta), beta, threshold, **options)
    assert (times[0] == (1 if inclusive else 2)).all()
    assert torch.equal(spikes, lif(x, beta, threshold, **options)[0])


def test_ties_with_rounding_may_differ_from_lif() -> None:
    """Ten times 0.1 is 1, but not in floats; documented, and why the theorem is tested away from ties."""
    case = Case(torch.full((60, 1), 0.1, dtype=torch.float64), 1.0, 1.0, {"reset": "zero"})
    expected, h = compared_membrane(case)
    spikes = spike_times_from_memory(memory_of(case.x, case.beta), case.beta, **case.options).spikes
    differs = (spikes != expected).flatten().nonzero()
    assert differs.numel()
    assert (h[differs[0]] - 1.0).abs() < TIE


def test_jumps_are_as_many_as_spikes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the sequence; and few thresholds are evaluated."""
    steps, impulses = 200_000, torch.tensor([3, 4, 70, 150_000, 199_999])
    x = torch.zeros(steps, 3, dtype=torch.float64)
    x[impulses, 0] = 2.0
    x[150_000, 1] = 2.0
    m = memory_of(x, 0.5)
    jumps, evaluations = [], []
    next_spikes, deficit = encoding._next_spikes, encoding._Neurons.deficit

    def counted_jump(neurons: Any, *args: Any) -> Tensor:
        jumps.append(len(neurons.column))
        return next_spikes(neurons, *args)

    def counted_deficit(neurons: Any, t: Tensor) -> Tensor:
        evaluations.append(t.numel())
        return deficit(neurons, t)

    monkeypatch.setattr(encoding, "_next_spikes", counted_jump)
    monkeypatch.setattr(encoding._Neurons, "deficit", counted_deficit)
    times, spikes, _ = spike_times_from_memory(m, 0.5, reset="zero", refractory_input="ignore")
    assert times.T.tolist() == [impulses.tolist(), [150_000] + 4 * [steps], 5 * [steps]]
    assert torch.equal(spikes, lif(x, 0.5, reset="zero", refractory_input="ignore")[0])
    assert jumps == [3, 2, 1, 1, 1, 1]
    assert len(evaluations) < 100
    assert sum(evaluations) <= 3 * 2 * steps + 17 * (6 + 3)  # 16 a jump, and one for the reset


def test_evaluations_of_a_busy_neuron(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 T + 16 (K + 1), however the spikes lie."""
    evaluations: list[int] = []
    deficit = encoding._Neurons.deficit
    monkeypatch.setattr(
        encoding._Neurons, "deficit", lambda n, t: (evaluations.append(t.numel()), deficit(n, t))[1]
    )
    for shift in (-1.0, 0.0, 2.0):
        evaluations.clear()
        m = memory_of(torch.randn(1000, 1, dtype=torch.float64) + shift, 0.3)
        count = int(spike_times_from_memory(m, 0.3, reset="subtract").spikes.sum())
        assert count > 5
        assert sum(evaluations) - count <= 2 * 1000 + 16 * (count + 1)


def test_no_spike_and_no_step() -> None:
    quiet = spike_times_from_memory(torch.zeros(40, 2, 3), 0.9, reset="zero")
    assert quiet.times.shape == (0, 2, 3) and not quiet.spikes.any() and (quiet.moving_threshold == 1).all()
    for shape in ((0, 2, 3), (40, 0, 3), (0, 0)):
        for result in spike_times_from_memory(torch.zeros(shape), 0.9, refractory_period=2):
            assert result.shape in (shape, (0, *shape[1:]))


def test_layouts_and_gradients() -> None:
    """Any strides; a leaf that wants gradients is read, and gets none."""
    base = memory_of(torch.randn(30, 6, 4, 8, dtype=torch.float64), 0.9)
    m = base.permute(0, 3, 1, 2)[:, ::2].requires_grad_()
    beta = torch.rand(6, 1, dtype=torch.float64).requires_grad_()
    got = spike_times_from_memory(m, beta, reset="zero", refractory_period=1)
    expected = spike_times_from_memory(
        m.detach().contiguous(), beta.detach(), reset="zero", refractory_period=1
    )
    assert_some_spikes(got.spikes)
    assert isinstance(got, MemorySamples)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b) and not a.requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reset", RESETS)
def test_a_memory_that_is_not_finite_hangs_nothing(bad: float, reset: Any) -> None:
    m = memory_of(torch.randn(50, 2, dtype=torch.float64) + 0.5, 0.9)
    m[20, 0] = bad
    spikes = spike_times_from_memory(m, 0.9, reset=reset, refractory_period=1).spikes
    clean = spike_times_from_memory(m[:, 1:], 0.9, reset=reset, refractory_period=1).spikes
    assert torch.equal(spikes[:, 1:], clean)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"m": [1.0]}, TypeError, "m must be a torch.Tensor, got list"),
        ({"m": torch.zeros(5, 2).long()}, TypeError, "m must be float32, float64, float16 or bfloat16"),
        ({"m": torch.zeros(5)}, ValueError, r"m must have shape \[T, N, \*\], got \(5,\)"),
        ({"beta": 1.5}, ValueError, r"beta must lie in \[0, 1\], got 1.5"),
        ({"beta": torch.tensor([0.5, -0.25])}, ValueError, r"beta must lie in \[0, 1\], got -0.25"),
        ({"beta": math.nan}, ValueError, r"beta must lie in \[0, 1\], got nan"),
        ({"beta": None}, TypeError, "beta must be a float or a tensor, got NoneType"),
        ({"beta": torch.zeros(3)}, ValueError, r"beta must broadcast to the neurons' shape \(2,\)"),
        ({"threshold": torch.zeros(3)}, ValueError, r"threshold must broadcast to the neurons' shape \(2,\)"),
        ({"threshold": "1"}, TypeError, "threshold must be a float or a tensor, got str"),
        ({"refractory_period": 1.5}, TypeError, "refractory_period must be an int >= 0, got 1.5"),
        ({"refractory_period": -1}, ValueError, "refractory_period must be an int >= 0"),
        ({"reset": "hard"}, ValueError, "reset must be 'none', 'subtract' or 'zero', got 'hard'"),
        ({"refractory_input": "hold"}, ValueError, "refractory_input must be 'integrate' or 'ignore'"),
        ({"inclusive": 1}, TypeError, "inclusive must be a bool, got 1"),
        (
            {"reset": "zero", "reset_magnitude": 0.5},
            ValueError,
            "reset_magnitude is for reset='subtract', got 0.5 with reset='zero'",
        ),
        (
            {"reset": "subtract", "reset_magnitude": torch.zeros(2, 2)},
            ValueError,
            "reset_magnitude must broadcast to the neurons' shape",
        ),
    ],
)  # fmt: skip
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spike_times_from_memory(**({"m": torch.zeros(5, 2), "beta": 0.9} | arguments))
