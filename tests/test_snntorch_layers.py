"""Parallel spiking layers in snnTorch's conventions: what they return, and the state they carry."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import surrogate as snn_surrogate
from torch import nn

from snn_fr_plugin import memory, spiking, systems
from snn_fr_plugin import surrogate as sg
from snn_fr_plugin.integrations import snntorch as fr

from . import layer_cases
from .layer_cases import BATCH, CAUSAL, CHANNELS, EVERY, STEPS, currents, every_system
from .support import assert_close, assert_some_spikes, gradients, random_like

causal = pytest.mark.parametrize("name", CAUSAL)
SURROGATES = ("absolute", "sliding", "BinaryS4D", "SpikingSSM", "SPikESSM", "PMSN", "PRF")


def make(name: str, **arguments: Any) -> Any:
    """With ``init_hidden``, which a masked PSN takes once it is closed: a pair is given it afterwards."""
    init_hidden = arguments.pop("init_hidden", False)
    layer = layer_cases.build(fr, name, **arguments)
    layer.init_hidden = init_hidden
    return layer


@pytest.mark.parametrize("name", EVERY)
def test_it_is_the_system_with_its_drive(name: str) -> None:
    layer, core, x = make(name), layer_cases.build(systems, name), currents()
    spikes, expected, _ = core.forward_with_drive(x)
    assert_some_spikes(spikes)
    spk, mem = layer(x)
    assert torch.equal(spk, spikes)
    assert torch.equal(mem, expected)
    assert torch.equal(make(name, output=False)(x), expected)
    assert list(layer.state_dict()) == [f"system.{key}" for key in core.state_dict()]


@every_system
def test_arguments_are_those_of_the_system(cls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer_cases.assert_arguments_are_the_systems(
        fr, cls, "spike_grad", {"output", "init_hidden"}, monkeypatch
    )


@causal
def test_stateless_by_default_as_snntorchs_sequence_layers(name: str) -> None:
    layer, x = make(name), currents()
    first, again = layer(x), layer(x)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert [tuple(out.shape) for out in first] == [
        tuple(out.shape) for out in snn.StateLeaky(0.9, CHANNELS)(x.float())
    ]


@causal
def test_chunks_and_steps_with_a_hidden_state_are_the_whole(name: str) -> None:
    layer, x = make(name, init_hidden=True), currents().requires_grad_()
    for lengths in ([10, 0, 1, 13], [1] * STEPS):
        whole = make(name)(x)
        assert_some_spikes(whole[0])
        layer.reset_mem()
        chunks = [torch.cat(parts) for parts in zip(*(layer(part) for part in x.split(lengths)), strict=True)]
        assert torch.equal(chunks[0], whole[0])
        assert_close(chunks[1], whole[1])
        cotangents = random_like(whole)
        (got,), (expected,) = gradients(chunks, cotangents, [x]), gradients(whole, cotangents, [x])
        assert got is not None and got.any()
        assert_close(got, expected)


@causal
def test_reset_reaches_a_nested_layer(name: str) -> None:
    layer, x = make(name, init_hidden=True), currents()
    first = layer(x[:7])
    second = layer(x[:7])
    assert not torch.equal(first[1], second[1])
    fr.reset(nn.Sequential(nn.Identity(), nn.Sequential(layer)))
    for a, b in zip(layer(x[:7]), first, strict=True):
        assert torch.equal(a, b)


@causal
def test_copies_files_and_detach_in_the_middle_of_a_sequence(name: str) -> None:
    x = currents()
    expected, _ = make(name)(x)
    layer = make(name, init_hidden=True)
    first, _ = layer(x[:15].requires_grad_())
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False), layer):
        fr.detach(twin)
        rest, _ = twin(x[15:])
        assert torch.equal(torch.cat([first, rest]), expected)


@causal
def test_truncated_backpropagation(name: str) -> None:
    layer, x = make(name, init_hidden=True), currents().requires_grad_()
    for part in x.split([11, 13]):
        layer(part)[0].sum().backward()
        fr.detach(layer)
    assert all(p.grad is not None for p in layer.parameters())


@causal
def test_another_batch_size_begins_at_rest_and_another_dtype_goes_on(name: str) -> None:
    layer, x = make(name, init_hidden=True), currents()
    expected, _ = layer(x[:16])
    layer.reset_mem()
    layer(x[:4, :2])
    assert torch.equal(layer(x[:16])[0], expected)

    layer.reset_mem()
    layer(x[:8])
    narrow = layer.float()
    got, mem = narrow(x[8:16].float())
    assert got.dtype == torch.float32
    assert_close(mem, make(name)(x[:16])[1][8:].float())
    spk, mem = narrow.half()(x[16:20].half())
    assert spk.dtype == torch.float16 and mem.isfinite().all()
    assert layer.double()(x[20:])[1].dtype == torch.float64


def test_a_replica_leaves_the_original_alone() -> None:
    layer, x = make("absolute", init_hidden=True), currents()
    layer(x[:9])
    kept = layer._state
    replica = layer._replicate_for_data_parallel()
    replica._modules = dict(layer._modules)
    replica(x[9:])
    assert layer._state is kept


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates(name: str) -> None:
    x = currents().requires_grad_()
    default = sg.Triangle() if name in ("SpikingSSM", "PMSN") else sg.ATan()
    assert make(name).system.spiking.surrogate == default
    (cotangent,) = random_like([x])
    ours = gradients([make(name, spike_grad=sg.ATan())(x)[0]], [cotangent], [x])[0]
    theirs = gradients([make(name, spike_grad=snn_surrogate.atan())(x)[0]], [cotangent], [x])[0]
    other = gradients([make(name, spike_grad=sg.SoftSign())(x)[0]], [cotangent], [x])[0]
    assert ours is not None and theirs is not None and other is not None and other.any()
    assert_close(theirs.float(), ours)  # snnTorch's spikes, and so their cotangent, are float32
    assert not torch.allclose(other, ours)


def test_autocast_and_half_precision() -> None:
    layer = fr.SpikingFRSSM(CHANNELS, 8, threshold=0.3, dt_min=0.05, dt_max=0.5)
    linear = nn.Linear(CHANNELS, CHANNELS)
    with torch.autocast("cpu", torch.bfloat16):
        spk, mem = layer(linear(currents().float()))
    assert spk.dtype == torch.bfloat16
    assert_some_spikes(spk)
    (spk.float().mean() + mem.float().mean()).backward()
    assert linear.weight.grad is not None and linear.weight.grad.any()


def test_a_network_of_layers_and_neurons() -> None:
    net = nn.Sequential(nn.Linear(CHANNELS, 6), fr.SpikingFRSSM(6, 8, threshold=0.2))
    readout = fr.FRLeaky(0.9, 0.3, multistep=True)
    spk, _ = readout(net(currents().float())[0])
    assert_some_spikes(spk)
    spk.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", [n for n, (cls, *_) in CAUSAL.items() if cls != "SpikingLayer"])
def test_bad_calls(name: str) -> None:
    layer = make(name, init_hidden=True)
    layer(currents(7))
    kept = layer._state
    for x, error, message in (
        (
            torch.ones(STEPS, BATCH, CHANNELS).long(),
            TypeError,
            "must be float32, float64, float16 or bfloat16, got torch.int64",
        ),
        (torch.ones(4), ValueError, r"must have shape \[T, N, \*\], got \(4,\)"),
        (torch.ones(STEPS, BATCH, CHANNELS + 1), ValueError, f"d_model={CHANNELS} channels"),
    ):
        with pytest.raises(error, match=message):
            layer(x)
        assert layer._state is kept


def test_bad_arguments() -> None:
    for cls, arguments, error, message in (
        (fr.SpikingFRSSM, {"d_state": 7}, ValueError, "d_state must be a positive even int, got 7"),
        (fr.SpikingFRSSM, {"refractory_period": -1}, ValueError, "refractory_period"),
        (fr.SpikingFRSSM, {"scheme": "greedy"}, ValueError, "'onset', got 'greedy'"),
        (fr.SpikingFRSSM, {"no_such": 1}, TypeError, "no_such"),
        (fr.SPikESSM, {"beta": 2.0}, ValueError, r"beta must be in \[0, 1\], got 2.0"),
        (fr.PSpikeSSM, {"spike_grad": sg.ATan()}, TypeError, "spike_grad"),
        (fr.PSpikeSSM, {"seed": 0.5}, TypeError, "seed must be an int or None, got float"),
        (fr.SpikingSSM, {"spike_grad": 3}, TypeError, "surrogate must be callable, got int"),
        (fr.PMSN, {"threshold": -1.0}, ValueError, "threshold must be > 0, got -1.0"),
        (fr.PRF, {"tau": 0.0}, ValueError, "tau must be > 0"),
        (fr.BinaryS4D, {"output": 1}, TypeError, "output must be a bool"),
        (fr.BinaryS4D, {"init_hidden": None}, TypeError, "init_hidden must be a bool"),
        (fr.BinaryS4D, {"backend": "numpy"}, ValueError, "backend must be"),
    ):
        with pytest.raises(error, match=message):
            cls(4, **arguments)
    with pytest.raises(TypeError, match=r"spiking must be a torch\.nn\.Module, got int"):
        fr.SpikingLayer(memory.Leaky(), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="d_model must be the memory's, 4, got 5"):
        fr.SpikingLayer(memory.Resonator(4), spiking.Threshold(), d_model=5)


def test_what_is_not_causal_refuses_a_hidden_state() -> None:
    with pytest.raises(ValueError, match="init_hidden must be False with psn='full', got True"):
        fr.SpikingPSSM(4, psn="full", T=8, init_hidden=True)
    both_ways = memory.Bidirectional(memory.Leaky(), memory.Leaky())
    for mem, spk, culprit in (
        (both_ways, spiking.Threshold(), "Bidirectional"),
        (memory.Leaky(), spiking.PSN(STEPS), "PSN"),
        (
            memory.Leaky(),
            spiking.MaskedPSN(3, STEPS),
            "MaskedPSN can run step by step only when lambda_ >= 1",
        ),
    ):
        with pytest.raises(ValueError, match=f"init_hidden must be False, got True: {culprit}"):
            fr.SpikingLayer(mem, spk, init_hidden=True)
        layer = fr.SpikingLayer(mem, spk)
        layer.init_hidden = True
        with pytest.raises(ValueError, match=f"init_hidden must be False, got True: {culprit}"):
            layer(currents())
        assert layer._state is None
    named = fr.SpikingPSSM(CHANNELS, 8, psn="masked", T=STEPS, init_hidden=True).double()
    with pytest.raises(ValueError, match="MaskedPSN can run"):
        named(currents())
    named.system.spiking.lambda_ = 1.0
    assert named(currents()[:3])[0].shape == (3, BATCH, CHANNELS)


def test_a_named_backend_is_obeyed_or_refused() -> None:
    for cls in (fr.BinaryS4D, fr.SpikingSSM, fr.SPikESSM, fr.PSpikeSSM, fr.PMSN, fr.PRF):
        assert {m.backend for m in cls(4, backend="torch").modules() if hasattr(m, "backend")} == {"torch"}
        with pytest.raises(ValueError, match=r"backend='cupy'.*cpu"):
            cls(CHANNELS, backend="cupy")(currents(3, torch.float32))
    with pytest.raises(ValueError, match=r"backend='cupy'.*cpu"):
        fr.SpikingLayer(memory.Leaky(), spiking.Threshold(backend="cupy"))(currents(3))


def test_seeded_samples_go_on_in_copies_and_files() -> None:
    x, arguments = currents(dtype=torch.float32), {"d_state": 8, "seed": 5, "init_hidden": True}
    whole = fr.PSpikeSSM(CHANNELS, **arguments).eval()
    expected, _ = whole(x)
    assert_some_spikes(expected)
    layer = fr.PSpikeSSM(CHANNELS, **arguments).eval()
    layer.load_state_dict(whole.state_dict())
    first, _ = layer(x[:10])
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False), layer):
        assert torch.equal(torch.cat([first, twin(x[10:])[0]]), expected)
    fr.reset(layer)
    again, _ = layer(x)
    assert not torch.equal(again, expected)  # the memory is forgotten, the random numbers go on
    assert not layer.deterministic
    layer.deterministic = True
    fr.reset(layer)
    once = layer(x)[0]
    fr.reset(layer)
    assert torch.equal(once, layer(x)[0])


def test_repr() -> None:
    text = repr(make("absolute", init_hidden=True, output=False))
    assert "output=False, init_hidden=True" in text
    assert "refractory_period=2" in text


@pytest.mark.parametrize(
    ("name", "init_hidden"), [("absolute", False), ("absolute", True), ("SpikingSSM", True)]
)
def test_compile(name: str, init_hidden: bool) -> None:
    torch._dynamo.reset()
    layer, x = make(name, init_hidden=init_hidden).float(), currents(33).float()
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    try:
        for i, part in enumerate(x.split(11)):
            if i == 2:
                torch.compiler.set_stance("fail_on_recompile")
            expected, got = layer(part), compiled(part)
            assert_some_spikes(expected[0])
            assert torch.equal(got[0], expected[0])
            assert_close(got[1], expected[1])
            cotangents = random_like(expected)
            ours = gradients(got, cotangents, list(twin.parameters()))
            eager = gradients(expected, cotangents, list(layer.parameters()))
            for a, b in zip(ours, eager, strict=True):
                assert_close(a, b)
            fr.detach(layer)
            fr.detach(twin)
    finally:
        torch.compiler.set_stance("default")
        torch._dynamo.reset()
