"""The layers of the SpikingJelly adapter: ``systems`` whose state SpikingJelly holds."""

from __future__ import annotations

import copy
import io
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

from snn_fr_plugin import memory, spiking, systems
from snn_fr_plugin import surrogate as ours
from snn_fr_plugin.integrations._state import flatten
from snn_fr_plugin.integrations.spikingjelly import layer

from . import layer_cases
from .layer_cases import CAUSAL, CHANNELS, EVERY, NOT_CAUSAL, STEPS, currents, every_system
from .support import assert_close, assert_some_spikes, gradients, graph_size, random_like

layers = pytest.mark.parametrize("name", CAUSAL)
everything = pytest.mark.parametrize("name", EVERY)
NAMES = {
    **dict.fromkeys(["absolute", "window", "strided", "onset", "normed", "BinaryS4D", "PRF"], "h gate"),
    "sliding": "h recent",
    **dict.fromkeys(["masked", "full"], "h recent time"),
    "SpikingSSM": "h recent",
    "SPikESSM": "h sums",
    **dict.fromkeys(["SpikingSSM-exact", "SPikESSM-exact"], "h v"),
    "PSpikeSSM": "h",
    "PMSN": "h remainder",
    "Leaky-LIF": "memory spiking_v spiking_refractory",
    "Leaky-Bernoulli": "memory",
    **dict.fromkeys(["Resonator-sliding", "compartments-refractory"], "memory spiking"),
    **dict.fromkeys(
        ["S4D-masked", "Leaky-PSN", "bidirectional-masked"], "memory spiking_recent spiking_time"
    ),
    "sum-cumulative": "memory_0 memory_1 spiking",
    "bidirectional-LIF": "memory spiking_v spiking_refractory",
}


def make(name: str, **kwargs: Any) -> Any:
    return layer_cases.build(layer, name, **{"step_mode": "m", **kwargs})


def tensors(net: Any) -> dict[str, Tensor]:
    return {key: value for key, value in net._memories.items() if isinstance(value, Tensor)}


def assert_memories(net: Any, expected: dict[str, Any]) -> None:
    """Binary and integer states exactly, the real ones as two orders of summation agree in float64.

    An int64 is real: what remains of a threshold, in units of 2^-48.
    """
    for key, value in expected.items():
        got = getattr(net, key)
        if isinstance(value, Tensor) and value.dtype == torch.int64:
            got, value = got * 2.0**-48, value * 2.0**-48
        if isinstance(value, int) or not (value.is_floating_point() or value.is_complex()):
            assert torch.equal(torch.as_tensor(got), torch.as_tensor(value)), key
        else:
            torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-10)


@everything
def test_is_the_system(name: str) -> None:
    """Same spikes, same state under telling names, and the parameters of the system under ``system.``."""
    net, core, x = make(name), layer_cases.build(systems, name), currents()
    expected, state = core(x)
    spikes = net(x)
    assert_some_spikes(expected)
    assert torch.equal(spikes, expected)
    assert list(net._memories) == NAMES[name].split()
    assert_memories(net, dict(zip(net._memories, flatten(state), strict=True)))
    assert list(net.state_dict()) == [f"system.{key}" for key in core.state_dict()]
    assert isinstance(net, base.MemoryModule)
    functional.detach_net(net)
    functional.reset_net(net)
    assert not tensors(net)
    assert torch.equal(net(x), expected)


