"""What several test files share: tolerances, gradients, graph sizes, and a walk over the modes of ``lif``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_fr_plugin.ops import _compile
from snn_fr_plugin.surrogate import ATan

# what serves CPU tensors here; "cupy-on-cpu" is the CuPy provider with its kernels run by tests/cuda_shim.h
PROVIDERS = ["torch", "cpp"] if _compile.available() else ["torch"]
# the same tests on a GPU: pytest -m gpu
ON_GPU: list[Any] = [pytest.param("cupy", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []
PROVIDERS_AND_CUDA: list[Any] = [*PROVIDERS, *(["cupy-on-cpu"] if _compile.available() else []), *ON_GPU]

# (relative, absolute): real values are compared by dtype, spikes always exactly
TOLERANCE = {
    torch.float64: (1e-9, 1e-10),
    torch.float32: (2e-4, 2e-5),
    torch.float16: (2e-3, 5e-4),
    torch.bfloat16: (1.2e-2, 8e-3),
}


def assert_close(got: Tensor | None, expected: Tensor | None, what: str = "") -> None:
    """Equal within the tolerance of the coarser dtype; a missing gradient counts as zero."""
    if got is None or expected is None:
        present = expected if got is None else got
        assert present is None or not present.any(), f"{what}: one side is missing, the other is not zero"
        return
    real = torch.empty((), dtype=got.dtype).real.dtype if got.is_complex() else got.dtype
    rtol, atol = TOLERANCE[real]
    torch.testing.assert_close(
        got, expected.to(got.dtype), rtol=rtol, atol=atol, msg=lambda m: f"{what}\n{m}"
    )


def assert_some_spikes(spikes: Tensor) -> None:
    """Equality of spikes says nothing where there are none, or nothing else."""
    rate = spikes.double().mean().item()
    assert 0.001 < rate < 0.999, f"firing rate {rate} makes the comparison vacuous"


def random_like(values: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Random cotangents."""
    return [None if v is None else torch.randn_like(v) for v in values]


def gradients(
    outputs: Sequence[Tensor | None], cotangents: Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Gradients of <outputs, cotangents>, real part for complex ones."""
    terms = [
        (o * c.conj()).sum().real if o.is_complex() else (o * c).sum()
        for o, c in zip(outputs, cotangents, strict=True)
        if o is not None and c is not None and o.requires_grad
    ]
    return torch.autograd.grad(sum(terms[1:], terms[0]), inputs, allow_unused=True)


def graph_size(output: Tensor) -> int:
    """Number of autograd nodes behind a tensor."""
    seen: set[Any] = set()
    todo = [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(n for n, _ in node.next_functions)
    return len(seen)


MODES: dict[str, tuple[Any, ...]] = {
    "charge": ("beta", "tau_input", "tau"),
    "reset": ("none", "subtract", "zero"),
    "reset_delay": (False, True),
    "refractory_input": ("integrate", "ignore"),
    "inclusive": (True, False),
    "detach_reset": (False, True),
    "refractory_period": (0, 1, 3),
}


def lif_modes() -> Iterator[dict[str, Any]]:
    """Every combination of the run-time modes of ``lif``."""
    for values in itertools.product(*MODES.values()):
        yield dict(zip(MODES, values, strict=True))


def lif_arguments(
    mode: dict[str, Any],
    neurons: tuple[int, ...],
    dtype: torch.dtype,
    *,
    per_neuron: bool,
    with_state: bool,
    surrogate: Callable[[Tensor], Tensor] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments of ``lif`` for a mode, and the differentiable tensors among them by name."""
    mode = dict(mode)
    charge = mode.pop("charge")

    def make(value: float) -> Tensor:
        tensor = torch.full(neurons[-1:] if per_neuron else (), value, dtype=dtype)
        return (tensor + 0.1 * torch.rand_like(tensor)).requires_grad_()

    decay = make(0.85 if charge == "beta" else 2.0)
    leaves = {"threshold": make(1.0), "reset_magnitude": make(0.8)}
    leaves["beta" if charge == "beta" else "tau"] = decay
    kwargs: dict[str, Any] = {**mode, **leaves, "v_reset": 0.2, "surrogate": surrogate or ATan()}
    if charge != "beta":
        kwargs["decay_input"] = charge == "tau_input"
    if with_state:
        leaves["v0"] = torch.randn(neurons, dtype=dtype).requires_grad_()
        refractory = torch.randint(0, mode["refractory_period"] + 1, neurons, dtype=torch.int32)
        kwargs["state"] = (leaves["v0"], refractory)
    return kwargs, leaves
