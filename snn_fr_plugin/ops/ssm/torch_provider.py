"""``ops.diagonal_ssm`` in plain torch: two-level Vandermonde and FFT convolution; one step as a recurrence.

Everything rests on two maps that are each other's adjoint, for powers A^t, t = 0..T-1::

    taps(c)_t = Re sum_n c_n A_n^t        [*, H, n] -> [*, H, T]
    poly(g)_n = sum_t g_t A_n^t           [*, H, T] -> [*, H, n]

With t = kB + j and B about sqrt(T), both are one real batched matrix product with inner size 2n or B, and no
tensor [H, n, T] is ever built.

Conjugates are physical: inside a custom operator a lazy ``conj()`` loses its bit under AOT dispatch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def saved_shape(x_shape: torch.Size, a_shape: torch.Size, save: bool) -> tuple[int, ...]:
    """Shape of the checkpoints: none, the backward starts from x."""
    return (0,)


def forward(
    x: Tensor, A_bar: Tensor, C_bar: Tensor, D: Tensor | None, state: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, None]:
    """y, final state, and no checkpoints."""
    if x.numel() == 0:
        start = state.clone() if state is not None else A_bar.new_zeros((*x.shape[1:], A_bar.shape[-1]))
        return torch.empty_like(x, memory_format=torch.contiguous_format), start, None
    if x.shape[0] == 1:
        return *_step(x, A_bar, C_bar, D, state), None
    u = _channels_first(x, A_bar)
    powers = _Powers(A_bar, u.shape[-1])
    y = _convolve(u, powers.taps(C_bar))
    if D is not None:
        y = y + D[:, None] * u
    last = powers.poly(u.flip(-1))
    if state is not None:
        y = y + powers.taps(C_bar * A_bar * state)
        last = last + powers.last * A_bar * state
    return _time_major(y, x.dtype), last, None


def backward(
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    A_bar: Tensor,
    C_bar: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    checkpoints: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, A_bar, C_bar, D and the initial state.

    Complex gradients follow torch's convention, dL/dRe + i dL/dIm.
    """
    grad_A, grad_C = torch.zeros_like(A_bar), torch.zeros_like(C_bar)
    grad_D = None if D is None else torch.zeros_like(D)
    grad_start = None if state is None else torch.zeros_like(state)
    if x.numel() == 0:
        if grad_state is not None and state is not None:
            grad_start = grad_state.clone()
        return torch.empty_like(x, memory_format=torch.contiguous_format), grad_A, grad_C, grad_D, grad_start

    u = _channels_first(x, A_bar)
    powers = _Powers(A_bar, u.shape[-1])
    grad_u = torch.zeros_like(u)
    if grad_y is not None:
        g = _channels_first(grad_y, A_bar)
        grad_conv, grad_taps = _convolve_backward(g, u, powers.taps(C_bar))
        grad_u = grad_u + grad_conv
        grad_C = grad_C + powers.poly(grad_taps).conj_physical()
        grad_A = grad_A + (C_bar * powers.poly_derivative(grad_taps)).conj_physical()
        if D is not None:
            grad_u = grad_u + D[:, None] * g
            grad_D = (g * u).sum((0, 2))
        if state is not None and grad_start is not None:  # y += taps(C A h0)
            grad_c = powers.poly(g).conj_physical()
            grad_start = grad_start + grad_c * (C_bar * A_bar).conj_physical()
            grad_C = grad_C + (grad_c * (A_bar * state).conj_physical()).sum(0)
            grad_A = grad_A + (grad_c * (C_bar * state).conj_physical()).sum(0)
            grad_A = grad_A + (C_bar * A_bar * state * powers.poly_derivative(g)).conj_physical().sum(0)
    if grad_state is not None:  # h_T = poly(x reversed) + A^T h0
        grad_u = grad_u + powers.taps(grad_state.conj_physical()).flip(-1)
        grad_A = grad_A + (grad_state * powers.poly_derivative(u.flip(-1)).conj_physical()).sum(0)
        if state is not None and grad_start is not None:
            grad_start = grad_start + grad_state * (powers.last * A_bar).conj_physical()
            grad_A = grad_A + (grad_state * (u.shape[-1] * powers.last * state).conj_physical()).sum(0)
    return _time_major(grad_u, x.dtype), grad_A, grad_C, grad_D, grad_start


