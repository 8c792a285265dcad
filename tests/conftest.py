"""Every test runs with fresh memory poisoned: an output left unwritten becomes NaN and shows.

A run of all tests is shared among processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from snn_fr_plugin.ops import _cupy, _providers

from . import cuda_on_cpu

# how long anything takes is for benchmarks/, and never a failure
settings.register_profile(
    "no timing", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("no timing")

_MOST_PROCESSES = 4  # each of them imports everything
with torch.device("cpu"):  # torch notes, once, which functions a device is for: those that are not poisoned
    torch.empty(0)
_FRESH = ("empty", "empty_like", "empty_strided")
_FRESH_METHODS = ("new_empty", "new_empty_strided")


def _poison(make: Any) -> Any:
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        if type(tensor) is torch.Tensor and tensor.device.type != "meta" and tensor.numel():
            with torch.no_grad():
                if tensor.is_floating_point() or tensor.is_complex():
                    tensor.fill_(float("nan"))
                elif tensor.dtype == torch.bool:
                    tensor.fill_(True)
                else:
                    tensor.fill_(torch.iinfo(tensor.dtype).max)
        return tensor

    return poisoned


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """``-n`` for who runs everything; a selection starts at once, in a process that has the GPU to itself."""
    option = config.option
    selected = config.args_source is config.ArgsSource.ARGS or option.markexpr or option.keyword
    unset = getattr(option, "numprocesses", 0) is None  # pytest-xdist is installed, and was not told
    if selected or option.usepdb or not unset or "PYTEST_XDIST_WORKER" in os.environ:
        return
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(processors, _MOST_PROCESSES)
    if processes > 1:
        option.numprocesses, option.dist = processes, "worksteal"
        os.environ.setdefault("OMP_NUM_THREADS", str(processors // processes))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests have recorded (``record_property``), from whatever process."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what ``torch.empty`` and its kin return (fake tensors apart: they have no memory)."""
    for name in _FRESH:
        monkeypatch.setattr(torch, name, _poison(getattr(torch, name)))
    for name in _FRESH_METHODS:
        monkeypatch.setattr(torch.Tensor, name, _poison(getattr(torch.Tensor, name)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """``backend="cupy"`` serves CPU tensors, with the CUDA kernels run by ``cuda_shim.h``."""
    choose = _providers.choose
    monkeypatch.setattr(_cupy, "launch", cuda_on_cpu.launch)
    monkeypatch.setattr(
        _providers,
        "choose",
        lambda backend, device: backend if backend == "cupy" else choose(backend, device),
    )


@pytest.fixture
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What ``backend="auto"`` stands for in a test; parametrize it indirectly.

    "cupy-on-cpu" runs CUDA kernels on CPU tensors; "cupy" puts all new tensors on the GPU.
    """
    name: str = request.param
    choose = _providers.choose
    if name == "cupy-on-cpu":
        monkeypatch.setattr(_cupy, "launch", cuda_on_cpu.launch)
        monkeypatch.setattr(
            _providers,
            "choose",
            lambda backend, device: "cupy" if backend == "auto" else choose(backend, device),
        )
    else:
        monkeypatch.setattr(
            _providers,
            "choose",
            lambda backend, device: choose(name if backend == "auto" else backend, device),
        )
    with torch.device("cuda") if name == "cupy" else contextlib.nullcontext():
        yield name
