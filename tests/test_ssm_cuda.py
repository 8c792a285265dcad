"""The CUDA kernels of ``diagonal_ssm``, run on a CPU: every way to share a column, spans of time, mutants.

``test_ssm_compiled.py`` has what they share with the C++ kernels.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from snn_fr_plugin.ops import _compile
from snn_fr_plugin.ops.ssm import cupy_provider

from . import cuda_on_cpu
from .ssm_systems import compare, make_system, run

pytestmark = [
    pytest.mark.skipif(not _compile.available(), reason="no C++ compiler"),
    pytest.mark.usefixtures("kernels_on_cpu"),
]

# pairs of a column -> lanes, slices, pairs of a thread in single precision
SHARED = {
    1: (1, 1, 1),
    2: (2, 1, 1),
    3: (2, 1, 2),
    7: (4, 1, 2),
    16: (8, 1, 2),
    31: (16, 1, 2),
    64: (32, 1, 2),
    65: (32, 2, 2),
    256: (32, 4, 2),
}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of 64 steps, whatever the sizes."""
    monkeypatch.setattr(cupy_provider, "_SHORT_SPAN", 64)


@pytest.mark.parametrize("pairs", SHARED)
def test_equals_the_loop_however_a_column_is_shared(pairs: int) -> None:
    """Columns that end within a block of threads, and steps within a stretch and a group."""
    layout = cupy_provider._layout(87, 46, pairs, torch.float32)
    assert (layout.lanes, layout.slices, layout.pairs) == SHARED[pairs] and layout.spans == 1
    assert 46 % layout.columns or layout.columns <= 2
    compare(make_system((87, 2, 23), pairs, torch.float32), "cupy")


@pytest.mark.parametrize("pairs", [1, 5, 32, 40])
def test_equals_the_loop_in_double(pairs: int) -> None:
    compare(make_system((70, 3, 5), pairs), "cupy")


