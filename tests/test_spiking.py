"""Spiking modules: the schemes, SpikingJelly's PSN family, and the laws of a state carried through time."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based import surrogate as their_surrogate
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from snn_fr_plugin import ops
from snn_fr_plugin.ops.refractory.reference import fixed_refractory as reference
from snn_fr_plugin.spiking import PSN, FixedRefractory, MaskedPSN, PSNState, SlidingPSN, Threshold
from snn_fr_plugin.surrogate import ATan, Sigmoid, Triangle

from .support import assert_close, assert_some_spikes, gradients, graph_size, random_like

C, T = 5, 63
Make = Callable[[], Any]


def varied(module: nn.Module) -> nn.Module:
    """Parameters away from their initial values, biases low enough for spikes."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.add_(0.3 * torch.rand_like(p) if name == "bias" else 0.2 * torch.randn_like(p))
    return module


def per_channel() -> Tensor:
    return torch.linspace(0.3, 1.1, C)


CAUSAL: dict[str, Make] = {
    "threshold": lambda: Threshold(0.4),
    "threshold-learned": lambda: varied(Threshold(per_channel(), learn_threshold=True)),
    "absolute": lambda: FixedRefractory(2, threshold=per_channel()),
    "absolute-learned": lambda: varied(FixedRefractory(3, threshold=per_channel(), learn_threshold=True)),
    "window": lambda: FixedRefractory(3, "window", threshold=0.4, surrogate=Sigmoid()),
    "strided": lambda: FixedRefractory(2, "strided", threshold=0.4, inclusive=False),
    "onset": lambda: FixedRefractory(1, "onset", threshold=0.9),
    "sliding": lambda: varied(SlidingPSN(4)),
    "sliding-1": lambda: varied(SlidingPSN(1)),
    "sliding-longer-than-a-chunk": lambda: varied(SlidingPSN(40)),
    "sliding-kaiming": lambda: varied(SlidingPSN(5, exp_init=False, surrogate=Triangle())),
    "masked-closed": lambda: varied(MaskedPSN(4, T, 1.0)),
    "masked-closed-1": lambda: varied(MaskedPSN(1, T, 1.0)),
    "masked-closed-wider-than-T": lambda: varied(MaskedPSN(T + 5, T, 1.0)),
}
OPEN: dict[str, Make] = {
    "masked-open": lambda: varied(MaskedPSN(4, T)),
    "masked-half": lambda: varied(MaskedPSN(4, T, 0.5)),
    "full": lambda: varied(PSN(T)),
}
causal = pytest.mark.parametrize("make", CAUSAL.values(), ids=CAUSAL.keys())
everyone = pytest.mark.parametrize("make", (CAUSAL | OPEN).values(), ids=(CAUSAL | OPEN).keys())


