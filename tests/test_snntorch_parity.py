"""At R = 0 an FR neuron is its snnTorch parent in every mode in which the parent runs, step and sequence; and
at any R a sequence is its steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from snn_fr_plugin.integrations import snntorch as fr

from .support import assert_close, assert_some_spikes, gradients, random_like

T, B, C = 7, 2, 5

pytestmark = pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature:UserWarning")


class Kind(NamedTuple):
    """A parent, its FR type, and the modes that its parent has."""

    parent: Any
    ours: Any
    arguments: dict[str, Any]
    learnable: tuple[str, ...]
    per_neuron: tuple[str, ...]
    delays: tuple[bool, ...] = (True, False)
    has_delay: bool = True
    recurrent: bool = False


_ALL = ("alpha", "beta", "threshold")
KINDS = {
    "leaky": Kind(snn.Leaky, fr.FRLeaky, {"beta": 0.85}, _ALL[1:], _ALL[1:]),
    "synaptic": Kind(snn.Synaptic, fr.FRSynaptic, {"alpha": 0.6, "beta": 0.8}, _ALL, _ALL),
    # Lapicque asks for the truth of its constants, which a tensor of several has not
    "lapicque": Kind(
        snn.Lapicque, fr.FRLapicque, {"beta": 0.6}, _ALL[1:], _ALL[2:], delays=(True,), has_delay=False
    ),
    "lapicque-RC": Kind(
        snn.Lapicque, fr.FRLapicque, {"R": 2.0, "C": 1.5}, _ALL[2:], _ALL[2:], delays=(True,), has_delay=False
    ),
    # Alpha clips alpha, and cannot assign the result to a parameter
    "alpha": Kind(
        snn.Alpha, fr.FRAlpha, {"alpha": 0.9, "beta": 0.7}, _ALL[1:], _ALL, delays=(True,), has_delay=False
    ),
    "rleaky": Kind(
        snn.RLeaky, fr.FRRLeaky, {"beta": 0.85, "linear_features": C}, _ALL[1:], _ALL[1:], recurrent=True
    ),
    # without the delay RSynaptic fails at its first step
    "rsynaptic": Kind(
        snn.RSynaptic, fr.FRRSynaptic, {"alpha": 0.6, "beta": 0.8, "linear_features": C}, _ALL, _ALL,
        delays=(True,), recurrent=True,
    ),
}  # fmt: skip
MODES = [
    pytest.param(kind, reset, delay, id=f"{name}-{reset}-{'delayed' if delay else 'immediate'}")
    for name, kind in KINDS.items()
    for reset in ("subtract", "zero", "none")
    for delay in kind.delays
]
RETURNS = list(itertools.product((False, True), (False, True)))  # init_hidden, output


def variants(
    kind: Kind, reset: str, delay: bool, returns: list[tuple[bool, bool]]
) -> Iterator[dict[str, Any]]:
    """Arguments of the parent in every combination of its other modes."""
    both = (False, True)
    graded_modes = both if kind.parent is snn.Leaky else (False,)
    for (init_hidden, output), inhibition, learn, per_neuron, graded in itertools.product(
        returns, both, both, both, graded_modes
    ):
        arguments: dict[str, Any] = dict(kind.arguments)
        arguments |= {"init_hidden": init_hidden, "output": output, "inhibition": inhibition}
        arguments |= {"threshold": 0.5, "reset_mechanism": reset}
        if kind.has_delay:
            arguments["reset_delay"] = delay
        if per_neuron:
            spread = torch.linspace(-0.05, 0.05, C)
            arguments |= {n: spread + arguments[n] for n in kind.per_neuron}
        if learn:
            arguments |= {f"learn_{n}": True for n in kind.learnable}
        if graded:
            arguments |= {"graded_spikes_factor": 0.7, "learn_graded_spikes_factor": learn}
        yield arguments


def make(cls: Any, arguments: dict[str, Any], like: nn.Module | None = None, **ours: Any) -> Any:
    """A neuron with tensors of its own, and with the recurrent weights of ``like``."""
    own = {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    neuron = cls(**own, **ours)
    if like is not None and "linear_features" in arguments:
        neuron.load_state_dict(like.state_dict())
    return neuron


def run_steps(neuron: nn.Module, x: Tensor) -> list[Tensor]:
    """Sequences of everything a step returns, the returned state passed back in unless it is hidden."""
    rows: list[tuple[Tensor, ...]] = []
    passed: tuple[Tensor, ...] = ()
    for x_t in x.unbind(0):
        out = neuron(x_t, *passed)
        out = out if isinstance(out, tuple) else (out,)
        rows.append(out)
        if not neuron.init_hidden:
            passed = out if isinstance(neuron, (snn.RLeaky, snn.RSynaptic)) else out[1:]
    return [torch.stack(row) for row in zip(*rows, strict=True)]


def run_sequence(neuron: nn.Module, x: Tensor) -> list[Tensor]:
    out = neuron(x)
    return list(out) if isinstance(out, tuple) else [out]


def drive() -> Tensor:
    """Input around the threshold, so that every reset matters."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(T, B, C, generator=generator) * 0.7 + 0.35).requires_grad_()


