"""With R = 0 the SpikingJelly neurons are SpikingJelly's own, on whichever release is installed."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import base, functional
from spikingjelly.activation_based import neuron as parents
from spikingjelly.activation_based import surrogate as theirs
from torch import Tensor, nn

from snn_fr_plugin import surrogate as ours
from snn_fr_plugin.integrations.spikingjelly import neuron

from .support import assert_close, assert_some_spikes, gradients, random_like

FUNCTIONAL = hasattr(base, "to_functional_forward")  # SpikingJelly 2.0
PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "IF": (neuron.FRIFNode, parents.IFNode),
    "LIF": (neuron.FRLIFNode, parents.LIFNode),
    "PLIF": (neuron.FRParametricLIFNode, parents.ParametricLIFNode),
}
# (v_threshold, v_reset): hard to the default, to another value, to a positive one; soft
RESETS = [(1.0, 0.0), (0.7, -0.3), (0.9, 0.25), (1.0, None), (0.6, None)]


def charges(kind: str) -> list[dict[str, Any]]:
    if kind == "IF":
        return [{}]
    tau = "tau" if kind == "LIF" else "init_tau"
    return [{tau: t, "decay_input": d} for t, d in itertools.product((2.0, 3.7, 20.0), (True, False))]


def make(kind: str, **kwargs: Any) -> tuple[Any, Any]:
    """Ours with R = 0, and the parent."""
    own, parent = PAIRS[kind]
    return own(refractory_period=0, **kwargs), parent(**kwargs)


def drive(kind: str, kwargs: dict[str, Any], dtype: torch.dtype, steps: int = 33) -> Tensor:
    """Input that makes the neuron fire now and then; a divided input needs to be larger."""
    tau = kwargs.get("tau", kwargs.get("init_tau", 1.0))
    scale = tau if kwargs.get("decay_input", False) else 1.0
    return ((torch.randn(steps, 3, 7, dtype=dtype) + 0.5) * scale).requires_grad_()


def run(node: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and membranes of a sequence, by the node's step mode."""
    if node.step_mode == "m":
        spikes = node(x)
        return spikes, node.v_seq
    spikes, membranes = [], []
    for x_t in x.unbind(0):
        spikes.append(node(x_t))
        membranes.append(node.v)
    return torch.stack(spikes), torch.stack(membranes)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["IF", "LIF"])
def test_spikes_and_membranes_are_the_parents(
    kind: str, dtype: torch.dtype, step_mode: str, training: bool
) -> None:
    """Bit for bit, over two sequences in a row, for hard and soft resets and both charges."""
    for charge, (v_threshold, v_reset) in itertools.product(charges(kind), RESETS):
        kwargs = {**charge, "v_threshold": v_threshold, "v_reset": v_reset, "step_mode": step_mode}
        own, parent = (node.train(training) for node in make(kind, store_v_seq=True, **kwargs))
        for _ in range(2):
            x = drive(kind, charge, dtype)
            with torch.no_grad():
                (spikes, membrane), (expected, expected_membrane) = run(own, x), run(parent, x)
            assert_some_spikes(expected)
            assert torch.equal(spikes, expected), kwargs
            assert torch.equal(membrane, expected_membrane), kwargs
            assert torch.equal(own.v, parent.v), kwargs
            assert spikes.dtype == own.v.dtype == dtype
            assert own.refractory.dtype == torch.int32 and not own.refractory.any()


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("kind", ["IF", "LIF"])
def test_gradients_are_the_parents(kind: str, step_mode: str, detach_reset: bool) -> None:
    """Of spikes, membranes and the final membrane, through two sequences without a reset in between."""
    for charge, (v_threshold, v_reset) in itertools.product(charges(kind)[:2], RESETS):
        kwargs = {**charge, "v_threshold": v_threshold, "v_reset": v_reset, "detach_reset": detach_reset}
        own, parent = make(kind, step_mode=step_mode, store_v_seq=True, **kwargs)
        chunks = [drive(kind, charge, torch.float32, 9) for _ in range(2)]
        outputs = [[t for x in chunks for t in run(node, x)] + [node.v] for node in (own, parent)]
        cotangents = random_like(outputs[0])
        got, expected = (gradients(out, cotangents, chunks) for out in outputs)
        for a, b in zip(got, expected, strict=True):
            assert b is not None and b.any()
            assert_close(a, b, str(kwargs))


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parametric_node_is_the_parent_up_to_rounding(dtype: torch.dtype, step_mode: str) -> None:
    """Spikes, membranes, and the gradients of x and of the one parameter ``w``.

    In float32 with tau = 2, where 1 / tau does not round: elsewhere a spike could fall either way.
    """
    exact = [c for c in charges("PLIF") if dtype == torch.float64 or c["init_tau"] == 2.0]
    for charge, (v_threshold, v_reset) in itertools.product(exact, RESETS):
        kwargs = {**charge, "v_threshold": v_threshold, "v_reset": v_reset, "step_mode": step_mode}
        own, parent = (node.to(dtype) for node in make("PLIF", store_v_seq=True, **kwargs))
        x = drive("PLIF", charge, dtype)
        (spikes, membrane), (expected, expected_membrane) = run(own, x), run(parent, x)
        assert_some_spikes(expected)
        assert torch.equal(spikes, expected), kwargs
        assert_close(membrane, expected_membrane, str(kwargs))
        cotangents = random_like([spikes, membrane])
        got = gradients([spikes, membrane], cotangents, [x, own.w])
        wanted = gradients([expected, expected_membrane], cotangents, [x, parent.w])
        for a, b in zip(got, wanted, strict=True):
            assert b is not None and b.any()
            assert_close(a, b, str(kwargs))


