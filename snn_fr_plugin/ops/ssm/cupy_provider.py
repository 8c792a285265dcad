"""``ops.diagonal_ssm`` by ``kernel.cu``: the recurrence itself, in registers, in a time linear in T.

A group of threads shares the complex pairs of a column (a channel of a batch entry). Forward keeps the states
before every 64th step; backward replays each block of 64 steps from there, so no tensor [T, N, H, n] exists.
Where columns are few, spans of time are computed at once, and joined by a scan over the spans. The gradients
of a channel are summed in one order: nothing depends on the order in which threads run.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _cupy, _native

MOST_PAIRS = 256  # of a channel

_SOURCE = Path(__file__).with_name("kernel.cu")
_BLOCK, _GROUP = 64, 4  # steps between checkpoints, and taken together, as in pair.h
_STRIDE = _BLOCK + 4  # numbers of a row in shared memory, as in columns.h
_SLOTS = 18  # states of a pair in a block that a thread keeps there, as in columns.h
_WARP = 32
_GRID = 65535  # blocks along the second dimension of a grid, at most
# Threads below which a large GPU has idle processors, and the steps of a span that repay another pass over x.
_FULL = 131_072
_SHORT_SPAN = 256


class _Arguments(ctypes.Structure):
    """``struct Arguments`` of ``kernel.cu``, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "columns", "channels", "pairs", "span", "spans")),
        *((name, ctypes.c_int) for name in ("slices", "backwards")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("x", "A", "C", "D", "state", "entries", "saved", "grad_y", "grad_last"),
                *("ends", "checkpoints", "y", "last"),
                *("grad_x", "grad_state", "grad_A", "grad_C", "grad_D"),
            )
        ),
    )


class _Layout(NamedTuple):
    """How threads share the work."""

    lanes: int  # threads of a warp for a column
    slices: int  # warps for a column
    pairs: int  # of a thread
    threads: int  # of a block
    blocks: int  # along the columns
    span: int  # steps of a span
    spans: int

    @property
    def columns(self) -> int:
        """Of a block."""
        return self.threads // (self.lanes * self.slices)


