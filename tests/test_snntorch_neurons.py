"""FR neurons for snnTorch: who owns the counter, what fires, what a call accepts and returns."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate as snn_surrogate
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from snn_fr_plugin import surrogate as sg
from snn_fr_plugin.integrations import snntorch as fr
from snn_fr_plugin.ops.lif.reference import lif as reference

from .support import assert_close, assert_some_spikes, gradients, graph_size, random_like

R = 3
T, B, C = 20, 4, 5
States = tuple[Tensor, ...]
TYPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "FRLeaky": (fr.FRLeaky, snn.Leaky, {"beta": 0.9}),
    "FRSynaptic": (fr.FRSynaptic, snn.Synaptic, {"alpha": 0.6, "beta": 0.8}),
    "FRLapicque": (fr.FRLapicque, snn.Lapicque, {"R": 2.0, "C": 1.5}),
    "FRAlpha": (fr.FRAlpha, snn.Alpha, {"alpha": 0.9, "beta": 0.7, "reset_mechanism": "none"}),
    "FRRLeaky": (fr.FRRLeaky, snn.RLeaky, {"beta": 0.85, "V": 0.3, "all_to_all": False}),
    "FRRSynaptic": (
        fr.FRRSynaptic,
        snn.RSynaptic,
        {"alpha": 0.5, "beta": 0.8, "V": 0.3, "all_to_all": False},
    ),
}
every_type = pytest.mark.parametrize("name", TYPES)


def make(name: str, **arguments: Any) -> Any:
    cls, _, own = TYPES[name]
    return cls(**{**own, "threshold": 0.3, "refractory_period": R, **arguments})


def drive(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Input strong enough that every refractory period is felt."""
    return (torch.randn(shape or (T, B, C), dtype=torch.float64) * 0.8 + 0.5).to(dtype)


def split(neuron: Any, out: Any) -> tuple[Tensor, States]:
    """Spikes of a call, and the states that the next call takes (none where they are hidden)."""
    if not isinstance(out, tuple):
        return out, ()
    return out[0], out if isinstance(neuron, (snn.RLeaky, snn.RSynaptic)) else out[1:]


def run(
    neuron: Any, x: Tensor, state: States = (), between: Callable[[States], States] = lambda state: state
) -> tuple[Tensor, States]:
    """Spikes of a loop over time, and the last state; ``between`` stands between a call and the next."""
    spikes = []
    for x_t in x.unbind(0):
        spk, state = split(neuron, neuron(x_t, *state))
        spikes.append(spk)
        state = between(state)
    return torch.stack(spikes), state


def assert_refractory(spikes: Tensor, period: int = R) -> None:
    """No two spikes within the period, and some as close as it allows."""
    fired = spikes.detach() != 0
    assert_some_spikes(fired)
    assert (fired.unfold(0, period + 1, 1).sum(-1) <= 1).all()
    assert (fired[period + 1 :] & fired[: -period - 1]).any()


# The counter belongs to the membrane, whoever holds it.


@every_type
def test_a_membrane_detached_by_the_user_keeps_its_counter(name: str) -> None:
    x = drive()
    expected, _ = run(make(name), x)
    assert_refractory(expected)
    for between in (lambda s: tuple(t.detach() for t in s), lambda s: tuple(t.data for t in s)):
        assert torch.equal(run(make(name), x, between=between)[0], expected)
    with torch.no_grad():
        assert torch.equal(run(make(name), x)[0], expected)


@every_type
def test_two_streams_through_one_module(name: str) -> None:
    neuron, inputs = make(name), (drive(), drive())
    # a stream starts from zeros, not from what the other has left on the module
    states: list[States] = [tuple(torch.zeros(B, C) for _ in neuron._states) for _ in inputs]
    spikes: list[list[Tensor]] = [[], []]
    for t in range(T):
        for i, x in enumerate(inputs):
            spk, states[i] = split(neuron, neuron(x[t], *states[i]))
            spikes[i].append(spk)
    for x, got in zip(inputs, spikes, strict=True):
        assert torch.equal(torch.stack(got), run(make(name), x)[0])
        assert_refractory(torch.stack(got))


