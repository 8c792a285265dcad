"""``ops.diagonal_ssm`` by ``kernel.cpp``: the recurrence itself, in registers, in a time linear in T.

Forward keeps the states before every 64th step; backward replays each block of 64 steps from there, so no
tensor [T, N, H, n] exists. Every column (channel of a batch entry) is computed by one thread, and the
gradients of the columns of a channel are summed in one order: results do not depend on the thread count.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from .. import _compile, _native

_SOURCE = Path(__file__).with_name("kernel.cpp")
_BLOCK = 64  # steps between checkpoints
_LINE = 256  # channels from which every batch entry has vectors of its own
_LANES = 16  # no vector is wider


class _Arguments(ctypes.Structure):
    """``struct Arguments`` of ``kernel.cpp``, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "batch", "channels", "pairs", "threads")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("x", "A", "C", "D", "state", "checkpoints", "y", "last"),
                *("grad_y", "grad_last", "grad_x", "grad_A", "grad_C", "grad_D", "grad_state"),
            )
        ),
    )


def saved_shape(x_shape: torch.Size, a_shape: torch.Size, save: bool) -> tuple[int, ...]:
    """Shape of the checkpoints: the states before steps 64, 128, ... in whole vectors of columns."""
    steps, batch, channels = x_shape
    if not save:
        return (0,)
    rows, row = (1, batch * channels) if channels < _LINE else (batch, channels)
    return max(steps - 1, 0) // _BLOCK, rows * (-(-row // _LANES) * _LANES), a_shape[1], 2


def forward(
    x: Tensor, A_bar: Tensor, C_bar: Tensor, D: Tensor | None, state: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, final state, and checkpoints, if they are to be saved."""
    y, last = _native.empty(x), A_bar.new_empty((*x.shape[1:], A_bar.shape[1]))
    checkpoints = None
    if save:
        checkpoints = A_bar.new_empty(saved_shape(x.shape, A_bar.shape, save), dtype=A_bar.real.dtype)
        # where the kernel's vectors are narrower than there is room for, the end stays unwritten
        checkpoints.view(-1)[len(checkpoints) * 2 * last.numel() :] = 0
    _call(
        "forward",
        _native.given(x=x, A=A_bar, C=C_bar, D=D, state=state),
        _native.given(y=y, last=last, checkpoints=checkpoints),
    )
    return y, last, checkpoints


def backward(
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    A_bar: Tensor,
    C_bar: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, A_bar, C_bar, D and the initial state.

    Complex gradients follow torch's convention, dL/dRe + i dL/dIm.
    """
    grad_x, grad_A, grad_C = _native.empty(x), _native.empty(A_bar), _native.empty(C_bar)
    grad_D = None if D is None else _native.empty(D)
    grad_start = None if state is None else _native.empty(state)
    _call(
        "backward",
        _native.given(
            x=x,
            A=A_bar,
            C=C_bar,
            D=D,
            state=state,
            checkpoints=checkpoints,
            grad_y=grad_y,
            grad_last=grad_state,
        ),
        _native.given(grad_x=grad_x, grad_A=grad_A, grad_C=grad_C, grad_D=grad_D, grad_state=grad_start),
    )
    return grad_x, grad_A, grad_C, grad_D, grad_start


def _call(name: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    x, matrix = inputs["x"], inputs["A"]
    arguments = _Arguments(*x.shape, matrix.shape[1], torch.get_num_threads())
    kernel = getattr(_compile.load(_SOURCE, x.dtype, "-ffp-contract=fast"), f"snn_fr_ssm_{name}")
    _native.call(kernel, arguments, inputs, outputs)
