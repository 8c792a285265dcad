"""``lif`` compiled: the torch provider's bits and gradients in every mode, and traps of kernels."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from snn_fr_plugin import surrogate
from snn_fr_plugin.ops import _compile, lif
from snn_fr_plugin.ops.lif import cpp_provider
from snn_fr_plugin.ops.lif.mode import Call
from snn_fr_plugin.ops.lif.mode import Mode as OperatorMode
from snn_fr_plugin.ops.lif.operator import lif_backward_op, lif_op

from .support import assert_close, assert_some_spikes, gradients, random_like

pytestmark = pytest.mark.skipif(not _compile.available(), reason="no C++ compiler")

SURROGATES = [
    surrogate.ATan(),
    surrogate.Sigmoid(),
    surrogate.FastSigmoid(5.0),
    surrogate.SuperSpike(2.0),
    surrogate.Triangle(),
    surrogate.Rectangle(0.7),
    surrogate.SoftSign(),
    surrogate.Erf(),
    surrogate.PiecewiseQuadratic(0.8),
    surrogate.PiecewiseExp(),
    surrogate.StraightThrough(),
]
HALVES = (torch.float16, torch.bfloat16)


class Mode(NamedTuple):
    charge: str
    reset: str
    reset_delay: bool
    refractory_input: str
    inclusive: bool
    refractory: bool  # R > 0

    def arguments(self, decay: Any, period: int) -> dict[str, Any]:
        """What ``lif`` is called with in this mode."""
        return {
            "beta": decay if self.charge == "beta" else None,
            "tau": None if self.charge == "beta" else decay,
            "decay_input": self.charge != "tau",
            "reset": self.reset,
            "reset_delay": self.reset_delay,
            "refractory_input": self.refractory_input,
            "inclusive": self.inclusive,
            "refractory_period": period if self.refractory else 0,
        }


RESETS = [("none", False), ("subtract", False), ("zero", False), ("subtract", True), ("zero", True)]
MODES = [
    Mode(charge, *reset, ignore, inclusive, refractory)
    for charge, reset, ignore, inclusive, refractory in itertools.product(
        ("beta", "tau_input", "tau"), RESETS, ("integrate", "ignore"), (True, False), (False, True)
    )
]


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(_WORDS[tensor.element_size()])


def _differing(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> int:
    """Elements that differ in any bit."""
    count = 0
    for p, q in zip(a, b, strict=True):
        assert (p is None) == (q is None)
        if p is not None and q is not None:
            assert p.shape == q.shape and p.dtype == q.dtype
            count += int((_bits(p.detach()) != _bits(q.detach())).sum())
    return count


def _run(x: Tensor, backend: str, kwargs: dict[str, Any], cuts: Sequence[int] = ()) -> list[Tensor | None]:
    """Spikes, membrane, v and refractory of a sequence given in pieces."""
    kwargs = dict(kwargs)
    state = kwargs.pop("state", None)
    spikes, membranes = [], []
    for start, end in itertools.pairwise([0, *cuts, len(x)]):
        s, m, state = lif(x[start:end], state=state, backend=backend, **kwargs)
        spikes.append(s)
        membranes.append(m)
    joined = None if membranes[0] is None else torch.cat([m for m in membranes if m is not None])
    return [torch.cat(spikes), joined, *state]


# ---- bits


class Case(NamedTuple):
    seed: int
    dtype: torch.dtype
    steps: int
    neurons: int
    period: int
    crossing: float  # share of the instants at which a membrane without reset would be over the threshold
    per_neuron: bool
    with_state: bool
    subnormal: bool  # everything scaled so that membranes are subnormal numbers
    ties: bool  # inputs on a grid and a threshold that is one of the membranes
    return_membrane: bool
    cuts: list[int]
    threads: int


@st.composite
def cases(draw: st.DrawFn, greatest: int) -> Case:
    steps = draw(st.one_of(st.integers(1, 200), st.sampled_from([31, 32, 33, 63, 64, 65, 96, 257, 600])))
    most = max(1, greatest // steps)
    neurons = draw(st.one_of(st.integers(1, most), st.sampled_from([1, 7, 63, 64, 65, 500, 1025])))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float32, torch.float64, *HALVES]))
    return Case(
        seed=draw(st.integers(0, 2**32 - 1)),
        dtype=dtype,
        steps=steps,
        neurons=min(neurons, most),
        period=draw(st.integers(1, 5)),
        crossing=draw(st.floats(0.1, 0.4)),
        per_neuron=draw(st.booleans()),
        with_state=draw(st.booleans()),
        subnormal=dtype not in HALVES and draw(st.integers(0, 5)) == 0,
        ties=draw(st.integers(0, 3)) == 0,
        return_membrane=draw(st.booleans()),
        cuts=sorted(draw(st.lists(st.integers(0, steps), max_size=3))),
        threads=draw(st.integers(1, 3)),
    )


def _draw(mode: Mode, case: Case) -> tuple[Tensor, dict[str, Any]]:
    """Input and arguments of a case; thresholds lie at a quantile of the membrane."""
    make = torch.Generator().manual_seed(case.seed)
    state_dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    scale = 1.0
    if case.subnormal:
        scale = 2.0**-1030 if case.dtype == torch.float64 else 2.0**-132

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=make, dtype=torch.float64) * (high - low) + low

    def parameter(low: float, high: float) -> Tensor:
        return uniform(low, high, *((case.neurons,) if case.per_neuron else ())).to(state_dtype)

    x = torch.randn(case.steps, case.neurons, generator=make, dtype=torch.float64) + 0.2
    decay = parameter(0.3, 0.95) if mode.charge == "beta" else parameter(1.2, 4.0)
    if case.ties:
        x, decay = x.round(), torch.full_like(decay, 0.5 if mode.charge == "beta" else 2.0)
    x = (x * scale).to(case.dtype)
    membrane = lif(
        x, decay if mode.charge == "beta" else None, tau=None if mode.charge == "beta" else decay,
        decay_input=mode.charge != "tau", return_membrane=True, backend="cpp",
    )[1]  # fmt: skip
    assert membrane is not None
    sample = membrane.flatten()[:: max(1, membrane.numel() // 2000)]
    crossing = case.crossing * (1.5 if mode.refractory else 1.0)
    level = sample.sort().values[int((1 - crossing) * len(sample))]
    kwargs = mode.arguments(decay, case.period) | {
        "threshold": level if case.ties else level + parameter(-0.1, 0.1) * level.abs(),
        "reset_magnitude": parameter(0.2, 1.0) * level.abs(),
        "v_reset": -0.2 * scale if case.seed % 2 else 0.0,
        "return_membrane": case.return_membrane,
    }
    if case.with_state:
        v = (torch.randn(case.neurons, generator=make, dtype=torch.float64) * scale).to(state_dtype)
        most = kwargs["refractory_period"]
        left = torch.randint(0, most + 1, (case.neurons,), generator=make, dtype=torch.int32)
        kwargs["state"] = (v, left)
    return x, kwargs


def _firing_rate_of_equal_bits(mode: Mode, case: Case) -> float:
    x, kwargs = _draw(mode, case)
    torch.set_num_threads(1)
    expected = _run(x, "torch", kwargs)
    torch.set_num_threads(case.threads)
    assert _differing(_run(x, "cpp", kwargs), expected) == 0
    if case.cuts:
        assert _differing(_run(x, "cpp", kwargs, case.cuts), expected) == 0
    assert expected[0] is not None
    return expected[0].double().mean().item()


@settings(max_examples=120, deadline=None)
@given(mode=st.sampled_from(MODES), case=cases(greatest=5_000))
def test_bits(mode: Mode, case: Case) -> None:
    """Spikes, membranes and states have the torch provider's bits, whole and in chunks, on 1 to 3 threads."""
    _firing_rate_of_equal_bits(mode, case)


