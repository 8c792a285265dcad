"""State-space layers in snnTorch's conventions: what they return, and the state they carry."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import surrogate as snn_surrogate
from torch import Tensor, nn

from snn_fr_plugin import surrogate as sg
from snn_fr_plugin import systems
from snn_fr_plugin.integrations import snntorch as fr

from .support import assert_close, assert_some_spikes, gradients, random_like

T, B, C = 33, 3, 4
LAYERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "FRSSM": (fr.SpikingFRSSM, systems.SpikingFRSSM, {"refractory_period": 2, "threshold": 0.3}),
    "FRSSM-window": (fr.SpikingFRSSM, systems.SpikingFRSSM, {"scheme": "window", "threshold": 0.3}),
    "FRSSM-norm": (fr.SpikingFRSSM, systems.SpikingFRSSM, {"norm": "batch", "threshold": 0.3}),
    "PSSM": (fr.SpikingPSSM, systems.SpikingPSSM, {"k": 5}),
    "PSSM-masked": (fr.SpikingPSSM, systems.SpikingPSSM, {"k": 5, "psn": "masked", "T": T}),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name: str, **arguments: Any) -> Any:
    cls, _, own = LAYERS[name]
    torch.manual_seed(3)
    layer = cls(C, 8, dtype=torch.float64, dt_min=0.05, dt_max=0.5, **own, **arguments).eval()
    if name == "PSSM-masked":
        layer.system.spiking.lambda_ = 1.0
    return layer


def drive(*shape: int) -> Tensor:
    return torch.randn(shape or (T, B, C), dtype=torch.float64) * 1.5 + 0.3


@every_layer
def test_it_is_the_system_with_its_drive(name: str) -> None:
    _, system, own = LAYERS[name]
    layer, x = make(name), drive()
    torch.manual_seed(3)
    core = system(C, 8, dtype=torch.float64, dt_min=0.05, dt_max=0.5, **own).eval()
    core.load_state_dict(layer.system.state_dict())
    spikes, expected, _ = core.forward_with_drive(x)
    assert_some_spikes(spikes)
    spk, mem = layer(x)
    assert torch.equal(spk, spikes)
    assert torch.equal(mem, expected)
    assert torch.equal(make(name, output=False)(x), expected)


@every_layer
def test_stateless_by_default_as_snntorchs_sequence_layers(name: str) -> None:
    layer, x = make(name), drive()
    first, again = layer(x), layer(x)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert [tuple(out.shape) for out in first] == [
        tuple(out.shape) for out in snn.StateLeaky(0.9, C)(x.float())
    ]


@every_layer
def test_chunks_and_steps_with_a_hidden_state_are_the_whole(name: str) -> None:
    layer, x = make(name, init_hidden=True), drive().requires_grad_()
    for lengths in ([10, 0, 1, 22], [1] * T):
        whole = make(name)(x)
        assert_some_spikes(whole[0])
        layer.reset_mem()
        chunks = [torch.cat(parts) for parts in zip(*(layer(part) for part in x.split(lengths)), strict=True)]
        assert torch.equal(chunks[0], whole[0])
        assert_close(chunks[1], whole[1])
        cotangents = random_like(whole)
        (got,), (expected,) = gradients(chunks, cotangents, [x]), gradients(whole, cotangents, [x])
        assert_close(got, expected)


@every_layer
def test_reset_reaches_a_nested_layer(name: str) -> None:
    layer, x = make(name, init_hidden=True), drive(5, B, C) + 3
    first = layer(x)
    second = layer(x)
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    fr.reset(nn.Sequential(nn.Identity(), nn.Sequential(layer)))
    for a, b in zip(layer(x), first, strict=True):
        assert torch.equal(a, b)


@every_layer
def test_copies_files_and_detach_in_the_middle_of_a_sequence(name: str) -> None:
    x = drive()
    expected, _ = make(name)(x)
    layer = make(name, init_hidden=True)
    first, _ = layer(x[:20].requires_grad_())
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False), layer):
        fr.detach(twin)
        rest, _ = twin(x[20:])
        assert torch.equal(torch.cat([first, rest]), expected)


@every_layer
def test_truncated_backpropagation(name: str) -> None:
    layer, x = make(name, init_hidden=True), drive()
    for part in x.split([11, 11, 11]):
        layer(part)[0].sum().backward()
        fr.detach(layer)
    assert all(p.grad is not None for p in layer.parameters())


@every_layer
def test_another_batch_size_begins_at_rest_and_another_dtype_goes_on(name: str) -> None:
    layer, x = make(name, init_hidden=True), drive()
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


def test_a_replica_leaves_the_original_alone() -> None:
    layer, x = make("FRSSM", init_hidden=True), drive()
    layer(x[:9])
    kept = layer._state
    replica = layer._replicate_for_data_parallel()
    replica._modules = dict(layer._modules)
    replica(x[9:])
    assert layer._state is kept


def test_surrogates() -> None:
    x = drive().requires_grad_()
    (cotangent,) = random_like([x])
    default = gradients([make("FRSSM")(x)[0]], [cotangent], [x])[0]
    ours = gradients([make("FRSSM", spike_grad=sg.ATan())(x)[0]], [cotangent], [x])[0]
    theirs = gradients([make("FRSSM", spike_grad=snn_surrogate.atan())(x)[0]], [cotangent], [x])[0]
    other = gradients([make("FRSSM", spike_grad=sg.Triangle())(x)[0]], [cotangent], [x])[0]
    assert default is not None and ours is not None and other is not None
    assert torch.equal(default, ours)
    assert theirs is not None
    assert_close(theirs.float(), ours)  # snnTorch's spikes, and so their cotangent, are float32
    assert not torch.allclose(other, ours)


def test_autocast_and_half_precision() -> None:
    layer = fr.SpikingFRSSM(C, 8, threshold=0.3, dt_min=0.05, dt_max=0.5)
    linear = nn.Linear(C, C)
    with torch.autocast("cpu", torch.bfloat16):
        spk, mem = layer(linear(drive().float()))
    assert spk.dtype == torch.bfloat16
    assert_some_spikes(spk)
    (spk.float().mean() + mem.float().mean()).backward()
    assert linear.weight.grad is not None and linear.weight.grad.any()


def test_a_network_of_layers_and_neurons() -> None:
    net = nn.Sequential(nn.Linear(C, 6), fr.SpikingFRSSM(6, 8, threshold=0.2))
    readout = fr.FRLeaky(0.9, 0.3, multistep=True)
    spk, _ = readout(net(drive().float())[0])
    assert_some_spikes(spk)
    spk.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@every_layer
def test_bad_calls(name: str) -> None:
    layer = make(name, init_hidden=True)
    layer(drive())
    kept = layer._state
    for x, error, message in (
        (
            torch.ones(T, B, C).long(),
            TypeError,
            "must be float32, float64, float16 or bfloat16, got torch.int64",
        ),
        (torch.ones(4), ValueError, r"must have shape \[T, N, \*\], got \(4,\)"),
        (torch.ones(T, B, C + 1), ValueError, f"d_model={C} channels"),
    ):
        with pytest.raises(error, match=message):
            layer(x)
        assert layer._state is kept


def test_bad_arguments() -> None:
    for arguments, error, message in (
        ({"d_model": 4, "d_state": 7}, ValueError, "d_state must be a positive even int, got 7"),
        ({"d_model": 4, "refractory_period": -1}, ValueError, "refractory_period"),
        ({"d_model": 4, "scheme": "greedy"}, ValueError, "'onset', got 'greedy'"),
        ({"d_model": 4, "output": 1}, TypeError, "output must be a bool"),
        ({"d_model": 4, "init_hidden": None}, TypeError, "init_hidden must be a bool"),
        ({"d_model": 4, "backend": "numpy"}, ValueError, "backend must be"),
    ):
        with pytest.raises(error, match=message):
            fr.SpikingFRSSM(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="init_hidden must be False with psn='full', got True"):
        fr.SpikingPSSM(4, psn="full", T=8, init_hidden=True)


def test_full_psn_reads_whole_sequences() -> None:
    layer = fr.SpikingPSSM(C, 8, psn="full", T=T)
    spk, mem = layer(drive().float())
    assert spk.shape == mem.shape == (T, B, C)


def test_repr() -> None:
    text = repr(make("FRSSM", init_hidden=True, output=False))
    assert "output=False, init_hidden=True" in text
    assert "refractory_period=2" in text


def test_compile() -> None:
    x = drive().float()
    for init_hidden in (False, True):
        torch._dynamo.reset()
        layer = fr.SpikingFRSSM(C, 8, threshold=0.3, dt_min=0.05, dt_max=0.5, init_hidden=init_hidden)
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