def test_a_stream_that_starts_with_an_empty_membrane_does_not_disturb_another() -> None:
    neuron, x = make("FRLeaky"), drive()
    mem, spikes = neuron.reset_mem(), []
    for x_t in x.unbind(0):
        spk, mem = neuron(x_t, mem)
        neuron(drive(2, 3), torch.zeros(0))
        spikes.append(spk)
    assert torch.equal(torch.stack(spikes), run(make("FRLeaky"), x)[0])


@every_type
def test_an_earlier_membrane_can_be_taken_up_again(name: str) -> None:
    neuron, x = make(name), drive()
    _, state = run(neuron, x[:8])
    first, _ = run(neuron, x[8:], state)
    again, _ = run(neuron, x[8:], state)
    assert torch.equal(again, first)
    assert torch.equal(first, run(make(name), x)[0][8:])


@every_type
def test_part_of_a_batch_keeps_its_counter(name: str) -> None:
    neuron, x = make(name), drive()
    whole, _ = run(make(name), x)
    _, state = run(neuron, x[:9])
    for part in (slice(0, 2), slice(1, None, 2)):
        got, _ = run(neuron, x[9:, part], tuple(s[part] for s in state))
        assert torch.equal(got, whole[9:, part])


def test_a_transposed_membrane_keeps_its_counter() -> None:
    neuron, x = make("FRLeaky"), drive(T, C, C)
    whole, _ = run(make("FRLeaky"), x)
    _, (mem,) = run(neuron, x[:7])
    got, _ = run(neuron, x[7:].mT, (mem.mT,))
    assert torch.equal(got.mT, whole[7:])


def test_a_membrane_from_elsewhere_starts_open() -> None:
    neuron, strong = make("FRLeaky"), torch.ones(B, C)
    spk, mem = neuron(strong)
    assert spk.all()
    assert not neuron(strong, mem)[0].any()
    assert neuron(strong, mem.clone())[0].all()
    assert neuron(strong, make("FRLeaky")(strong)[1])[0].all()
    assert neuron(strong, torch.zeros(B, C))[0].all()


def test_counters_live_no_longer_than_their_membranes() -> None:
    neuron, mem = make("FRLeaky"), torch.zeros(B, C)
    with torch.no_grad():
        for x_t in drive(200, B, C).unbind(0):
            _, mem = neuron(x_t, mem)
    assert len(neuron._counters._entries) < 40


@every_type
def test_a_reset_opens_every_neuron(name: str) -> None:
    strong = torch.full((3, B, C), 5.0)
    for reset in (lambda n: n.reset_mem(), fr.reset, lambda n: type(n).reset_hidden()):
        neuron = make(name, init_hidden=True)
        first, _ = run(neuron, strong)
        assert first.any()
        reset(neuron)
        assert not neuron.mem.any()
        if name == "FRRSynaptic":
            neuron.spk = torch.zeros_like(neuron.spk)  # the parent's reset_hidden forgets it
        assert torch.equal(run(neuron, strong)[0], first)


@every_type
def test_the_hidden_state_begins_at_rest_with_another_batch_size(name: str) -> None:
    neuron, x = make(name, init_hidden=True), drive()
    expected, _ = run(make(name), x)
    assert torch.equal(run(neuron, x)[0], expected)
    assert torch.equal(run(neuron, x[:, :2])[0], expected[:, :2])


@every_type
def test_truncated_backpropagation(name: str) -> None:
    neuron, x = make(name, init_hidden=True, learn_threshold=True), drive()
    spikes = []
    for part in x.split(4):
        spikes.append(run(neuron, part)[0])
        spikes[-1].sum().backward()
        fr.detach(neuron)
    assert torch.equal(torch.cat(spikes), run(make(name), x)[0])
    assert neuron.threshold.grad.abs() > 0