@pytest.mark.slow
def test_bits_of_thousands_of_cases(record_property: Callable[[str, object], None]) -> None:
    """At least 20 cases of every mode that fire at 1% to 50%, up to 100,000 elements: not one bit differs."""
    counted: Counter[Mode] = Counter()
    total = elements = 0
    rates: list[float] = []
    for mode in MODES:

        @settings(max_examples=22, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(mode=st.just(mode), case=cases(greatest=100_000))
        def compare(mode: Mode, case: Case) -> None:
            nonlocal total, elements
            rate = _firing_rate_of_equal_bits(mode, case)
            total += 1
            elements += case.steps * case.neurons
            rates.append(rate)
            counted[mode] += 0.01 <= rate <= 0.5

        for _ in range(4):
            if counted[mode] < 20:
                compare()
    record_property(
        "lif, cpp against torch",
        f"{total} cases, {elements:,} elements, 0 differing bits; "
        f"{sum(counted.values())} cases fire at 1% to 50% (median {sorted(rates)[len(rates) // 2]:.0%}), "
        f"{min(counted.values())} to {max(counted.values())} of them in each of {len(counted)} modes",
    )
    assert len(counted) == len(MODES) and min(counted.values()) >= 20 and sum(counted.values()) >= 2000


def test_subnormal_membranes_are_not_flushed() -> None:
    x = torch.zeros(1200, 70)
    x[0] = 0.5
    expected = _run(x, "torch", {"beta": 0.9, "return_membrane": True})
    assert expected[1] is not None and 0 < expected[1][900].min() < torch.finfo(torch.float32).tiny
    assert _differing(_run(x, "cpp", {"beta": 0.9, "return_membrane": True}), expected) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_large_outputs_that_bypass_the_cache(dtype: torch.dtype) -> None:
    """Above 16 MiB rows are streamed, here with ends that share cache lines; by halves they are not."""
    x = (torch.randn(40 if dtype == torch.float32 else 80, 2**17 + 3) + 0.3).to(dtype)
    cotangent = torch.randn(x.shape, dtype=torch.float32).to(dtype)
    kwargs = {"beta": 0.8, "reset": "subtract", "refractory_period": 1, "return_membrane": True}

    def run(columns: slice) -> list[Tensor | None]:
        part = x[:, columns].contiguous().requires_grad_()
        outputs = _run(part, "cpp", kwargs)
        assert outputs[0] is not None
        return [*outputs, *torch.autograd.grad(outputs[0], part, cotangent[:, columns])]

    whole, halves = run(slice(None)), [run(slice(0, 2**16)), run(slice(2**16, None))]
    assert x.numel() * x.element_size() > 2**24 > x.numel() * x.element_size() * 0.51
    assert whole[0] is not None
    assert_some_spikes(whole[0])
    for got, *parts in zip(whole, *halves, strict=True):
        joined = torch.cat([p for p in parts if p is not None], -1)
        assert _differing([got], [joined]) == 0


SHAPES = [(0, 3, 5), (4, 0, 5), (0, 0), (1, 1), (1, 64), (2, 3, 5, 7), (33, 1, 1025)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape) + 0.4
    state = torch.randn(shape[1:]), torch.ones(shape[1:], dtype=torch.int32)
    kwargs = {"tau": 2.0, "refractory_period": 2, "reset": "zero", "state": state, "return_membrane": True}
    assert _differing(_run(x, "cpp", kwargs), _run(x, "torch", kwargs)) == 0


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "channels_last", "reversed"])
def test_layouts(layout: str) -> None:
    """Strides of the input, of the cotangent, of the state and of the parameters."""

    def arrange(base: Tensor) -> Tensor:
        return {
            "transposed": lambda: base.permute(0, 3, 1, 2),
            "sliced": lambda: base[:, 1:, ::2, 1:5],
            "expanded": lambda: base[:, :1].expand(-1, 5, -1, -1),
            "channels_last": lambda: base.contiguous(memory_format=torch.channels_last),
            "reversed": lambda: base.flip(0).transpose(2, 3),
        }[layout]()

    x = arrange(torch.randn(40, 4, 6, 8) + 0.4)
    cotangent = arrange(torch.randn(40, 4, 6, 8))
    decay = torch.rand(x.shape[:0:-1]).permute(2, 1, 0).mul(0.5).add(0.4)
    results = []
    for backend in ("torch", "cpp"):
        leaf, v = x.detach().requires_grad_(), x[3].detach().clone(memory_format=torch.preserve_format)
        v.requires_grad_()
        spikes, _, state = lif(
            leaf, decay, refractory_period=1, reset="subtract", backend=backend,
            state=(v, torch.zeros(v.shape, dtype=torch.int32)),
        )  # fmt: skip
        results.append((spikes, state, torch.autograd.grad(spikes, (leaf, v), cotangent)))
    assert_some_spikes(results[0][0])
    assert _differing([results[1][0], *results[1][1]], [results[0][0], *results[0][1]]) == 0
    for got, expected in zip(results[1][2], results[0][2], strict=True):
        assert_close(got, expected)