@every_system
def test_arguments_are_those_of_the_system(cls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer_cases.assert_arguments_are_the_systems(layer, cls, "surrogate_function", {"step_mode"}, monkeypatch)


cuts = st.lists(st.tuples(st.integers(1, 8), st.sampled_from("sm"), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(name=st.sampled_from(sorted(CAUSAL)), plan=cuts, seed=st.integers(0, 2**16))
def test_calls_of_either_mode_equal_the_whole(name: str, plan: Any, seed: int) -> None:
    """In evaluation, with detach_net in between; FRSSM stays silent for its period across the cuts."""
    net = make(name)
    torch.manual_seed(seed)
    x = currents()
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
        spikes = torch.cat([net(part) for part in parts])
        outputs.append([spikes, next(iter(tensors(net).values()))])
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
        sizes.append((graph_size(spikes), *(graph_size(v) for v in tensors(net).values())))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@layers
def test_half_input_keeps_a_single_state(name: str, dtype: torch.dtype) -> None:
    net = make(name).float()
    single = {"complex64", "float32", "int32", "int64"}
    for step_mode, x in (("m", currents(5, dtype)), ("s", currents(1, dtype)[0])):
        net.step_mode = step_mode
        spikes = net(x)
        assert spikes.dtype == dtype and ((spikes == 0) | (spikes == 1)).all()
        assert {str(v.dtype).removeprefix("torch.") for v in tensors(net).values()} <= single


@layers
def test_state_survives_conversions_of_the_module(name: str) -> None:
    """Complex and integer states too: they follow the module to its device and keep their dtype."""
    net = make(name).float()
    x = currents(6, torch.float32)
    net(x)
    before = {key: v.clone() for key, v in tensors(net).items()}
    for convert in (net.half, net.double, lambda: net.to(torch.bfloat16), lambda: net.to("cpu"), net.float):
        convert()
        for key, value in before.items():
            assert getattr(net, key).dtype == value.dtype and torch.equal(getattr(net, key), value)
    first = net.half()(x.half())
    assert first.dtype == torch.float16
    assert {key: v.dtype for key, v in tensors(net).items()} == {key: v.dtype for key, v in before.items()}
    net.double()(x.double())
    wide = {torch.complex64: torch.complex128, torch.float32: torch.float64}
    for key, value in before.items():
        assert getattr(net, key).dtype == wide.get(value.dtype, value.dtype)
    net.to("meta")
    assert all(v.device.type == "meta" for v in tensors(net).values())


def saved(net: Any) -> Any:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), saved],
    ids=["deepcopy", "pickle", "file"],
)
@layers
def test_copies_in_the_middle_of_a_sequence(name: str, copied: Callable[[Any], Any]) -> None:
    has_surrogate = CAUSAL[name][0] not in ("SpikingLayer", "PSpikeSSM")
    net = make(name, **({"surrogate_function": theirs.Sigmoid()} if has_surrogate else {}))
    x = currents()
    net(x[:9].requires_grad_())
    twin = copied(net)
    assert any(v.requires_grad for v in tensors(net).values())
    assert not any(v.requires_grad for v in tensors(twin).values())
    assert torch.equal(twin(x[9:]), net(x[9:]))
    assert_memories(twin, net._memories)