@every_type
@pytest.mark.parametrize("init_hidden", [False, True])
def test_chunks_and_steps_continue_each_other(name: str, init_hidden: bool) -> None:
    neuron, x = make(name, init_hidden=init_hidden, multistep=True), drive()
    spikes, state = [], ()
    for part in x[:15].split([7, 1, 0, 7]):
        spk, states = split(neuron, neuron(part, *state))
        spikes.append(spk)
        if len(part):
            state = tuple(s[-1].detach() for s in states)
    neuron.multistep = False
    spikes.append(run(neuron, x[15:], state)[0])
    expected, _ = run(make(name), x)
    assert_refractory(expected)
    assert torch.equal(torch.cat(spikes), expected)


@every_type
def test_a_sequence_begins_at_rest_and_leaves_nothing(name: str) -> None:
    neuron, x = make(name, multistep=True), drive()
    for a, b in zip(neuron(x), neuron(x), strict=True):
        assert torch.equal(a, b)
    assert not any(getattr(neuron, state).numel() for state in neuron._states)


@every_type
def test_gradient_through_chunks_is_that_of_the_whole(name: str) -> None:
    neuron = make(name, multistep=True, init_hidden=True, output=True).double()
    x = drive(dtype=torch.float64).requires_grad_()
    whole = neuron(x)
    fr.reset(neuron)
    chunks = [torch.cat(parts) for parts in zip(*(neuron(part) for part in x.split([6, 1, 13])), strict=True)]
    cotangents = random_like(whole)
    (got,), (expected,) = gradients(chunks, cotangents, [x]), gradients(whole, cotangents, [x])
    assert_close(got, expected)


def test_checkpointed_segments_recompute_their_own_spikes() -> None:
    neuron, x = make("FRLeaky"), drive().requires_grad_()
    expected, _ = run(neuron, x)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    state: States = (torch.zeros(B, C),)
    spikes = []
    for part in x.split(5):
        spk, state = checkpoint(run, neuron, part, state, use_reentrant=False)
        spikes.append(spk)
    (grad,) = torch.autograd.grad(torch.cat(spikes).sum(), x)
    assert torch.equal(torch.cat(spikes), expected)
    assert_close(grad, expected_grad)


@settings(max_examples=50, deadline=None)
@given(
    actions=st.lists(
        st.sampled_from(["step", "detach", "chunk", "copy", "other", "dtype"]), min_size=5, max_size=12
    ),
    period=st.integers(1, 4),
    reset=st.sampled_from(["subtract", "zero", "none"]),
    delay=st.booleans(),
)
def test_no_calling_pattern_fires_inside_the_period(
    actions: list[str], period: int, reset: str, delay: bool
) -> None:
    options = {"reset_mechanism": reset, "reset_delay": delay, "refractory_period": period}
    shown, hidden = make("FRLeaky", **options), make("FRLeaky", init_hidden=True, **options)
    mem = torch.zeros(B, C)
    spikes: tuple[list[Tensor], list[Tensor]] = ([], [])
    for action in actions:
        x = drive(2 if action == "chunk" else 1, B, C)
        shown.multistep = hidden.multistep = action == "chunk"
        out = shown(x, mem) if action == "chunk" else shown(x[0], mem)
        mem = out[1][-1] if action == "chunk" else out[1]
        spikes[0].append(out[0].view(-1, B, C))
        spikes[1].append(hidden(x if action == "chunk" else x[0]).view(-1, B, C))
        if action == "detach":
            mem, hidden.mem = mem.detach(), hidden.mem.detach()
        elif action == "copy":
            shown, hidden = copy.deepcopy(shown), copy.deepcopy(hidden)
        elif action == "other":
            shown.multistep = False
            shown(drive(B, C), torch.zeros(B, C))
        elif action == "dtype":
            hidden = hidden.double().float()
    for stream in spikes:
        fired = torch.cat(stream) != 0
        assert fired.any()
        assert (fired.unfold(0, min(period + 1, len(fired)), 1).sum(-1) <= 1).all()


