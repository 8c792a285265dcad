"""Every variant of the CUDA kernels compiles, without a GPU, and keeps what it needs in registers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from snn_fr_plugin.ops import _cupy
from snn_fr_plugin.ops.lif import cupy_provider as lif
from snn_fr_plugin.ops.refractory import cupy_provider as refractory
from snn_fr_plugin.ops.ssm import cupy_provider as ssm

nvrtc = pytest.importorskip(
    "cupy_backends.cuda.libs.nvrtc",
    reason="needs CuPy: pip install 'snn-fr-plugin[test]'",
    exc_type=ImportError,
)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# every variant is compiled for the first two; for the others, where the compiler knows them, a quarter, in
# which every charge and reset occurs with some dtype
ARCHITECTURES = ("sm_90", "sm_80", "sm_75", "sm_100")
REGISTERS = 128
_KERNEL = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)
_INEXACT = re.compile(r"\b(?:fma\.\w+|\w+\.approx\.\w+|div\.full\.\w+|\w+\.(?:\w+\.)?ftz\.\w+)")
_QUOTIENT = "rcp.approx.ftz"


class Variant(NamedTuple):
    source: Path
    dtype: torch.dtype
    flags: tuple[str, ...]
    exact: bool  # no operation may contract or flush


def _lif(dtype: torch.dtype, turn: int = 0) -> Iterator[Variant]:
    """Every charge and reset; of half precision, one and two neurons a thread in turn."""
    for i, (charge, reset) in enumerate(itertools.product(range(3), range(5))):
        lanes = 1 + (i + turn) % 2 if dtype.itemsize == 2 and reset != lif.ALONE else 1
        yield Variant(lif._SOURCES["forward"], dtype, lif.flags(charge, reset, lanes), True)
        yield Variant(lif._SOURCES["backward"], dtype, lif.flags(charge, reset, 1), True)


def _ssm(dtype: torch.dtype, turn: int) -> Iterator[Variant]:
    """Every way to share the pairs of a column; of half precision, which computes in float32, a third."""
    layouts = (ssm._layout(1000, 1000, pairs, dtype) for pairs in range(1, ssm.MOST_PAIRS + 1))
    ways = list(dict.fromkeys(ssm.flags(layout) for layout in layouts))
    if dtype.itemsize == 2:
        ways = ways[(turn + DTYPES.index(dtype)) % 3 :: 3]
    for flags in ways:
        yield Variant(ssm._SOURCE, dtype, flags, False)


def _variants(dtype: torch.dtype, turn: int) -> list[Variant]:
    gate = Variant(refractory._SOURCE, dtype, refractory._FLAGS, True)
    return [*_lif(dtype, turn), gate, *_ssm(dtype, turn)]


def _kernels(source: Path) -> set[str]:
    return set(re.findall(r"__global__[^;{]*?(snn_fr_\w+)\(", source.read_text(encoding="utf-8")))


def _inexact(ptx: str) -> list[str]:
    """Operations that contract, flush or approximate, but for the quotients of slopes in a backward."""
    found = []
    for part in ptx.split(".entry "):
        backward = re.match(r"snn_fr_\w+_backward", part)
        found += [i for i in _INEXACT.findall(part) if i != _QUOTIENT or not backward]
    return found


def _check(variant: Variant, architecture: str) -> list[str]:
    """What is wrong with a variant."""
    source, dtype, flags, exact = variant
    compiled = _cupy.compile_source(source, dtype, (*flags, "--ptxas-options=-v"), architecture)
    found = {kernel: tuple(map(int, numbers)) for kernel, *numbers in _KERNEL.findall(compiled.log)}
    wrong = []
    if found.keys() != _kernels(source) or not compiled.cubin:
        wrong.append(f"kernels {sorted(found)}")
    for kernel, (stack, stores, loads, registers) in found.items():
        if stack or stores or loads or not 0 < registers <= REGISTERS:
            wrong.append(
                f"{kernel}: {stack} bytes of stack, {stores} + {loads} of spills, {registers} registers"
            )
    if exact:
        wrong += _inexact(compiled.ptx.decode())
    return [f"{source.parent.name} {' '.join(flags)}: {each}" for each in wrong]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_registers_spills_and_rounding(architecture: str, dtype: torch.dtype) -> None:
    if int(architecture.removeprefix("sm_")) not in nvrtc.getSupportedArchs():
        pytest.skip(f"NVRTC {nvrtc.getVersion()} does not know {architecture}")
    turn = ARCHITECTURES.index(architecture)
    variants = _variants(dtype, turn)
    if turn > 1:
        variants = variants[(DTYPES.index(dtype) + turn) % 4 :: 4]
    # NVRTC compiles without the interpreter's lock
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        wrong = [each for found in pool.map(lambda v: _check(v, architecture), variants) for each in found]
    assert not wrong, "\n".join(wrong)


def test_the_options_are_what_keeps_roundings_apart() -> None:
    """Without them the check above finds what it looks for."""
    source, dtype, flags, _ = next(_lif(torch.float32))
    assert flags[0] == "--fmad=false"
    assert _check(Variant(source, dtype, (*flags[1:], "--fmad=true"), True), "sm_90")
    flushed = _cupy.compile_source(source, dtype, (*flags, "--ftz=true"), "compute_90")
    assert b".ftz" in flushed.ptx and not flushed.cubin


def test_a_source_that_does_not_compile(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text('extern "C" __global__ void kernel() { what_is_this; }\n')
    with pytest.raises(RuntimeError, match=r"does not compile .*kernel.cu for sm_90(.|\n)*what_is_this"):
        _cupy.compile_source(source, torch.float32, (), "sm_90")
