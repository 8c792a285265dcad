"""SpikingJelly's utilities, containers and model builders find our neurons, and torch's tools take them."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, monitor
from spikingjelly.activation_based import neuron as parents
from spikingjelly.activation_based import surrogate as theirs
from spikingjelly.activation_based.model import parametric_lif_net, sew_resnet, spiking_resnet
from torch import Tensor, nn

from snn_fr_plugin.integrations.spikingjelly import layer as own_layer
from snn_fr_plugin.integrations.spikingjelly import neuron

from .support import assert_close, assert_some_spikes, gradients, random_like

FUNCTIONAL = hasattr(base, "to_functional_forward")  # SpikingJelly 2.0
new_release = pytest.mark.skipif(not FUNCTIONAL, reason="an addition of SpikingJelly 2.0")
old_release = pytest.mark.skipif(FUNCTIONAL, reason="removed in SpikingJelly 2.0")
OURS = (neuron.FRIFNode, neuron.FRLIFNode, neuron.FRParametricLIFNode, own_layer.SpikingFRSSM)


class Branches(nn.Module):
    """Neurons and a layer at several depths."""

    def __init__(self, step_mode: str = "m") -> None:
        super().__init__()
        self.stem = nn.Sequential(
            layer.Linear(5, 6, step_mode=step_mode), neuron.FRLIFNode(step_mode=step_mode)
        )
        self.left = neuron.FRIFNode(0.5, refractory_period=2, step_mode=step_mode)
        self.right = nn.ModuleDict(
            {"plif": neuron.FRParametricLIFNode(v_threshold=0.3, v_reset=None, step_mode=step_mode)}
        )
        self.memory = own_layer.SpikingFRSSM(6, 8, step_mode=step_mode, threshold=0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.memory(self.left(x) + self.right["plif"](x))

    def stateful(self) -> list[Any]:
        return [m for m in self.modules() if isinstance(m, OURS)]


def branches(step_mode: str = "m") -> Branches:
    net = Branches(step_mode).double().eval()
    with torch.no_grad():
        net.stem[0].weight.mul_(6)
    return net


def inputs(steps: int = 12) -> Tensor:
    return torch.randn(steps, 3, 5, dtype=torch.float64)


def test_reset_net_set_step_mode_detach_net() -> None:
    net, x = branches(), inputs()
    assert len(net.stateful()) == 4
    whole = net(x)
    assert_some_spikes(whole)
    functional.reset_net(net)
    assert all(not isinstance(v, Tensor) for m in net.stateful() for v in m._memories.values())
    functional.set_step_mode(net, "s")
    assert all(m.step_mode == "s" for m in net.stateful())
    parts = []
    for x_t in x:
        parts.append(net(x_t))
        functional.detach_net(net)
        assert not any(v.requires_grad for m in net.stateful() for v in m._memories.values())
    assert torch.equal(torch.stack(parts), whole)
    functional.reset_net(net)
    functional.set_step_mode(net, "m")
    assert torch.equal(functional.chunk_multi_step_forward(5, x, net), whole)


def test_monitors_find_the_neurons() -> None:
    """By ``neuron.BaseNode``, in both modes: outputs, states, the trace of the membrane, gradients."""
    net, x = branches(), inputs()
    nodes = [name for name, m in net.named_modules() if isinstance(m, parents.BaseNode)]
    assert len(nodes) == 3
    for m in net.stateful()[:3]:
        m.store_v_seq = True
    spikes = monitor.OutputMonitor(net, parents.BaseNode)
    traces = monitor.AttributeMonitor("v_seq", False, net, parents.BaseNode)
    gates = monitor.AttributeMonitor("refractory", False, net, neuron.FRIFNode)
    currents = monitor.InputMonitor(net, own_layer.SpikingFRSSM)
    grads = monitor.GradInputMonitor(net, parents.BaseNode)
    net(x.requires_grad_()).sum().backward()
    assert spikes.monitored_layers == traces.monitored_layers == nodes
    for name in nodes:
        assert spikes[name][0].shape == traces[name][0].shape == (12, 3, 6)
        assert traces[name][0].dtype == torch.float64
        assert torch.equal(traces[name][0][-1], net.get_submodule(name).v)
    assert gates["left"][0].dtype == torch.int32 and gates["left"][0].any()
    assert torch.equal(currents["memory"][0], spikes["left"][0] + spikes["right.plif"][0])
    assert len(grads.records) == 3 and all(g.any() for g in grads.records)
    for watching in (spikes, traces, gates, currents, grads):
        watching.remove_hooks()
    functional.set_step_mode(net, "s")
    functional.reset_net(net)
    membranes = monitor.AttributeMonitor("v", False, net, parents.BaseNode)
    with torch.no_grad():
        for x_t in x:
            net(x_t)
    for name in nodes:  # the matrix product before them may round a step otherwise than a sequence
        torch.testing.assert_close(torch.stack(membranes[name]), traces[name][0], rtol=1e-12, atol=1e-12)
    membranes.remove_hooks()


@new_release
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_to_functional_forward(step_mode: str) -> None:
    """A node, a chain and any network as pure functions: the module's own memories stay untouched."""
    nets: list[tuple[nn.Module, Tensor]] = [(cls(step_mode=step_mode), inputs()[0]) for cls in OURS[:3]]
    nets.append((own_layer.SpikingFRSSM(5, 8, step_mode=step_mode), inputs()[0]))
    nets.append((own_layer.SpikingPSSM(5, 8, k=3, step_mode=step_mode), inputs()[0]))
    nets.append((branches(step_mode).stem, inputs()[0]))
    nets.append((branches(step_mode), inputs()[0]))
    for net, x in nets:
        net.double().eval()
        if step_mode == "m":
            x = torch.randn(7, *x.shape, dtype=x.dtype) * 2
        forward = base.to_functional_forward(net)
        fresh = tuple(base.extract_memories(net))
        first, states = forward((x,), fresh)
        before = tuple(s.clone() for s in states)
        second, final = forward((x,), states)
        assert tuple(base.extract_memories(net)) == fresh
        for state, kept in zip(states, before, strict=True):
            assert torch.equal(state, kept)
        expected = net(x), net(x)
        assert torch.equal(first[0], expected[0]) and torch.equal(second[0], expected[1])
        for state, kept in zip(final, base.extract_memories(net), strict=True):
            assert torch.equal(state, kept)
        base.load_memories(net, list(states))
        assert torch.equal(net(x), second[0])