def test_parametric_node_with_float64_input_keeps_float64() -> None:
    """A float32 ``w`` is a float64 number like any other, as in the parent."""
    own, parent = make("PLIF", init_tau=3.3, step_mode="m")
    x = drive("PLIF", {"init_tau": 3.3, "decay_input": True}, torch.float64)
    assert own.w.dtype == torch.float32
    assert torch.equal(own(x), parent(x))
    torch.testing.assert_close(own.v, parent.v, rtol=1e-12, atol=1e-12)


SURROGATES: dict[str, Callable[[], Any]] = {
    name: getattr(theirs, name)
    for name in (
        "Sigmoid", "ATan", "SoftSign", "SuperSpike", "Erf", "PiecewiseQuadratic", "PiecewiseExp", "Rect",
        "LeakyKReLU", "S2NN", "QPseudoSpike", "LogTailedReLU", "DeterministicPass",
    )
    if hasattr(theirs, name)
}  # fmt: skip
SURROGATES |= {
    "Sigmoid(2.5)": lambda: theirs.Sigmoid(alpha=2.5),
    "ATan(3)": lambda: theirs.ATan(alpha=3),
    "Sigmoid(spiking=False)": lambda: theirs.Sigmoid(spiking=False),
    "ATan(spiking=False)": lambda: theirs.ATan(spiking=False),
}
if hasattr(theirs, "MultiLevelSpikeCount"):
    SURROGATES["MultiLevelSpikeCount"] = lambda: theirs.MultiLevelSpikeCount(3)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_the_parents(name: str) -> None:
    """SpikingJelly's surrogates, fused or not, spiking or not: spikes, membranes, gradients."""
    exact = torch.equal if "spiking=False" not in name else torch.allclose
    for (v_threshold, v_reset), detach_reset, step_mode in itertools.product(
        [(0.8, -0.1), (0.8, None)], (False, True), "sm"
    ):
        own, parent = make(
            "LIF", v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset, step_mode=step_mode,
            surrogate_function=SURROGATES[name](), store_v_seq=True,
        )  # fmt: skip
        x = drive("LIF", {"tau": 2.0, "decay_input": True}, torch.float32, 15)
        outputs = [run(node, x) for node in (own, parent)]
        for a, b in zip(*outputs, strict=True):
            assert exact(a, b)
        cotangents = random_like(outputs[0])
        got, expected = (gradients(out, cotangents, [x])[0] for out in outputs)
        assert expected is not None and expected.any()
        assert_close(got, expected)


