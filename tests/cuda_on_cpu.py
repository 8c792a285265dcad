"""Runs CUDA kernels on the CPU, through ``cuda_shim.h``: ``launch`` in the place of ``_cupy.launch``.

What a kernel writes beside its tensors, what it reads there (NaN), and barriers that not all threads reach,
show.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from snn_fr_plugin.ops import _cache, _compile, _native

_HERE = Path(__file__).parent
_GUARD = 4096  # bytes before and after each tensor
_POISON = 0xFF  # NaN in every floating-point type
_BARRIERS = re.compile(r"\b__(syncthreads|syncwarp|shfl\w*|ballot_sync|any_sync|all_sync)\b")
_KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(")
# what is not optimised is soon compiled, and there is more to compile here than to run
_FLAGS = ("-std=c++17", "-O0", "-fPIC", "-ffp-contract=off")


class KernelError(AssertionError):
    """A kernel did what CUDA does not allow, or wrote beside its tensors."""


@functools.cache
def load(source: Path, dtype: torch.dtype, flags: tuple[str, ...]) -> ctypes.CDLL:
    """The kernels of ``source`` as a library for the CPU."""
    code = [file.read_text() for file in _cache.closure(source)]
    kernels = list(dict.fromkeys(name for text in code for name in _KERNEL.findall(text)))
    defines = [
        f"-DSNN_FR_{str(dtype).removeprefix('torch.').upper()}",
        *(flag for flag in flags if flag.startswith("-D")),
        f'-DSHIM_SOURCE="{source}"',
        f"-DSHIM_KERNELS={' '.join(f'X({name})' for name in kernels)}",
        f"-DSHIM_FIBERS={int(any(_BARRIERS.search(text) for text in code))}",
        f"-DSHIM_DIGEST={hashlib.sha256(''.join(code).encode()).hexdigest()}",  # for the key of the cache
    ]
    chain = _compile.toolchain()._replace(flags=_FLAGS, openmp=False)
    label = f"{source.parent.name}-{source.stem}-on-cpu"
    library = _compile._open(label, _HERE / "cuda_on_cpu.cpp", tuple(defines), chain)
    for name in kernels:
        getattr(library, f"shim_{name}").restype = ctypes.c_char_p
    return library


def launch(
    source: Path,
    kernel: str,
    dtype: torch.dtype,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    arguments: ctypes.Structure,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    *,
    flags: tuple[str, ...] = (),
    shared_bytes: int = 0,
) -> None:
    """``_cupy.launch`` for tensors on the CPU."""
    blocks, threads = _three(grid), _three(block)
    if 0 in blocks:
        return
    assert max(blocks[1:]) < 1 << 16 and blocks[0] < 1 << 31, f"CUDA has no such grid: {blocks}"
    count = threads[0] * threads[1] * threads[2]
    assert 0 < count <= 1024 and threads[2] <= 64, f"CUDA has no such block: {threads}"
    assert shared_bytes <= 227 << 10, f"no GPU has {shared_bytes} bytes of shared memory for a block"
    function = getattr(load(source, dtype, flags), f"shim_{kernel}")
    read = {name: _guarded(tensor.contiguous()) for name, tensor in inputs.items()}
    written = {name: _guarded(tensor) for name, tensor in outputs.items()}
    _native.fill(
        arguments,
        {name: inside for name, (_, inside) in read.items()},
        {name: inside for name, (_, inside) in written.items()},
    )
    dimensions = ctypes.c_uint * 3
    placed = [inside for _, inside in (*read.values(), *written.values())]
    bounds = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in placed]
    error = function(
        ctypes.byref(arguments),
        (ctypes.c_size_t * (2 * len(bounds)))(*(address for pair in bounds for address in pair)),
        len(bounds),
        dimensions(*blocks),
        dimensions(*threads),
        ctypes.c_size_t(shared_bytes),
    )
    if error is not None:
        raise KernelError(f"{kernel}: {error.decode()}")
    for name, (whole, inside) in (read | written).items():
        start = inside.data_ptr() - whole.data_ptr()
        end = start + inside.numel() * inside.element_size()
        if (whole[:start] != _POISON).any() or (whole[end:] != _POISON).any():
            raise KernelError(f"{kernel} wrote beside {name}")
        if name in outputs:
            outputs[name].copy_(inside)
        elif not torch.equal(inside.flatten().view(torch.uint8), _bytes(inputs[name].contiguous())):
            raise KernelError(f"{kernel} wrote into its input {name}")


def mutant(source: Path, old: str, new: str, folder: Path, file: str = "kernel.cu") -> Path:
    """A copy of a kernel with something wrong in it, or in a header beside it (``file``, as seen from it)."""
    copy = folder / source.parent.name
    shutil.copytree(source.parent, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copytree(
        source.parent.parent / "lif",
        folder / "lif",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.py", "__pycache__"),
    )
    for header in source.parent.parent.glob("*.h"):
        shutil.copy(header, folder)
    changed = copy / file
    text = changed.read_text()
    assert old in text, f"{old!r} is not in {file}: the mutant says nothing"
    changed.write_text(text.replace(old, new))
    return copy / source.name


def _three(sizes: int | tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*((sizes,) if isinstance(sizes, int) else sizes), 1, 1)[:3]
    return x, y, z


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().view(torch.uint8)


def _guarded(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of a contiguous tensor between poisoned bytes, aligned as it is: all of it, and the copy."""
    bytes_ = tensor.numel() * tensor.element_size()
    whole = torch.full((bytes_ + 2 * _GUARD + 256,), _POISON, dtype=torch.uint8)
    start = _GUARD + (tensor.data_ptr() - whole.data_ptr() - _GUARD) % 256
    inside = whole[start : start + bytes_]
    inside.copy_(_bytes(tensor))
    return whole, inside.view(tensor.dtype).view(tensor.shape)