# What fires, and when.


@pytest.mark.parametrize("refractory_input", ["integrate", "ignore"])
@pytest.mark.parametrize("delay", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_leaky_is_the_specification_of_lif(reset: str, delay: bool, refractory_input: str) -> None:
    mode = {"reset_delay": delay, "refractory_input": refractory_input}
    x = drive()
    spikes, mem, _ = reference(x, 0.9, 0.3, refractory_period=R, reset=reset, inclusive=False, **mode)
    assert_refractory(spikes)
    neuron = make("FRLeaky", reset_mechanism=reset, **mode)
    assert torch.equal(run(neuron, x)[0], spikes)
    neuron.multistep = True
    got = neuron(x)
    assert torch.equal(got[0], spikes)
    assert torch.equal(got[1], mem)


def test_the_reset_follows_the_spikes_that_were_emitted() -> None:
    # every step crosses the threshold, every third one fires
    neuron = fr.FRLeaky(1.0, refractory_period=2, multistep=True)
    spk, mem = neuron(torch.full((7, 1, 1), 1.5))
    assert spk.flatten().tolist() == [1, 0, 0, 1, 0, 0, 1]
    assert mem.flatten().tolist() == [1.5, 2.0, 3.5, 5.0, 5.5, 7.0, 8.5]


@pytest.mark.parametrize("name", ["FRLeaky", "FRSynaptic", "FRLapicque", "FRRLeaky", "FRRSynaptic"])
def test_ignored_input_holds_the_membrane_and_not_the_current(name: str) -> None:
    neuron = make(name, refractory_input="ignore", reset_mechanism="none", multistep=True)
    spk, *states = neuron(drive())
    mem = states[-1]
    held = mem[R + 1 :] == mem[R:-1]
    blocked = torch.stack([spk[R + 1 - k : T - k] for k in range(1, R + 1)]).sum(0) > 0
    assert torch.equal(held, blocked)
    assert_refractory(spk)
    if len(states) > 1:
        assert (states[0][1:] != states[0][:-1]).all()


@pytest.mark.parametrize("name", ["FRLeaky", "FRSynaptic", "FRLapicque", "FRRLeaky", "FRRSynaptic"])
def test_a_delayed_reset_wipes_a_membrane_that_is_held(name: str) -> None:
    neuron = make(name, refractory_input="ignore", reset_mechanism="zero", multistep=True)
    spk, *_, mem = neuron(drive())
    assert_refractory(spk)
    fired = spk[: -R - 1] != 0
    assert mem[: -R - 1][fired].all()
    for later in range(1, R + 1):
        assert not mem[later : later - R - 1][fired].any()


def test_alpha_refuses_to_hold_its_membrane() -> None:
    with pytest.raises(ValueError, match="refractory_input must be 'integrate' for FRAlpha, got 'ignore'"):
        make("FRAlpha", refractory_input="ignore")


def test_inhibition_chooses_among_the_open_neurons() -> None:
    with pytest.warns(UserWarning, match="Inhibition"):
        neuron = fr.FRLeaky(0.0, inhibition=True, refractory_period=2)
    spk, _ = run(neuron, torch.tensor([[5.0, 4.0, 3.0, 2.0]]).expand(6, 1, 4))
    assert spk.argmax(-1).flatten().tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.warns(UserWarning, match="Inhibition"):
        alone = fr.FRLeaky(0.0, inhibition=True, refractory_period=2)
    assert run(alone, torch.full((6, 1, 1), 5.0))[0].flatten().tolist() == [1, 0, 0, 1, 0, 0]


def test_the_threshold_is_strict() -> None:
    x = torch.tensor([1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))]).view(2, 1, 1)
    for multistep in (False, True):
        for spike_grad in (None, sg.ATan(), sg.Sigmoid(), snn_surrogate.atan()):
            neuron = fr.FRLeaky(0.0, 1, spike_grad, refractory_period=1, multistep=multistep)
            spk = neuron(x)[0] if multistep else run(neuron, x)[0]
            assert spk.flatten().tolist() == [0, 1]


