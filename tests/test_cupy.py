"""Between an operator and CuPy, as far as no GPU is needed: arguments, streams, devices, cache, capture."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from snn_fr_plugin.ops import _cupy

cupy_function = pytest.importorskip(
    "cupy.cuda.function", reason="needs CuPy: pip install 'snn-fr-plugin[test]'", exc_type=ImportError
)

KERNEL = """#include "deep/value.h"
struct Arguments { long long n; const float* x; float* y; };
extern "C" __global__ void kernel(const __grid_constant__ Arguments a)
{
    for (long long i = 0; i < a.n; ++i) a.y[i] = VALUE * a.x[i];
}
"""


class Arguments(ctypes.Structure):
    _fields_ = (("n", ctypes.c_int64), ("x", ctypes.c_void_p), ("y", ctypes.c_void_p))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A kernel that includes a header that includes a header."""
    (tmp_path / "unit" / "deep").mkdir(parents=True)
    (tmp_path / "unit" / "deep" / "value.h").write_text('#include "../constant.h"\n#define VALUE (TWO + 1)\n')
    (tmp_path / "unit" / "constant.h").write_text("#define TWO 2\n")
    source = tmp_path / "unit" / "kernel.cu"
    source.write_text(KERNEL)
    return source


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SNN_FR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Machine:
    """Two GPUs, as far as ``launch`` looks at them; tensors say that they are on one, and lie on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = 0
        self.capturing = False
        self.launches: list[tuple[Any, ...]] = []
        self.loaded: list[tuple[int, bytes]] = []
        self.attributes: list[tuple[int, int, int]] = []
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "device", self.device)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: _Raw(1000 + device))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(cupy_function, "Module", lambda: _Module(self))

    @contextmanager
    def device(self, index: int) -> Iterator[None]:
        before, self.current = self.current, index
        yield
        self.current = before


class _Raw:
    def __init__(self, pointer: int) -> None:
        self.cuda_stream = pointer


class _Module:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def load(self, code: bytes) -> None:
        self.machine.loaded.append((self.machine.current, code))

    def get_function(self, name: str) -> _Function:
        return _Function(self.machine, name)


class _Function:
    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name, self.ptr = machine, name, id(self)

    def __call__(self, grid: Any, block: Any, args: Any, shared_mem: int, stream: Any) -> None:
        (one,) = args
        assert one.size == 1  # what CuPy asks of an array that it is to pass by value
        address = cupy_function.CNumpyArray(one).ptr  # and what it hands to the driver
        copy = Arguments.from_buffer_copy(ctypes.string_at(address, one.nbytes))
        self.machine.launches.append(
            (self.name, self.machine.current, grid, block, shared_mem, stream.ptr, copy.n, copy.x, copy.y)
        )


class _OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU."""

    index = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.index)


def _on(index: int, tensor: torch.Tensor) -> torch.Tensor:
    placed = tensor.as_subclass(_OnGPU)
    placed.index = index
    return placed


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    caches = (_cupy._architecture, _cupy._module, _cupy._function)
    for each in caches:
        each.cache_clear()
    yield Machine(monkeypatch)
    for each in caches:
        each.cache_clear()


def _launch(source: Path, device: int = 0, grid: Any = 3, block: Any = 64, shared_bytes: int = 0) -> Any:
    x, y = torch.ones(4), _on(device, torch.empty(4))
    _cupy.launch(
        source,
        "kernel",
        torch.float32,
        grid,
        block,
        Arguments(n=4),
        {"x": x},
        {"y": y},
        shared_bytes=shared_bytes,
    )
    return x.data_ptr(), y.data_ptr()


def test_arguments_go_by_value_to_the_current_stream(machine: Machine, source: Path, cache: Path) -> None:
    x, y = _launch(source, grid=(3, 2), block=(32, 4), shared_bytes=100)
    assert machine.launches == [("kernel", 0, (3, 2), (32, 4), 100, 1000, 4, x, y)]


def test_kernels_run_on_the_device_of_their_tensors(machine: Machine, source: Path, cache: Path) -> None:
    """Loaded once for each; the current device is then what it was."""
    for device in (1, 0, 1):
        _launch(source, device)
        assert machine.current == 0
    assert [launch[1] for launch in machine.launches] == [1, 0, 1]
    assert [launch[5] for launch in machine.launches] == [1001, 1000, 1001]
    assert [device for device, _ in machine.loaded] == [1, 0]


@pytest.mark.parametrize("grid", [0, (0,), (3, 0), (0, 3)], ids=str)
def test_an_empty_grid_starts_nothing(machine: Machine, source: Path, grid: Any) -> None:
    _launch(source, grid=grid)
    assert not machine.launches and not machine.loaded


