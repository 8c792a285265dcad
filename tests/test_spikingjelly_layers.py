"""The state-space layers of the SpikingJelly adapter: ``systems`` whose state SpikingJelly holds."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import base, functional
from spikingjelly.activation_based import surrogate as theirs
from torch import Tensor, nn

from snn_fr_plugin import surrogate as ours
from snn_fr_plugin import systems
from snn_fr_plugin.integrations.spikingjelly import layer

from .support import assert_close, assert_some_spikes, gradients, graph_size, random_like

STEPS = 24  # of every sequence; what the masked and the full PSN are built for


def masked(**kwargs: Any) -> Any:
    """A PSSM whose masked PSN is closed, so that it can step."""
    made = layer.SpikingPSSM(5, 8, k=3, psn="masked", T=STEPS, **kwargs)
    made.system.spiking.lambda_ = 1.0
    return made


LAYERS: dict[str, Callable[..., Any]] = {
    scheme: lambda scheme=scheme, **kwargs: layer.SpikingFRSSM(
        5, 8, refractory_period=2, scheme=scheme, threshold=0.3, dt_max=0.5, **kwargs
    )
    for scheme in ("absolute", "window", "strided", "onset")
}
LAYERS["sliding"] = lambda **kwargs: layer.SpikingPSSM(5, 8, k=3, **kwargs)
LAYERS["masked"] = masked
FULL: dict[str, Callable[..., Any]] = {
    **LAYERS,
    "full": lambda **kwargs: layer.SpikingPSSM(5, 8, psn="full", T=STEPS, **kwargs),
}
layers = pytest.mark.parametrize("name", LAYERS)


def make(name: str, **kwargs: Any) -> Any:
    return FULL[name](**{"step_mode": "m", **kwargs}).double().eval()


def currents(steps: int = STEPS, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(steps, 3, 5, dtype=torch.float64) * 1.5 + 0.5).to(dtype)


def assert_memories(net: Any, expected: dict[str, Any]) -> None:
    """Binary and integer states exactly, the real ones as two orders of summation agree in float64."""
    for key, value in expected.items():
        got = getattr(net, key)
        if isinstance(value, int) or not (value.is_floating_point() or value.is_complex()):
            assert torch.equal(torch.as_tensor(got), torch.as_tensor(value)), key
        else:
            torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FULL)
def test_is_the_system(name: str) -> None:
    """Same spikes, same state, and the parameters of the system under ``system.``."""
    net = make(name)
    x = currents()
    expected, state = net.system(x)
    spikes = net(x)
    assert_some_spikes(expected)
    assert torch.equal(spikes, expected)
    assert torch.equal(net.h, state.memory) and net.h.dtype == torch.complex128
    assert list(net.state_dict()) == [f"system.{key}" for key in net.system.state_dict()]
    assert isinstance(net, base.MemoryModule)
    functional.detach_net(net)
    functional.reset_net(net)
    assert not any(isinstance(v, Tensor) for v in net._memories.values())
    assert torch.equal(net(x), expected)


cuts = st.lists(st.tuples(st.integers(1, 8), st.sampled_from("sm"), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(sorted(LAYERS)), plan=cuts, seed=st.integers(0, 2**16))
def test_calls_of_either_mode_equal_the_whole(name: str, plan: Any, seed: int) -> None:
    """In evaluation, with detach_net in between; FRSSM stays silent for its period across the cuts."""
    torch.manual_seed(seed)
    net, x = make(name), currents()
    whole = net(x)
    final = dict(net._memories)
    net.reset()
    parts, start = [], 0
    for length, mode, detach in [*plan, (STEPS, "m", False)]:
        part = x[start : start + length]
        if not len(part):
            continue
        functional.set_step_mode(net, mode)
        parts.append(net(part) if mode == "m" else torch.stack([net(x_t) for x_t in part]))
        start += len(part)
        if detach:
            functional.detach_net(net)
    spikes = torch.cat(parts)
    assert torch.equal(spikes, whole)
    assert_memories(net, final)
    if name == "absolute":
        assert not (spikes[1:] * spikes[:-1]).any() and not (spikes[2:] * spikes[:-2]).any()


@layers
def test_steps_equal_the_sequence(name: str) -> None:
    net, x = make(name), currents()
    whole = net(x)
    assert_some_spikes(whole)
    final = dict(net._memories)
    net.reset()
    net.step_mode = "s"
    assert torch.equal(torch.stack([net(x_t) for x_t in x]), whole)
    assert_memories(net, final)


@layers
def test_gradients_through_chunks_are_those_of_the_whole(name: str) -> None:
    net = make(name)
    x = currents().requires_grad_()
    outputs = []
    for parts in ([x], x.split(7)):
        net.reset()
        outputs.append([torch.cat([net(part) for part in parts]), net.h])
    cotangents = random_like(outputs[0])
    leaves = [x, *net.parameters()]
    for a, b in zip(*(gradients(out, cotangents, leaves) for out in outputs), strict=True):
        assert a is not None and a.any()
        assert_close(a, b)


@layers
def test_graph_does_not_grow_with_time(name: str) -> None:
    sizes = []
    for steps in (4, STEPS - 1):
        net = make(name)
        spikes = net(currents(steps).requires_grad_())
        sizes.append((graph_size(spikes), graph_size(net.h)))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@layers
def test_half_input_keeps_a_single_state(name: str, dtype: torch.dtype) -> None:
    net = FULL[name]().eval()
    for step_mode, x in (("m", currents(5, dtype)), ("s", currents(1, dtype)[0])):
        net.step_mode = step_mode
        spikes = net(x)
        assert spikes.dtype == dtype and ((spikes == 0) | (spikes == 1)).all()
        assert net.h.dtype == torch.complex64
        if hasattr(net, "recent"):
            assert net.recent.dtype == torch.float32
        else:
            assert net.gate.dtype == torch.int32


@layers
def test_state_survives_conversions_of_the_module(name: str) -> None:
    """Complex and integer states too: they follow the module to its device and keep their dtype."""
    net = FULL[name](step_mode="m").eval()
    x = currents(6, torch.float32)
    net(x)
    before = {key: v.clone() for key, v in net._memories.items() if isinstance(v, Tensor)}
    for convert in (net.half, net.double, lambda: net.to(torch.bfloat16), lambda: net.to("cpu"), net.float):
        convert()
        for key, value in before.items():
            assert torch.equal(getattr(net, key), value) and getattr(net, key).dtype == value.dtype
    net.half()
    assert net(x.half()).dtype == torch.float16 and net.h.dtype == torch.complex64
    net.double()
    net(x.double())
    assert net.h.dtype == torch.complex128
    net.to("meta")
    assert all(v.device.type == "meta" for v in net._memories.values() if isinstance(v, Tensor))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"]
)
@layers
def test_copies_in_the_middle_of_a_sequence(name: str, copied: Callable[[Any], Any]) -> None:
    net, x = make(name, surrogate_function=theirs.Sigmoid()), currents()
    net(x[:9].requires_grad_())
    twin = copied(net)
    assert net.h.requires_grad and not twin.h.requires_grad
    assert torch.equal(twin(x[9:]), net(x[9:]))
    assert_memories(twin, net._memories)


@layers
def test_state_restarts_with_another_batch(name: str) -> None:
    net = make(name)
    x = torch.cat([currents()] * 2, 1)
    net(x)
    fresh = copy.deepcopy(net)
    fresh.reset()
    assert torch.equal(net(x[:, :4]), fresh(x[:, :4]))
    assert_memories(net, fresh._memories)


@pytest.mark.parametrize("name", ["absolute", "sliding"])
def test_empty_inputs(name: str) -> None:
    """No batch, and no steps: the state has its shape, or stays what it was."""
    net = make(name)
    assert net(currents()[:, :0]).shape == (STEPS, 0, 5) and net.h.shape == (0, 5, 4)
    net.step_mode = "s"
    assert net(currents()[0, :0]).shape == (0, 5)
    net.step_mode = "m"
    net(currents())
    before = dict(net._memories)
    assert net(currents(0)).shape == (0, 3, 5)
    assert_memories(net, before)


@layers
def test_layouts(name: str) -> None:
    """Sliced, offset, time last, broadcast: the values decide."""
    net, dense = make(name), currents()
    expected = net(dense)
    for x in (
        torch.stack([dense, -dense], -1).flatten(-2)[..., ::2],
        torch.cat([dense[:1], dense])[1:],
        dense.movedim(0, -1).contiguous().movedim(-1, 0),
    ):
        net.reset()
        assert torch.equal(x, dense) and torch.equal(net(x), expected)
    net.reset()
    one = net(dense[:, :1])
    net.reset()
    assert torch.equal(net(dense[:, :1].expand(-1, 4, -1)), one.expand(-1, 4, -1))


def test_no_state_is_a_view() -> None:
    """``detach_net`` detaches in place, which a view refuses."""
    for name in FULL:
        net = make(name)
        net(currents().requires_grad_())
        assert not any(v._is_view() for v in net._memories.values() if isinstance(v, Tensor)), name
        functional.detach_net(net)
        assert not net.h.requires_grad


def test_compile_fullgraph() -> None:
    net = nn.Sequential(make("absolute"), make("sliding"))
    eager = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for call in range(3):
        x = currents().requires_grad_()
        functional.reset_net(net)
        functional.reset_net(eager)
        expected = eager(x)
        cotangents = random_like([expected])
        with torch.compiler.set_stance("fail_on_recompile" if call == 2 else "default"):
            got = compiled(x)
            got_gradients = gradients([got], cotangents, [x, *net.parameters()])
        assert torch.equal(got, expected)
        wanted = gradients([expected], cotangents, [x, *eager.parameters()])
        for a, b in zip(got_gradients, wanted, strict=True):
            assert_close(a, b)


def test_full_psn_has_no_single_step() -> None:
    net = make("full")
    assert net.supported_step_mode() == ("m",)
    with pytest.raises(ValueError, match="step_mode can only be"):
        functional.set_step_mode(net, "s")
    with pytest.raises(ValueError, match="step_mode can only be"):
        layer.SpikingPSSM(5, 8, psn="full", T=STEPS)
    net(currents())
    with pytest.raises(ValueError, match=rf"T={STEPS} steps, got shape .* after {STEPS} steps"):
        net(currents())
    functional.reset_net(net)
    net(currents())


def test_masked_psn_steps_once_it_is_closed() -> None:
    net = layer.SpikingPSSM(5, 8, psn="masked", T=STEPS).double()
    with pytest.raises(RuntimeError, match="step by step only when lambda_ >= 1"):
        net(currents()[0])
    assert not isinstance(net.h, Tensor)
    net.system.spiking.lambda_ = 1.0
    net(currents()[0])
    assert net.time == 1


def test_surrogates_are_translated() -> None:
    for cls, where in ((layer.SpikingFRSSM, "absolute"), (layer.SpikingPSSM, "sliding")):
        assert cls(4, 8, surrogate_function=theirs.Sigmoid(3.0)).system.spiking.surrogate == ours.Sigmoid(3.0)
        assert cls(4, 8, surrogate_function=ours.Erf()).system.spiking.surrogate == ours.Erf()
        assert cls(4, 8).system.spiking.surrogate == ours.ATan()
        torch.manual_seed(1)
        kept, fused = make(where, surrogate_function=theirs.S2NN()), make(where)
        kept.load_state_dict(fused.state_dict())
        x = currents().requires_grad_()
        spikes = kept(x)
        assert torch.equal(spikes, fused(x))
        assert gradients([spikes], random_like([spikes]), [x])[0].any()


def test_backend_reaches_the_operators() -> None:
    """On 2.0 by the attribute, on 0.0.0.0.14 by ``functional.set_backend`` too."""
    for cls in (layer.SpikingFRSSM, layer.SpikingPSSM):
        net = cls(5, 8, backend="torch", step_mode="m")
        assert net.backend == net.system.memory.backend == net.system.spiking.backend == "torch"
        net.backend = "cupy"
        assert net.system.memory.backend == net.system.spiking.backend == "cupy"
        with pytest.raises(ValueError, match=r"backend='cupy'.*cpu"):
            net(currents(dtype=torch.float32))
        assert not isinstance(net.h, Tensor)
        with pytest.raises(ValueError, match=r"backend must be .*got 'triton'"):
            net.backend = "triton"
        if hasattr(functional, "set_backend"):
            functional.set_backend(nn.Sequential(net), "torch")
            assert net.backend == net.system.memory.backend == net.system.spiking.backend == "torch"


def test_options_and_repr() -> None:
    net = layer.SpikingFRSSM(
        4, 8, step_mode="m", refractory_period=3, norm="batch", init="legs", learn_threshold=False
    )
    assert isinstance(net.system, systems.SpikingFRSSM) and net.system.norm is not None
    assert "refractory_period=3" in repr(net) and "step_mode=m" in repr(net) and "init='legs'" in repr(net)
    assert layer.SpikingFRSSM(4).system.spiking.refractory_period == 1
    assert layer.SpikingPSSM(4).system.spiking.k == 8
    for wrong, error, message in (
        ({"refractory_period": -1}, ValueError, "refractory_period must be an int >= 0"),
        ({"scheme": "greedy"}, ValueError, "'absolute', 'window', 'strided' or 'onset', got 'greedy'"),
        ({"d_state": 7}, ValueError, "d_state must be a positive even int, got 7"),
        ({"surrogate_function": 3}, TypeError, "surrogate must be callable, got int"),
        ({"step_mode": "x"}, ValueError, "step_mode can only be"),
        ({"backend": "lava"}, ValueError, "backend must be .*got 'lava'"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
    ):
        with pytest.raises(error, match=message):
            layer.SpikingFRSSM(4, **wrong)
    for wrong, message in (
        ({"psn": "dense"}, "'sliding', 'masked' or 'full', got 'dense'"),
        ({"psn": "masked"}, "psn='masked' needs T"),
        ({"T": 4}, "psn='sliding' takes no T"),
        ({"k": 0}, "k must be a positive int, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.SpikingPSSM(4, **wrong)


@layers
def test_wrong_inputs_leave_the_state_alone(name: str) -> None:
    net = make(name)
    net(currents(5))
    before = dict(net._memories)
    wrong: list[tuple[str, Any, type[Exception], str]] = [
        ("m", torch.zeros(4, 3, 6), ValueError, r"d_model=5 channels.*got shape \(4, 3, 6\)"),
        ("s", torch.zeros(3, 6), ValueError, r"d_model=5 channels.*got shape \(3, 6\)"),
        ("m", torch.zeros(4, 5), ValueError, r"\[T, N, d_model\] in step mode 'm', got \(4, 5\)"),
        ("s", torch.zeros(5), ValueError, r"\[N, d_model\] in step mode 's', got \(5,\)"),
        ("m", torch.zeros(4, 3, 5, dtype=torch.int64), TypeError, "got torch.int64"),
        ("s", [1.0], TypeError, "x must be a torch.Tensor, got list"),
    ]
    for mode, x, error, message in wrong:
        net.step_mode = mode
        with pytest.raises(error, match=message):
            net(x)
    assert all(net._memories[key] is value for key, value in before.items())
    net.reset()
    net.h = None
    with pytest.raises(TypeError, match=r"h must be a float or a torch\.Tensor, got NoneType"):
        net(currents(5)[0])