def test_non_finite_values_propagate_as_in_torch() -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 1.0, 0.0])
    x = torch.zeros(7, 5)
    x[2] = values
    for mode in MODES:
        kwargs = mode.arguments(0.9 if mode.charge == "beta" else 2.0, 2) | {"return_membrane": True}
        kwargs["threshold"] = torch.tensor([1.0, math.inf, 1.0, math.nan, -math.inf])
        for got, expected in zip(_run(x, "cpp", kwargs), _run(x, "torch", kwargs), strict=True):
            assert got is not None and expected is not None
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


# ---- gradients


@pytest.mark.parametrize("part", range(6))
def test_gradients_in_every_mode(part: int) -> None:
    """All five gradients from cotangents of spikes, membrane and final state, in any combination."""
    rng = random.Random(part)
    for mode, detach in itertools.product(MODES[part::6], (False, True)):
        steps, neurons = rng.choice((1, 3, 4, 31, 33, 70)), rng.choice(((7,), (3, 5), (4, 33)))
        shape = rng.choice(((), neurons[-1:], neurons))

        def parameter(low: float, high: float, shape: tuple[int, ...] = shape) -> Tensor:
            return torch.empty(shape, dtype=torch.float64).uniform_(low, high).requires_grad_()

        decay = parameter(0.6, 0.95) if mode.charge == "beta" else parameter(1.3, 3.0)
        leaves = {
            "x": (torch.randn(steps, *neurons, dtype=torch.float64) + 0.4).requires_grad_(),
            "v": torch.randn(neurons, dtype=torch.float64).requires_grad_(),
            "decay": decay,
            "threshold": parameter(0.6, 1.1),
            "magnitude": parameter(0.5, 1.0),
        }
        period = rng.randint(1, 4)
        left = torch.randint(0, period + 1, neurons, dtype=torch.int32)
        kwargs = mode.arguments(decay, period) | {
            "threshold": leaves["threshold"],
            "reset_magnitude": leaves["magnitude"],
            "detach_reset": detach,
            "v_reset": 0.1,
            "surrogate": rng.choice(SURROGATES),
            "return_membrane": True,
            "state": (leaves["v"], left),
        }
        given_to = [rng.random() < 0.6 for _ in range(3)]
        inputs = [t for t in leaves.values() if rng.random() < 0.8] or [leaves["x"]]
        results: list[tuple[Tensor | None, ...]] = []
        for backend in ("torch", "cpp"):
            spikes, membrane, state = lif(leaves["x"], backend=backend, **kwargs)
            outputs = [spikes, membrane, state.v]
            if not results:
                cotangents = random_like(outputs)
                cotangents = [c if g else None for c, g in zip(cotangents, given_to, strict=True)]
                if not any(given_to):
                    cotangents[0] = torch.randn_like(spikes)
            results.append(gradients(outputs, cotangents, inputs))
        for got, expected in zip(*reversed(results), strict=True):
            assert_close(got, expected, f"{mode} {detach}")