@new_release
def test_functional_forward_order() -> None:
    """States come in the order of ``_memories``: v first, as SpikingJelly's own trace code expects."""
    node = neuron.FRIFNode(refractory_period=3)
    assert list(node._memories) == ["v", "refractory"]
    v, refractory = torch.full((2, 3), 0.75), torch.zeros(2, 3, dtype=torch.int32)
    refractory[0] = 2
    (spikes,), (v1, refractory1) = node.single_step_functional_forward(
        (torch.full((2, 3), 0.5),), (v, refractory)
    )
    assert spikes.tolist() == [[0.0] * 3, [1.0] * 3]
    assert v1.tolist() == [[1.25] * 3, [0.0] * 3] and refractory1.tolist() == [[1] * 3, [3] * 3]


class Counting(neuron.FRLIFNode):
    """A user's own neuron with a memory of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_memory("calls", 0)

    def multi_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        outputs, states = super().multi_step_functional_forward(inputs, states, **kwargs)
        return outputs, (*states[:2], states[2] + 1)


def test_a_subclass_may_add_memories() -> None:
    node = Counting(step_mode="m")
    x = torch.randn(4, 2, 3)
    node(x), node(x)
    assert node.calls == 2 and isinstance(node.v, Tensor)
    node.step_mode = "s"
    node(x[0])
    node.reset()
    assert (node.v, node.refractory, node.calls) == (0.0, 0, 0)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "MNISTNet": lambda **kwargs: parametric_lif_net.MNISTNet(4, **kwargs),
    "SpikingResNet": lambda **kwargs: spiking_resnet.SpikingResNet(
        spiking_resnet.BasicBlock, [1, 1, 1, 1], num_classes=3, **kwargs
    ),
    "SEWResNet": lambda **kwargs: sew_resnet.SEWResNet(
        sew_resnet.BasicBlock, [1, 1, 1, 1], num_classes=3, cnf="ADD", **kwargs
    ),
}


@pytest.mark.parametrize(
    ("builder", "cls"),
    [
        ("MNISTNet", neuron.FRIFNode),
        ("MNISTNet", neuron.FRParametricLIFNode),
        ("SpikingResNet", neuron.FRLIFNode),
        ("SEWResNet", neuron.FRIFNode),
    ],
)
def test_model_builders(builder: str, cls: Callable[..., Any]) -> None:
    """Builders make neurons from a class and keyword arguments; the networks train, in both modes alike."""
    net = BUILDERS[builder](
        spiking_neuron=cls, v_threshold=0.4, detach_reset=True, refractory_period=2,
        surrogate_function=theirs.ATan(),
    ).double()  # fmt: skip
    nodes = [m for m in net.modules() if isinstance(m, parents.BaseNode)]
    assert len(nodes) >= 4 and all(type(m) is cls and m.refractory_period == 2 for m in nodes)
    x = torch.randn(4, 2, *((1, 28, 28) if builder == "MNISTNet" else (3, 8, 8)), dtype=torch.float64)
    functional.set_step_mode(net, "m")
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert any(p.grad.any() for p in net.parameters())
    functional.reset_net(net)
    net.eval()
    with torch.no_grad(), monitor_of(net) as spikes:
        whole = net(x)
    assert_some_spikes(torch.cat([s.flatten() for s in spikes.records]))
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    with torch.no_grad():
        assert_close(torch.stack([net(x_t) for x_t in x]), whole)


@contextlib.contextmanager
def monitor_of(net: nn.Module) -> Iterator[Any]:
    spikes = monitor.OutputMonitor(net, parents.BaseNode)
    yield spikes
    spikes.remove_hooks()


@new_release
@pytest.mark.parametrize("cls", OURS[:3])
def test_register_neuron_class(cls: type) -> None:
    """A registered class is built from the data of a serialized config."""
    from spikingjelly.activation_based.distributed.vision import NeuronConfig, register_neuron_class
    from spikingjelly.activation_based.distributed.vision.config import _resolve_neuron_config

    register_neuron_class(cls)
    config = NeuronConfig(
        f"{cls.__module__}.{cls.__qualname__}",
        {"v_threshold": 0.7, "refractory_period": 3, "refractory_input": "ignore"},
        surrogate="spikingjelly.activation_based.surrogate.ATan",
    )
    found, kwargs = _resolve_neuron_config(config)
    node = found(**kwargs)
    assert type(node) is cls and node.refractory_period == 3 and node.v_threshold == 0.7
    assert type(node.surrogate_function) is theirs.ATan


@old_release
def test_set_backend_reaches_our_provider(caplog: pytest.LogCaptureFixture) -> None:
    """Every name of ours is taken, whatever is installed; what cannot serve is refused at the call."""
    net, x = branches(), inputs()
    for backend in ("torch", "auto", "cupy"):
        caplog.clear()
        functional.set_backend(net, backend)
        assert {m.backend for m in net.modules() if hasattr(m, "backend")} == {backend}
        assert "does not supports" not in caplog.text
    with pytest.raises(ValueError, match=r"backend='cupy'.*cpu"):
        net(x)
    with caplog.at_level(logging.WARNING):
        functional.set_backend(net, "lava")
    assert "does not supports for backend=lava" in caplog.text
    functional.set_backend(net, "torch", instance=parents.BaseNode)
    assert [m.backend for m in net.stateful()] == ["torch", "torch", "torch", "cupy"]


@old_release
def test_v_float_to_tensor() -> None:
    """The convention of 0.0.0.0.14 for nodes written by hand around ours."""
    node = neuron.FRIFNode(v_reset=-0.5)
    node.v_float_to_tensor(torch.randn(2, 3, dtype=torch.float16))
    assert torch.equal(node.v.float(), torch.full((2, 3), -0.5))
    assert node(torch.full((2, 3), 1.75, dtype=torch.float16)).all() and node.v.dtype == torch.float32


@pytest.mark.parametrize("cls", OURS)
def test_containers(cls: Callable[..., Any]) -> None:
    """A node inside SpikingJelly's containers: step by step, recurrent, and detached between steps."""

    def make() -> Any:
        return cls(5, 8, threshold=0.2) if cls is own_layer.SpikingFRSSM else cls(v_threshold=0.4)

    x = torch.randn(9, 2, 5, dtype=torch.float64)
    node = make().double()
    outer = layer.MultiStepContainer(node)
    spikes = outer(x)
    assert_some_spikes(spikes)
    functional.reset_net(outer)
    node.step_mode = "m"
    assert torch.equal(node(x), spikes)
    recurrent = layer.LinearRecurrentContainer(make(), 5, 5).double()
    for x_t in x:
        y = recurrent(x_t)
        functional.detach_net(recurrent)
    assert y.shape == (2, 5) and not recurrent.y.requires_grad


