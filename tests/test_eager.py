"""The way past the dispatcher: the same numbers as by the operators, and never where one is watched."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from snn_fr_plugin.ops import _eager, diagonal_ssm, fixed_refractory, lif

from .support import PROVIDERS, PROVIDERS_AND_CUDA, gradients, random_like

H = 3
Outputs = tuple[Tensor | None, ...]
Run = Callable[..., Outputs]


def _lif(**mode: Any) -> Run:
    def run(
        x: Tensor, beta: Any = 0.8, threshold: Any = 0.5, magnitude: Any = None, v: Tensor | None = None
    ) -> Outputs:
        state = None if v is None else (v, torch.ones_like(v, dtype=torch.int32))
        spikes, membrane, final = lif(
            x, beta, threshold, **{"refractory_period": 1, **mode}, reset_magnitude=magnitude, state=state
        )
        return spikes, membrane, *final

    return run


def _fixed_refractory(**mode: Any) -> Run:
    return lambda x, threshold=0.5: fixed_refractory(x, threshold, **{"period": 2, **mode})


def _diagonal_ssm(
    x: Tensor,
    A_bar: Tensor | None = None,
    C_bar: Tensor | None = None,
    D: Tensor | None = None,
    state: Tensor | None = None,
) -> Outputs:
    matrix = torch.full((H, 2), 0.5 + 0.3j)
    A_bar, C_bar = (matrix if given is None else given for given in (A_bar, C_bar))
    return diagonal_ssm(x, A_bar, C_bar, D, state=state)


def _complex(*shape: int) -> Tensor:
    return 0.4 * torch.randn(*shape, dtype=torch.complex64)


# by operator: what may learn beside x, and calls by what is particular about them
PARAMETERS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "lif": lambda: (torch.rand(H), torch.rand(()), torch.rand(H), torch.randn(2, H)),
    "fixed_refractory": lambda: (torch.rand(H),),
    "diagonal_ssm": lambda: (_complex(H, 2), _complex(H, 2), torch.randn(H), _complex(2, H, 2)),
}
RUNS: dict[str, dict[str, Run]] = {
    "lif": {
        "": _lif(),
        "ungated": _lif(refractory_period=0),
        "subtract": _lif(reset="subtract", return_membrane=True),
        "zero": _lif(reset="zero", return_membrane=True, detach_reset=True),
        "delayed": _lif(reset="subtract", reset_delay=True, refractory_input="ignore", inclusive=False),
        "membrane": _lif(return_membrane=True),
        "foreign": _lif(surrogate=torch.sigmoid, return_membrane=True),
    },
    "fixed_refractory": {
        **{scheme: _fixed_refractory(scheme=scheme) for scheme in ("absolute", "window", "strided", "onset")},
        "foreign": _fixed_refractory(surrogate=torch.sigmoid),
    },
    "diagonal_ssm": {"": _diagonal_ssm},
}
PACKAGES = {"lif": "lif", "fixed_refractory": "refractory", "diagonal_ssm": "ssm"}
ALL = [(name, mode) for name, runs in RUNS.items() for mode in runs]

every_operator = pytest.mark.parametrize("name", RUNS)
every_mode = pytest.mark.parametrize(("name", "mode"), ALL)
learning = pytest.mark.parametrize("learning", ["nothing", "x", "all"])
pytestmark = pytest.mark.usefixtures("provider")
with_kernels = pytest.mark.parametrize("provider", PROVIDERS_AND_CUDA, indirect=True)
without = pytest.mark.parametrize("provider", PROVIDERS[-1:], indirect=True)


def _run(name: str) -> Run:
    return next(iter(RUNS[name].values()))


def _leaves(name: str, learning: str, steps: int = 40) -> list[Tensor]:
    leaves = [torch.randn(steps, 2, H) + 0.3]
    if learning == "all":
        leaves += PARAMETERS[name]()
    return [leaf.requires_grad_(learning != "nothing") for leaf in leaves]


def _cotangents(outputs: Outputs) -> list[Tensor | None]:
    return random_like([o if o is not None and o.requires_grad else None for o in outputs])


def _refuse(*args: Any) -> Any:
    raise AssertionError("the other way was taken")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes a call fail that does not go the named way, "op" or "direct", forward and backward."""

    def choose(name: str, way: str) -> None:
        package = f"snn_fr_plugin.ops.{PACKAGES[name]}"
        public, operator = importlib.import_module(package), importlib.import_module(f"{package}.operator")
        if way == "op":
            monkeypatch.setattr(public, f"{name}_direct", _refuse)
        else:
            monkeypatch.setattr(public, f"{name}_op", _refuse)
            monkeypatch.setattr(operator, f"{name}_backward_op", _refuse)

    return choose


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b) and a.dtype == b.dtype