# Surrogates.


FOREIGN = {
    "atan": snn_surrogate.atan(alpha=3.0),
    "fast_sigmoid": snn_surrogate.fast_sigmoid(slope=10),
    "straight through": snn_surrogate.straight_through_estimator(),
    "inclusive": lambda x: sg.ATan()(x, inclusive=True),
    "leaky": lambda x: torch.where(x > 0, 1.0, 0.1 * x),
}


@pytest.mark.parametrize("delay", [False, True])
@pytest.mark.parametrize("spike_grad", FOREIGN.values(), ids=FOREIGN)
def test_foreign_surrogates(spike_grad: Callable[[Tensor], Tensor], delay: bool) -> None:
    # beta = 1/2 and input in eighths: many membranes are exactly at the threshold
    x = (drive() * 8).round() / 8
    options = {"beta": 0.5, "threshold": 0.5, "spike_grad": spike_grad, "reset_delay": delay}
    x_steps, x_sequence = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, _ = run(make("FRLeaky", **options), x_steps)
    got, _ = make("FRLeaky", multistep=True, **options)(x_sequence)
    assert_refractory(expected.clamp_min(0))
    assert torch.equal(got, expected)
    (cotangent,) = random_like([expected])
    pairs = gradients([got], [cotangent], [x_sequence]), gradients([expected], [cotangent], [x_steps])
    assert_close(pairs[0][0], pairs[1][0])


def test_a_stochastic_surrogate_is_refractory_too() -> None:
    def noisy(x: Tensor) -> Tensor:
        return (x + torch.randn_like(x) > 0).to(x.dtype)

    for multistep in (False, True):
        neuron = make("FRLeaky", spike_grad=noisy, multistep=multistep)
        assert_refractory(neuron(drive())[0] if multistep else run(neuron, drive())[0])


def test_the_default_surrogate_has_the_gradient_of_the_parent() -> None:
    x = drive().requires_grad_()
    ours, theirs = make("FRLeaky"), make("FRLeaky", spike_grad=snn_surrogate.atan())
    assert ours.spike_grad == sg.ATan(2.0)
    (cotangent,) = random_like([x])
    got, expected = (gradients([run(n, x)[0]], [cotangent], [x])[0] for n in (ours, theirs))
    assert expected is not None and expected.any()
    assert_close(got, expected)


def test_surrogate_disable_passes_no_gradient() -> None:
    for multistep in (False, True):
        neuron = make("FRLeaky", surrogate_disable=True, multistep=multistep)
        spk = neuron(drive().requires_grad_())[0]
        assert spk.any() and not spk.requires_grad