@pytest.mark.parametrize("ignore", ["integrate", "ignore"])
@pytest.mark.parametrize("charge", ["beta", "tau_input", "tau"])
def test_gradients_of_parameters_from_spikes_alone(charge: str, ignore: str) -> None:
    """Several steps at once: whole and broken strips, groups and chunks, every broadcast."""
    for (reset, delay), shape in itertools.product(RESETS, ((), (37,), (2, 1), (2, 37))):
        mode = Mode(charge, reset, delay, ignore, True, True)
        low, high = (0.6, 0.95) if charge == "beta" else (1.3, 3.0)
        leaves = [
            (torch.randn(38, 2, 37, dtype=torch.float64) + 0.4).requires_grad_(),
            *(
                torch.empty(shape, dtype=torch.float64).uniform_(*span).requires_grad_()
                for span in ((low, high), (0.6, 1.1), (0.5, 1.0))
            ),
        ]
        x, decay, threshold, magnitude = leaves
        kwargs = mode.arguments(decay, 2) | {"threshold": threshold, "reset_magnitude": magnitude}
        cotangent, results = torch.randn_like(x), []
        for backend in ("torch", "cpp"):
            spikes = lif(x, backend=backend, **kwargs)[0]
            results.append(torch.autograd.grad(spikes, leaves, cotangent, allow_unused=True))
        assert_some_spikes(spikes)
        for got, expected in zip(*reversed(results), strict=True):
            assert_close(got, expected, f"{mode} {shape}")