def test_an_input_of_any_layout_and_of_no_elements(machine: Machine, source: Path, cache: Path) -> None:
    x = torch.arange(8.0)[::2]
    y = _on(0, torch.empty(0))
    arguments = Arguments(n=4)
    seen = []
    original = _Function.__call__

    def read(self: _Function, grid: Any, block: Any, args: Any, **rest: Any) -> None:
        assert arguments.x is not None
        seen.extend((ctypes.c_float * 4).from_address(arguments.x))
        original(self, grid, block, args, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Function, "__call__", read)
        _cupy.launch(source, "kernel", torch.float32, 1, 32, arguments, {"x": x}, {"y": y})
    assert seen == [0.0, 2.0, 4.0, 6.0] and machine.launches[0][-1] is None


def test_nothing_is_loaded_during_a_capture(machine: Machine, source: Path, cache: Path) -> None:
    machine.capturing = True
    with pytest.raises(
        RuntimeError, match=r"kernel for torch.float32 is not loaded on cuda:0 .* before the capture"
    ):
        _launch(source)
    assert not machine.loaded
    machine.capturing = False
    _launch(source)
    machine.capturing = True
    _launch(source)
    assert len(machine.launches) == 2 and len(machine.loaded) == 1


def test_large_shared_memory_is_asked_for(
    machine: Machine, source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = pytest.importorskip("cupy_backends.cuda.api.driver")
    asked: list[int] = []
    monkeypatch.setattr(driver, "funcSetAttribute", lambda function, attribute, size: asked.append(size))
    for size in (48 << 10, 64 << 10, 50 << 10, 64 << 10, 100 << 10):
        _launch(source, shared_bytes=size)
    assert asked == [64 << 10, 100 << 10]


# ---- the cache


def _count_compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    compiled: list[str] = []
    original = _cupy.compile_source

    def count(source: Path, dtype: torch.dtype, flags: tuple[str, ...], architecture: str) -> Any:
        compiled.append(architecture)
        return original(source, dtype, flags, architecture)

    monkeypatch.setattr(_cupy, "compile_source", count)
    return compiled


def test_code_is_kept_and_a_damaged_entry_is_built_again(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = _count_compilations(monkeypatch)
    first = _cupy._compiled(source, torch.float32, (), "sm_90")
    assert first[:4] == b"\x7fELF"
    assert _cupy._compiled(source, torch.float32, (), "sm_90") == first and len(compiled) == 1
    (entry,) = cache.iterdir()
    assert entry.name.startswith("unit-float32-sm_90-") and entry.suffix == ".cubin"
    entry.write_bytes(first[:-1] + b"!")
    assert _cupy._compiled(source, torch.float32, (), "sm_90") == first and len(compiled) == 2


@pytest.mark.parametrize("change", ["source", "header of a header", "flag", "dtype", "architecture", "NVRTC"])
def test_whatever_the_code_depends_on_is_in_the_key(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    compiled = _count_compilations(monkeypatch)
    _cupy._compiled(source, torch.float32, (), "sm_90")
    dtype, flags, architecture = torch.float32, (), "sm_90"
    if change == "source":
        source.write_text(KERNEL + "\n")
    elif change == "header of a header":
        (source.parent / "constant.h").write_text("#define TWO 20\n")
    elif change == "flag":
        flags = ("-DUNUSED",)  # type: ignore[assignment]
    elif change == "dtype":
        dtype = torch.float64
    elif change == "architecture":
        architecture = "compute_80"
    else:
        nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc")
        monkeypatch.setattr(nvrtc, "getVersion", lambda: (99, 9))
    _cupy._compiled(source, dtype, flags, architecture)
    assert len(compiled) == 2 and len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    ("capability", "known", "expected"),
    [
        ((9, 0), (75, 80, 90, 100), "sm_90"),
        ((8, 7), (75, 80, 86, 90), "sm_86"),  # machine code of the same generation runs
        ((12, 0), (75, 80, 90), "compute_90"),  # the driver translates
        ((10, 3), (90, 100), "sm_100"),
    ],
)
def test_architecture(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capability: Any, known: Any, expected: str
) -> None:
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(nvrtc, "getSupportedArchs", lambda: known)
    assert _cupy._architecture(0) == expected


def test_a_device_older_than_the_compiler(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    with pytest.raises(RuntimeError, match=r"does not compile for cuda:0, of compute capability 6.1"):
        _cupy._architecture(0)
