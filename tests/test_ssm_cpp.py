"""``diagonal_ssm`` compiled: against the reference loop at every shape that takes a path of its own."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_fr_plugin.ops import _compile, diagonal_ssm
from snn_fr_plugin.ops.ssm import cpp_provider
from snn_fr_plugin.ops.ssm.operator import diagonal_ssm_backward_op, diagonal_ssm_op
from snn_fr_plugin.ops.ssm.reference import diagonal_ssm as reference

from .support import gradients, random_like

# greatest error, relative to the greatest value
PRECISION = {torch.float64: 1e-12, torch.float32: 5e-6}
COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def _system(
    shape: Sequence[int],
    pairs: int,
    dtype: torch.dtype = torch.float64,
    *,
    feed_through: bool = True,
    with_state: bool = True,
    radius: float | None = None,
) -> dict[str, Any]:
    """Random arguments, by default with |A| from 0.5 to 0.9999; one A is zero."""
    channels = shape[-1]
    sizes = (
        1 - 10 ** -torch.rand(channels, pairs, dtype=dtype).mul(3.7).add(0.3)
        if radius is None
        else torch.full((channels, pairs), radius, dtype=dtype)
    )
    matrix = torch.polar(sizes, (torch.rand(channels, pairs, dtype=dtype) * 2 - 1) * math.pi)
    matrix[:1, :1] = 0
    system: dict[str, Any] = {
        "x": torch.randn(*shape, dtype=dtype),
        "A_bar": matrix,
        "C_bar": torch.randn(channels, pairs, dtype=COMPLEX[dtype]),
    }
    if feed_through:
        system["D"] = torch.randn(channels, dtype=dtype)
    if with_state:
        system["state"] = torch.randn(*shape[1:], pairs, dtype=COMPLEX[dtype])
    return {name: value.requires_grad_() for name, value in system.items()}


def _in_double(system: dict[str, Tensor]) -> dict[str, Any]:
    wide = {
        n: v.detach().to(torch.complex128 if v.is_complex() else torch.float64) for n, v in system.items()
    }
    return {name: value.requires_grad_() for name, value in wide.items()}


def _error(got: Tensor | None, want: Tensor | None) -> float:
    if want is None or want.numel() == 0:
        return 0.0
    assert got is not None and got.shape == want.shape
    got, want = got.detach(), want.detach()
    scale = want.abs().max()
    return float((got - want).abs().max() / scale) if scale else float(got.abs().max())


def _run(system: dict[str, Any], cotangents: Sequence[Tensor | None] | None = None) -> list[Tensor | None]:
    """Outputs and gradients, in the order of the arguments."""
    outputs = diagonal_ssm(**system, backend="cpp")
    if cotangents is None:
        torch.manual_seed(1)
        cotangents = random_like(outputs)
    return [*outputs, *gradients(outputs, cotangents, list(system.values()))]


def _compare(system: dict[str, Any]) -> None:
    dtype = system["x"].dtype
    outputs, exact = diagonal_ssm(**system, backend="cpp"), _in_double(system)
    expected = reference(**exact)
    assert outputs[0].dtype == dtype and outputs[1].dtype == COMPLEX[dtype]
    cotangents = random_like(outputs)
    got = gradients(outputs, cotangents, list(system.values()))
    want = gradients(
        expected, [c.to(e.dtype) for c, e in zip(cotangents, expected, strict=True)], list(exact.values())
    )
    names = ["y", "last", *system]
    for name, a, b in zip(names, [*outputs, *got], [*expected, *want], strict=True):
        assert _error(a, b) < PRECISION[dtype], name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 31, 63, 64, 65, 66, 127, 128, 131, 1000])
def test_equals_the_loop_at_every_length(steps: int, dtype: torch.dtype) -> None:
    _compare(_system((steps, 2, 5), 4, dtype))


@pytest.mark.parametrize(
    ("batch", "channels", "pairs"),
    [
        *((1, 1, 1), (40, 1, 2), (9, 2, 1), (7, 3, 5), (3, 16, 33), (2, 17, 1), (5, 20, 2), (3, 100, 3)),
        *((1, 255, 1), (2, 256, 2), (3, 257, 2), (2, 271, 3), (130, 4, 2), (70, 24, 1)),
    ],
)
def test_equals_the_loop_at_every_tiling(batch: int, channels: int, pairs: int) -> None:
    _compare(_system((70, batch, channels), pairs, torch.float32))
    _compare(_system((2, batch, channels), pairs))


@pytest.mark.parametrize("feed_through", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("steps", [2, 130])
def test_optional_arguments(steps: int, with_state: bool, feed_through: bool) -> None:
    _compare(_system((steps, 3, 6), 3, feed_through=feed_through, with_state=with_state))


@pytest.mark.parametrize("radius", [0.0, 1e-12, 1.0], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_extreme_decay(radius: float, dtype: torch.dtype) -> None:
    _compare(_system((200, 2, 3), 4, dtype, radius=radius))


def test_undamped_states_do_not_drift() -> None:
    """The rounding of a constant is repeated at every use: uncorrected, long float32 sequences lose phase."""
    system = _system((16384, 1, 4), 4, torch.float32, radius=1.0)
    cotangents = random_like(diagonal_ssm(**system, backend="cpp"))
    got = _run(system, cotangents)
    exact = _in_double(system)
    want = _run(
        exact, [None if c is None else c.to(e.dtype) for c, e in zip(cotangents, _run(exact), strict=False)]
    )
    for name, a, b in zip(["y", "last", *system], got, want, strict=True):
        assert _error(a, b) < 5e-6, name


@pytest.mark.parametrize("cuts", [[1], [64], [63, 65], [3, 70, 128, 131], list(range(1, 140, 2))], ids=str)
def test_chunks_equal_the_whole(cuts: list[int]) -> None:
    system = _system((140, 2, 3), 4)
    whole = diagonal_ssm(**system, backend="cpp")
    pieces, state = [], system["state"]
    for start, end in itertools.pairwise([0, *cuts, 140]):
        chunk = {**system, "x": system["x"][start:end], "state": state}
        y, state = diagonal_ssm(**chunk, backend="cpp")
        pieces.append(y)
    chunked = [torch.cat(pieces), state]
    cotangents = random_like(whole)
    inputs = list(system.values())
    for a, b in zip(
        [*chunked, *gradients(chunked, cotangents, inputs)],
        [*whole, *gradients(whole, cotangents, inputs)],
        strict=True,
    ):
        assert _error(a, b) < 1e-12


@pytest.mark.parametrize("shape", [(3, 40, 130), (300, 5, 100), (70, 3, 300)], ids=str)
def test_threads_change_no_bit(shape: tuple[int, ...]) -> None:
    system, before, results = _system(shape, 33, torch.float32), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(_run(system))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            assert a is not None and b is not None and torch.equal(a, b)


def test_columns_are_independent() -> None:
    """A batch entry gives the same bits in any company; what is not finite stays in its column and future."""
    system = _system((100, 7, 5), 3, torch.float32)
    order = torch.randperm(7)
    y, last = diagonal_ssm(**system, backend="cpp")
    shuffled = {**system, "x": system["x"][:, order], "state": system["state"][order]}
    y_shuffled, last_shuffled = diagonal_ssm(**shuffled, backend="cpp")
    assert torch.equal(y[:, order], y_shuffled) and torch.equal(last[order], last_shuffled)

    poisoned = system["x"].detach().clone()
    poisoned[66, 3, 2] = math.inf
    y_poisoned = diagonal_ssm(**{**system, "x": poisoned}, backend="cpp")[0]
    assert not y_poisoned[66:, 3, 2].isfinite().any()
    y_poisoned[66:, 3, 2] = y[66:, 3, 2]
    assert torch.equal(y, y_poisoned)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("steps", [3, 70])
def test_one_cotangent(index: int, steps: int) -> None:
    system = _system((steps, 2, 3), 4)
    got, want = diagonal_ssm(**system, backend="cpp")[index], reference(**system)[index]
    cotangents, inputs = random_like([got]), list(system.values())
    for a, b in zip(gradients([got], cotangents, inputs), gradients([want], cotangents, inputs), strict=True):
        assert _error(torch.zeros_like(b) if a is None and b is not None else a, b) < 1e-12


def test_gradcheck() -> None:
    system = _system((6, 2, 2), 2)
    assert torch.autograd.gradcheck(
        lambda x, a, c, d, h: diagonal_ssm(x, a, c, d, state=h, backend="cpp"), tuple(system.values())
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 5), (70, 3, 5), (70, 2, 33)], ids=str)
def test_half_precision_is_rounded_once(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    system = _system(shape, 3, torch.float32)
    half = system["x"].detach().to(dtype)
    narrow = {**system, "x": half.clone().requires_grad_()}
    wide = {**system, "x": half.float().requires_grad_()}
    y = diagonal_ssm(**narrow, backend="cpp")[0]
    cotangent = torch.randn_like(y)
    got = _run(narrow, [cotangent, None])
    want = _run(wide, [cotangent.float(), None])
    assert got[0] is not None and got[0].dtype == dtype and y.isfinite().all()
    for a, b in zip(got, want, strict=True):
        assert a is not None and b is not None and torch.equal(a, b.to(a.dtype))


def _views(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values of x in other layouts."""
    yield "permuted", x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    yield "sliced", torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]
    yield "offset by one element", torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    yield "negated lazily", torch.complex(x, -x).conj().imag


