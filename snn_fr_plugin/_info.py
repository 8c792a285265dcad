"""What this installation is made of and whether it computes rightly: the facts a bug report needs."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import ops
from ._version import __version__
from .ops import _cache, _compile, _providers
from .ops.lif.reference import lif as _lif
from .ops.refractory.reference import fixed_refractory as _fixed_refractory
from .ops.ssm.reference import diagonal_ssm as _diagonal_ssm

__all__ = ["info"]

_DISTRIBUTIONS = ("torch", "snntorch", "spikingjelly", "cupy", "cupy-cuda12x", "cupy-cuda13x", "numpy")
_COMPILED = {"cpu": "cpp", "cuda": "cupy"}  # what may serve a device besides torch
_TOLERANCE = 2e-4  # relative, of real values in float32


def info() -> dict[str, Any]:
    """Versions, the provider of each device and why, the cache of compiled kernels, and a self-check.

    Returns:
        ``versions``: package or tool to version, ``None`` if absent. ``providers``: device ("cpu", "cuda") to
        ``{"serves": name or None, "why": sentence}``. ``cache``: ``directory`` and ``entries``, file name to
        bytes. ``checks``: a list of ``{"device", "provider", "operator", "result", "seconds"}``, where the
        result is "ok" or what went wrong. The seconds include what a first call does: loading parts of torch,
        and building a kernel that is not in the cache.
    """
    # the cache is looked at last: the check fills it
    return {
        "versions": _versions(),
        "providers": {device: _provider(device) for device in _COMPILED},
        "checks": [check for device in _COMPILED for check in _check_device(device)],
        "cache": _kept(),
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "snn_fr_plugin": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    versions["cuda of torch"] = torch.version.cuda
    versions["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions["compiler"] = _compile.toolchain().version if _compile.available() else None
    return versions


def _provider(device: str) -> dict[str, str | None]:
    """The provider that ``backend="auto"`` chooses, and why it is not another."""
    if device == "cuda" and not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        return {"serves": None, "why": f"no CUDA device is visible to torch, which was built {built}"}
    chosen = _providers.choose("auto", torch.device(device))
    if chosen == _COMPILED[device]:
        return {"serves": chosen, "why": "compiled kernels work here"}
    try:
        _providers.choose(_COMPILED[device], torch.device(device))
    except (RuntimeError, ImportError) as error:
        return {"serves": chosen, "why": str(error)}
    return {"serves": chosen, "why": "always there"}


def _kept() -> dict[str, Any]:
    directory = _cache.directory()
    files = sorted(p for p in directory.glob("*") if p.is_file()) if directory.is_dir() else []
    return {"directory": str(directory), "entries": {p.name: p.stat().st_size for p in files}}


def _check_device(device: str) -> list[dict[str, Any]]:
    serving = _provider(device)["serves"]
    if serving is None:
        return []
    return [
        {"device": device, "provider": provider, "operator": name, **_timed(check, device, provider)}
        for provider in dict.fromkeys(("torch", serving))
        for name, check in _CHECKS.items()
    ]


def _timed(check: Callable[[str, str], str], device: str, provider: str) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        result = check(device, provider)
    except Exception as error:  # whatever it is, the report is what it belongs in
        result = f"{type(error).__name__}: {error}"
    return {"result": result, "seconds": round(time.perf_counter() - start, 3)}


def _random(*shape: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).to(device)


def _compare(
    run: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], x: Tensor, bits: bool
) -> str:
    """Output and gradient of ``run`` against those of the reference loop; spikes to the last bit."""
    outputs, gradients = [], []
    for function in (run, expected):
        leaf = x.detach().clone().requires_grad_()
        out = function(leaf)
        out.backward(torch.ones_like(out).cumsum(0))
        assert leaf.grad is not None
        outputs.append(out.detach())
        gradients.append(leaf.grad)
    if bits and not torch.equal(*outputs):
        return f"{int((outputs[0] != outputs[1]).sum())} of {x.numel()} spikes differ from the reference"
    for what, (got, wanted) in (("output", outputs), ("gradient", gradients)):
        error = float((got - wanted).abs().max() / wanted.abs().max())
        if not error <= _TOLERANCE:
            return f"{what} differs from the reference by {error:.1e} of its largest value"
    return "ok"


def _check_lif(device: str, backend: str) -> str:
    modes = {"beta": 0.9, "threshold": 1.0, "refractory_period": 2, "reset": "subtract"}
    return _compare(
        lambda x: ops.lif(x, **modes, backend=backend)[0],  # type: ignore[arg-type]
        lambda x: _lif(x, **modes)[0],  # type: ignore[arg-type]
        _random(100, 4, 33, device=device),
        bits=True,
    )


def _check_fixed_refractory(device: str, backend: str) -> str:
    return _compare(
        lambda x: ops.fixed_refractory(x, period=3, backend=backend)[0],
        lambda x: _fixed_refractory(x, period=3)[0],
        _random(100, 4, 33, device=device),
        bits=True,
    )


def _check_diagonal_ssm(device: str, backend: str) -> str:
    angle = torch.linspace(0, 3, 9 * 4, device=device).view(9, 4)
    A_bar, C_bar = (
        torch.polar(torch.full_like(angle, 0.95), angle),
        torch.polar(torch.ones_like(angle), angle),
    )
    return _compare(
        lambda x: ops.diagonal_ssm(x, A_bar, C_bar, backend=backend)[0],
        lambda x: _diagonal_ssm(x, A_bar, C_bar)[0],
        _random(100, 2, 9, device=device),
        bits=False,
    )


_CHECKS = {
    "lif": _check_lif,
    "fixed_refractory": _check_fixed_refractory,
    "diagonal_ssm": _check_diagonal_ssm,
}