@pytest.mark.parametrize("options", [
    {"name": "FRLeaky"},
    {"name": "FRLeaky", "reset_mechanism": "zero", "refractory_input": "ignore"},
    {"name": "FRLeaky", "reset_delay": False},
    {"name": "FRLeaky", "refractory_period": 0},
    {"name": "FRLeaky", "spike_grad": snn_surrogate.fast_sigmoid()},
    {"name": "FRLeaky", "init_hidden": True},
    {"name": "FRSynaptic"},
    {"name": "FRSynaptic", "reset_mechanism": "zero", "reset_delay": False},
    {"name": "FRLapicque"},
    {"name": "FRAlpha"},
])  # fmt: skip
def test_the_graph_of_a_fused_sequence_does_not_grow_with_time(options: dict[str, Any]) -> None:
    sizes = []
    for steps in (3, 40):
        neuron = make(multistep=True, **options)
        spk, _ = split(neuron, neuron(drive(steps, B, C).requires_grad_()))
        sizes.append(graph_size(spk))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_the_factor_of_graded_spikes_is_heeded_however_it_comes(factor: float) -> None:
    x = drive()
    binary, _ = make("FRLeaky", multistep=True)(x)
    assert_some_spikes(binary)
    changed = make("FRLeaky", multistep=True)
    changed(x)
    changed.graded_spikes_factor.fill_(factor)
    built = make("FRLeaky", multistep=True, graded_spikes_factor=factor)
    per_neuron = make("FRLeaky", multistep=True, graded_spikes_factor=torch.full((C,), factor))
    learned = make("FRLeaky", multistep=True, graded_spikes_factor=factor, learn_graded_spikes_factor=True)
    for neuron in (changed, built, per_neuron, learned):
        assert torch.equal(neuron(x)[0], binary * factor)
    learned(x)[0].sum().backward()
    assert learned.graded_spikes_factor.grad == binary.sum()


def test_a_subclass_with_a_charge_of_its_own_keeps_it_in_sequences() -> None:
    class Leakless(fr.FRLeaky):
        def _base_state_function(self, input_: Tensor) -> Tensor:
            return self.mem + input_

    x = drive() * 0.2
    steps, _ = run(Leakless(0.9, refractory_period=R), x)
    assert torch.equal(Leakless(0.9, refractory_period=R, multistep=True)(x)[0], steps)
    assert not torch.equal(fr.FRLeaky(0.9, refractory_period=R, multistep=True)(x)[0], steps)
    custom = fr.FRLeaky(0.9, refractory_period=R, multistep=True)
    custom.state_function = lambda input_: custom.mem + input_
    expected = fr.FRLeaky(1.0, refractory_period=R, reset_mechanism="none", multistep=True)(x)[0]
    assert torch.equal(custom(x)[0], expected)


# Types of numbers.


@every_type
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_spikes_have_the_dtype_of_the_input(name: str, dtype: torch.dtype) -> None:
    x = drive(dtype=dtype)
    spikes, states = run(make(name).to(dtype), x)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert spikes.dtype == dtype
    assert states[-1].dtype == wide
    assert_refractory(spikes)
    sequence = make(name, multistep=True).to(dtype)(x)
    assert torch.equal(sequence[0], spikes)
    assert torch.equal(sequence[-1][-1], states[-1])


@pytest.mark.parametrize("name", ["FRRLeaky", "FRRSynaptic"])
def test_recurrent_weights_in_half_precision(name: str) -> None:
    recurrent = {"all_to_all": True, "linear_features": C}
    steps, sequence = (make(name, multistep=m, **recurrent).half() for m in (False, True))
    sequence.load_state_dict(steps.state_dict())
    x = drive(dtype=torch.float16)
    spikes, _ = run(steps, x)
    assert_refractory(spikes)
    assert torch.equal(sequence(x)[0], spikes)


@every_type
def test_states_in_half_precision_are_taken_up_in_single(name: str) -> None:
    neuron, x = make(name).half(), drive(dtype=torch.float16)
    state = tuple(drive(B, C, dtype=torch.float16) for _ in neuron._states)
    spikes, states = run(neuron, x, state)
    assert states[-1].dtype == torch.float32
    neuron.multistep = True
    assert torch.equal(neuron(x, *state)[0], spikes)


def test_double_constants_compute_in_double() -> None:
    beta = torch.linspace(0.8, 0.9, C, dtype=torch.float64)
    x = drive()
    spikes, states = run(make("FRLeaky", beta=beta), x)
    sequence = make("FRLeaky", beta=beta, multistep=True)(x)
    assert (spikes.dtype, states[0].dtype) == (torch.float32, torch.float64)
    assert torch.equal(sequence[0], spikes)
    assert torch.equal(sequence[1][-1], states[0])
    assert torch.equal(states[0], run(make("FRLeaky", beta=beta), x.double())[1][0])