@layers
def test_state_restarts_with_another_batch(name: str) -> None:
    net = make(name)
    x = torch.cat([currents(STEPS // 2)] * 2, 1)
    net(x)
    fresh = copy.deepcopy(net)
    fresh.reset()
    assert torch.equal(net(x[:, :4]), fresh(x[:, :4]))
    assert_memories(net, fresh._memories)


@layers
def test_empty_inputs(name: str) -> None:
    """No batch, and no steps: the state has its shape, or stays what it was."""
    net = make(name)
    assert net(currents()[:, :0]).shape == (STEPS, 0, CHANNELS)
    net.reset()
    net.step_mode = "s"
    assert net(currents()[0, :0]).shape == (0, CHANNELS)
    net.step_mode = "m"
    net(currents(5))
    before = dict(net._memories)
    assert net(currents(0)).shape == (0, 3, CHANNELS)
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


@pytest.mark.parametrize(("name", "mode"), [*((n, "m") for n in EVERY), *((n, "s") for n in CAUSAL)])
def test_no_state_is_a_view(name: str, mode: str) -> None:
    """``detach_net`` detaches in place, which a view refuses."""
    net = make(name, step_mode=mode)
    x = currents().requires_grad_()
    net(x if mode == "m" else x[0])
    assert tensors(net)
    assert not any(v._is_view() for v in tensors(net).values())
    functional.detach_net(net)
    assert not any(v.requires_grad for v in tensors(net).values())


@pytest.mark.parametrize("names", [("absolute", "sliding"), ("SpikingSSM", "Leaky-LIF")])
def test_compile_fullgraph(names: tuple[str, ...]) -> None:
    net = nn.Sequential(*map(make, names))
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


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_what_reads_the_future_has_no_single_step(name: str) -> None:
    net = make(name)
    assert net.supported_step_mode() == ("m",)
    with pytest.raises(ValueError, match="step_mode can only be"):
        functional.set_step_mode(net, "s")
    with pytest.raises(ValueError, match="step_mode can only be"):
        make(name, step_mode="s")
    once = net(currents())
    assert once.any()
    with pytest.raises((ValueError, RuntimeError), match=rf"after {STEPS} steps"):
        net(currents())
    functional.reset_net(net)
    net(currents())


def test_masked_psn_steps_once_it_is_closed() -> None:
    for net in (
        layer.SpikingPSSM(CHANNELS, 8, psn="masked", T=STEPS).double(),
        layer.SpikingLayer(memory.Leaky(), spiking.MaskedPSN(3, STEPS)).double(),
    ):
        with pytest.raises(RuntimeError, match="step by step only when lambda_ >= 1"):
            net(currents()[0])
        assert not tensors(net)
        net.system.spiking.lambda_ = 1.0
        net(currents()[0])
        assert flatten(tuple(net._memories.values()))[-1] == 1  # steps read


def test_surrogates_are_translated() -> None:
    default = dict.fromkeys(layer_cases.ARGUMENTS, ours.ATan()) | {"SpikingSSM": ours.Triangle()}
    default |= {"PMSN": ours.Triangle()}
    del default["PSpikeSSM"]
    for name, surrogate in default.items():
        cls: Any = getattr(layer, name)
        assert cls(4, surrogate_function=theirs.Sigmoid(3.0)).system.spiking.surrogate == ours.Sigmoid(3.0)
        assert cls(4, surrogate_function=ours.Erf()).system.spiking.surrogate == ours.Erf()
        assert cls(4).system.spiking.surrogate == surrogate
    for where in ("absolute", "sliding", "SpikingSSM", "SPikESSM", "PMSN", "PRF"):
        kept, fused = make(where, surrogate_function=theirs.S2NN()), make(where)
        x = currents().requires_grad_()
        spikes = kept(x)
        assert torch.equal(spikes, fused(x))
        assert gradients([spikes], random_like([spikes]), [x])[0].any()


def set_everywhere(net: Any, backend: str) -> None:
    """``functional.set_backend`` on 0.0.0.0.14, on 2.0 the attribute."""
    if hasattr(functional, "set_backend"):
        functional.set_backend(nn.Sequential(net), backend)
    else:
        net.backend = backend


@everything
def test_backend_reaches_the_operators(name: str) -> None:
    named = CAUSAL.get(name, ("SpikingLayer",))[0] != "SpikingLayer"
    net = make(name, **({"backend": "torch"} if named else {})).float()
    parts = [part for part in net.system.modules() if hasattr(part, "backend")]
    assert net.backend == ("torch" if named else "auto") and len(parts) >= 2
    set_everywhere(net, "cupy")
    assert net.backend == "cupy" and all(part.backend == "cupy" for part in parts)
    if "Bernoulli" not in name:  # draws with torch, whatever its backend
        with pytest.raises(ValueError, match=r"backend='cupy'.*cpu"):
            net(currents(dtype=torch.float32))
        assert not tensors(net)
    with pytest.raises(ValueError, match=r"backend must be .*got 'triton'"):
        net.backend = "triton"
    set_everywhere(net, "torch")
    assert net.backend == "torch" and all(part.backend == "torch" for part in parts)
    parts[0].backend = "cpp"
    assert net.backend is None
    assert "step_mode=m" in repr(net)


def test_options_and_repr() -> None:
    net = layer.SpikingFRSSM(
        4, 8, step_mode="m", refractory_period=3, norm="batch", init="legs", learn_threshold=False
    )
    assert isinstance(net.system, systems.SpikingFRSSM) and net.system.norm is not None
    assert "refractory_period=3" in repr(net) and "step_mode=m" in repr(net) and "init='legs'" in repr(net)
    assert layer.SpikingFRSSM(4).system.spiking.refractory_period == 1
    assert layer.SpikingPSSM(4).system.spiking.k == 8
    wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (layer.SpikingFRSSM, {"refractory_period": -1}, ValueError, "refractory_period must be an int >= 0"),
        (layer.SpikingFRSSM, {"scheme": "greedy"}, ValueError, "'strided' or 'onset', got 'greedy'"),
        (layer.SpikingFRSSM, {"d_state": 7}, ValueError, "d_state must be a positive even int, got 7"),
        (layer.SpikingFRSSM, {"surrogate_function": 3}, TypeError, "surrogate must be callable, got int"),
        (layer.SpikingFRSSM, {"step_mode": "x"}, ValueError, "step_mode can only be"),
        (layer.SpikingFRSSM, {"backend": "lava"}, ValueError, "backend must be .*got 'lava'"),
        (layer.SpikingFRSSM, {"no_such_option": 1}, TypeError, "no_such_option"),
        (layer.SpikingPSSM, {"psn": "dense"}, ValueError, "'sliding', 'masked' or 'full', got 'dense'"),
        (layer.SpikingPSSM, {"psn": "masked"}, ValueError, "psn='masked' needs T"),
        (layer.SpikingPSSM, {"T": 4}, ValueError, "psn='sliding' takes no T"),
        (layer.SpikingPSSM, {"k": 0}, ValueError, "k must be a positive int, got 0"),
        (layer.SPikESSM, {"beta": 2.0}, ValueError, r"beta must be in \[0, 1\], got 2.0"),
        (layer.SpikingSSM, {"exact": 1}, TypeError, "exact must be a bool"),
        (layer.PSpikeSSM, {"seed": 0.5}, TypeError, "seed must be an int or None, got float"),
        (layer.PSpikeSSM, {"surrogate_function": ours.ATan()}, TypeError, "surrogate_function"),
        (layer.PMSN, {"threshold": -1.0}, ValueError, "threshold must be > 0, got -1.0"),
        (layer.PRF, {"tau": 0.0}, ValueError, "tau must be > 0"),
    ]
    for cls, arguments, error, message in wrong:
        with pytest.raises(error, match=message):
            cls(4, **arguments)
    with pytest.raises(TypeError, match=r"spiking must be a torch\.nn\.Module, got int"):
        layer.SpikingLayer(memory.Leaky(), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="d_model must be the memory's, 4, got 5"):
        layer.SpikingLayer(memory.Resonator(4), spiking.Threshold(), d_model=5)


def test_a_state_that_does_not_begin_at_zero_is_refused() -> None:
    class Charged(memory.Leaky):
        def initial_state(self, x: Tensor) -> Tensor:
            return super().initial_state(x) + 1

    with pytest.raises(ValueError, match="initial state of memory and spiking must be zeros"):
        layer.SpikingLayer(Charged(), spiking.Threshold())


def test_a_pair_without_channels_takes_any_shape() -> None:
    x = torch.randn(6, 2, 3, 4, 5)
    net = layer.SpikingLayer(memory.Leaky(0.5), spiking.FixedRefractory(2), step_mode="m")
    spikes = net(x)
    assert_some_spikes(spikes)
    assert net.d_model is None and net.memory.shape == x.shape[1:]
    net.reset()
    net.step_mode = "s"
    assert torch.equal(torch.stack([net(x_t) for x_t in x]), spikes)
    told = layer.SpikingLayer(memory.Leaky(), spiking.Threshold(), "batch", d_model=5, step_mode="m")
    with pytest.raises(ValueError, match=r"\[T, N, d_model\] in step mode 'm'"):
        told(x)
    assert told(x[:, 0, 0]).shape == (6, 4, 5)


def test_seeded_samples_go_on_in_copies_and_steps() -> None:
    x, arguments = currents(dtype=torch.float32), {"d_state": 8, "seed": 5, "step_mode": "m"}
    whole = layer.PSpikeSSM(CHANNELS, **arguments).eval()
    expected = whole(x)
    assert_some_spikes(expected)
    net = layer.PSpikeSSM(CHANNELS, **arguments).eval()
    net.load_state_dict(whole.state_dict())
    first = net(x[:10])
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), saved(net), net):
        functional.set_step_mode(twin, "s")
        assert torch.equal(torch.cat([first, torch.stack([twin(x_t) for x_t in x[10:]])]), expected)
    functional.set_step_mode(net, "m")
    functional.reset_net(net)
    assert not torch.equal(net(x), expected)  # the memory is forgotten, the random numbers go on
    assert not net.deterministic
    net.deterministic = True
    functional.reset_net(net)
    once = net(x)
    functional.reset_net(net)
    assert torch.equal(once, net(x))


@pytest.mark.parametrize("name", [n for n, (cls, *_) in CAUSAL.items() if cls != "SpikingLayer"])
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
