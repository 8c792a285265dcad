"""``diagonal_ssm`` by the C++ provider: tiles, threads, stores that bypass the cache, instruction sets."""

from __future__ import annotations

import math
import platform
from pathlib import Path

import pytest
import torch

from snn_fr_plugin.ops import _compile, diagonal_ssm
from snn_fr_plugin.ops.ssm import cpp_provider

from .ssm_systems import compare, make_system, run
from .support import gradients


@pytest.mark.parametrize(
    ("batch", "channels", "pairs"),
    [
        *((1, 1, 1), (40, 1, 2), (9, 2, 1), (7, 3, 5), (3, 16, 33), (2, 17, 1), (5, 20, 2), (3, 100, 3)),
        *((1, 255, 1), (2, 256, 2), (3, 257, 2), (2, 271, 3), (130, 4, 2), (70, 24, 1)),
    ],
)
def test_equals_the_loop_at_every_tiling(batch: int, channels: int, pairs: int) -> None:
    compare(make_system((70, batch, channels), pairs, torch.float32), "cpp")
    compare(make_system((2, batch, channels), pairs), "cpp")


@pytest.mark.parametrize("shape", [(3, 40, 130), (300, 5, 100), (70, 3, 300)], ids=str)
def test_threads_change_no_bit(shape: tuple[int, ...]) -> None:
    system, before, results = make_system(shape, 33, torch.float32), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(run(system, "cpp"))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            assert a is not None and b is not None and torch.equal(a, b)


def test_large_outputs() -> None:
    """Outputs that bypass the cache, rows that are whole cache lines or not, equal those of their halves."""
    for channels in (1024, 1030):
        system = make_system((4200, 1, channels), 1, torch.float32, with_state=False)
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
        system = make_system(shape, 3, torch.float32)
        compare(system, "cpp")
        _, _, checkpoints = cpp_provider.forward(*(t.detach() for t in system.values()), True)
        assert checkpoints.isfinite().all(), "columns that only fill a vector were left unwritten"