# ---- the same numbers


@with_kernels
@learning
@every_mode
@pytest.mark.parametrize("steps", [0, 1, 40])
def test_equals_the_operator(
    name: str, mode: str, learning: str, steps: int, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, leaves = RUNS[name][mode], _leaves(name, learning, steps)
    with monkeypatch.context() as patch:
        patch.setattr(_eager, "watched", lambda *tensors: True)
        expected = run(*leaves)
        cotangents = _cotangents(expected)
        if learning != "nothing":
            wanted = gradients(expected, cotangents, leaves)
    only(name, "direct")
    got = run(*leaves)
    assert len(got) == len(expected) and all(map(_same, got, expected))
    for g, e in zip(got, expected, strict=True):
        assert (g is None) == (e is None)
        assert g is None or e is None or (g.requires_grad, g._is_view()) == (e.requires_grad, e._is_view())
    if learning != "nothing":
        assert all(map(_same, gradients(got, cotangents, leaves), wanted))


@with_kernels
@every_operator
@pytest.mark.parametrize("which", [0, -1])
def test_one_gradient_at_a_time(name: str, which: int, only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one leaf, from one output: what is not needed is not there, and nothing is made up for it."""
    leaves = _leaves(name, "all")
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i == which % len(leaves))
    found = []
    for watched in (True, False):
        with monkeypatch.context() as patch:
            if watched:
                patch.setattr(_eager, "watched", lambda *tensors: True)
            else:
                only(name, "direct")
            for i in range(2):
                output = [o for o in _run(name)(*leaves) if o is not None and o.requires_grad][-i]
                torch.manual_seed(1)
                found.append(torch.autograd.grad(output, leaves[which], torch.randn_like(output))[0])
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])


@with_kernels
@every_operator
def test_inputs_of_any_layout(name: str, only: Any) -> None:
    only(name, "direct")
    x, *rest = _leaves(name, "all")
    across = x.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    assert not across.is_contiguous()
    expected, got = _run(name)(x, *rest), _run(name)(across, *rest)
    assert all(map(_same, got, expected))
    cotangents = [c if c is None else c.mT.contiguous().mT for c in _cotangents(expected)]
    wanted = gradients(expected, cotangents, [x, *rest])
    assert all(map(_same, gradients(got, cotangents, [across, *rest]), wanted))


@without
def test_signs_not_yet_applied() -> None:
    """``conj()``, and the imaginary part of one, only mark a tensor: the memory holds another number."""
    x, A, C, D, state = (t.detach() for t in _leaves("diagonal_ssm", "all"))
    lazy = A.conj(), C.conj(), torch.complex(D, -D).conj().imag, state.conj()
    assert lazy[0].is_conj() and lazy[2].is_neg()
    expected = _diagonal_ssm(x, A.conj_physical(), C.conj_physical(), D, state.conj_physical())
    assert all(map(_same, _diagonal_ssm(x, *lazy), expected))
    leaf = x.clone().requires_grad_()
    _, last = _diagonal_ssm(leaf)
    assert last is not None
    cotangent = _complex(2, H, 2)
    got = torch.autograd.grad(last, leaf, cotangent.conj(), retain_graph=True)[0]
    assert torch.equal(got, torch.autograd.grad(last, leaf, cotangent.conj_physical())[0])


@pytest.mark.parametrize("provider", PROVIDERS, indirect=True)
def test_matrix_products_without_autocast(only: Any) -> None:
    leaves = _leaves("diagonal_ssm", "all")
    only("diagonal_ssm", "direct")
    expected = _diagonal_ssm(*leaves)
    cotangents = _cotangents(expected)
    wanted = gradients(expected, cotangents, leaves)
    with torch.autocast("cpu", torch.bfloat16):
        got = _diagonal_ssm(*leaves)
        assert all(map(_same, got, expected))
        assert all(map(_same, gradients(got, cotangents, leaves), wanted))


@with_kernels
@every_mode
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_outputs_have_memory_of_their_own(name: str, mode: str, steps: int, only: Any) -> None:
    leaves = _leaves(name, "all", steps)
    outputs = [o for o in RUNS[name][mode](*leaves) if o is not None]
    places = [t.untyped_storage().data_ptr() for t in (*leaves, *outputs) if t.numel()]
    assert len(set(places)) == len(places)


# ---- as autograd knows it


@with_kernels
@every_operator
def test_an_input_changed_in_place_is_noticed(name: str, only: Any) -> None:
    only(name, "direct")
    (leaf,) = _leaves(name, "x")
    x = leaf * 1
    output = _run(name)(x)[0]
    assert output is not None
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@with_kernels
@every_operator
def test_a_gradient_of_a_gradient_is_refused(name: str) -> None:
    (x,) = _leaves(name, "x")
    output = _run(name)(x)[0]
    assert output is not None
    (once,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    assert once.any()
    with pytest.raises(RuntimeError, match=f"snn_fr.{name}_backward.* no autograd formula was registered"):
        once.sum().backward()


@without
@every_operator
def test_a_graph_is_used_again_or_freed(name: str, only: Any) -> None:
    only(name, "direct")
    (leaf,) = _leaves(name, "x")
    x = leaf * 1
    memory = StorageWeakRef(x.untyped_storage())
    output = _run(name)(x)[0]
    assert output is not None
    del x
    first = torch.autograd.grad(output, leaf, torch.ones_like(output), retain_graph=True)[0]
    assert not memory.expired()
    assert torch.equal(torch.autograd.grad(output, leaf, torch.ones_like(output))[0], first)
    assert memory.expired()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(output, leaf, torch.ones_like(output))


@without
@every_operator
def test_without_a_graph(name: str, only: Any) -> None:
    only(name, "direct")
    leaves = _leaves(name, "all")
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not any(o.requires_grad for o in _run(name)(*leaves) if o is not None)
    assert any(o.requires_grad for o in _run(name)(*leaves) if o is not None)


@without
@every_operator
@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_errors_of_a_provider(
    name: str, pass_: str, provider: str, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OwnError(Exception):
        pass

    def fail(*args: Any) -> Any:
        raise OwnError("this very one")

    only(name, "direct")
    module = importlib.import_module(f"snn_fr_plugin.ops.{PACKAGES[name]}.{provider}_provider")
    monkeypatch.setattr(module, pass_, fail)
    (x,) = _leaves(name, "x")
    with pytest.raises(OwnError, match=r"^this very one$"):
        output = _run(name)(x)[0]
        assert output is not None
        output.sum().backward()


# ---- where an operator is watched


class _Sees(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(func.name())
        return func(*args, **(kwargs or {}))


class _SeesCalls(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


class _Marked(Tensor):
    """A type of tensor that has nothing of its own."""


@without
@every_operator
def test_modes_see_the_operators(name: str) -> None:
    (x,) = _leaves(name, "x")
    with _Sees() as seen:
        output = _run(name)(x)[0]
        assert output is not None
        output.sum().backward()
    assert {f"snn_fr::{name}", f"snn_fr::{name}_backward"} <= set(seen.operators)
    with _SeesCalls() as called:
        _run(name)(x)
    assert f"snn_fr.{name}.default" in called.operators


@without
@every_operator
def test_a_mode_of_the_backward_alone_sees_its_operator(name: str) -> None:
    (x,) = _leaves(name, "x")
    output = _run(name)(x)[0]
    assert output is not None
    with _Sees() as seen:
        output.sum().backward()
    assert f"snn_fr::{name}_backward" in seen.operators


@without
@every_operator
def test_a_device_as_context_is_no_watcher(name: str, only: Any) -> None:
    only(name, "direct")
    (x,) = _leaves(name, "x")
    expected = _run(name)(x)
    with torch.device("cpu"):
        assert all(map(_same, _run(name)(x), expected))


@without
@every_operator
def test_a_profile_names_the_operators(name: str) -> None:
    (x,) = _leaves(name, "x")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        output = _run(name)(x)[0]
        assert output is not None
        output.sum().backward()
    events = [event.key for event in profile.key_averages()]
    assert f"snn_fr::{name}" in events and f"snn_fr::{name}_backward" in events


@without
@every_operator
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*", "ignore::torch.jit.TracerWarning")
def test_tracers_record_the_operators(name: str) -> None:
    (x,) = _leaves(name, "nothing")

    def run(x: Tensor) -> Tensor:
        output = _run(name)(x)[0]
        assert output is not None
        return output

    traced = make_fx(run)(x)
    assert any(node.target is getattr(torch.ops.snn_fr, name).default for node in traced.graph.nodes)
    assert torch.equal(traced(x), run(x))
    assert f"snn_fr::{name}(" in str(torch.jit.trace(run, x).graph)

    graphs: list[torch.fx.GraphModule] = []
    compiled = torch.compile(
        run, fullgraph=True, backend=lambda graph, _: (graphs.append(graph), graph.forward)[1]
    )
    assert torch.equal(compiled(x), run(x))
    assert f"snn_fr.{name}" in graphs[0].code
    assert f"snn_fr.{name}" in str(torch.export.export(_Module(run), (x,)).graph)


class _Module(torch.nn.Module):
    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


@every_operator
@pytest.mark.parametrize("provider", ["torch"], indirect=True)
def test_without_memory_no_provider_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"snn_fr_plugin.ops.{PACKAGES[name]}.torch_provider")
    monkeypatch.setattr(module, "forward", _refuse)
    given = [torch.randn(5, 2, H), *(PARAMETERS[name]() if name == "diagonal_ssm" else ())]
    with FakeTensorMode() as mode:
        fake = _run(name)(*map(mode.from_tensor, given))[0]
    on_meta = _run(name)(*(t.to("meta") for t in given))[0]
    assert fake is not None and on_meta is not None
    assert fake.shape == on_meta.shape == given[0].shape and on_meta.is_meta


@without
@every_operator
@pytest.mark.filterwarnings(
    "ignore:There is a performance drop because we have not yet implemented the batching"
)
def test_transforms_and_tensor_types(name: str, only: Any) -> None:
    only(name, "op")
    (x,) = _leaves(name, "nothing")

    def run(x: Tensor) -> Tensor:
        output = _run(name)(x)[0]
        assert output is not None
        return output

    marked = run(x.as_subclass(_Marked))
    both = torch.func.vmap(run)(torch.stack([x, x]))
    functional = torch.func.functionalize(run)(x)
    with pytest.raises(RuntimeError, match="with functorch transforms"):
        torch.func.grad(lambda x: run(x).sum())(x)
    with _Sees():
        expected = run(x)
    assert type(marked) is _Marked and torch.equal(marked.as_subclass(Tensor), expected)
    assert all(torch.equal(one, expected) for one in both.unbind()) and torch.equal(functional, expected)


@without
@every_operator
def test_a_release_that_has_renamed_something(name: str, only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_eager, "_KNOWN", False)
    only(name, "op")
    (x,) = _leaves(name, "x")
    output = _run(name)(x)[0]
    assert output is not None
    output.sum().backward()
    assert x.grad is not None