def _layout(steps: int, columns: int, pairs: int, dtype: torch.dtype) -> _Layout:
    double = dtype == torch.float64
    each = 1 if double or pairs <= 2 else 2  # what registers hold
    lanes = min(_power_of_two(-(-pairs // each)), _WARP)
    slices = _power_of_two(-(-pairs // (each * lanes)))
    most = 64 if double else 128  # what shared memory holds of several blocks
    threads = max(min(_WARP * lanes, most), _WARP * slices)
    blocks = -(-columns // (threads // (lanes * slices)))
    span = max(_BLOCK, _power_of_two(steps))
    if wanted := _FULL // max(columns * lanes * slices, 1):
        shorter = _power_of_two(-(-steps // max(min(wanted, _GRID), 1)))
        shorter = max(shorter, _SHORT_SPAN)
        if 2 * shorter < steps:  # two spans would not repay their second pass
            span = shorter
    return _Layout(lanes, slices, each, threads, blocks, span, max(-(-steps // span), 1))


def _power_of_two(n: int) -> int:
    """The smallest that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def saved_shape(x_shape: torch.Size, a_shape: torch.Size, save: bool) -> tuple[int, ...]:
    """Shape of the checkpoints: the states before steps 64, 128, ..."""
    steps, batch, channels = x_shape
    return (max(steps - 1, 0) // _BLOCK, batch, channels, a_shape[1], 2) if save else (0,)


def forward(
    x: Tensor, A_bar: Tensor, C_bar: Tensor, D: Tensor | None, state: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, final state, and checkpoints, if they are to be saved."""
    inputs = _native.given(x=x, A=A_bar, C=C_bar, D=D, state=state)
    outputs = {"y": _native.empty(x), "last": A_bar.new_empty((*x.shape[1:], A_bar.shape[1]))}
    if save:
        shape = saved_shape(x.shape, A_bar.shape, save)
        outputs["checkpoints"] = A_bar.new_empty(shape, dtype=A_bar.real.dtype)
    call = _Call(x, A_bar, backwards=False)
    call.launch("forward", inputs | call.entries("ends", inputs), outputs)
    return outputs["y"], outputs["last"], outputs.get("checkpoints")


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
    inputs = _native.given(
        x=x, A=A_bar, C=C_bar, D=D, state=state, saved=checkpoints, grad_y=grad_y, grad_last=grad_state
    )
    call = _Call(x, A_bar, backwards=True)
    partial = (call.layout.spans, *x.shape[1:])
    outputs = _native.given(
        grad_x=_native.empty(x),
        grad_state=None if state is None else _native.empty(state),
        grad_A=A_bar.new_empty((*partial, A_bar.shape[1])),
        grad_C=A_bar.new_empty((*partial, A_bar.shape[1])),
        grad_D=None if D is None else D.new_empty(partial),
    )
    call.launch("backward", inputs | call.entries("starts", inputs), outputs)
    return (
        outputs["grad_x"],
        torch.view_as_complex(_over_batch(torch.view_as_real(outputs["grad_A"]))),
        torch.view_as_complex(_over_batch(torch.view_as_real(outputs["grad_C"]))),
        None if D is None else _over_batch(outputs["grad_D"]),
        outputs.get("grad_state"),
    )


def _over_batch(parts: Tensor) -> Tensor:
    """The sum over spans and batch entries."""
    return parts.sum((0, 1), dtype=torch.float64).to(parts.dtype)


class _Call:
    """The launches of a forward or backward, which share a layout and arguments."""

    def __init__(self, x: Tensor, A_bar: Tensor, *, backwards: bool) -> None:
        steps, batch, channels = x.shape
        pairs = A_bar.shape[1]
        self.dtype, self.matrix = x.dtype, A_bar
        self.layout = _layout(steps, batch * channels, pairs, x.dtype)
        self.states = (batch, channels, pairs)
        self.arguments = _Arguments(
            steps=steps,
            columns=batch * channels,
            channels=channels,
            pairs=pairs,
            span=self.layout.span,
            spans=self.layout.spans,
            slices=self.layout.slices,
            backwards=backwards,
        )

    def entries(self, kernel: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The states between spans, if there is more than one."""
        spans = self.layout.spans
        if spans == 1:
            return {}
        ends = self.matrix.new_empty((spans - 1, *self.states))
        self.launch(kernel, inputs, {"ends": ends}, spans - 1)
        _cupy.launch(
            _SOURCE, "snn_fr_ssm_scan", self.dtype, -(-ends[0].numel() // 128), 128, self.arguments,
            {"A": self.matrix}, {"ends": ends}, flags=flags(self.layout),
        )  # fmt: skip
        return {"entries": ends}

    def launch(
        self, kernel: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor], spans: int | None = None
    ) -> None:
        """Start a kernel on every block of columns, and every span."""
        layout, number = self.layout, 8 if self.dtype == torch.float64 else 4
        rows = layout.columns * (2 if self.arguments.backwards else 1) + layout.threads // layout.lanes
        numbers = rows * _STRIDE + _GROUP * layout.columns + 2 * layout.pairs * layout.threads
        if self.arguments.backwards:
            numbers += _GROUP * layout.threads
        if kernel == "backward":
            slots = _SLOTS + (_GROUP if number == 8 else 0)  # the last are sums, which wait there in double
            numbers += 2 * slots * layout.pairs * layout.threads
        _cupy.launch(
            _SOURCE, f"snn_fr_ssm_{kernel}", self.dtype, (layout.blocks, spans or layout.spans),
            layout.threads, self.arguments, inputs, outputs, flags=flags(layout),
            shared_bytes=numbers * number,
        )  # fmt: skip


def flags(layout: _Layout) -> tuple[str, ...]:
    """What the kernels are compiled with: how the pairs of a column are shared."""
    return f"-DSNN_FR_LANES_EACH={layout.lanes}", f"-DSNN_FR_PAIRS={layout.pairs}"