@every_type
def test_integer_constants(name: str) -> None:
    x = drive() * 3
    spikes, _ = run(make(name, threshold=1), x)
    assert_some_spikes(spikes)
    assert torch.equal(make(name, threshold=1, multistep=True)(x)[0], spikes)
    assert torch.equal(make(name, threshold=1.0, multistep=True)(x)[0], spikes)


@every_type
@pytest.mark.parametrize("multistep", [False, True])
def test_autocast(name: str, multistep: bool) -> None:
    linear = torch.nn.Linear(C, C)
    recurrent = {"all_to_all": True, "linear_features": C} if name.startswith("FRR") else {}
    neuron = make(name, learn_threshold=True, multistep=multistep, **recurrent)
    with torch.autocast("cpu", torch.bfloat16):
        current = linear(drive())
        out = neuron(current) if multistep else run(neuron, current)
        assert out[0].dtype == torch.bfloat16
        loss = out[0].float().mean()
    loss.backward()
    assert_some_spikes(out[0])
    assert linear.weight.grad is not None and linear.weight.grad.any()
    assert neuron.threshold.grad.any()


# Arguments, calls, returns.


@every_type
def test_the_arguments_of_the_parent_keep_their_order(name: str) -> None:
    cls, parent, _ = TYPES[name]
    parameters = list(inspect.signature(cls).parameters.values())
    theirs = list(inspect.signature(parent).parameters.values())
    assert [(p.name, p.default) for p in parameters[: len(theirs)]] == [(p.name, p.default) for p in theirs]
    added = {p.name: p.default for p in parameters[len(theirs) :]}
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[len(theirs) :])
    assert added == {
        "refractory_period": 1, "refractory_input": "integrate", "multistep": False, "backend": "auto"
    }  # fmt: skip
    ours, parents = (list(inspect.signature(c.forward).parameters) for c in (cls, parent))
    assert ours == parents


