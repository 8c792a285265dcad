"""The CUDA kernels of ``lif``, run on a CPU: the torch provider's bits and gradients; mutants must fail.

``test_lif.py`` runs on them too; here sequences are longer than tiles and chunks, neurons more than a block.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_fr_plugin import surrogate
from snn_fr_plugin.ops import _compile, _cupy, lif
from snn_fr_plugin.ops.lif import compiled, cupy_provider

from . import cuda_on_cpu
from .support import assert_close, assert_some_spikes, gradients, random_like

pytestmark = [
    pytest.mark.skipif(not _compile.available(), reason="no C++ compiler"),
    pytest.mark.usefixtures("kernels_on_cpu"),
]

SURROGATES = [
    surrogate.ATan(),
    surrogate.Sigmoid(),
    surrogate.FastSigmoid(5.0),
    surrogate.SuperSpike(2.0),
    surrogate.Triangle(),
    surrogate.Rectangle(0.7),
    surrogate.SoftSign(),
    surrogate.Erf(),
    surrogate.PiecewiseQuadratic(0.8),
    surrogate.PiecewiseExp(),
    surrogate.StraightThrough(),
]
OPTIONS: dict[str, tuple[Any, ...]] = {
    "surrogate": tuple(range(len(SURROGATES))),
    "reset": (("none", False), ("subtract", False), ("zero", False), ("subtract", True), ("zero", True)),
    "dtype": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    "steps": (100, 128, 131, 160),  # a tail, no tail, after whole groups and chunks
    "charge": ("beta", "tau_input", "tau"),
    "neurons": (133, 262, 192),  # two blocks and a tail, in pairs and one by one; whole blocks
    "wanted": ("x", "membrane", "parameters"),
    "period": (0, 1, 4),
    "refractory_input": ("integrate", "ignore"),
    "inclusive": (True, False),
    "detach_reset": (False, True),
    "per_neuron": (False, True),
    "with_state": (False, True),
    "few": (False, True),  # neurons
}


def _pairwise(options: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Cases in which every pair of values of two options occurs, chosen greedily."""
    names = list(options)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i, j in itertools.product(range(len(options[a])), range(len(options[b])))
    }
    cases = []
    while missing:
        first, i, second, j = min(missing, key=str)
        case = {first: i, second: j}
        for name in names:
            if name not in case:
                gain = [
                    sum(((name, k, o, c) in missing) + ((o, c, name, k) in missing) for o, c in case.items())
                    for k in range(len(options[name]))
                ]
                case[name] = gain.index(max(gain))
        missing -= {(a, case[a], b, case[b]) for a, b in itertools.combinations(names, 2)}
        cases.append({name: options[name][case[name]] for name in names})
    return cases


CASES = _pairwise(OPTIONS)


def _results(backend: str, case: dict[str, Any], seed: int) -> dict[str, Tensor | None]:
    """Outputs and gradients of a case."""
    torch.manual_seed(seed)
    n, dtype = case["neurons"], case["dtype"]
    real = torch.float64 if dtype == torch.float64 else torch.float32
    reset, delay = case["reset"]

    def parameter(low: float, high: float) -> Tensor:
        row = torch.rand(n if case["per_neuron"] else (), dtype=real) * (high - low) + low
        return row.requires_grad_(case["wanted"] == "parameters")

    beta = case["charge"] == "beta"
    decay, threshold = parameter(0.5, 0.95) if beta else parameter(1.2, 4.0), parameter(0.6, 0.9)
    magnitude = parameter(0.3, 0.9)
    leaves = {"x": (torch.randn(case["steps"], n, dtype=real) + 0.3).to(dtype).requires_grad_()}
    if case["wanted"] == "parameters":
        leaves |= {"decay": decay, "threshold": threshold, "magnitude": magnitude}
    state = None
    if case["with_state"]:
        leaves["v0"] = torch.randn(n, dtype=real).requires_grad_()
        state = leaves["v0"], torch.randint(0, case["period"] + 1, (n,), dtype=torch.int32)
    membrane = case["wanted"] == "membrane"
    spikes, v_seq, final = lif(
        leaves["x"], decay if beta else None, threshold, tau=None if beta else decay,
        decay_input=case["charge"] != "tau", refractory_period=case["period"], reset=reset, reset_delay=delay,
        reset_magnitude=magnitude, v_reset=0.1, refractory_input=case["refractory_input"],
        inclusive=case["inclusive"], detach_reset=case["detach_reset"], state=state,
        surrogate=SURROGATES[case["surrogate"]], return_membrane=membrane, backend=backend,
    )  # fmt: skip
    outputs = (spikes, v_seq, final.v)
    got = gradients(outputs, random_like(outputs), list(leaves.values()))
    return {
        "spikes": spikes, "membrane": v_seq, "v": final.v, "refractory": final.refractory,
        **{f"grad_{name}": grad for name, grad in zip(leaves, got, strict=True)},
    }  # fmt: skip


