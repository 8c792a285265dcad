"""``diagonal_ssm`` by the compiled providers, against the loop at every length that takes a path of its own.

CUDA kernels run on the CPU, through ``cuda_shim.h``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from snn_fr_plugin.ops import _compile, diagonal_ssm
from snn_fr_plugin.ops.ssm.operator import diagonal_ssm_backward_op, diagonal_ssm_op
from snn_fr_plugin.ops.ssm.reference import diagonal_ssm as reference

from .ssm_systems import compare, error, in_double, make_system, run
from .support import gradients, random_like

pytestmark = pytest.mark.skipif(not _compile.available(), reason="no C++ compiler")


@pytest.fixture(params=["cpp", "cupy"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cupy":
        request.getfixturevalue("kernels_on_cpu")
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 31, 63, 64, 65, 66, 127, 128, 131, 1000])
def test_equals_the_loop_at_every_length(backend: str, steps: int, dtype: torch.dtype) -> None:
    compare(make_system((steps, 2, 5), 4, dtype), backend)


@pytest.mark.parametrize("feed_through", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("steps", [2, 130])
def test_optional_arguments(backend: str, steps: int, with_state: bool, feed_through: bool) -> None:
    compare(make_system((steps, 3, 6), 3, feed_through=feed_through, with_state=with_state), backend)


@pytest.mark.parametrize("radius", [0.0, 1e-12, 1.0], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_extreme_decay(backend: str, radius: float, dtype: torch.dtype) -> None:
    compare(make_system((200, 2, 3), 4, dtype, radius=radius), backend)


def test_undamped_states_do_not_drift(backend: str) -> None:
    """The rounding of a constant is repeated at every use: uncorrected, long float32 sequences lose phase."""
    system = make_system((16384, 1, 4), 4, torch.float32, radius=1.0)
    cotangents = random_like(diagonal_ssm(**system, backend=backend))
    got = run(system, backend, cotangents)
    exact = in_double(system)
    wide = [
        c.double() if i == 0 else c.to(torch.complex128) for i, c in enumerate(cotangents) if c is not None
    ]
    want = run(exact, backend, wide)
    for name, a, b in zip(["y", "last", *system], got, want, strict=True):
        assert error(a, b) < 5e-6, name


@pytest.mark.parametrize("cuts", [[1], [64], [63, 65], [3, 70, 128, 131], list(range(1, 140, 2))], ids=str)
def test_chunks_equal_the_whole(backend: str, cuts: list[int]) -> None:
    system = make_system((140, 2, 3), 4)
    whole = diagonal_ssm(**system, backend=backend)
    pieces, state = [], system["state"]
    for start, end in itertools.pairwise([0, *cuts, 140]):
        chunk = {**system, "x": system["x"][start:end], "state": state}
        y, state = diagonal_ssm(**chunk, backend=backend)
        pieces.append(y)
    chunked = [torch.cat(pieces), state]
    cotangents = random_like(whole)
    inputs = list(system.values())
    for a, b in zip(
        [*chunked, *gradients(chunked, cotangents, inputs)],
        [*whole, *gradients(whole, cotangents, inputs)],
        strict=True,
    ):
        assert error(a, b) < 1e-12


def test_columns_are_independent(backend: str) -> None:
    """A batch entry gives the same bits in any company; what is not finite stays in its column and future."""
    system = make_system((100, 7, 5), 3, torch.float32)
    order = torch.randperm(7)
    y, last = diagonal_ssm(**system, backend=backend)
    shuffled = {**system, "x": system["x"][:, order], "state": system["state"][order]}
    y_shuffled, last_shuffled = diagonal_ssm(**shuffled, backend=backend)
    assert torch.equal(y[:, order], y_shuffled) and torch.equal(last[order], last_shuffled)

    poisoned = system["x"].detach().clone()
    poisoned[66, 3, 2] = math.inf
    y_poisoned = diagonal_ssm(**{**system, "x": poisoned}, backend=backend)[0]
    assert not y_poisoned[66:, 3, 2].isfinite().any()
    y_poisoned[66:, 3, 2] = y[66:, 3, 2]
    assert torch.equal(y, y_poisoned)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("steps", [3, 70])
def test_one_cotangent(backend: str, index: int, steps: int) -> None:
    system = make_system((steps, 2, 3), 4)
    got, want = diagonal_ssm(**system, backend=backend)[index], reference(**system)[index]
    cotangents, inputs = random_like([got]), list(system.values())
    for a, b in zip(gradients([got], cotangents, inputs), gradients([want], cotangents, inputs), strict=True):
        assert error(torch.zeros_like(b) if a is None and b is not None else a, b) < 1e-12


def test_gradcheck(backend: str) -> None:
    system = make_system((6, 2, 2), 2)
    assert torch.autograd.gradcheck(
        lambda x, a, c, d, h: diagonal_ssm(x, a, c, d, state=h, backend=backend), tuple(system.values())
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 5), (70, 3, 5), (70, 2, 33)], ids=str)
def test_half_precision_is_rounded_once(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    system = make_system(shape, 3, torch.float32)
    half = system["x"].detach().to(dtype)
    narrow = {**system, "x": half.clone().requires_grad_()}
    wide = {**system, "x": half.float().requires_grad_()}
    y = diagonal_ssm(**narrow, backend=backend)[0]
    cotangent = torch.randn_like(y)
    got = run(narrow, backend, [cotangent, None])
    want = run(wide, backend, [cotangent.float(), None])
    assert got[0] is not None and got[0].dtype == dtype and y.isfinite().all()
    for a, b in zip(got, want, strict=True):
        assert a is not None and b is not None and torch.equal(a, b.to(a.dtype))


def _views(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values of x in other layouts."""
    yield "permuted", x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    yield "sliced", torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]
    yield "offset by one element", torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    yield "negated lazily", torch.complex(x, -x).conj().imag


