"""The operators as citizens of torch: opcheck, ``torch.compile``, autocast."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_fr_plugin.ops import _eager, diagonal_ssm, fixed_refractory, lif
from snn_fr_plugin.ops.lif.operator import lif_backward_op, lif_op
from snn_fr_plugin.ops.refractory.operator import fixed_refractory_backward_op, fixed_refractory_op
from snn_fr_plugin.ops.ssm.operator import diagonal_ssm_backward_op, diagonal_ssm_op

from .support import PROVIDERS, assert_close, assert_some_spikes, gradients, random_like

pytestmark = [
    pytest.mark.usefixtures("provider"),
    pytest.mark.parametrize("provider", PROVIDERS, indirect=True),
]

# opcheck itself reads .grad of its non-leaf copies
opchecks = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def _record(
    monkeypatch: pytest.MonkeyPatch, package: str, name: str, call: Callable[[], Any]
) -> tuple[Any, ...]:
    """The arguments with which a public function calls its operator, as leaves."""
    module = importlib.import_module(f"snn_fr_plugin.ops.{package}")
    calls: list[tuple[Any, ...]] = []
    with monkeypatch.context() as patch:
        operator = getattr(module, name)
        patch.setattr(module, name, lambda *args: (calls.append(args), operator(*args))[1])
        patch.setattr(_eager, "watched", lambda *tensors: True)
        call()
    return tuple(a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in calls[0])


def _parameter(value: float, per_neuron: bool) -> Any:
    return torch.full((3,), value, requires_grad=True) if per_neuron else value


@opchecks
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("per_neuron", [False, True])
@pytest.mark.parametrize("reset", ["none", "zero"])
def test_opcheck_lif(monkeypatch: pytest.MonkeyPatch, with_state: bool, per_neuron: bool, reset: Any) -> None:
    x = (torch.randn(5, 2, 3) + 0.3).requires_grad_()
    v0, refractory0 = torch.randn(2, 3, requires_grad=True), torch.ones(2, 3, dtype=torch.int32)
    state = (v0, refractory0) if with_state else None
    args = _record(
        monkeypatch, "lif", "lif_op",
        lambda: lif(
            x, _parameter(0.9, per_neuron), _parameter(0.7, per_neuron), refractory_period=1, reset=reset,
            state=state, return_membrane=True,
        ),
    )  # fmt: skip
    torch.library.opcheck(lif_op, args)
    outputs = lif_op(*args)
    backward = (
        torch.randn(5, 2, 3), None, None, torch.randn(2, 3), *(a.detach() for a in args[:6]),
        outputs[0].detach(), outputs[2].detach(), outputs[3], outputs[6],
        args[6], True, True, True,
    )  # fmt: skip
    torch.library.opcheck(lif_backward_op, backward)


@opchecks
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("per_neuron", [False, True])
@pytest.mark.parametrize("scheme", ["absolute", "window", "strided", "onset"])
def test_opcheck_fixed_refractory(
    monkeypatch: pytest.MonkeyPatch, with_state: bool, per_neuron: bool, scheme: Any
) -> None:
    drive = torch.randn(6, 2, 3, requires_grad=True)
    state = torch.ones(2, 3, dtype=torch.int32) if with_state else None
    args = _record(
        monkeypatch, "refractory", "fixed_refractory_op",
        lambda: fixed_refractory(drive, _parameter(0.7, per_neuron), period=2, scheme=scheme, state=state),
    )  # fmt: skip
    torch.library.opcheck(fixed_refractory_op, args)
    backward = (
        torch.randn(6, 2, 3),
        drive.detach(),
        args[1].detach(),
        fixed_refractory_op(*args)[1],
        *args[6:],
    )
    torch.library.opcheck(fixed_refractory_backward_op, backward)


@opchecks
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("steps", [1, 6])
def test_opcheck_diagonal_ssm(monkeypatch: pytest.MonkeyPatch, with_state: bool, steps: int) -> None:
    x = torch.randn(steps, 2, 3, requires_grad=True)
    matrices = [torch.randn(3, 4, dtype=torch.complex64).mul(0.3).requires_grad_() for _ in range(2)]
    feed_through = torch.randn(3, requires_grad=True) if with_state else None
    state = torch.randn(2, 3, 4, dtype=torch.complex64, requires_grad=True) if with_state else None
    args = _record(
        monkeypatch, "ssm", "diagonal_ssm_op",
        lambda: diagonal_ssm(x, *matrices, feed_through, state=state),
    )  # fmt: skip
    torch.library.opcheck(diagonal_ssm_op, args)
    y, h, checkpoints = diagonal_ssm_op(*args)
    detached = [a if a is None else a.detach() for a in args[:5]]
    backward = (torch.randn_like(y), torch.randn_like(h), *detached, checkpoints, args[-1])
    torch.library.opcheck(diagonal_ssm_backward_op, backward)


def _chain(x: Tensor, beta: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    spikes, membrane, state = lif(x, beta, refractory_period=1, reset="subtract", return_membrane=True)
    assert membrane is not None
    drive, _ = diagonal_ssm(spikes + membrane, a, c)
    out, _ = fixed_refractory(drive, 0.5, period=2)
    return out, drive.sum() + state.v.sum()


def test_compile_fullgraph() -> None:
    """One graph, eager's outputs and gradients, and no recompilation at the third call."""
    compiled = torch.compile(_chain, fullgraph=True)
    for call in range(3):
        x = (torch.randn(12, 2, 3) + 0.5).requires_grad_()
        beta = torch.full((3,), 0.8, requires_grad=True)
        a = torch.full((3, 2), 0.5 + 0.3j, requires_grad=True)
        c = torch.full((3, 2), 0.7 - 0.2j, requires_grad=True)
        with torch.compiler.set_stance("fail_on_recompile" if call == 2 else "default"):
            got = compiled(x, beta, a, c)
            cotangents = random_like(got)
            got_gradients = gradients(got, cotangents, [x, beta, a, c])
        expected = _chain(x, beta, a, c)
        assert_some_spikes(expected[0])
        assert torch.equal(got[0], expected[0])
        assert_close(got[1], expected[1])
        for p, q in zip(got_gradients, gradients(expected, cotangents, [x, beta, a, c]), strict=True):
            assert_close(p, q)


def test_autocast() -> None:
    """Under bfloat16 autocast the operators take what a linear layer hands them, forward and backward."""
    linear = torch.nn.Linear(4, 3)
    x = torch.randn(30, 2, 4)
    matrix = torch.full((3, 2), 0.5 + 0.1j)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        current = linear(x)
        spikes, _, state = lif(current, beta=0.9, threshold=0.3, refractory_period=1)
        y, _ = diagonal_ssm(current, matrix, matrix)
        gated, _ = fixed_refractory(y, 0.2, period=1)
    assert_some_spikes(spikes)
    assert_some_spikes(gated)
    assert current.dtype == spikes.dtype == y.dtype == gated.dtype == torch.bfloat16
    assert state.v.dtype == torch.float32
    (spikes.sum() + gated.sum()).backward()
    assert linear.weight.grad is not None and linear.weight.grad.isfinite().all() and linear.weight.grad.any()