def test_which_surrogates_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly the known ones: a subclass, a learnable alpha and spiking=False keep their own forward."""

    class Steeper(theirs.Sigmoid):
        pass

    learnable = theirs.Sigmoid(alpha=nn.Parameter(torch.tensor(4.0)))
    kinds: dict[str, Any] = {}
    from snn_fr_plugin.integrations.spikingjelly import _base

    def spy(x: Tensor, **kwargs: Any) -> Any:
        kinds["surrogate"] = kwargs["surrogate"]
        return lif(x, **kwargs)

    lif = _base.lif
    monkeypatch.setattr(_base, "lif", spy)
    for function, expected in (
        (theirs.Sigmoid(alpha=3.0), ours.Sigmoid(3.0)),
        (theirs.ATan(), ours.ATan(2.0)),
        (None, ours.Sigmoid(4.0)),
        (ours.Triangle(), ours.Triangle()),
    ):
        neuron.FRIFNode(surrogate_function=function)(torch.ones(2, 3))
        assert kinds["surrogate"] == expected
    for kept in (Steeper(), learnable, theirs.Sigmoid(spiking=False), theirs.S2NN(), torch.sigmoid):
        neuron.FRIFNode(surrogate_function=kept)(torch.ones(2, 3))
        assert kinds["surrogate"] is kept


def test_spiking_mode_may_change_between_calls() -> None:
    function = theirs.Sigmoid()
    node = neuron.FRIFNode(surrogate_function=function, refractory_period=0)
    x = torch.full((2, 3), 0.4)
    assert not node(x).any()
    function.set_spiking_mode(False)
    node.reset()
    torch.testing.assert_close(node(x), torch.sigmoid(4 * (x - 1)))


@pytest.mark.parametrize("kind", PAIRS)
def test_constructor_takes_the_parents_positional_arguments(kind: str) -> None:
    """In the order of the installed release; what is ours is keyword-only."""
    own_class, parent_class = PAIRS[kind]
    chosen = {
        "tau": 3.0, "init_tau": 3.0, "decay_input": False, "v_threshold": 0.75, "v_reset": None,
        "surrogate_function": theirs.ATan(), "detach_reset": True, "step_mode": "m", "backend": "torch",
        "store_v_seq": True,
    }  # fmt: skip
    names = list(inspect.signature(parent_class).parameters)
    assert set(names) <= set(chosen), "the parent has an argument that this test does not know"
    positional = [chosen[name] for name in names]
    for node in (own_class(*positional), own_class(**{name: chosen[name] for name in names})):
        parent = parent_class(*positional)
        for name in set(names) - {"init_tau"}:
            assert getattr(node, name) == getattr(parent, name), name
        if kind == "PLIF":
            assert torch.equal(node.w, parent.w)
    with pytest.raises(TypeError, match="by position"):
        own_class(*positional, 1)
    with pytest.raises(TypeError, match="multiple values"):
        own_class(*positional, store_v_seq=True)
    keyword_only = {
        p.name for p in inspect.signature(own_class).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    assert {"refractory_period", "refractory_input", "backend"} <= keyword_only


@pytest.mark.parametrize("kind", PAIRS)
def test_defaults_and_state_dict_are_the_parents(kind: str) -> None:
    own, parent = PAIRS[kind][0](), PAIRS[kind][1]()
    for name, parameter in inspect.signature(PAIRS[kind][1]).parameters.items():
        if name not in ("surrogate_function", "init_tau", "backend"):
            assert getattr(own, name) == getattr(parent, name) == parameter.default
    assert type(own.surrogate_function) is theirs.Sigmoid and own.surrogate_function.alpha == 4.0
    assert own.surrogate_function is not PAIRS[kind][0]().surrogate_function, "shared between nodes"
    assert own.refractory_period == 1 and own.refractory_input == "integrate" and own.backend == "auto"
    assert list(own.state_dict()) == list(parent.state_dict())
    own.load_state_dict(parent.state_dict())
    assert isinstance(own, parents.BaseNode)
    assert not isinstance(own, (parents.IFNode, parents.LIFNode, parents.ParametricLIFNode))


def test_reset_restarts_where_the_parent_does() -> None:
    for v_reset in (0.0, -0.4, None):
        own, parent = make("LIF", v_reset=v_reset, step_mode="m")
        assert own.v == parent.v
        own(torch.randn(5, 2, 3)), parent(torch.randn(5, 2, 3))
        functional.reset_net(own), functional.reset_net(parent)
        assert own.v == parent.v == (0.0 if v_reset is None else v_reset)
        x = torch.randn(7, 4, 3) * 3
        assert torch.equal(own(x), parent(x)) and torch.equal(own.v, parent.v)


@pytest.mark.skipif(not FUNCTIONAL, reason="0.0.0.0.14 does not restart on a change of shape")
def test_change_of_shape_restarts_as_in_the_parent() -> None:
    own, parent = make("IF", v_reset=-0.5, step_mode="m")
    for shape in ((5, 2, 3), (5, 4, 3), (6, 4, 3, 2)):
        x = torch.randn(shape) + 0.5
        assert torch.equal(own(x), parent(x)) and torch.equal(own.v, parent.v)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_v_seq_is_kept_as_in_the_parent(step_mode: str) -> None:
    own, parent = make("LIF", step_mode=step_mode)
    x = torch.randn(5, 2, 3) * 3
    for node in (own, parent):
        functional.multi_step_forward(x, node) if step_mode == "s" else node(x)
        node.store_v_seq = True
    for _ in range(2):
        run(own, x), run(parent, x)
        got, expected = own.v_seq, parent.v_seq
        assert (got is None) == (expected is None)
        if expected is not None:
            assert torch.equal(got, expected)
    own.reset(), parent.reset()
    assert own.v_seq is None and parent.v_seq is None


def test_threshold_may_become_a_tensor() -> None:
    """As ``set_threshold_margin`` of 0.0.0.0.14 makes it: every neuron as the parent with that threshold."""
    own, _ = make("IF", step_mode="s")
    own.v_threshold = threshold = torch.rand(7) + 0.5
    x = torch.randn(11, 3, 7) + 0.4
    spikes, membrane = run(own, x)
    assert_some_spikes(spikes)
    for i, value in enumerate(threshold.tolist()):
        expected, expected_membrane = run(make("IF", v_threshold=value, step_mode="s")[1], x[..., i])
        assert torch.equal(spikes[..., i], expected) and torch.equal(membrane[..., i], expected_membrane)