@pytest.mark.parametrize("shape", [(150,), (3, 150), (1, 150), (3, 1), (2, 1, 1), (1, 1, 1)])
def test_gradients_of_parameters_that_neurons_share(shape: tuple[int, ...]) -> None:
    """As if every neuron had its own, summed over those that share one; also from every second place."""
    x = torch.randn(9, 2, 3, 150, dtype=torch.float64) + 0.4
    shared = [
        torch.empty(*shape[:-1], 2 * shape[-1], dtype=torch.float64)
        .uniform_(*span)[..., ::2]
        .requires_grad_()
        for span in ((0.6, 0.95), (0.6, 1.1), (0.5, 1.0))
    ]
    own = [parameter.detach().expand(x.shape[1:]).clone().requires_grad_() for parameter in shared]
    cotangent, results = torch.randn_like(x), []
    for beta, threshold, magnitude in (shared, own):
        spikes, _, _ = lif(
            x,
            beta,
            threshold,
            reset="subtract",
            reset_magnitude=magnitude,
            refractory_period=1,
            backend="cpp",
        )
        results.append((spikes, *torch.autograd.grad(spikes, (beta, threshold, magnitude), cotangent)))
    assert_some_spikes(spikes)
    assert torch.equal(results[0][0], results[1][0])
    for got, each in zip(results[0][1:], results[1][1:], strict=True):
        assert_close(got, each.sum_to_size(shape), str(shape))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_gradients_in_lower_precision(dtype: torch.dtype) -> None:
    for mode in MODES[::5]:
        x = (torch.randn(45, 3, 30) + 0.4).to(dtype).requires_grad_()
        decay = torch.full((30,), 0.8 if mode.charge == "beta" else 2.0, requires_grad=True)
        threshold = torch.full((), 0.9, requires_grad=True)
        kwargs = mode.arguments(decay, 2) | {"threshold": threshold, "surrogate": surrogate.ATan()}
        results = []
        cotangent = torch.randn(x.shape, dtype=torch.float32).to(dtype)
        for backend in ("torch", "cpp"):
            spikes = lif(x, backend=backend, **kwargs)[0]
            results.append((spikes, torch.autograd.grad(spikes, (x, decay, threshold), cotangent)))
        assert_some_spikes(results[0][0])
        assert torch.equal(results[0][0], results[1][0])
        for got, expected in zip(results[1][1], results[0][1], strict=True):
            assert got.dtype == expected.dtype
            scale = expected.abs().max().clamp_min(1)
            assert_close(got / scale, expected / scale, f"{mode}")


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_to_half_precision(dtype: torch.dtype) -> None:
    """A gradient is rounded once, to the nearest and ties to even; infinite and subnormal ones included."""
    bits = torch.randint(-(2**31), 2**31, (100_000,)).to(torch.int32)
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()
    between = (halves + halves.roll(1)) / 2
    values = torch.cat([bits.view(torch.float32), halves, between, between.nextafter(halves), torch.zeros(1)])
    x = torch.zeros(1, len(values), dtype=dtype, requires_grad=True)
    membrane = lif(x, beta=0.9, return_membrane=True, backend="cpp")[1]
    assert membrane is not None
    (grad,) = torch.autograd.grad(membrane, x, values[None])
    expected, ordinary = (values + 0.0).to(dtype), ~values.isnan()
    assert _differing([grad[0, ordinary]], [expected[ordinary]]) == 0
    assert grad[0, ~ordinary].isnan().all() and not ordinary.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SURROGATES, ids=lambda s: s.kind)