def drive(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(T, 3, C, dtype=dtype) + 0.3


def leaves(state: Any) -> list[Any]:
    return list(state) if isinstance(state, tuple) else [state]


def assert_same_state(got: Any, expected: Any) -> None:
    for a, b in zip(leaves(got), leaves(expected), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def loop(module: Any, x_seq: Tensor, recent: Tensor | None) -> Tensor:
    """The equations of the docstrings."""
    if isinstance(module, Threshold):
        threshold = module.log_threshold.exp() if module.learn_threshold else module.threshold
        arguments: dict[str, Any] = {"period": module.refractory_period, "scheme": module.scheme}
        return reference(
            x_seq, threshold, inclusive=module.inclusive, surrogate=module.surrogate, **arguments
        )[0]
    if isinstance(module, SlidingPSN):
        padded = torch.cat([torch.zeros(module.k - 1, *x_seq.shape[1:]) if recent is None else recent, x_seq])
        h = [
            sum(module.weight[i] * padded[t + i] for i in range(module.k)) + module.bias
            for t in range(len(x_seq))
        ]
        return module.surrogate(torch.stack(h))
    steps = len(x_seq)
    weight = module.weight
    if isinstance(module, MaskedPSN):
        i, j = torch.arange(steps)[:, None], torch.arange(steps)
        closed = ((j <= i) & (i < j + module.k)).double()
        weight = (module.lambda_ * closed + (1 - module.lambda_)) * weight
    return module.surrogate(torch.einsum("ts,snc->tnc", weight, x_seq) + module.bias[..., None])


# the equations


@everyone
def test_spikes_and_gradients_are_those_of_the_loop(make: Make) -> None:
    module = make().double()
    x = drive().requires_grad_()
    inputs = [x, *module.parameters()]
    recent = None
    if isinstance(module, SlidingPSN):
        recent = torch.randn(module.k - 1, 3, C, dtype=torch.float64, requires_grad=True)
        inputs += [recent] if module.k > 1 else []
    got, expected = module(x, recent)[0], loop(module, x, recent)
    assert_some_spikes(got)
    assert torch.equal(got, expected)
    cotangents = random_like([got])
    for a, b in zip(
        gradients([got], cotangents, inputs), gradients([expected], cotangents, inputs), strict=True
    ):
        assert b is not None and b.any()
        assert_close(a, b)


@everyone
def test_forward_is_fire_of_integrate(make: Make) -> None:
    module, x = make().double(), drive()
    whole, final = module(x)
    h, state = module.integrate(x)
    spikes, state = module.fire(h, state)
    assert torch.equal(spikes, whole)
    assert_same_state(state, final)
    if isinstance(module, Threshold):
        assert h is x
    else:  # the filter is linear, the bias comes with the threshold
        torch.testing.assert_close(module.integrate(2 * x)[0], 2 * h)
        assert torch.equal(module.integrate(torch.zeros_like(x))[0], torch.zeros_like(x))


def test_the_schemes() -> None:
    """The table of ``ops.fixed_refractory``."""
    candidates = [int(c) for c in "0111011111001011"]
    x = torch.tensor(candidates, dtype=torch.float32)[:, None]
    for scheme, expected in {
        "absolute": "0100010010001001",
        "window": "0101001001001001",
        "strided": "0001001001001001",
        "onset": "0100000000001000",
    }.items():
        spikes, _ = FixedRefractory(2, scheme)(x)  # type: ignore[arg-type]
        assert "".join(str(int(s)) for s in spikes.flatten()) == expected
        assert torch.equal(FixedRefractory(0, scheme)(x)[0], Threshold()(x)[0])  # type: ignore[arg-type]


def test_interspike_intervals() -> None:
    x = drive()
    candidates = Threshold(0.4)(x)[0]
    for period in (1, 4):
        spikes = FixedRefractory(period, threshold=0.4)(x)[0]
        assert_some_spikes(spikes)
        assert (spikes <= candidates).all()
        assert spikes.unfold(0, period + 1, 1).sum(-1).max() == 1


def test_inclusive() -> None:
    x = torch.full((3, 1), 0.7)
    assert Threshold(0.7)(x)[0].tolist() == [[1], [1], [1]]
    assert not Threshold(0.7, inclusive=False)(x)[0].any()
    assert not Threshold(0.7)(x.bfloat16())[
        0
    ].any()  # 0.7 in bfloat16 is 0.6992; the comparison is in float32


# thresholds


def test_a_learnable_threshold_stays_positive() -> None:
    module = FixedRefractory(1, threshold=0.5, learn_threshold=True)
    torch.testing.assert_close(module.threshold, torch.tensor(0.5))
    assert [(n, tuple(p.shape)) for n, p in module.named_parameters()] == [("log_threshold", ())]
    assert Threshold(1.0, learn_threshold=True).threshold == 1  # exp(log(1)) is 1 exactly
    assert Threshold(torch.ones(C), learn_threshold=True).log_threshold.shape == (C,)
    with torch.no_grad():
        module.log_threshold -= 100
    assert module.threshold > 0


def test_state_dict_keys() -> None:
    assert list(FixedRefractory(3).state_dict()) == list(Threshold().state_dict()) == []
    assert list(FixedRefractory(3, learn_threshold=True).state_dict()) == ["log_threshold"]
    assert list(FixedRefractory(3, threshold=per_channel()).state_dict()) == ["_threshold"]
    assert list(SlidingPSN().state_dict()) == list(PSN(3).state_dict()) == ["weight", "bias"]


def test_a_fixed_threshold_keeps_its_digits_in_double() -> None:
    x = torch.tensor([[0.7]], dtype=torch.float64)
    assert Threshold(0.7).double()(x)[0].item() == 1 and Threshold(0.7).double()(x - 1e-12)[0].item() == 0


def test_repr() -> None:
    assert repr(FixedRefractory(2, "window")) == (
        "FixedRefractory(refractory_period=2, scheme='window', threshold=1, learn_threshold=False)"
    )
    assert repr(FixedRefractory(threshold=per_channel(), learn_threshold=True)) == (
        "FixedRefractory(refractory_period=1, scheme='absolute', threshold=tensor(5,), learn_threshold=True)"
    )
    assert repr(Threshold(0.5)) == "Threshold(threshold=0.5, learn_threshold=False)"
    assert repr(SlidingPSN(3)) == "SlidingPSN(k=3)" and repr(PSN(4)) == "PSN(T=4)"
    assert repr(MaskedPSN(2, 4, 0.5)) == "MaskedPSN(k=2, T=4, lambda_=0.5)"


# SpikingJelly's PSN family


def peers(kind: str, lambda_: float = 0.0) -> tuple[Any, Any]:
    if kind == "sliding":
        ours, theirs = SlidingPSN(4), neuron.SlidingPSN(4, step_mode="m")
    elif kind == "masked":
        ours, theirs = MaskedPSN(4, T, lambda_), neuron.MaskedPSN(4, T, lambda_, step_mode="m")
    else:
        ours, theirs = PSN(T), neuron.PSN(T)
    varied(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours.double(), theirs.double()


PEERS = [("sliding", 0.0), ("full", 0.0), ("masked", 0.0), ("masked", 0.5), ("masked", 1.0), ("masked", 1.5)]


@pytest.mark.parametrize(("kind", "lambda_"), PEERS)
def test_equals_spikingjelly(kind: str, lambda_: float) -> None:
    ours, theirs = peers(kind, lambda_)
    hidden: list[Tensor] = []
    theirs.surrogate_function.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    x = (torch.randn(T, 2, 3, 2, 2, dtype=torch.float64) + 0.3).requires_grad_()
    got, expected = ours(x)[0], theirs(x)
    assert_some_spikes(got)
    assert torch.equal(got, expected)
    bias = ours.bias if kind == "sliding" else ours.bias.view(T, 1, 1, 1, 1)
    torch.testing.assert_close(ours.integrate(x)[0] + bias, hidden[0].view(x.shape), rtol=1e-12, atol=1e-12)
    cotangents = random_like([got])
    a = gradients([got], cotangents, [x, ours.weight, ours.bias])
    b = gradients([expected], cotangents, [x, theirs.weight, theirs.bias])
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["sliding", "masked"])
def test_steps_equal_spikingjelly(kind: str) -> None:
    ours, theirs = peers(kind, 1.0)
    functional.set_step_mode(theirs, "s")
    x = drive()
    state, count = ours.initial_state(x[0]), 0.0
    for x_t in x.unbind(0):
        spikes, state = ours.step(x_t, state)
        assert torch.equal(spikes, theirs(x_t))
        count += spikes.mean().item()
    assert 0.01 * T < count < 0.99 * T


@pytest.mark.parametrize("exp_init", [True, False])
def test_initial_values_are_spikingjellys(exp_init: bool) -> None:
    pairs = [
        (lambda: SlidingPSN(6, exp_init), lambda: neuron.SlidingPSN(6, exp_init)),
        (lambda: PSN(7), lambda: neuron.PSN(7)),
        (lambda: MaskedPSN(3, 7, 0.25), lambda: neuron.MaskedPSN(3, 7, 0.25)),
    ]
    for ours, theirs in pairs:
        states = []
        for make in (ours, theirs):
            torch.manual_seed(0)
            states.append(make().state_dict())
        assert states[0].keys() == states[1].keys()
        for name, value in states[0].items():
            assert value.shape == states[1][name].shape
            torch.testing.assert_close(value, states[1][name], rtol=1e-6, atol=0)
    assert SlidingPSN(4).weight.tolist() == [0.125, 0.25, 0.5, 1.0] and SlidingPSN(4).bias == -1


@pytest.mark.parametrize(("kind", "lambda_"), PEERS)
def test_state_dicts_are_exchanged_both_ways(kind: str, lambda_: float) -> None:
    ours, theirs = peers(kind, lambda_)
    with torch.no_grad():
        theirs.weight.mul_(0.5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours.weight, theirs.weight)


# what the PSNs can and cannot do


def test_lambda_closes_the_mask() -> None:
    module = MaskedPSN(2, 4).double()
    assert torch.equal(module.masked_weight(), module.weight)
    module.lambda_ = torch.tensor(1.0)
    i, j = torch.arange(4)[:, None], torch.arange(4)
    assert torch.equal(module.masked_weight() != 0, (j <= i) & (i < j + 2))
    for value in (0.25, 2):
        module.lambda_ = value
        assert module.lambda_ == value
    assert (module.masked_weight() != 0).sum() == 7  # beyond 1 it stays closed
    with pytest.raises(ValueError, match=r"lambda_ must be >= 0, got -0.1"):
        module.lambda_ = -0.1
    assert module.lambda_ == 2


def test_full_psn_cannot_step() -> None:
    module, x = PSN(4), torch.randn(4, 2, 3)
    with pytest.raises(RuntimeError, match="PSN cannot run step by step"):
        module.step(x[0])
    with pytest.raises(ValueError, match=r"reads a whole sequence of T=4 steps, got shape \(3, 2, 3\)"):
        module(x[:3])
    _, state = module(x, module.initial_state(x[0]))
    with pytest.raises(ValueError, match=r"T=4 steps, got shape \(4, 2, 3\) after 4 steps"):
        module(x, state)


def test_open_masked_psn_cannot_step() -> None:
    module, x = MaskedPSN(2, 4, 0.9), torch.randn(4, 2, 3)
    with pytest.raises(RuntimeError, match=r"only when lambda_ >= 1.* got lambda_=0.9"):
        module.step(x[0], module.initial_state(x[0]))
    with pytest.raises(
        ValueError, match=r"whole sequence of T=4 steps while lambda_ < 1, got shape \(3, 2, 3\)"
    ):
        module(x[:3])


def test_masked_psn_ends_at_T() -> None:
    module, x = MaskedPSN(2, 4, 1.0), torch.randn(5, 2, 3)
    _, state = module(x[:4])
    assert state.time == 4
    with pytest.raises(ValueError, match=r"T=4 steps in all, got 1 after 4 steps"):
        module.step(x[4], state)
    with pytest.raises(ValueError, match=r"T=4 steps in all, got 5 after 0 steps"):
        module(x)


def test_full_psn_is_not_causal() -> None:
    module, x = varied(PSN(T)).double(), drive()
    perturbed = x.clone()
    perturbed[40] += 5
    assert not torch.equal(module(perturbed)[0][:40], module(x)[0][:40])


class _Largest(TorchDispatchMode):
    """The largest tensor any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return out


def test_sliding_psn_builds_no_matrix_over_time() -> None:
    steps, k = 2000, 8
    module, x = SlidingPSN(k), torch.randn(2000, 1, 1, requires_grad=True)
    with _Largest() as largest:
        module(x)[0].sum().backward()
    assert largest.numel <= steps + 2 * (k - 1)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("frozen", [None, "x", "weight"])
def test_the_filter_of_sliding_psn_is_differentiable_twice(k: int, frozen: str | None) -> None:
    module = SlidingPSN(k, exp_init=False, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64).requires_grad_(frozen != "x")
    module.weight.requires_grad_(frozen != "weight")

    def filtered(*_: Tensor) -> Tensor:
        return module.integrate(x)[0]

    assert torch.autograd.gradcheck(filtered, (x, module.weight))
    assert torch.autograd.gradgradcheck(filtered, (x, module.weight))


def test_the_graph_of_sliding_psn_does_not_grow_with_its_taps() -> None:
    x = torch.randn(20, 2, C, requires_grad=True)
    assert len({graph_size(SlidingPSN(k)(x)[0]) for k in (1, 4, 16)}) == 1


# laws


@causal
def test_a_sequence_equals_its_steps_and_its_chunks(make: Make) -> None:
    module, x = make().double(), drive()
    whole, final = module(x)
    assert_some_spikes(whole)

    steps, state = [], module.initial_state(x[0])
    for x_t in x.unbind(0):
        spikes, state = module.step(x_t, state)
        steps.append(spikes)
    assert torch.equal(torch.stack(steps), whole)
    assert_same_state(state, final)
    chunks, state = [], None
    for chunk in x.split([7, 1, 25, 30]):
        spikes, state = module(chunk, state)
        chunks.append(spikes)
    assert torch.equal(torch.cat(chunks), whole)
    assert_same_state(state, final)


@causal
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_sequence_equals_its_steps(make: Make, dtype: torch.dtype) -> None:
    module, x = make(), drive(dtype)
    whole, _ = module(x)
    assert whole.dtype == dtype
    assert_some_spikes(whole)
    exact, _ = module(x.float())
    assert torch.equal(whole.float(), exact)  # read as it is, computed in float32
    state, steps = None, []
    for x_t in x.unbind(0):
        spikes, state = module.step(x_t, state)
        steps.append(spikes)
    if isinstance(module, MaskedPSN):  # a matrix product: its sums are ordered by its shape
        assert (torch.stack(steps) != whole).double().mean() < 0.005
    else:
        assert torch.equal(torch.stack(steps), whole)


@pytest.mark.parametrize("make", [lambda: SlidingPSN(4), lambda: PSN(T)])
def test_a_half_precision_drive_meets_its_bias_in_float32(make: Make) -> None:
    module, x = varied(make()), drive(torch.bfloat16)
    cotangents: list[Any] = [torch.randn(x.shape).bfloat16()]
    (got,) = gradients([module.fire(x)[0]], cotangents, [module.bias])
    (exact,) = gradients([module.fire(x.float())[0]], cotangents, [module.bias])
    assert got is not None and exact is not None and torch.equal(got, exact)


@everyone
def test_half_precision_modules_and_autocast(make: Make) -> None:
    x = drive(torch.bfloat16).requires_grad_()
    module = make().bfloat16()
    spikes, _ = module(x)
    assert spikes.dtype == torch.bfloat16
    assert_some_spikes(spikes)
    spikes.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (x, *module.parameters()))
    module, linear = make(), nn.Linear(C, C)
    with torch.autocast("cpu", torch.bfloat16):
        spikes, _ = module(linear(drive(torch.float32)))
    assert spikes.dtype == torch.bfloat16
    spikes.float().sum().backward()
    assert linear.weight.grad is not None and linear.weight.grad.isfinite().all()


@causal
def test_causality(make: Make) -> None:
    module, x = make().double(), drive()
    perturbed = x.clone()
    perturbed[40:] += 5
    before, after = module(x)[0], module(perturbed)[0]
    assert torch.equal(after[:40], before[:40]) and not torch.equal(after[40:], before[40:])


@everyone
def test_the_graph_does_not_grow_with_time(make: Make) -> None:
    module = make()
    if isinstance(module, (PSN, MaskedPSN)):  # of fixed T
        small = PSN(2) if isinstance(module, PSN) else MaskedPSN(module.k, 2, float(module.lambda_))
    else:
        small = module
    sizes = {
        graph_size(m(torch.randn(steps, 2, C, requires_grad=True))[0])
        for m, steps in ((small, 2), (module, T))
    }
    assert len(sizes) == 1


@causal
def test_an_empty_sequence_returns_a_copy_of_the_state(make: Make) -> None:
    module, x = make(), drive(torch.float32)
    _, state = module(x[:20])
    spikes, after = module(x[:0], state)
    assert spikes.shape == (0, 3, C)
    assert_same_state(after, state)
    for a, b in zip(leaves(after), leaves(state), strict=True):
        assert not isinstance(a, Tensor) or a.numel() == 0 or a.data_ptr() != b.data_ptr()
    assert_same_state(module(x[:0])[1], module.initial_state(x[0]))


@everyone
def test_layout_and_odd_sizes(make: Make) -> None:
    module = make()
    x = torch.randn(C, 7, T) + 0.3
    permuted = x.permute(2, 1, 0)
    spikes, _ = module(permuted)
    assert_some_spikes(spikes)
    if isinstance(module, (PSN, MaskedPSN)):  # a matrix product may order its sums by layout
        permuted = permuted.contiguous()
    assert torch.equal(spikes, module(permuted.contiguous())[0])
    assert module(torch.randn(T, 0, C))[0].shape == (T, 0, C)
    assert module(torch.randn(T, 1, 1, 2, C))[0].shape == (T, 1, 1, 2, C)


@everyone
def test_copies_and_state_dict(make: Make) -> None:
    module, x = make(), drive(torch.float32)
    spikes, _ = module(x)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x)[0], spikes) and repr(twin) == repr(module)
    other = make()
    other.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(other(x)[0], spikes)


@pytest.mark.parametrize("make", [FixedRefractory, SlidingPSN, Threshold, lambda **k: MaskedPSN(3, T, **k)])
def test_any_callable_is_a_surrogate(make: Callable[..., nn.Module]) -> None:
    x = drive().requires_grad_()
    torch.manual_seed(0)
    expected, _ = make(surrogate=ATan(2.0)).double()(x)
    cotangents: list[Any] = [
        torch.randn(x.shape).double()
    ]  # snnTorch's spikes, hence their cotangents, are float32
    (exact,) = gradients([expected], cotangents, [x])
    for surrogate in (their_surrogate.ATan(alpha=2.0), snntorch.surrogate.atan(alpha=2.0)):
        torch.manual_seed(0)
        module = make(surrogate=surrogate).double()
        assert set(module.state_dict()) == set(make().state_dict())
        spikes, _ = module(x)
        assert torch.equal(spikes, expected)
        assert_close(gradients([spikes], cotangents, [x])[0], exact)


@pytest.mark.parametrize(
    "make",
    [FixedRefractory, Threshold, SlidingPSN, lambda **k: PSN(4, **k), lambda **k: MaskedPSN(2, 4, **k)],
)
def test_a_named_backend_is_obeyed_or_refused(make: Callable[..., nn.Module]) -> None:
    x = torch.randn(4, 3, C)
    make(backend="torch")(x)
    with pytest.raises(ValueError, match="backend='cupy' serves cuda tensors, got a tensor on cpu"):
        make(backend="cupy")(x)


def test_factory_arguments() -> None:
    f64 = torch.float64
    for module in (SlidingPSN(3, dtype=f64), PSN(3, dtype=f64), MaskedPSN(2, 3, dtype=f64)):
        assert all(t.dtype == torch.float64 for t in module.state_dict().values())


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: FixedRefractory(-1), ValueError, "refractory_period must be an int >= 0"),
        (lambda: FixedRefractory(1.5), TypeError, "refractory_period must be an int >= 0, got 1.5"),
        (lambda: FixedRefractory(True), TypeError, "refractory_period must be an int"),
        (lambda: FixedRefractory(1, "greedy"), ValueError,
         "scheme must be 'absolute', 'window', 'strided' or 'onset', got 'greedy'"),
        (lambda: Threshold(0.0, learn_threshold=True), ValueError, "must be > 0, got 0.0"),
        (lambda: Threshold(torch.tensor([1.0, -1.0]), learn_threshold=True), ValueError, "must be > 0"),
        (lambda: Threshold(math.nan, learn_threshold=True), ValueError, "must be > 0, got nan"),
        (lambda: Threshold("1"), TypeError, "threshold must be a float or a tensor, got str"),
        (lambda: Threshold(torch.ones(2, dtype=torch.int32)), TypeError, "must be a floating-point tensor"),
        (lambda: Threshold(learn_threshold=1), TypeError, "learn_threshold must be a bool"),
        (lambda: Threshold(inclusive=None), TypeError, "inclusive must be a bool"),
        (lambda: Threshold(surrogate="atan"), TypeError, "surrogate must be callable, got str"),
        (lambda: Threshold(backend="gpu"), ValueError, "backend must be"),
        (lambda: SlidingPSN(0), ValueError, "k must be a positive int, got 0"),
        (lambda: SlidingPSN(2, surrogate=1.0), TypeError, "surrogate must be callable, got float"),
        (lambda: SlidingPSN(2, exp_init=None), TypeError, "exp_init must be a bool"),
        (lambda: PSN(0), ValueError, "T must be a positive int, got 0"),
        (lambda: PSN(4.0), TypeError, "T must be a positive int, got 4.0"),
        (lambda: MaskedPSN(0, 4), ValueError, "k must be a positive int"),
        (lambda: MaskedPSN(2, 4, -1.0), ValueError, "lambda_ must be >= 0, got -1.0"),
    ],
)  # fmt: skip
def test_bad_arguments(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


@everyone
def test_bad_input(make: Make) -> None:
    module, x = make(), drive(torch.float32)
    with pytest.raises(TypeError, match=r"must be float32, float64, float16 or bfloat16, got torch\.int64"):
        module(torch.ones(T, 3, C, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"must have shape \[T, N, .\], got \(63,\)"):
        module(torch.randn(T))
    good = module.initial_state(x[0])
    if isinstance(good, PSNState):
        with pytest.raises(TypeError, match="state must be a PSNState, got Tensor"):
            module(x, good.recent)
    elif good.numel():
        with pytest.raises(ValueError, match=r"state must have shape .* got"):
            module(x, good[..., :2])
        with pytest.raises(TypeError, match=r"state must be .* got torch\.int64"):
            module(x, good.long())


def test_bad_state_of_the_masked_psn() -> None:
    module, x = MaskedPSN(3, T, 1.0), drive(torch.float32)
    with pytest.raises(ValueError, match=r"state must have shape \(2, 3, 5\), got \(2, 3, 4\)"):
        module(x[:4], PSNState(torch.zeros(2, 3, 4), 1))


def test_threshold_must_broadcast() -> None:
    with pytest.raises(ValueError, match="threshold must broadcast"):
        Threshold(torch.ones(C + 1))(drive())


def test_fixed_refractory_is_the_operator() -> None:
    x, state = drive(torch.float32), torch.randint(0, 3, (3, C), dtype=torch.int32)
    got = FixedRefractory(2, threshold=0.4)(x, state)
    expected = ops.fixed_refractory(x, 0.4, period=2, state=state)
    assert_some_spikes(got[0])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
