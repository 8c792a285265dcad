"""CUDA kernels: compiled by NVRTC through CuPy, started on torch's stream. The only file that imports CuPy.

CuPy's own compiler appends ``-ftz=true`` to what it is given, which flips bits; so sources are compiled here,
with our options, and loaded as machine code, from the cache of ``_cache.py`` where possible. CuPy then starts
the kernels. Memory is torch's, all of it.

The compilation is tested without a GPU, the kernels on a CPU (``tests/cuda_on_cpu.py``), and all of it on a
GPU by ``pytest -m gpu``.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch  # before CuPy, which then finds the NVRTC that torch has brought
from torch import Tensor

from . import _cache, _native

__all__ = ["available", "available_or_warn", "compile_source", "launch", "require"]

_OLDEST = 13  # release of CuPy
# One rounding per operation, but for products and sums: whether they may contract is for the operator to say.
_OPTIONS = ("--std=c++17", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
_PLAIN_SHARED = 48 << 10  # bytes of shared memory that a block may have without asking


# ---- whether it works here


class _Problem(NamedTuple):
    error: Exception
    broken: bool  # CuPy is installed, and still it does not work


@functools.cache
def _problem() -> _Problem | None:
    """Why there is no CuPy provider, if so; looked for once in a process."""
    if torch.version.cuda is None:
        error = f"backend='cupy' needs a PyTorch that is built for CUDA, and torch {torch.__version__} is not"
        return _Problem(RuntimeError(error), False)
    major = torch.version.cuda.partition(".")[0]
    install = f"pip install 'snn-fr-plugin[cuda{major}]'"
    try:
        import cupy
        from cupy.cuda import driver, function, runtime  # noqa: F401 (whether they are there)
        from cupy_backends.cuda.libs import nvrtc
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            return _Problem(ImportError(f"backend='cupy' needs CuPy: {install}"), False)
        return _Problem(ImportError(f"CuPy is damaged ({error}): install it again, {install}"), True)
    except Exception as error:  # whatever a library that does not fit raises
        return _Problem(ImportError(f"CuPy cannot be imported ({error}): install it again, {install}"), True)

    def broken(message: str) -> _Problem:
        return _Problem(RuntimeError(message), True)

    if int(cupy.__version__.partition(".")[0]) < _OLDEST:
        return broken(f"backend='cupy' needs CuPy {_OLDEST} or later, found {cupy.__version__}: {install}")
    built = str(driver.get_build_version() // 1000)
    if runtime.is_hip or built != major:
        made = "ROCm" if runtime.is_hip else f"CUDA {built}"
        return broken(
            f"CuPy is built for {made}, torch for CUDA {torch.version.cuda}: pip uninstall it, then {install}"
        )
    if not torch.cuda.is_available():
        return broken("backend='cupy' needs an NVIDIA GPU and its driver: nvidia-smi should list one")
    try:
        nvrtc.getVersion()
    except Exception as error:
        return broken(f"CuPy does not find NVRTC ({error}): pip install nvidia-cuda-nvrtc, of CUDA {major}")
    return None


def available() -> bool:
    """Whether CUDA kernels can be used here. The first call in a process may import CuPy."""
    return _problem() is None


def available_or_warn() -> bool:
    """The same, and says once if CuPy is installed and does not work."""
    global _warned
    problem = _problem()
    if problem is not None and problem.broken and not _warned:
        _warned = True
        warnings.warn(
            f"CUDA tensors are served by plain PyTorch: {problem.error}", RuntimeWarning, stacklevel=2
        )
    return problem is None


_warned = False
# What torch.compiler.assume_constant_result does, without importing Dynamo: tracing keeps the first answer.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]
available_or_warn._dynamo_marked_constant = True  # type: ignore[attr-defined]


def require() -> None:
    """There is a CuPy provider.

    Raises:
        ImportError: CuPy is missing or cannot be imported; the message says what to install.
        RuntimeError: it is built for another CUDA, or there is no driver, or no NVRTC.
    """
    problem = _problem()
    if problem is not None:
        raise problem.error


# ---- compiling


class Compiled(NamedTuple):
    """What NVRTC makes of a source."""

    cubin: bytes  # machine code, of which there is none for "compute_90" and its kin
    ptx: bytes
    log: str


def compile_source(source: Path, dtype: torch.dtype, flags: tuple[str, ...], architecture: str) -> Compiled:
    """Compile a ``.cu`` file, without a look at the cache. Needs no GPU.

    Args:
        architecture: "sm_90" for machine code, "compute_90" for PTX that drivers of later devices translate.

    Raises:
        RuntimeError: the source does not compile; the message holds the compiler's log.
    """
    from cupy_backends.cuda.libs import nvrtc

    # the files themselves, by the names under which they are included
    headers: dict[str, Path] = {}
    for file in _cache.closure(source):
        for name, found in _cache.includes(file).items():
            assert headers.setdefault(name, found) == found, f"two headers are included as {name}"
    program = nvrtc.createProgram(
        source.read_text(),
        source.name,
        [file.read_bytes() for file in headers.values()],
        [name.encode() for name in headers],
    )
    try:
        nvrtc.compileProgram(program, _options(dtype, flags, architecture))
        # CuPy cuts the last byte off, as if machine code were text that ends in a zero
        cubin = nvrtc.getCUBIN(program) + b"\0" if architecture.startswith("sm_") else b""
        return Compiled(cubin, nvrtc.getPTX(program), nvrtc.getProgramLog(program))
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise RuntimeError(f"NVRTC does not compile {source} for {architecture}: {error}\n{log}") from error
    finally:
        nvrtc.destroyProgram(program)


def _options(dtype: torch.dtype, flags: tuple[str, ...], architecture: str) -> tuple[str, ...]:
    kind = str(dtype).removeprefix("torch.").upper()
    return (f"--gpu-architecture={architecture}", *_OPTIONS, f"-DSNN_FR_{kind}", *flags)


def _compiled(source: Path, dtype: torch.dtype, flags: tuple[str, ...], architecture: str) -> bytes:
    """The code of a ``.cu`` file, from the cache where possible."""
    from cupy_backends.cuda.libs import nvrtc

    def build(scratch: Path) -> Path:
        compiled = compile_source(source, dtype, flags, architecture)
        file = scratch / ("kernel.cubin" if compiled.cubin else "kernel.ptx")
        file.write_bytes(compiled.cubin or compiled.ptx)
        return file

    version = ".".join(map(str, nvrtc.getVersion()))
    key = _cache.key(source, ("nvrtc", version, *_options(dtype, flags, architecture)))
    label = f"{source.parent.name}-{str(dtype).removeprefix('torch.')}-{architecture}"
    return _cache.obtain(f"{label}-{key}", build, Path.read_bytes)


@functools.cache
def _architecture(device: int) -> str:
    """The newest architecture whose machine code the device runs, else whose PTX its driver translates."""
    from cupy_backends.cuda.libs import nvrtc

    major, minor = torch.cuda.get_device_capability(device)
    older = [known for known in nvrtc.getSupportedArchs() if known <= 10 * major + minor]
    if not older:
        version = ".".join(map(str, nvrtc.getVersion()))
        raise RuntimeError(
            f"NVRTC {version} does not compile for cuda:{device}, of compute capability {major}.{minor}: "
            "use backend='torch', or a PyTorch and a CuPy of an older CUDA"
        )
    return f"{'sm' if max(older) // 10 == major else 'compute'}_{max(older)}"


# ---- starting


@functools.cache
def _module(device: int, source: Path, dtype: torch.dtype, flags: tuple[str, ...]) -> Any:
    from cupy.cuda.function import Module

    module = Module()
    module.load(_compiled(source, dtype, flags, _architecture(device)))
    return module


@functools.cache
def _function(device: int, source: Path, kernel: str, dtype: torch.dtype, flags: tuple[str, ...]) -> Any:
    """A kernel on a device, which is the current one."""
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{kernel} for {dtype} is not loaded on cuda:{device} yet, and cannot be while a CUDA graph is "
            "captured: run once what is to be captured, forward and backward, before the capture"
        )
    return _module(device, source, dtype, flags).get_function(kernel)


class _Stream(NamedTuple):
    """All that CuPy asks of a stream, without what it does for those that it makes."""

    ptr: int


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
    """Start ``kernel`` of ``source`` on the device and current stream of its tensors, without waiting for it.

    ``arguments`` is passed by value, as the kernel's only parameter; its fields named in ``inputs`` and
    ``outputs`` get the addresses of the tensors (inputs are made contiguous, a tensor without elements is a
    null pointer). A grid with a zero in it starts nothing.

    Args:
        source: a ``.cu`` file; what it includes in quotes is found beside it. ``SNN_FR_FLOAT32``,
            ``SNN_FR_BFLOAT16`` and so on, after ``dtype``, is defined in it.
        kernel: ``extern "C" __global__ void kernel(const __grid_constant__ Arguments a)``.
        grid: blocks, up to three numbers.
        block: threads of a block, up to three numbers.
        flags: what to add to NVRTC's options, such as ``-DNAME=value`` or ``--fmad=false``.
        shared_bytes: dynamic shared memory of a block.

    Raises:
        RuntimeError: the kernel does not compile, or would have to be loaded while a CUDA graph is captured.
    """
    blocks = (grid,) if isinstance(grid, int) else grid
    threads = (block,) if isinstance(block, int) else block
    if 0 in blocks:
        return
    device = next(iter(outputs.values())).device.index
    if device != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(
                source, kernel, dtype, blocks, threads, arguments, inputs, outputs,
                flags=flags, shared_bytes=shared_bytes,
            )  # fmt: skip
        return
    function = _function(device, source, kernel, dtype, flags)
    if shared_bytes > _PLAIN_SHARED:
        _allow_shared(function, shared_bytes)
    rows = _native.fill(arguments, inputs, outputs)
    stream = _Stream(torch.cuda.current_stream(device).cuda_stream)
    function(blocks, threads, (_by_value(arguments),), shared_mem=shared_bytes, stream=stream)
    del rows  # once the kernel is in the stream, their memory is reused behind it


def _by_value(arguments: ctypes.Structure) -> np.ndarray[Any, Any]:
    """The struct as what CuPy passes by value: an array of one element. It has no memory of its own."""
    memory: Any = arguments  # numpy knows that it is a buffer, its types do not
    return np.frombuffer(memory, dtype=_one(ctypes.sizeof(arguments)))


@functools.cache
def _one(size: int) -> np.dtype[np.void]:
    return np.dtype((np.void, size))


_allowed: dict[int, int] = {}


def _allow_shared(function: Any, size: int) -> None:
    if size > _allowed.get(function.ptr, 0):
        from cupy_backends.cuda.api import driver

        driver.funcSetAttribute(function.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, size)
        _allowed[function.ptr] = size