def _compare(case: dict[str, Any], seed: int) -> float:
    """The firing rate of a case that agrees."""
    got, expected = _results("cupy", case, seed), _results("torch", case, seed)
    for name, value in expected.items():
        if name.startswith("grad_"):
            assert_close(got[name], value, name)
        else:
            found = got[name]
            assert (found is None) == (value is None)
            assert found is None or value is None or torch.equal(found, value), name
    assert expected["spikes"] is not None
    return expected["spikes"].double().mean().item()


def _choose(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the forward takes it for."""
    monkeypatch.setattr(cupy_provider, "_MANY", 1 << 30 if case["few"] else 0)


@pytest.mark.parametrize("part", range(4))
def test_pairs_of_modes(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of values of two options: outputs to the last bit, gradients within the tolerance."""
    rates = []
    for seed, case in enumerate(CASES[part::4]):
        _choose(case, monkeypatch)
        try:
            rates.append(_compare(case, seed))
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error
    assert min(rates) > 0.01 and max(rates) < 0.9


def test_every_pair_is_there() -> None:
    assert len(CASES) < 100
    for a, b in itertools.combinations(OPTIONS, 2):
        assert {(c[a], c[b]) for c in CASES} == set(itertools.product(OPTIONS[a], OPTIONS[b]))


@pytest.mark.parametrize("shape", [(0, 3), (5, 0), (0, 0), (1, 1), (31, 65), (33, 1), (2, 3, 5, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shapes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (torch.randn(shape) + 0.4).to(dtype).requires_grad_()
    v0 = torch.randn(shape[1:]).requires_grad_()
    state = v0, torch.ones(shape[1:], dtype=torch.int32)
    threshold = torch.tensor(0.8, requires_grad=True)
    results = []
    for backend in ("cupy", "torch"):
        spikes, membrane, final = lif(
            x, tau=2.0, threshold=threshold, refractory_period=2, reset="zero", state=state,
            return_membrane=True, backend=backend,
        )  # fmt: skip
        torch.manual_seed(3)
        outputs = (spikes, membrane, final.v)
        results.append(
            (*outputs, final.refractory, *gradients(outputs, random_like(outputs), [x, v0, threshold]))
        )
    for got, expected in zip(results[0][:4], results[1][:4], strict=True):
        assert got is not None and expected is not None and torch.equal(got, expected)
    for got, expected in zip(results[0][4:], results[1][4:], strict=True):
        assert_close(got, expected)


def test_halves_that_do_not_lie_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An odd number of neurons, or an input that begins in the middle of a word, is read one by one."""
    seen: list[str] = []
    monkeypatch.setattr(
        _cupy,
        "launch",
        lambda *args, flags, **rest: (seen.extend(flags), cuda_on_cpu.launch(*args, flags=flags, **rest)),
    )
    monkeypatch.setattr(cupy_provider, "_MANY", 0)
    memory = torch.randn(1 + 40 * 6 + 40 * 7).half()
    for start, n, lanes in ((0, 6, 2), (1, 6, 1), (0, 7, 1)):
        seen.clear()
        x = memory[start : start + 40 * n].view(40, n)
        spikes, _, _ = lif(x, 0.9, 0.5, refractory_period=1, backend="cupy")
        assert f"-DSNN_FR_LANES={lanes}" in seen
        assert_some_spikes(spikes)
        assert torch.equal(spikes, lif(x, 0.9, 0.5, refractory_period=1, backend="torch")[0])


def test_constants_that_two_files_share() -> None:
    folder = cupy_provider._SOURCES["forward"].parent
    threads = f"THREADS = {cupy_provider._THREADS};"
    assert threads in re.sub(" +", " ", (folder / "neurons.h").read_text())
    assert f"CHUNK = {compiled.CHUNK};" in (folder / "arguments.h").read_text()


# ---- mutants: each must be noticed by the comparison above

# file, what stands there, what is put in its place
MUTANTS = {
    "neurons beyond the last": ("forward.cu", "    if (i >= a.neurons) return;\n    Cells", "    Cells"),
    "steps beyond the last": ("forward.cu", "if (t + j < a.steps) fire", "fire"),
    "reads beyond the last step": ("neurons.h", "j < rows ?", "rows >= 0 ?"),
    "the same group again": ("forward.cu", "x + (t + AHEAD) * a.neurons", "x + t * a.neurons"),
    "another group's slot": (
        "forward.cu",
        "copy(now, ring[g]);",
        "copy(now, ring[(g + 1) % (AHEAD / GROUP)]);",
    ),
    "the ring is filled too far": ("forward.cu", "if (t + AHEAD + GROUP <= a.steps) fetch", "fetch"),
    "counters are not saved": ("forward.cu", "write_count(row + a.neurons + l, c.left[l]);", ""),
    "no checkpoint in the last steps": (
        "forward.cu",
        "a.steps - t);\n        save(a, c, t, i);",
        "a.steps - t);",
    ),
    "cotangents of another tile": ("backward.cu", "next, here + (g - TILE)", "next, here + g"),
    "inputs of another chunk": ("backward.cu", "a.x + here - CHUNK * a.neurons", "a.x + here"),
    "a tile forward in time": ("backward.cu", "int j = TILE - 1; j >= 0; --j", "int j = 0; j < TILE; ++j"),
    "the gate is left out": (
        "backward.cu",
        "keep(step.open, slope[j][threadIdx.x])",
        "slope[j][threadIdx.x]",
    ),
    "the sign of the surrogate": ("backward.cu", "keep(step.open, slope[", "keep(step.open, -slope["),
    "h is overwritten": ("backward.cu", "KEEPS_H = RESET == ZERO;", "KEEPS_H = false;"),
    "a column for two threads": ("backward.cu", "[threadIdx.x] = step.h;", "[threadIdx.x / 2] = step.h;"),
    "a lane takes its neighbour's half": ("../device.h", "both >> 16 * lane", "both >> 16 * (1 - lane)"),
    "reset before the threshold": (
        "step.h",
        "crosses(step.h, cell)",
        "crosses(step.h - cell.magnitude, cell)",
    ),
    "the late reset is kept": ("step.h", "step.from = choose(step.pending, rules.v_reset, v);", ""),
    "the sign of a gradient": ("step.h", "sum.threshold - by_spike", "sum.threshold + by_spike"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_noticed(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, old, new = MUTANTS[mutant]
    changed = cuda_on_cpu.mutant(cupy_provider._SOURCES["forward"], old, new, tmp_path, file)
    sources = {name: changed.with_name(source.name) for name, source in cupy_provider._SOURCES.items()}
    monkeypatch.setattr(cupy_provider, "_SOURCES", sources)
    assert any(_is_noticed(case, seed, monkeypatch) for seed, case in enumerate(_varied()))


def _varied() -> Iterator[dict[str, Any]]:
    """A few that differ in what mutants touch, so that few libraries are built."""
    base = {
        "surrogate": 0, "dtype": torch.float32, "steps": 131, "charge": "beta", "neurons": 133, "period": 1,
        "refractory_input": "integrate", "inclusive": True, "detach_reset": False, "per_neuron": True,
        "with_state": True, "few": True,
    }  # fmt: skip
    yield {**base, "reset": ("zero", False), "wanted": "x"}
    yield {**base, "reset": ("zero", False), "wanted": "parameters", "steps": 160}
    yield {**base, "reset": ("subtract", False), "wanted": "parameters"}
    yield {**base, "reset": ("zero", True), "wanted": "x"}
    halves = {"dtype": torch.bfloat16, "neurons": 134, "few": False}
    yield {**base, **halves, "reset": ("zero", False), "wanted": "x"}


def _is_noticed(case: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    _choose(case, monkeypatch)
    try:
        _compare(case, seed)
    except AssertionError:
        return True
    return False