def test_layouts() -> None:
    system = _system((70, 3, 6), 3, torch.float32)
    expected = _run(system)
    for name, view in _views(system["x"].detach()):
        assert torch.equal(view, system["x"]), name
        got = _run({**system, "x": view.requires_grad_()})
        for a, b in zip(got, expected, strict=True):
            assert a is not None and b is not None and torch.equal(a, b), name
    lazy = {**system, "A_bar": system["A_bar"].detach().conj().resolve_conj().conj()}
    lazy["C_bar"] = system["C_bar"].detach().t().contiguous().t()
    assert lazy["A_bar"].is_conj() and not lazy["C_bar"].is_contiguous()
    assert torch.equal(diagonal_ssm(**lazy, backend="cpp")[0], expected[0])
    expanded = gradients(
        [diagonal_ssm(**system, backend="cpp")[0]], [torch.ones(()).expand(70, 3, 6)], [system["x"]]
    )
    dense = gradients([diagonal_ssm(**system, backend="cpp")[0]], [torch.ones(70, 3, 6)], [system["x"]])
    assert torch.equal(expanded[0], dense[0])


def test_large_outputs() -> None:
    """Outputs that bypass the cache, rows that are whole cache lines or not, equal those of their halves."""
    for channels in (1024, 1030):
        system = _system((4200, 1, channels), 1, torch.float32, with_state=False)
        y = diagonal_ssm(**system, backend="cpp")[0]
        assert y.numel() * 4 >= 2**24
        cotangent = torch.randn_like(y)
        grad = gradients([y], [cotangent], [system["x"]])[0]
        for half in (slice(0, channels // 2), slice(channels // 2, channels)):
            part = {name: value.detach()[..., half] for name, value in system.items() if name in ("x", "D")}
            part |= {name: system[name].detach()[half] for name in ("A_bar", "C_bar")}
            part["x"].requires_grad_()
            y_part = diagonal_ssm(**part, backend="cpp")[0]
            assert torch.equal(y[..., half], y_part)
            assert torch.equal(grad[..., half], gradients([y_part], [cotangent[..., half]], [part["x"]])[0])


@pytest.mark.parametrize(
    ("shape", "pairs"), [((0, 2, 3), 4), ((5, 0, 3), 4), ((5, 2, 0), 4), ((5, 2, 3), 0)], ids=str
)
def test_zero_sizes(shape: tuple[int, ...], pairs: int) -> None:
    system = _system(shape, pairs)
    y, last = diagonal_ssm(**system, backend="cpp")
    expected_y, expected_last = reference(**system)
    assert y.shape == shape and last.shape == (*shape[1:], pairs)
    assert _error(y, expected_y) < 1e-12 and _error(last, expected_last) < 1e-12
    assert last.data_ptr() != system["state"].data_ptr() or last.numel() == 0
    cotangents, inputs = random_like([y, last]), list(system.values())
    for a, b in zip(
        gradients([y, last], cotangents, inputs),
        gradients([expected_y, expected_last], cotangents, inputs),
        strict=True,
    ):
        assert a is not None and _error(a, torch.zeros_like(a) if b is None else b) < 1e-12


def test_memory_of_the_checkpoints() -> None:
    """One state in 64 steps, and none in a sequence that is not longer."""
    matrix = torch.Size([128, 32])
    assert (
        math.prod(cpp_provider.saved_shape(torch.Size([1024, 8, 128]), matrix, True)) == 15 * 8 * 128 * 32 * 2
    )
    assert math.prod(cpp_provider.saved_shape(torch.Size([64, 8, 128]), matrix, True)) == 0
    assert cpp_provider.saved_shape(torch.Size([1024, 8, 128]), matrix, False) == (0,)


def test_constants_agree() -> None:
    """The kernel writes as many checkpoints as the provider makes room for."""
    folder = Path(cpp_provider.__file__).parent
    assert f"BLOCK = {cpp_provider._BLOCK};" in (folder / "pair.h").read_text()
    assert f"LINE = {cpp_provider._LINE};" in (folder / "kernel.cpp").read_text()


NARROWER = ["-mno-avx512f", "-mno-avx"] if platform.machine() in ("x86_64", "AMD64") else ["-O1"]


@pytest.mark.parametrize("flag", NARROWER)
def test_other_instruction_sets(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same source for narrower vectors than this machine has."""
    load = _compile.load
    monkeypatch.setattr(_compile, "load", lambda source, dtype, *flags: load(source, dtype, *flags, flag))
    for shape in ((1, 2, 5), (131, 3, 20), (66, 2, 257)):
        system = _system(shape, 3, torch.float32)
        _compare(system)
        _, _, checkpoints = cpp_provider.forward(*(t.detach() for t in system.values()), True)
        assert checkpoints.isfinite().all(), "columns that only fill a vector were left unwritten"


# opcheck itself reads .grad of its non-leaf copies
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("steps", [1, 70])
def test_opcheck(with_state: bool, steps: int) -> None:
    system = _system((steps, 2, 3), 4, torch.float32)
    none = {"D": torch.empty(0), "state": torch.empty(0, dtype=torch.complex64)}
    args = [v if with_state or n not in none else none[n] for n, v in system.items()]
    torch.library.opcheck(diagonal_ssm_op, (*args, True, "cpp"))
    y, last, checkpoints = diagonal_ssm_op(*args, True, "cpp")
    detached = [a.detach() for a in args]
    for given in ((torch.randn_like(y), torch.randn_like(last)), (torch.randn_like(y), None)):
        torch.library.opcheck(diagonal_ssm_backward_op, (*given, *detached, checkpoints.detach(), "cpp"))


def test_compile_fullgraph() -> None:
    system = _system((70, 2, 5), 3, torch.float32)
    # Inductor has its turn in test_torch_native.py
    compiled = torch.compile(
        lambda **s: diagonal_ssm(**s, backend="cpp"), fullgraph=True, backend="aot_eager"
    )
    got, want = compiled(**system), diagonal_ssm(**system, backend="cpp")
    cotangents, inputs = random_like(want), list(system.values())
    for a, b in zip(
        [*got, *gradients(got, cotangents, inputs)],
        [*want, *gradients(want, cotangents, inputs)],
        strict=True,
    ):
        assert torch.equal(a, b)