@every_type
def test_the_state_dict_is_that_of_the_parent(name: str) -> None:
    cls, parent, own = TYPES[name]
    neuron, theirs = cls(**own), parent(**{**own, "threshold": 0.125})
    assert list(neuron.state_dict()) == list(theirs.state_dict())
    neuron.load_state_dict(theirs.state_dict())
    assert neuron.threshold == 0.125
    theirs.load_state_dict(neuron.state_dict())


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"refractory_period": -1}, ValueError, "refractory_period must be an int >= 0 .*got -1"),
    ({"refractory_period": 1.5}, TypeError, "refractory_period must be an int >= 0, got 1.5 of type float"),
    ({"refractory_period": True}, TypeError, "refractory_period must be an int"),
    ({"refractory_input": "drop"}, ValueError, "refractory_input must be 'integrate' or 'ignore', got 'dr"),
    ({"multistep": 1}, TypeError, "multistep must be a bool, got 1"),
    ({"backend": "numpy"}, ValueError, "backend must be .*got 'numpy'"),
    ({"reset_mechanism": "hard"}, ValueError, "reset_mechanism"),
    ({"period": 1}, TypeError, "period"),
])  # fmt: skip
@every_type
def test_bad_arguments(name: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(name, **arguments)
    type(make(name)).reset_hidden()  # nothing half-built is left for snnTorch's walks


def test_rsynaptic_refuses_what_its_parent_cannot_run() -> None:
    with pytest.raises(ValueError, match="reset_delay must be True for FRRSynaptic, got False"):
        make("FRRSynaptic", reset_delay=False)


@every_type
@pytest.mark.parametrize("multistep", [False, True])
def test_bad_calls_change_nothing(name: str, multistep: bool) -> None:
    shape = (3, B, C) if multistep else (B, C)
    x, state = drive(*shape), torch.zeros(B, C)
    hidden, shown = make(name, init_hidden=True, multistep=multistep), make(name, multistep=multistep)
    wide, deep = (make(name, threshold=torch.ones(s), multistep=multistep) for s in ((C + 1,), (2, B, C)))
    calls: list[tuple[Any, tuple[Any, ...], type[Exception], str]] = [
        (shown, (torch.ones(shape).long(),), TypeError, "input_ must be float32, .*got torch.int64"),
        (shown, ([1.0],), TypeError, "input_ must be a torch.Tensor, got list"),
        (shown, (x, state.long()), TypeError, "must be a floating-point tensor, got torch.int64"),
        (shown, (x, 0.0), TypeError, "must be a floating-point tensor, got float"),
        (shown, (x, state.to("meta")), ValueError, "must be on cpu, got meta"),
        (hidden, (x, state), TypeError, "must not be passed with init_hidden=True"),
        (wide, (x,), ValueError, rf"threshold must broadcast .* \({B}, {C}\), got shape \({C + 1},\)"),
        (deep, (x,), ValueError, rf"threshold must broadcast .* \({B}, {C}\), got shape \(2, {B}, {C}\)"),
    ]
    if multistep:
        calls += [
            (shown, (torch.ones(3),), ValueError, r"input_ must have shape \[T, N, \*\], got \(3,\)"),
            (shown, (x, torch.zeros(3, B, C)), ValueError, r"must have the shape of one step, .*\[-1\]"),
        ]
    for neuron in (shown, hidden):
        neuron(x)
    for neuron, arguments, error, message in calls:
        before = [getattr(neuron, n).detach().clone() for n in neuron._states]
        with pytest.raises(error, match=message):
            neuron(*arguments)
        for n, value in zip(neuron._states, before, strict=True):
            assert torch.equal(getattr(neuron, n), value)


def test_beta_that_does_not_broadcast_is_refused() -> None:
    for multistep in (False, True):
        neuron = make("FRLeaky", beta=torch.full((7,), 0.9), multistep=multistep)
        with pytest.raises(ValueError, match="beta must broadcast"):
            neuron(torch.ones(3, 2, 1))


@every_type
def test_no_steps(name: str) -> None:
    neuron = make(name, multistep=True, init_hidden=True, output=True)
    expected = neuron(drive(1, B, C))
    kept = [getattr(neuron, n) for n in neuron._states]
    empty = neuron(torch.zeros(0, B, C))
    assert [(e.shape[1:], e.dtype) for e in empty] == [(e.shape[1:], e.dtype) for e in expected]
    assert not any(len(e) for e in empty)
    for n, value in zip(neuron._states, kept, strict=True):
        assert torch.equal(getattr(neuron, n), value)


def test_a_step_without_dimensions_runs_as_in_the_parent() -> None:
    spk, mem = fr.FRLeaky(0.5, refractory_period=1)(torch.tensor(2.0))
    assert spk.shape == mem.shape == ()
    assert spk == 1


def test_a_named_backend_is_obeyed_or_refused() -> None:
    x = drive()
    named, auto = (make("FRLeaky", multistep=True, backend=b) for b in ("torch", "auto"))
    assert torch.equal(named(x)[0], auto(x)[0])
    for multistep in (False, True):
        with pytest.raises(ValueError, match="'cupy' serves cuda tensors"):
            make("FRLeaky", backend="cupy", multistep=multistep)(x)


@every_type
def test_repr_shows_the_period(name: str) -> None:
    text = repr(make(name, threshold=1, multistep=True))
    assert text.startswith(f"{name}(")
    assert f"threshold=1, refractory_period={R}, reset_mechanism=" in text
    assert "multistep=True" in text and "init_hidden" not in text
    assert "threshold=tensor[5]" in repr(make(name, threshold=torch.ones(5)))
