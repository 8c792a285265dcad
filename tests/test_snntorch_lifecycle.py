"""FR neurons in a network's life: snnTorch's utilities, copies, files, replicas, ``torch.compile``."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import backprop, utils
from snntorch import functional as SF
from torch import Tensor, nn

from snn_fr_plugin.integrations import snntorch as fr

from .support import assert_close, assert_some_spikes
from .test_snntorch_neurons import B, C, R, assert_refractory, drive, every_type, make, run

# Copies.


def through_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def through_file(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_type
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, through_pickle, through_file])
def test_a_copy_goes_on_in_the_middle_of_a_sequence(name: str, duplicate: Callable[[Any], Any]) -> None:
    x = drive()
    expected, _ = run(make(name), x)
    assert_refractory(expected)
    for init_hidden in (False, True):
        neuron = make(name, init_hidden=init_hidden, learn_threshold=True)
        first, state = run(neuron, x[:9])
        assert first.requires_grad
        twin = duplicate(neuron)
        for one in (twin, neuron):
            state_of_one = tuple(getattr(one, n) for n in one._states) if one is twin and state else state
            rest, _ = run(one, x[9:], state_of_one)
            assert torch.equal(torch.cat([first, rest]), expected)


@every_type
def test_a_deep_copy_knows_the_membranes_of_the_original(name: str) -> None:
    neuron, x = make(name), drive()
    first, state = run(neuron, x[:9])
    rest, _ = run(copy.deepcopy(neuron), x[9:], state)
    assert torch.equal(torch.cat([first, rest]), run(make(name), x)[0])


def test_a_network_and_its_membrane_saved_together_go_on() -> None:
    neuron, x = make("FRLeaky"), drive()
    first, state = run(neuron, x[:9])
    neuron, state = through_file((neuron, tuple(s.detach() for s in state)))
    rest, _ = run(neuron, x[9:], state)
    assert torch.equal(torch.cat([first, rest]), run(make("FRLeaky"), x)[0])


@every_type
def test_a_copy_drives_itself_and_not_the_original(name: str) -> None:
    x = drive()
    for duplicate in (copy.deepcopy, through_pickle, lambda n: n._replicate_for_data_parallel()):
        neuron = make(name, init_hidden=True)
        run(neuron, x[:5])
        before = [getattr(neuron, n) for n in neuron._states]
        twin = duplicate(neuron)
        assert twin.state_function.__self__ is twin
        run(twin, x[5:9])
        assert all(getattr(neuron, n) is value for n, value in zip(neuron._states, before, strict=True))
        rest, _ = run(neuron, x[5:])
        assert torch.equal(rest, run(make(name), x)[0][5:])


def test_a_replica_for_data_parallel_has_its_own_part_of_the_batch() -> None:
    neuron, x = make("FRLeaky"), drive()
    whole, _ = run(make("FRLeaky"), x)
    for part in (slice(0, 2), slice(2, 4)):
        replica = neuron._replicate_for_data_parallel()
        for name, value in neuron.named_parameters():  # what torch.nn.parallel.replicate does
            setattr(replica, name, value.detach().clone())
        assert torch.equal(run(replica, x[:, part])[0], whole[:, part])
        assert replica._counters is not neuron._counters
    assert not neuron.mem.numel()


@every_type
def test_conversion_keeps_the_counter_of_the_hidden_state(name: str) -> None:
    strong = torch.full((B, C), 3.0)
    neuron = make(name, init_hidden=True)
    spk = neuron(strong)
    spk = spk if spk.any() else neuron(strong)
    assert spk.all()
    neuron = neuron.double().half().to(torch.float32)
    assert not any(neuron(strong).any() for _ in range(R))


# snnTorch's registry and utilities.


@every_type
def test_snntorch_does_not_keep_a_neuron_alive(name: str) -> None:
    neuron = make(name, init_hidden=True)
    neuron(drive(B, C))
    alive = weakref.ref(neuron)
    del neuron
    gc.collect()
    assert alive() is None
    survivor = make(name, init_hidden=True)
    survivor(torch.full((B, C), 3.0))
    type(survivor).reset_hidden()
    type(survivor).detach_hidden()
    assert not survivor.mem.any()


def test_a_neuron_that_dies_during_a_walk_does_not_break_it() -> None:
    doomed: list[nn.Module] = []

    class Killer(fr.FRLeaky):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "mem":
                doomed.clear()

    killer = Killer(0.9, init_hidden=True)  # the walk meets it first
    doomed += [make("FRLeaky", init_hidden=True) for _ in range(3)]
    survivor = make("FRLeaky", init_hidden=True)
    survivor(torch.ones(B, C))
    assert len(doomed) == 3
    snn.Leaky.reset_hidden()
    assert not doomed
    assert not survivor.mem.any()
    assert not killer.mem.numel()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_file])
def test_snntorch_resets_copies_too(duplicate: Callable[[Any], Any]) -> None:
    neuron = make("FRLeaky", init_hidden=True)
    neuron(torch.ones(B, C))
    twin = duplicate(neuron)
    assert twin.mem.any()
    utils.reset(nn.Sequential(twin))
    assert not twin.mem.any()


def test_the_registry_does_not_grow_with_the_dead() -> None:
    make("FRLeaky")
    gc.collect()
    size = len(snn.SpikingNeuron.instances)
    for _ in range(50):
        make("FRLeaky")
    assert len(snn.SpikingNeuron.instances) <= size + 1


class Classic(nn.Module):
    """The two-layer network of snnTorch's tutorials."""

    def __init__(self, neuron: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(C, 8)
        self.lif1 = neuron(init_hidden=True)
        self.fc2 = nn.Linear(8, 3)
        self.lif2 = neuron(init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Any:
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


# parent, FR type, arguments; RSynaptic's detach_hidden forgets its spikes, so TBPTT cannot run it
PAIRS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "leaky": (snn.Leaky, fr.FRLeaky, {"beta": 0.9}),
    "synaptic": (snn.Synaptic, fr.FRSynaptic, {"alpha": 0.7, "beta": 0.9}),
    "lapicque": (snn.Lapicque, fr.FRLapicque, {"beta": 0.6}),
    "alpha": (snn.Alpha, fr.FRAlpha, {"alpha": 0.9, "beta": 0.7, "reset_mechanism": "none"}),
    "rleaky": (snn.RLeaky, fr.FRRLeaky, {"beta": 0.9, "V": 0.4, "all_to_all": False}),
}


@pytest.mark.parametrize("K", [None, 3])
@pytest.mark.parametrize(("parent", "ours", "arguments"), PAIRS.values(), ids=PAIRS)
def test_backprop_trains_as_it_does_the_parent(
    parent: Any, ours: Any, arguments: dict[str, Any], K: int | None
) -> None:
    def train(cls: Any, **options: Any) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(1)
        net = Classic(lambda **k: cls(**arguments, threshold=0.2, **k, **options))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        targets = torch.tensor([0, 1, 2, 0])
        if K is None:
            data = [(drive(6, B, C), targets) for _ in range(2)]
            loss = backprop.BPTT(net, data, optimizer, SF.ce_rate_loss())
        else:
            data = [(drive(B, C), targets) for _ in range(2)]
            loss = backprop.TBPTT(net, data, optimizer, SF.ce_rate_loss(), num_steps=6, time_var=False, K=K)
        return loss, [p.detach().clone() for p in net.parameters()]

    loss, parameters = train(parent)
    our_loss, our_parameters = train(ours, refractory_period=0)
    assert_close(our_loss, loss)
    for a, b in zip(our_parameters, parameters, strict=True):
        assert_close(a, b)
    refractory_loss, _ = train(ours, refractory_period=2)
    assert torch.isfinite(refractory_loss)
    assert refractory_loss != loss


@pytest.mark.parametrize(("parent", "ours", "arguments"), PAIRS.values(), ids=PAIRS)
def test_utils_reset_and_the_final_layer(parent: Any, ours: Any, arguments: dict[str, Any]) -> None:
    def build(cls: Any, **options: Any) -> Classic:
        return Classic(lambda **k: cls(**arguments, threshold=0.2, **k, **options))

    net = build(ours, refractory_period=2)
    assert utils._final_layer_check(net) == utils._final_layer_check(build(parent))
    x = drive(6, B, C)
    first = torch.stack([net(x_t)[0] for x_t in x])
    utils.reset(net)
    assert not net.lif1.mem.any() and not net.lif2.mem.any()
    assert torch.equal(torch.stack([net(x_t)[0] for x_t in x]), first)
    assert_some_spikes(first)


class Nested(nn.Module):
    """Neurons that ``snntorch.utils.reset`` cannot see, in a network that resets itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Sequential(nn.Linear(C, C), make(n, init_hidden=True)) for n in NAMES])
        self.body.append(nn.Sequential(snn.Leaky(0.9, 0.3, init_hidden=True)))
        self.head = nn.Sequential(snn.RSynaptic(0.5, 0.9, 0.3, False, threshold=0.3, init_hidden=True))

    def reset_mem(self) -> None:
        fr.reset(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(sum(layer(x) for layer in self.body))


NAMES = ["FRLeaky", "FRSynaptic", "FRAlpha", "FRRLeaky", "FRRSynaptic"]


def test_reset_and_detach_reach_nested_and_copied_neurons() -> None:
    x = drive(6, B, C)
    original = Nested()
    for net in (original, copy.deepcopy(original)):
        other = make("FRLeaky", init_hidden=True)
        other(torch.ones(B, C))
        first = torch.stack([net(x_t) for x_t in x])
        assert_some_spikes(first)
        states = [b for n, b in net.named_buffers() if n.split(".")[-1] in ("mem", "spk", "syn")]
        assert any(s.requires_grad for s in states)
        fr.detach(net)
        assert not any(s.requires_grad for s in states)
        net.reset_mem()
        for name, buffer in net.named_buffers():
            if name.split(".")[-1] in ("mem", "spk", "syn", "syn_exc", "syn_inh"):
                assert not buffer.any(), name
        assert torch.equal(torch.stack([net(x_t) for x_t in x]), first)
        assert other.mem.any()


def test_without_snntorch_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['snntorch'] = None; import snn_fr_plugin.integrations.snntorch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "ImportError: snn_fr_plugin.integrations.snntorch needs snnTorch: pip install" in done.stderr


# torch.compile.

# Dynamo itself reads .grad of a hidden state with a history
compiles_hidden_state = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)


class Layers(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(C, 7), nn.Linear(7, 3)
        self.lif1 = fr.FRLeaky(0.9, 0.3, learn_beta=True, refractory_period=2, **options)
        self.lif2 = fr.FRLeaky(0.8, 0.2, learn_threshold=True, reset_mechanism="zero", **options)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        out = self.lif1(self.fc1(x))
        return self.lif2(self.fc2(out[0] if isinstance(out, tuple) else out))


def assert_compiles(backend: str, call: Callable[[Any, Any], Tensor], **options: Any) -> None:
    """Outputs and gradients of three calls as in eager, the third without recompiling."""
    torch._dynamo.reset()
    eager = Layers(**options)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    try:
        for i in range(3):
            if i == 2:
                torch.compiler.set_stance("fail_on_recompile")
            got, expected = call(compiled, twin), call(eager, eager)
            assert_some_spikes(expected)
            assert torch.equal(got, expected)
            cotangent = torch.randn_like(expected)
            for a, b in zip(twin.parameters(), eager.parameters(), strict=True):
                a.grad = b.grad = None
            (got * cotangent).sum().backward()
            (expected * cotangent).sum().backward()
            for a, b in zip(twin.parameters(), eager.parameters(), strict=True):
                assert_close(a.grad, b.grad)
    finally:
        torch.compiler.set_stance("default")
        torch._dynamo.reset()


def test_compile_sequences() -> None:
    x = drive(9, B, C)
    assert_compiles("inductor", lambda net, _: net(x)[0], multistep=True)


@compiles_hidden_state
def test_compile_steps() -> None:
    x = drive(9, B, C)

    def call(net: Any, owner: nn.Module) -> Tensor:
        fr.reset(owner)
        return torch.stack([net(x_t) for x_t in x])

    assert_compiles("aot_eager", call, init_hidden=True)


@compiles_hidden_state
def test_compiled_and_eager_steps_share_their_counters() -> None:
    torch._dynamo.reset()
    x = drive()
    expected, _ = run(make("FRLeaky"), x)
    for init_hidden in (False, True):
        neuron = make("FRLeaky", init_hidden=init_hidden)
        compiled = torch.compile(neuron, fullgraph=True, backend="eager")
        state: tuple[Tensor, ...] = () if init_hidden else (torch.zeros(B, C),)
        spikes = []
        for i, x_t in enumerate(x.unbind(0)):
            out = (compiled if i % 4 in (1, 2) else neuron)(x_t, *state)
            spikes.append(out if init_hidden else out[0])
            state = () if init_hidden else out[1:]
        assert torch.equal(torch.stack(spikes), expected)
    torch._dynamo.reset()