def test_layouts(backend: str) -> None:
    system = make_system((70, 3, 6), 3, torch.float32)
    expected = run(system, backend)
    for name, view in _views(system["x"].detach()):
        assert torch.equal(view, system["x"]), name
        got = run({**system, "x": view.requires_grad_()}, backend)
        for a, b in zip(got, expected, strict=True):
            assert a is not None and b is not None and torch.equal(a, b), name
    lazy = {**system, "A_bar": system["A_bar"].detach().conj().resolve_conj().conj()}
    lazy["C_bar"] = system["C_bar"].detach().t().contiguous().t()
    assert lazy["A_bar"].is_conj() and not lazy["C_bar"].is_contiguous()
    assert torch.equal(diagonal_ssm(**lazy, backend=backend)[0], expected[0])
    expanded = gradients(
        [diagonal_ssm(**system, backend=backend)[0]], [torch.ones(()).expand(70, 3, 6)], [system["x"]]
    )
    dense = gradients([diagonal_ssm(**system, backend=backend)[0]], [torch.ones(70, 3, 6)], [system["x"]])
    assert torch.equal(expanded[0], dense[0])


@pytest.mark.parametrize(
    ("shape", "pairs"), [((0, 2, 3), 4), ((5, 0, 3), 4), ((5, 2, 0), 4), ((5, 2, 3), 0)], ids=str
)
def test_zero_sizes(backend: str, shape: tuple[int, ...], pairs: int) -> None:
    system = make_system(shape, pairs)
    y, last = diagonal_ssm(**system, backend=backend)
    expected_y, expected_last = reference(**system)
    assert y.shape == shape and last.shape == (*shape[1:], pairs)
    assert error(y, expected_y) < 1e-12 and error(last, expected_last) < 1e-12
    assert last.data_ptr() != system["state"].data_ptr() or last.numel() == 0
    cotangents, inputs = random_like([y, last]), list(system.values())
    for a, b in zip(
        gradients([y, last], cotangents, inputs),
        gradients([expected_y, expected_last], cotangents, inputs),
        strict=True,
    ):
        assert a is not None and error(a, torch.zeros_like(a) if b is None else b) < 1e-12


# opcheck itself reads .grad of its non-leaf copies
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("steps", [1, 70])
def test_opcheck(backend: str, with_state: bool, steps: int) -> None:
    system = make_system((steps, 2, 3), 4, torch.float32)
    args = [v if with_state or n not in ("D", "state") else None for n, v in system.items()]
    torch.library.opcheck(diagonal_ssm_op, (*args, True, backend))
    y, last, checkpoints = diagonal_ssm_op(*args, True, backend)
    detached = [a if a is None else a.detach() for a in args]
    for given in ((torch.randn_like(y), torch.randn_like(last)), (torch.randn_like(y), None)):
        torch.library.opcheck(diagonal_ssm_backward_op, (*given, *detached, checkpoints.detach(), backend))


def test_compile_fullgraph(backend: str) -> None:
    system = make_system((70, 2, 5), 3, torch.float32)
    # Inductor has its turn in test_torch_native.py
    compiled = torch.compile(
        lambda **s: diagonal_ssm(**s, backend=backend), fullgraph=True, backend="aot_eager"
    )
    got, want = compiled(**system), diagonal_ssm(**system, backend=backend)
    cotangents, inputs = random_like(want), list(system.values())
    for a, b in zip(
        [*got, *gradients(got, cotangents, inputs)],
        [*want, *gradients(want, cotangents, inputs)],
        strict=True,
    ):
        assert torch.equal(a, b)