def test_surrogate_derivatives(kind: surrogate.Surrogate, dtype: torch.dtype) -> None:
    """The fused formula, as one step of a neuron shows it, is the formula of ``surrogate``."""
    distance = torch.cat(
        [torch.linspace(-3, 3, 601), torch.logspace(-30, 4, 300), torch.tensor([0, -1e4])]
    ).to(dtype)
    x = distance[None].clone().requires_grad_()
    spikes = lif(x, beta=1.0, threshold=0.0, surrogate=kind, backend="cpp")[0]
    (slope,) = torch.autograd.grad(spikes.sum(), x)
    tiny = 1e-37 if dtype == torch.float32 else 1e-300
    torch.testing.assert_close(
        slope[0], kind.derivative(distance), rtol=2e-6 if dtype == torch.float32 else 2e-14, atol=tiny
    )


def test_surrogates_are_numbered_as_in_the_package() -> None:
    header = (Path(cpp_provider.__file__).with_name("step.h")).read_text(encoding="utf-8")
    enum = re.search(r"enum Kind \{([^}]*)\}", header)
    assert enum is not None
    assert tuple(name.strip().lower() for name in enum[1].split(",")) == surrogate.KINDS
    assert "#include" not in header
    assert {s.kind for s in SURROGATES} == set(surrogate.KINDS)


def test_results_do_not_depend_on_the_thread_count() -> None:
    x = (torch.randn(70, 3, 700) + 0.3).requires_grad_()
    beta = torch.tensor(0.9, requires_grad=True)
    threshold = torch.rand(700).add(0.5).requires_grad_()
    cotangent = torch.randn_like(x)
    results: list[list[Tensor]] = []
    for threads in (1, 2, 3, 7, 1):
        torch.set_num_threads(threads)
        spikes, membrane, state = lif(
            x, beta, threshold, reset="subtract", refractory_period=1, return_membrane=True, backend="cpp"
        )
        assert membrane is not None
        grads = torch.autograd.grad(spikes, (x, beta, threshold), cotangent)
        results.append([spikes, membrane, *state, *grads])
    assert_some_spikes(results[0][0])
    assert all(_differing(results[0], other) == 0 for other in results[1:])


def test_shared_parameters_do_not_depend_on_the_thread_count() -> None:
    """One float64 value for more neurons than torch sums on one thread."""
    x = torch.randn(3, 300_001, dtype=torch.float64) + 0.3
    beta = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        spikes, _, _ = lif(x, beta, reset="subtract", backend="cpp")
        results.append(torch.autograd.grad(spikes, beta, cotangent)[0])
    assert results[0] != 0
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_the_kernel_is_given_the_threads_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    given_threads = []

    def kernel(arguments: Any) -> None:
        given_threads.append(arguments._obj.threads)

    monkeypatch.setattr(cpp_provider, "_kernel", lambda *args: kernel)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        lif(torch.zeros(2, 3), beta=0.9, backend="cpp")
    assert given_threads == [1, 3]