@pytest.mark.usefixtures("spans")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("steps", [129, 192, 193, 321])
@pytest.mark.parametrize(("with_state", "feed_through"), [(True, True), (False, False)])
def test_equals_the_loop_in_spans(
    steps: int, dtype: torch.dtype, with_state: bool, feed_through: bool
) -> None:
    """Whole ones, and a last one that ends within a block, a stretch and a group."""
    assert cupy_provider._layout(steps, 10, 4, dtype).spans == -(-steps // 64) > 2
    compare(make_system((steps, 2, 5), 4, dtype, with_state=with_state, feed_through=feed_through), "cupy")


@pytest.mark.usefixtures("spans")
@pytest.mark.parametrize("radius", [0.0, 1.0], ids=str)
def test_extreme_decay_in_spans(radius: float) -> None:
    compare(make_system((200, 2, 3), 4, torch.float32, radius=radius), "cupy")


@pytest.mark.usefixtures("spans")
@pytest.mark.parametrize("index", [0, 1])
def test_one_cotangent_in_spans(index: int) -> None:
    """A gradient that enters at the end alone passes every span."""
    system = make_system((200, 2, 3), 4)
    cotangents = [torch.randn(200, 2, 3, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.complex128)]
    cotangents[1 - index].zero_()
    got = run(system, "cupy", [c if i == index else None for i, c in enumerate(cotangents)])
    want = run(system, "torch", cotangents)
    for a, b in zip(got, want, strict=True):
        assert b is not None
        torch.testing.assert_close(torch.zeros_like(b) if a is None else a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("spans")
def test_spans_change_nothing_but_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    system = make_system((1000, 1, 6), 3, torch.float32)
    in_spans = run(system, "cupy")
    monkeypatch.setattr(cupy_provider, "_FULL", 0)
    assert cupy_provider._layout(1000, 6, 3, torch.float32).spans == 1
    whole = run(system, "cupy")
    for a, b in zip(in_spans, whole, strict=True):
        assert a is not None and b is not None
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())
    assert any(not torch.equal(a, b) for a, b in zip(in_spans, whole, strict=True) if a is not None)


SIZES = itertools.product(
    [0, 1, 64, 1000, 16384, 10**7, 2**33],
    [0, 1, 100, 8192, 10**7],
    [0, 1, 2, 3, 32, 64, 65, 128, 129, 256],
    [torch.float32, torch.float64, torch.bfloat16],
)


def test_layouts_are_what_a_gpu_can_start() -> None:
    """Grids and blocks within CUDA's limits, whole warps, and spans that cover the sequence."""
    for steps, columns, pairs, dtype in SIZES:
        layout = cupy_provider._layout(steps, columns, pairs, dtype)
        assert layout.threads % 32 == 0 and layout.threads <= (256 if dtype == torch.float64 else 128)
        assert layout.columns >= 1 and layout.columns * layout.lanes * layout.slices == layout.threads
        assert layout.lanes * layout.slices * layout.pairs >= pairs and layout.lanes <= 32
        assert layout.blocks * layout.columns >= columns and layout.blocks < 2**31
        assert layout.span % 64 == 0 and layout.spans * layout.span >= steps and 1 <= layout.spans <= 65535
        assert (layout.spans - 1) * layout.span < max(steps, 1)
        if layout.spans > 1:
            assert layout.spans > 2 and columns * layout.lanes * layout.slices * 2 <= cupy_provider._FULL
    few, many = ((1024, columns, 32, torch.float32) for columns in (8 * 128, 64 * 128))
    assert cupy_provider._layout(*few).spans == 4 and cupy_provider._layout(*many).spans == 1


def test_constants_agree() -> None:
    """The provider makes as much room as the kernels take."""
    folder = cupy_provider._SOURCE.parent
    pair, columns = (folder / "pair.h").read_text(), (folder / "columns.h").read_text()
    assert f"BLOCK = {cupy_provider._BLOCK};" in pair and f"GROUP = {cupy_provider._GROUP};" in pair
    assert "STRIDE = BLOCK + 4;" in columns and cupy_provider._STRIDE == cupy_provider._BLOCK + 4
    assert "SLOTS = BLOCK / GROUP + GROUP - 2;" in columns
    assert cupy_provider._SLOTS == cupy_provider._BLOCK // cupy_provider._GROUP + cupy_provider._GROUP - 2


# ---- mutants: each must be noticed by the comparisons above

# what stands there, what is put in its place
MUTANTS = {
    "columns beyond the last": ("mine += column < a.columns &&", "mine +=", "columns.h"),
    "pairs beyond the last": ("&& pair + p * LANES_EACH < a.pairs", "", "columns.h"),
    "columns brought in beyond the last": (
        "carries = first + carried < a.columns;",
        "carries = true;",
        "columns.h",
    ),
    "constants of another channel": ("place.column % a.channels * a.pairs", "0 * a.pairs", "columns.h"),
    "rows that are not there yet": (
        "end), ahead);\n        __syncthreads();\n        if (SPEAKS",
        "end), ahead);\n        if (SPEAKS",
    ),
    "the same rows again": ("send_for(a, place, a.x, start + BLOCK,", "send_for(a, place, a.x, start,"),
    "the same rows again, backward": ("send(start - BLOCK);", "send(start);"),
    "rows that nobody sent for": (
        "t = first + AHEAD * apart",
        "t = first + (AHEAD + 1) * apart",
        "columns.h",
    ),
    "sums that are not there yet": (
        "place.lane, count);\n        __syncthreads();\n        if (!SPEAKS)",
        "place.lane, count);\n        if (!SPEAKS)",
    ),
    "rows that are still read": (
        "        __syncthreads();\n    }\n    const bool final",
        "    }\n    const bool final",
    ),
    "taps that are not there yet": (
        "        shared.taps[i] = rounded(sum);\n    }\n    __syncthreads();",
        "        shared.taps[i] = rounded(sum);\n    }",
        "columns.h",
    ),
    "gradients that are not there yet": (
        "place.lane, count);\n        __syncthreads();\n        if (!LEARNS)",
        "place.lane, count);\n        if (!LEARNS)",
    ),
    "the other half is kept": (
        "kept = upper ? value[i + HALF] : value[i];",
        "kept = upper ? value[i] : value[i + HALF];",
        "columns.h",
    ),
    "a lane's share is another's": ("first + (upper ? HALF : 0)", "first + (upper ? 0 : HALF)", "columns.h"),
    "one slice for all": (
        "sums[(s * place.columns + place.carried) * STRIDE + t]",
        "sums[place.carried * STRIDE + t]",
        "columns.h",
    ),
    "the group is longer": ("if (l <= earlier)", "if (l <= t)"),
    "no drift is taken off": ("add(h[p], times(shared.drift(p), h[p]))", "(void)shared"),
    "the checkpoint of another block": (
        "(start / BLOCK - 1) * a.columns * a.pairs + place.at(a, p), h[p]",
        "(end - 1 - start) / BLOCK * a.columns * a.pairs + place.at(a, p), h[p]",
    ),
    "every span begins at rest": ("SPEAKS || span == 0 ?", "span == 0 ?"),
    "the first span has no state": ("SPEAKS || span == 0 ?", "SPEAKS ?"),
    "the state is another span's": ("final = SPEAKS && span == a.spans - 1", "final = SPEAKS && span == 0"),
    "a power too far": ("steps < a.span; steps *= 2", "steps <= a.span; steps *= 2"),
    "backwards as forwards": ("if (a.backwards) power.im = -power.im;", ""),
    "the last span has no cotangent": ("LEARNS || later == 0 ?", "LEARNS ?"),
    "a replay without its state": ("h[p] = start > 0 ? load(a.saved,", "h[p] = false ? load(a.saved,"),
    "slots of another step": ("slots + (count - groups * (GROUP - 1)) * apart", "slots + groups * apart"),
    "later steps of the next group": ("if (l <= others)", "if (t + l < count)"),
    "the gradient of the state of each span": (
        "if (span == 0) store(a.grad_state",
        "if (true) store(a.grad_state",
    ),
    "taps of other steps": ("cotangents[j] * rows[j - l]", "cotangents[j] * rows[j]"),
    "a lane's taps": ("grad_taps[l] += __shfl_xor_sync(WARP, grad_taps[l], by);", ";"),
    "the sign of a gradient": ("sum[j].im -= given[j] * h.im;", "sum[j].im += given[j] * h.im;", "pair.h"),
    "a power of another step": (
        "power[G - 2 - j].im * x[j];\n    re -=",
        "power[j].im * x[j];\n    re -=",
        "pair.h",
    ),
    "sums that wait are lost": ("add(waiting[i * blockDim.x], sum);", "waiting[i * blockDim.x] = sum;"),
}


@pytest.mark.parametrize("what", MUTANTS)
def test_mutants_are_noticed(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, *file = MUTANTS[what]
    source = cuda_on_cpu.mutant(cupy_provider._SOURCE, old, new, tmp_path, *file)
    monkeypatch.setattr(cupy_provider, "_SOURCE", source)
    monkeypatch.setattr(cupy_provider, "_SHORT_SPAN", 128)
    double = what == "sums that wait are lost"  # in double alone
    pairs = 2 if what == "rows that nobody sent for" else 70  # its threads hold few of what they bring in
    with pytest.raises(AssertionError):
        _catch(double, pairs, monkeypatch)


def _catch(double: bool, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All paths with one compilation: slices, spans of two blocks and a shorter one, long memory."""
    compare(make_system((331, 1, 5), pairs, torch.float64 if double else torch.float32), "cupy")
    if not double:
        monkeypatch.setattr(cupy_provider, "_FULL", 0)
        compare(make_system((2048, 1, 1), pairs, torch.float32, radius=1.0), "cupy")


def test_what_is_right_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the mutants are put through, without one."""
    monkeypatch.setattr(cupy_provider, "_SHORT_SPAN", 128)
    for double, pairs in ((True, 70), (False, 70), (False, 2)):
        _catch(double, pairs, monkeypatch)