@pytest.mark.parametrize("cls", OURS)
def test_replicas_leave_the_original_alone(cls: Callable[..., Any]) -> None:
    """``DataParallel`` replicas share parameters, not states."""
    node = (cls(5, 8) if cls is own_layer.SpikingFRSSM else cls()).eval()
    x = torch.randn(2, 5)
    node(x)
    before = dict(node._memories)
    replica = node._replicate_for_data_parallel()
    for name, parameter in node.named_parameters(recurse=False):
        setattr(replica, name, parameter.detach())
    replica(x * 3)
    assert all(node._memories[name] is value for name, value in before.items())


def test_without_spikingjelly_the_error_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("snn_fr_plugin.integrations.spikingjelly._compat")
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based", None)
    with pytest.raises(ImportError, match=r"pip install 'snn-fr-plugin\[spikingjelly\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


class Compilable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            layer.Linear(5, 7, step_mode="m"),
            neuron.FRLIFNode(step_mode="m", refractory_period=2, surrogate_function=theirs.ATan()),
            layer.Linear(7, 3, step_mode="m"),
            neuron.FRParametricLIFNode(v_reset=None, step_mode="m", store_v_seq=True),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layers(x), self.layers[3].v_seq


def test_compile_fullgraph() -> None:
    """One graph, eager's outputs, states and gradients, and no recompilation at the third call."""
    net = Compilable()
    with torch.no_grad():
        for p in net.layers[0].parameters():
            p.mul_(5)
        net.layers[2].weight.mul_(8)
    eager = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True)
    for call in range(3):
        x = torch.randn(12, 2, 5, requires_grad=True)
        functional.reset_net(net)
        functional.reset_net(eager)
        expected = eager(x)
        assert_some_spikes(expected[0])
        cotangents = random_like(expected)
        with torch.compiler.set_stance("fail_on_recompile" if call == 2 else "default"):
            got = compiled(x)
            got_gradients = gradients(got, cotangents, [x, *net.parameters()])
        assert torch.equal(got[0], expected[0])
        assert_close(got[1], expected[1])
        for index in (1, 3):
            assert_close(net.layers[index].v, eager.layers[index].v)
            assert torch.equal(net.layers[index].refractory, eager.layers[index].refractory)
        wanted = gradients(expected, cotangents, [x, *eager.parameters()])
        for a, b in zip(got_gradients, wanted, strict=True):
            assert a is not None and a.any()
            assert_close(a, b)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_autocast(step_mode: str) -> None:
    """bfloat16 autocast, forward and backward: spikes in bfloat16, the state in float32."""
    net = Branches("m")
    with torch.no_grad():
        net.stem[0].weight.mul_(6)
    functional.set_step_mode(net, step_mode)
    x = inputs().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spikes = net(x) if step_mode == "m" else torch.stack([net(x_t) for x_t in x])
    assert spikes.dtype == torch.bfloat16
    assert_some_spikes(spikes)
    for m in net.stateful()[:3]:
        assert m.v.dtype == torch.float32 and m.refractory.dtype == torch.int32
    assert net.memory.h.dtype == torch.complex64
    (spikes * torch.randn_like(spikes)).sum().backward()
    for p in (net.stem[0].weight, net.right["plif"].w, net.memory.system.memory.C):
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any()