def assert_same(got: list[Tensor], expected: list[Tensor], what: Any) -> None:
    assert len(got) == len(expected), what
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert torch.equal(a, b), f"output {i} of {what}"


def assert_same_gradients(
    got: list[Tensor], expected: list[Tensor], inputs: tuple[list[Tensor], list[Tensor]], what: Any
) -> None:
    cotangents = random_like(expected)
    ours, theirs = (gradients(o, cotangents, i) for o, i in zip((got, expected), inputs, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, str(what))


@pytest.mark.parametrize(("kind", "reset", "delay"), MODES)
def test_without_refractory_period_it_is_its_parent(kind: Kind, reset: str, delay: bool) -> None:
    emitted = []
    for arguments, multistep in itertools.product(variants(kind, reset, delay, RETURNS), (False, True)):
        parent, x = make(kind.parent, arguments), drive()
        neuron, x_ours = make(kind.ours, arguments, parent, refractory_period=0, multistep=multistep), drive()
        expected = run_steps(parent, x)
        got = (run_sequence if multistep else run_steps)(neuron, x_ours)
        assert_same(got, expected, (multistep, arguments))
        if not arguments["output"]:  # what is returned beside the spikes changes no gradient
            inputs = [x_ours, *neuron.parameters()], [x, *parent.parameters()]
            assert_same_gradients(got, expected, inputs, (multistep, arguments))
        if arguments["init_hidden"]:
            for name, state in parent.named_buffers():
                assert torch.equal(getattr(neuron, name), state), (name, multistep, arguments)
        emitted.append(expected[0].detach() != 0)
    assert_some_spikes(torch.stack(emitted))


@pytest.mark.parametrize(("kind", "reset", "delay"), MODES)
def test_quantized_states(kind: Kind, reset: str, delay: bool) -> None:
    # not idempotent: the parent quantizes the membrane again when it fires
    quantize = {"state_quant": lambda v: torch.round(8 * v) / 10}
    arguments = next(variants(kind, reset, delay, RETURNS)) | quantize
    parent = make(kind.parent, arguments)
    expected = run_steps(parent, drive())
    assert_some_spikes(expected[0])
    for period in (0, 2):
        steps = make(kind.ours, arguments, parent, refractory_period=period)
        got = run_steps(steps, drive())
        if period == 0:
            assert_same(got, expected, arguments)
        sequence = make(kind.ours, arguments, parent, refractory_period=period, multistep=True)
        assert_same(run_sequence(sequence, drive()), got, arguments)


@pytest.mark.parametrize(("period", "refractory_input"), [(1, "integrate"), (3, "ignore")])
@pytest.mark.parametrize(("kind", "reset", "delay"), MODES)
def test_a_sequence_is_its_steps(
    kind: Kind, reset: str, delay: bool, period: int, refractory_input: str
) -> None:
    if kind.ours is fr.FRAlpha:
        refractory_input = "integrate"
    ours = {"refractory_period": period, "refractory_input": refractory_input}
    emitted = []
    for arguments in variants(kind, reset, delay, [(False, False)]):
        steps, x = make(kind.ours, arguments, **ours), drive()
        sequence, x_sequence = make(kind.ours, arguments, steps, multistep=True, **ours), drive()
        expected, got = run_steps(steps, x), run_sequence(sequence, x_sequence)
        assert_same(got, expected, arguments)
        inputs = [x_sequence, *sequence.parameters()], [x, *steps.parameters()]
        assert_same_gradients(got, expected, inputs, arguments)
        emitted.append(expected[0].detach() != 0)
    spikes = torch.stack(emitted)
    assert_some_spikes(spikes)
    assert (spikes.unfold(1, period + 1, 1).sum(-1) <= 1).all()
