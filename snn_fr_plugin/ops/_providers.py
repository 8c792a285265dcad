"""Which provider serves a call. The only place that asks what this machine and this installation offer.

A provider is an implementation of an operator: ``torch`` (always there), ``cpp`` (host compiler) and
``cupy`` (CUDA). A named backend is obeyed or refused; only ``"auto"`` may choose.
"""

from __future__ import annotations

import torch

from .._checks import check_choice
from . import _compile, _cupy

__all__ = ["BACKENDS", "check_backend", "choose"]

BACKENDS = ("auto", "torch", "cpp", "cupy")
_DEVICE_OF = {"cpp": "cpu", "cupy": "cuda"}


def check_backend(backend: str) -> None:
    """``backend`` is a known name."""
    check_choice("backend", backend, BACKENDS)


def choose(backend: str, device: torch.device) -> str:
    """The provider that serves tensors on ``device``.

    Raises:
        ValueError: the name is unknown, or the provider does not serve that device.
        CompilerError: ``backend="cpp"`` and no C++ compiler works here; the message says what to install.
        ImportError, RuntimeError: ``backend="cupy"`` and CuPy is not installed or does not work here; the
            message says what to do.
    """
    check_backend(backend)
    if backend == "auto":
        if device.type == "cpu" and _compile.available():
            return "cpp"
        return "cupy" if device.type == "cuda" and _cupy.available_or_warn() else "torch"
    if backend == "torch":
        return "torch"
    if device.type != _DEVICE_OF[backend]:
        raise ValueError(
            f"backend={backend!r} serves {_DEVICE_OF[backend]} tensors, got a tensor on {device}"
        )
    if (
        backend == "cpp" and not _compile.available()
    ):  # torch.compile traces this, and takes it for a constant
        _compile.toolchain()  # says why not
    if backend == "cupy" and not _cupy.available():
        _cupy.require()
    return backend