@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
@pytest.mark.parametrize("delay", [False, True])
def test_foreign_surrogates(reset: Any, delay: bool) -> None:
    """A callable that the kernel does not know gets its membrane and its gate from the kernel."""
    x = (torch.randn(40, 3, 30) + 0.4).requires_grad_()
    fused = surrogate.SuperSpike(2.0)
    results = []
    for backend, kind in (("torch", fused), ("cpp", lambda d: fused(d))):
        spikes, membrane, state = lif(
            x, beta=0.8, reset=reset, reset_delay=delay, detach_reset=True, refractory_period=2,
            surrogate=kind, return_membrane=True, backend=backend,
        )  # fmt: skip
        torch.manual_seed(1)
        outputs = [spikes, membrane, state.v]
        results.append((outputs, gradients(outputs, random_like(outputs), [x])))
    assert_some_spikes(spikes)
    assert _differing(results[0][0], results[1][0]) == 0
    assert_close(results[1][1][0], results[0][1][0])


def test_backward_keeps_only_the_input_and_checkpoints() -> None:
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    x = torch.randn(320, 50, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        lif(x, beta=0.9, refractory_period=1, reset="zero", return_membrane=True, backend="cpp")
    checkpoints = 9 * 2 * 50 * 4
    assert sum(kept.values()) <= x.numel() * 4 + checkpoints + 3 * 50 * 4
    assert cpp_provider.saved_shapes(x.shape, _mode(), False, True)[2] == (9, 2, 50)
    assert cpp_provider.saved_shapes(x[:32].shape, _mode(), False, True)[2] == (0, 2, 50)
    assert cpp_provider.saved_shapes(x[:0].shape, _mode(), False, True)[2] == (0, 2, 50)


def _mode() -> OperatorMode:
    return OperatorMode("beta", "zero", 1, 0.0, False, False, True, False, True, "atan", 2.0)


# ---- as an operator of torch


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    x = (torch.randn(40, 2, 3, dtype=dtype) + 0.4).requires_grad_()
    v = torch.randn(2, 3, dtype=dtype, requires_grad=True)
    left = torch.ones(2, 3, dtype=torch.int32)
    decay, threshold = (torch.full((3,), value, dtype=dtype, requires_grad=True) for value in (0.9, 0.8))
    call = Call(_mode(), True, False, True, "cpp").text
    args = (x, v, left, decay, threshold, threshold, call)
    torch.library.opcheck(lif_op, args)
    outputs = lif_op(*args)
    backward = (
        torch.randn_like(x), None, None, torch.randn_like(v), *(a.detach() for a in args[:6]), None,
        outputs[2].detach(), outputs[3], outputs[6], call, True, True, True,
    )  # fmt: skip
    torch.library.opcheck(lif_backward_op, backward)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_the_operator_writes_what_it_is_asked_for(reset: str) -> None:
    """Membrane and charged membrane, each with and without the other."""
    x, v, left = torch.randn(38, 70) + 0.4, torch.randn(70), torch.zeros(70, dtype=torch.int32)
    decay, threshold, mode = torch.tensor(0.9), torch.tensor(0.8), _mode()._replace(reset=reset)
    for wanted in itertools.product([False, True], repeat=2):
        got, expected = (
            lif_op(x, v, left, decay, threshold, threshold, Call(mode, *wanted, False, provider).text)
            for provider in ("cpp", "torch")
        )
        assert_some_spikes(got[0])
        assert [t.numel() > 0 for t in got[1:3]] == list(wanted)
        assert _differing(got[:3], expected[:3]) == 0


def test_compile_fullgraph() -> None:
    """One graph with the named provider, eager's bits and gradients."""

    def net(x: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        spikes, _, state = lif(2 * x, beta, refractory_period=1, reset="subtract", backend="cpp")
        return spikes + 1, state.v

    # Inductor has its turn in test_torch_native.py
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = (torch.randn(40, 2, 3) + 0.3).requires_grad_()
        beta = torch.full((3,), 0.8, requires_grad=True)
        got, expected = compiled(x, beta), net(x, beta)
        assert_some_spikes(expected[0] - 1)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
        cotangents = random_like(expected)
        for p, q in zip(
            gradients(got, cotangents, [x, beta]), gradients(expected, cotangents, [x, beta]), strict=True
        ):
            assert_close(p, q)


def test_compile_fullgraph_while_the_mode_changes() -> None:
    """Numbers that torch makes symbols of reach the kernel all the same."""

    def net(x: Tensor, period: int, v_reset: float) -> Tensor:
        return lif(x, 0.8, refractory_period=period, reset="zero", v_reset=v_reset, backend="cpp")[0]

    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(40, 2, 3) + 0.6
    found = [(compiled(x, *given), net(x, *given)) for given in ((1, 0.0), (2, 0.1), (5, -0.3), (0, 1 / 3))]
    assert all(torch.equal(got, expected) for got, expected in found)
    assert len({float(expected.sum()) for _, expected in found}) == len(found)


def test_a_call_survives_as_text() -> None:
    for numbers in ((0, 0.1 + 0.2, 1e-300), (1000, -5e-324, 1e300), (3, 0.0, 2.0)):
        for *flags, membrane, charged, save in itertools.product([False, True], repeat=8):
            period, v_reset, alpha = numbers
            mode = OperatorMode("tau_input", "subtract", period, v_reset, *flags, "piecewise_linear", alpha)
            call = Call(mode, membrane, charged, save, "torch")
            assert Call.from_text(call.text) == call


# ---- as source


@pytest.mark.parametrize("charge", range(3))
@pytest.mark.parametrize("dtype", ["FLOAT32", "FLOAT64", "FLOAT16", "BFLOAT16"])
def test_source_has_no_warnings(dtype: str, charge: int) -> None:
    chain = _compile.toolchain()
    source = Path(cpp_provider.__file__).with_name("kernel.cpp")
    strict = ("-Wall", "-Wextra", "-Werror", "-fsyntax-only")
    chosen = (f"-DSNN_FR_{dtype}", f"-DSNN_FR_CHARGE={charge}")
    _compile._run([*chain.command, *chain.flags, *strict, *chosen, str(source)])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x86-64", "x86-64-v2", "x86-64-v3"])
def test_bits_of_other_instruction_sets(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrower vectors, other compare and store instructions: the same bits.

    Halves are converted as in x86-64 until v3 has an instruction for it.
    """
    chain = _compile.toolchain()
    if "__x86_64__" not in chain.identity or ("v3" in target and "__AVX2__" not in chain.identity):
        pytest.skip(f"this processor does not run {target}")
    flags = (*(f for f in chain.flags if not f.startswith(("-march", "-mprefer"))), f"-march={target}")
    other = chain._replace(flags=flags, identity=f"{chain.identity}{target}")
    source = Path(cpp_provider.__file__).with_name("kernel.cpp")

    def load(_: Path, dtype: torch.dtype, *flags: str) -> Any:
        name = str(dtype).removeprefix("torch.")
        return _compile._open(f"lif-{name}", source, (f"-DSNN_FR_{name.upper()}", *flags), other)

    monkeypatch.setattr(_compile, "load", load)
    make = random.Random(1)
    halves = [] if target == "x86-64-v2" else MODES[::40]
    for dtype, modes in ((torch.float32, MODES[::3]), (torch.float16, halves)):
        for mode in modes:
            case = Case(make.randrange(2**32), dtype, 37, 333, 2, 0.4, True, True, False, False, True, [5], 2)
            assert 0 < _firing_rate_of_equal_bits(mode, case) < 1
