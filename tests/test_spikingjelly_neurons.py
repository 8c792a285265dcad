"""The fixed-refractory neurons of the SpikingJelly adapter: laws, states, dtypes, layouts, errors."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import base, functional
from spikingjelly.activation_based import surrogate as theirs
from torch import Tensor

from snn_fr_plugin import surrogate as ours
from snn_fr_plugin.integrations.spikingjelly import neuron
from snn_fr_plugin.ops.lif.reference import lif as reference

from .support import assert_close, assert_some_spikes, gradients, graph_size, random_like

FUNCTIONAL = hasattr(base, "to_functional_forward")  # SpikingJelly 2.0
NODES: dict[str, Callable[..., Any]] = {
    "IF": neuron.FRIFNode,
    "LIF": neuron.FRLIFNode,
    "PLIF": neuron.FRParametricLIFNode,
}
kinds = pytest.mark.parametrize("kind", NODES)


def steps(node: Any, x: Tensor) -> Tensor:
    node.step_mode = "s"
    return torch.stack([node(x_t) for x_t in x.unbind(0)])


def sequence(node: Any, x: Tensor) -> Tensor:
    node.step_mode = "m"
    return node(x)


def currents(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * 1.5 + 1.0).to(dtype)


def shortest_interval(spikes: Tensor) -> int:
    """Smallest number of steps between two spikes of one neuron; T where none fires twice."""
    flat = spikes.flatten(1) > 0
    intervals = [len(flat)]
    for fired in flat.unbind(1):
        times = fired.nonzero().flatten()
        intervals.extend((times[1:] - times[:-1]).tolist())
    return min(intervals)


@kinds
def test_equals_the_reference_loop(kind: str) -> None:
    """With R > 0: spikes and membranes to the last bit, gradients of x, w and the state before."""
    for R, v_reset, refractory_input, decay_input, detach_reset in itertools.product(
        (1, 3), (-0.2, None), ("integrate", "ignore"), (True, False), (False, True)
    ):
        kwargs: dict[str, Any] = {} if kind == "IF" else {"decay_input": decay_input}
        node = NODES[kind](
            v_threshold=0.9, v_reset=v_reset, detach_reset=detach_reset, step_mode="m", store_v_seq=True,
            refractory_period=R, refractory_input=refractory_input, **kwargs,
        ).double()  # fmt: skip
        x = currents(31, 2, 3, dtype=torch.float64).requires_grad_()
        v0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        refractory0 = torch.randint(0, R + 1, (2, 3), dtype=torch.int32)
        node.v, node.refractory = v0, refractory0
        spikes = node(x)
        leaves = [x, v0, *node.parameters()]
        if kind == "IF":
            charge: dict[str, Any] = {"beta": 1.0}
        elif kind == "LIF" and not FUNCTIONAL and not decay_input and v_reset is None:
            charge = {"beta": 0.5}  # as that release rounds it
        else:
            tau = 2.0 if kind == "LIF" else node.w.sigmoid().reciprocal()
            charge = {"tau": tau, "decay_input": decay_input}
        expected, membrane, (v, refractory) = reference(
            x, **charge, threshold=0.9, refractory_period=R, reset="subtract" if v_reset is None else "zero",
            v_reset=v_reset or 0.0, refractory_input=refractory_input, detach_reset=detach_reset,
            surrogate=ours.Sigmoid(), state=(v0, refractory0),
        )  # fmt: skip
        assert_some_spikes(expected)
        assert torch.equal(spikes, expected) and torch.equal(node.v_seq, membrane)
        assert torch.equal(node.v, v) and torch.equal(node.refractory, refractory)
        cotangents = random_like([spikes, membrane, v])
        got = gradients([spikes, node.v_seq, node.v], cotangents, leaves)
        wanted = gradients([expected, membrane, v], cotangents, leaves)
        for a, b in zip(got, wanted, strict=True):
            assert_close(a, b, f"{kind} {R} {v_reset} {refractory_input} {decay_input} {detach_reset}")


chunks = st.lists(st.tuples(st.integers(1, 6), st.sampled_from("sm"), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(NODES)),
    period=st.integers(0, 4),
    soft=st.booleans(),
    refractory_input=st.sampled_from(["integrate", "ignore"]),
    foreign=st.booleans(),
    plan=chunks,
    seed=st.integers(0, 2**16),
)
def test_never_fires_inside_its_period(
    kind: str, period: int, soft: bool, refractory_input: str, foreign: bool, plan: Any, seed: int
) -> None:
    """However a sequence is cut into calls of either mode, detached in between; and it equals the whole."""
    torch.manual_seed(seed)
    node = NODES[kind](
        v_reset=None if soft else 0.0, refractory_period=period, refractory_input=refractory_input,
        surrogate_function=theirs.LeakyKReLU() if foreign else None,
    )  # fmt: skip
    x = currents(sum(length for length, _, _ in plan), 2, 3)
    x[0] = 5.0  # all fire at once
    whole = sequence(node, x)
    final = node.v, node.refractory
    node.reset()
    parts = []
    for part, (_, mode, detach) in zip(x.split([length for length, _, _ in plan]), plan, strict=True):
        parts.append((sequence if mode == "m" else steps)(node, part))
        if detach:
            functional.detach_net(node)
    spikes = torch.cat(parts)
    assert spikes[0].all()
    assert shortest_interval(spikes) >= min(period + 1, len(x))
    assert torch.equal(spikes, whole)
    assert torch.equal(node.v, final[0]) and torch.equal(node.refractory, final[1])


@kinds
def test_reset_net_opens_the_gate(kind: str) -> None:
    """And only that: the same first spike again, the state as before the first call."""
    node = NODES[kind](refractory_period=5)
    x = torch.full((2, 3), 4.0)
    assert node(x).all() and not node(x).any()
    functional.reset_net(node)
    assert (node.v, node.refractory) == (0.0, 0)
    assert node(x).all() and not node(x).any()


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@kinds
def test_a_sequence_equals_its_steps(kind: str, dtype: torch.dtype, foreign: bool) -> None:
    """To the last bit, and half input keeps a float32 state."""
    function = theirs.S2NN() if foreign else theirs.ATan()
    node = NODES[kind](refractory_period=2, surrogate_function=function, detach_reset=True)
    x = currents(33, 2, 7, dtype=dtype)
    spikes = sequence(node, x)
    final = node.v, node.refractory
    node.reset()
    assert_some_spikes(spikes)
    assert torch.equal(steps(node, x), spikes)
    assert torch.equal(node.v, final[0]) and torch.equal(node.refractory, final[1])
    assert spikes.dtype == dtype
    assert node.v.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert node.refractory.dtype == torch.int32 and node.refractory.any()


@kinds
def test_half_input_is_its_float32_value(kind: str) -> None:
    """The state is float32, so rounding the input to half is all that half precision costs."""
    for dtype in (torch.float16, torch.bfloat16):
        half, single = (NODES[kind](refractory_period=1, step_mode="m") for _ in range(2))
        x = currents(50, 2, 3, dtype=dtype)
        assert torch.equal(half(x).float(), single(x.float()))
        assert torch.equal(half.v, single.v)


@kinds
def test_graph_does_not_grow_with_time(kind: str) -> None:
    sizes = []
    for length in (3, 60):
        node = NODES[kind](step_mode="m", store_v_seq=True)
        spikes = node(currents(length, 2, 3).requires_grad_())
        sizes.append((graph_size(spikes), graph_size(node.v), graph_size(node.v_seq)))
    assert sizes[0] == sizes[1]


def test_a_callable_surrogate_is_the_fused_one() -> None:
    """The same function by the loop and by the fused step."""
    for v_reset, detach_reset in itertools.product((0.0, None), (False, True)):
        outputs = []
        x = currents(21, 2, 3).requires_grad_()
        for function in (ours.ATan(), lambda d: ours.ATan()(d)):
            node = neuron.FRLIFNode(
                v_reset=v_reset, detach_reset=detach_reset, surrogate_function=function, step_mode="m",
                refractory_period=2, store_v_seq=True,
            )  # fmt: skip
            outputs.append([node(x), node.v_seq, node.v])
        assert_some_spikes(outputs[0][0])
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
        cotangents = random_like(outputs[0])
        got, expected = (gradients(out, cotangents, [x])[0] for out in outputs)
        assert_close(got, expected)


@kinds
def test_state_restarts_with_another_shape(kind: str) -> None:
    node, fresh = (NODES[kind](v_reset=-0.1, refractory_period=3, step_mode="m") for _ in range(2))
    node(currents(9, 2, 3))
    assert node.refractory.any()
    for shape in ((9, 5, 3), (9, 5, 2, 4)):
        x = currents(*shape)
        fresh.reset()
        assert torch.equal(node(x), fresh(x)) and torch.equal(node.v, fresh.v)


@kinds
def test_empty_inputs(kind: str) -> None:
    """No batch, and no steps: the state has its shape, or stays what it was."""
    node = NODES[kind](step_mode="m", store_v_seq=True)
    assert node(torch.zeros(4, 0, 3)).shape == (4, 0, 3) and node.v.shape == (0, 3)
    node.step_mode = "s"
    assert node(torch.zeros(0, 3)).shape == (0, 3)
    node.reset()
    node.step_mode = "m"
    node(currents(5, 2, 3))
    v, refractory = node.v, node.refractory
    assert node(torch.zeros(0, 2, 3)).shape == node.v_seq.shape == (0, 2, 3)
    assert torch.equal(node.v, v) and torch.equal(node.refractory, refractory)


def test_layouts() -> None:
    """Channels last, sliced, offset, transposed, broadcast: the values decide, forward and backward."""
    dense = currents(6, 4, 3, 5, 7)
    layouts = {
        "channels last": dense.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
        "sliced": torch.stack([dense, -dense], -1).flatten(-2)[..., ::2],
        "offset": torch.cat([dense[:1], dense])[1:],
        "time last": dense.movedim(0, -1).contiguous().movedim(-1, 0),
    }
    for kind, mode in itertools.product(NODES, "sm"):
        node = NODES[kind](refractory_period=1)
        run = steps if mode == "s" else sequence
        expected = run(node, dense)
        cotangent = torch.randn_like(expected)
        leaf = dense.clone().requires_grad_()
        node.reset()
        (wanted,) = gradients([run(node, leaf)], [cotangent], [leaf])
        for name, x in layouts.items():
            assert torch.equal(x, dense)
            node.reset()
            leaf = x.detach().requires_grad_()
            spikes = run(node, leaf)
            assert torch.equal(spikes, expected), name
            assert_close(gradients([spikes], [cotangent], [leaf])[0], wanted, name)
        node.reset()
        one = currents(6, 1, 1, 5, 7)
        broadcast = run(node, one.expand(6, 4, 3, 5, 7))
        node.reset()
        assert torch.equal(broadcast, run(node, one).expand_as(broadcast))


@kinds
def test_no_memory_is_changed_in_place(kind: str) -> None:
    """States handed out stay what they were, and none of them is a view, which detach_net refuses."""
    node = NODES[kind](refractory_period=2, store_v_seq=True)
    for run in (steps, sequence, steps):
        x = currents(5, 2, 3).requires_grad_()
        run(node, x)
        v, refractory = node.v, node.refractory
        before = v.clone(), refractory.clone()
        assert v.requires_grad and not v._is_view() and not refractory._is_view()
        run(node, currents(5, 2, 3))
        assert torch.equal(v, before[0]) and torch.equal(refractory, before[1])
        functional.detach_net(node)
        assert not node.v.requires_grad and (node.v_seq is None or not node.v_seq.requires_grad)


@kinds
def test_gradient_flows_through_the_state_until_detached(kind: str) -> None:
    node = NODES[kind](step_mode="m")
    first, second = (currents(4, 2, 3).requires_grad_() for _ in range(2))
    node(first)
    out = node(second)
    grad = gradients([node.v, out], random_like([node.v, out]), [first, second])
    assert grad[0] is not None and grad[0].any() and grad[1] is not None
    node.reset()
    node(first)
    functional.detach_net(node)
    out = node(second)
    assert gradients([node.v, out], random_like([node.v, out]), [first, second])[0] is None


def _by_torch_save(node: Any) -> Any:
    file = io.BytesIO()
    torch.save(node, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda node: pickle.loads(pickle.dumps(node)), _by_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
@kinds
def test_copies_in_the_middle_of_a_sequence(kind: str, copied: Callable[[Any], Any]) -> None:
    """A copy goes on where the original stands, without its graph; the two are independent."""
    x = currents(20, 2, 3)
    node = NODES[kind](refractory_period=3, step_mode="m", store_v_seq=True, surrogate_function=ours.Erf(1.5))
    node(x[:9].requires_grad_())
    assert node.v.requires_grad
    twin = copied(node)
    assert not twin.v.requires_grad and twin.surrogate_function == ours.Erf(1.5)
    assert twin.v.data_ptr() != node.v.data_ptr()
    assert torch.equal(twin(x[9:]), node(x[9:]))
    assert torch.equal(twin.refractory, node.refractory)
    node.reset()
    assert isinstance(twin.v, Tensor)
    assert node.v.requires_grad if isinstance(node.v, Tensor) else node.v == 0.0


def test_dtype_and_device_of_the_state() -> None:
    """A conversion of the module moves its state but leaves its dtype; the input decides that."""
    node = neuron.FRParametricLIFNode(refractory_period=2, step_mode="m")
    x = currents(7, 2, 3)
    node(x)
    v, refractory = node.v.detach().clone(), node.refractory.clone()
    assert refractory.any()
    for convert in (node.half, node.bfloat16, node.double, lambda: node.to(torch.float16), node.float):
        convert()
        assert torch.equal(node.v, v) and node.v.dtype == torch.float32
        assert torch.equal(node.refractory, refractory) and node.refractory.dtype == torch.int32
    node.half()
    assert node.w.dtype == torch.float16
    assert node(x.half()).dtype == torch.float16 and node.v.dtype == torch.float32
    node(x.double())
    assert node.v.dtype == torch.float64 and node.refractory.dtype == torch.int32
    node.to("meta")
    assert node.v.device.type == node.refractory.device.type == node.w.device.type == "meta"


@kinds
def test_shows_its_period_and_needs_no_arguments(kind: str) -> None:
    node = NODES[kind]()
    text = repr(node)
    for part in ("refractory_period=1", "refractory_input=integrate", "v_threshold=1.0", "step_mode=s"):
        assert part in text
    assert ("tau=2.0" in text) == (kind != "IF")
    assert list(node.state_dict()) == (["w"] if kind == "PLIF" else [])
    assert node(torch.full((2, 3), 4.0)).all()


def test_arguments_may_be_numbers_of_any_kind() -> None:
    """SpikingJelly asserts floats; ints and 0-dim tensors are numbers too."""
    node = neuron.FRLIFNode(3, True, 1, torch.tensor(0.5))
    assert (node.tau, node.v_threshold, node.v_reset) == (3.0, 1.0, 0.5)
    assert all(type(v) is float for v in (node.tau, node.v_threshold, node.v_reset, node.v))
    assert neuron.FRParametricLIFNode(init_tau=5).w.dtype == torch.float32


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"refractory_period": -1}, ValueError, "refractory_period must be an int >= 0.*got -1"),
    ({"refractory_period": 1.0}, TypeError, "refractory_period must be an int.*got 1.0"),
    ({"refractory_period": True}, TypeError, "refractory_period must be an int.*got True"),
    ({"refractory_input": "drop"}, ValueError, "'integrate' or 'ignore', got 'drop'"),
    ({"backend": "triton"}, ValueError, "backend must be 'auto'.*got 'triton'"),
    ({"v_threshold": "1"}, TypeError, "v_threshold must be a float, got '1' of type str"),
    ({"v_threshold": None}, TypeError, "v_threshold must be a float, got None"),
    ({"v_threshold": torch.ones(3)}, TypeError, "v_threshold must be a float, got tensor"),
    ({"v_threshold": torch.tensor(1.0, requires_grad=True)}, TypeError, "v_threshold.*requires grad"),
    ({"v_reset": True}, TypeError, "v_reset must be a float, got True of type bool"),
    ({"detach_reset": 1}, TypeError, "detach_reset must be a bool, got 1"),
    ({"store_v_seq": None}, TypeError, "store_v_seq must be a bool, got None"),
    ({"step_mode": "x"}, ValueError, "step_mode can only be .*got \"x\""),
    ({"surrogate_function": 3}, TypeError, "surrogate_function must be callable, got int"),
    ({"tau": 1.0}, ValueError, "tau must be > 1, got 1.0"),
    ({"tau": float("nan")}, ValueError, "tau must be > 1, got nan"),
    ({"tau": "2"}, TypeError, "tau must be a float, got '2'"),
    ({"decay_input": 0}, TypeError, "decay_input must be a bool, got 0"),
]  # fmt: skip


@kinds
def test_wrong_arguments(kind: str) -> None:
    for kwargs, error, message in WRONG:
        if kind == "IF" and not kwargs.keys().isdisjoint({"tau", "decay_input"}):
            continue
        if kind == "PLIF":
            kwargs = {("init_tau" if name == "tau" else name): value for name, value in kwargs.items()}
        with pytest.raises(error, match=message):
            NODES[kind](**kwargs)


@kinds
def test_wrong_inputs_leave_the_state_alone(kind: str) -> None:
    node = NODES[kind](refractory_period=2, step_mode="m")
    node(currents(5, 2, 3))
    before = dict(node._memories)
    wrong: list[tuple[str, Any, type[Exception], str]] = [
        ("m", torch.zeros(4), ValueError, r"x must have shape \[T, N, \*\], got \(4,\)"),
        ("s", torch.zeros(()), ValueError, r"x must have shape \[N, \*\] in a single step, got \(\)"),
        ("m", torch.zeros(5, 2, 3, dtype=torch.int64), TypeError, "x must be float32.*got torch.int64"),
        ("s", torch.zeros(2, 3, dtype=torch.complex64), TypeError, "x must be float32.*got torch.complex64"),
        ("m", [[1.0]], TypeError, "x must be a torch.Tensor, got list"),
    ]
    for mode, x, error, message in wrong:
        node.step_mode = mode
        with pytest.raises(error, match=message):
            node(x)
    node.step_mode = "m"
    node.v_threshold = torch.ones(4)
    with pytest.raises(ValueError, match=r"threshold must broadcast to the neurons' shape \(2, 3\), got .*4"):
        node(currents(5, 2, 3))
    node.v_threshold = 1.0
    node.backend = "cupy"
    with pytest.raises(ValueError, match=r"backend='cupy'.*cpu"):
        node(currents(5, 2, 3))
    node.surrogate_function, node.detach_reset = theirs.S2NN(), True
    with pytest.raises(ValueError, match=r"backend='cupy'.*cpu"):
        node(currents(5, 2, 3))
    assert all(node._memories[name] is value for name, value in before.items())
    for name, value in (("v", "rest"), ("v", None), ("refractory", True)):
        node.reset()
        setattr(node, name, value)
        with pytest.raises(
            TypeError, match=f"{name} must be a float or a torch.Tensor, got {type(value).__name__}"
        ):
            node(currents(5, 2, 3))


def test_wrong_backend_is_refused_when_set() -> None:
    node = neuron.FRIFNode(backend="torch")
    with pytest.raises(ValueError, match="backend must be 'auto', 'torch', 'cpp' or 'cupy', got 'lava'"):
        node.backend = "lava"
    assert node.backend == "torch" and node.supported_backends == ("auto", "torch", "cpp", "cupy")