def _step(
    x: Tensor, A_bar: Tensor, C_bar: Tensor, D: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    u = x[0].to(A_bar.real.dtype)
    h = (
        A_bar * state + u[..., None]
        if state is not None
        else u[..., None].expand(*u.shape, A_bar.shape[-1]).to(A_bar.dtype)
    )
    y = (C_bar * h).real.sum(-1)
    if D is not None:
        y = y + D * u
    return y.to(x.dtype)[None], h.contiguous()


class _Powers:
    """A^t for t = 0..T-1, as the two levels A^j (j < B) and A^(kB), and the two maps they define."""

    def __init__(self, A: Tensor, steps: int) -> None:
        self.steps = steps
        self.width = 2 ** math.ceil(math.log2(steps) / 2)
        rows = -(-steps // self.width)
        exact = A.to(torch.complex128)  # powers in double: they amplify the rounding of what they start from
        low, next_power = _geometric(exact, self.width)
        high, _ = _geometric(next_power, rows)
        last = steps - 1
        self.last = (high[..., last // self.width] * low[..., last % self.width]).to(A.dtype)  # A^(T-1)
        self.low, self.high = low.to(A.dtype), high.to(A.dtype)  # [H, n, B], [H, n, rows]

    def taps(self, c: Tensor) -> Tensor:
        """Re sum_n c_n A_n^t: [*, H, n] -> [*, H, T]."""
        high = c[..., None] * self.high
        left = torch.cat([high.real, -high.imag], -2).transpose(-1, -2)  # [*, H, rows, 2n]
        right = torch.cat([self.low.real, self.low.imag], -2)  # [H, 2n, B]
        return _channel_matmul(left, right).flatten(-2)[..., : self.steps]

    def poly(self, g: Tensor) -> Tensor:
        """sum_t g_t A_n^t: [*, H, T] -> [*, H, n]."""
        rows = self.high.shape[-1]
        g = torch.nn.functional.pad(g, (0, rows * self.width - g.shape[-1])).unflatten(-1, (rows, self.width))
        right = torch.cat([self.low.real, self.low.imag], -2).transpose(-1, -2)  # [H, B, 2n]
        real, imag = _channel_matmul(g, right).chunk(2, -1)  # [*, H, rows, n]
        high = self.high.transpose(-1, -2)  # [H, rows, n]
        return (torch.complex(real, imag) * high).sum(-2)

    def poly_derivative(self, g: Tensor) -> Tensor:
        """d poly(g)_n / dA_n = sum_t t g_t A_n^(t-1)."""
        t = torch.arange(1, self.steps, dtype=g.dtype, device=g.device)
        return self.poly(g[..., 1:] * t)


def _geometric(ratio: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """ratio^0 .. ratio^(count-1) along a new last dimension, and ratio^count; by doubling."""
    powers, factor = torch.ones_like(ratio)[..., None], ratio
    while powers.shape[-1] < count:
        powers = torch.cat([powers, powers * factor[..., None]], -1)
        factor = factor * factor
    return powers[..., :count], powers[..., count - 1] * ratio


def _channel_matmul(left: Tensor, right: Tensor) -> Tensor:
    """[*, H, a, b] @ [H, b, c], a leading dimension folded into the rows of one product per channel."""
    if left.dim() == 3:
        return torch.bmm(left, right)
    batch, channels, rows, _ = left.shape
    out = torch.bmm(left.transpose(0, 1).reshape(channels, batch * rows, -1), right)
    return out.unflatten(1, (batch, rows)).transpose(0, 1)


def _channels_first(x: Tensor, A_bar: Tensor) -> Tensor:
    return x.to(A_bar.real.dtype).permute(1, 2, 0).contiguous()  # [N, H, T]


def _time_major(y: Tensor, dtype: torch.dtype) -> Tensor:
    return y.permute(2, 0, 1).to(dtype).contiguous()


def _fft_length(steps: int) -> int:
    """Least 2^k or 3 * 2^k that holds a linear convolution of two sequences of that length."""
    full = 2 ** math.ceil(math.log2(2 * steps - 1))
    return 3 * full // 4 if 3 * full // 4 >= 2 * steps - 1 else full


def _convolve(u: Tensor, kernel: Tensor) -> Tensor:
    """Causal convolution of [N, H, T] with the state-space kernel [H, T]."""
    steps = u.shape[-1]
    size = _fft_length(steps)
    return torch.fft.irfft(torch.fft.rfft(u, size) * torch.fft.rfft(kernel, size), size)[..., :steps]


def _convolve_backward(g: Tensor, u: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the convolution for its input and its kernel: correlations."""
    steps = u.shape[-1]
    size = _fft_length(steps)
    spectrum = torch.fft.rfft(g, size)
    grad_u = torch.fft.irfft(spectrum * torch.fft.rfft(kernel, size).conj_physical(), size)[..., :steps]
    grad_kernel = torch.fft.irfft((spectrum * torch.fft.rfft(u, size).conj_physical()).sum(0), size)[
        ..., :steps
    ]
    return grad_u, grad_kernel
