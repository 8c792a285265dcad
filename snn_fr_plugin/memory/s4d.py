"""S4D: the diagonal state-space memory."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from .. import discretize, ops
from .._checks import check_channels, check_choice, check_dimension, check_sequence, check_step, state_dtype
from .._module import MemoryModule, complex_state_dtype

__all__ = ["S4D", "Discretization", "Init"]

Init = Literal["lin", "inv", "legs"]
Discretization = Literal["zoh", "bilinear"]
INITS: tuple[Init, ...] = ("lin", "inv", "legs")
DISCRETIZATIONS: tuple[Discretization, ...] = ("zoh", "bilinear")


class S4D(MemoryModule):
    """Diagonal state-space model, one per channel, with n = d_state / 2 pairs of complex conjugate modes.

    ::

        dh/dt = A h + B x          A = -exp(log_A_real) + i A_imag,  B = 1
        h_t   = A_bar h[t-1] + B_bar x_t
        y_t   = 2 Re(sum_n C_n h_t,n) + D x_t

    A and B are discretized with dt = exp(log_dt). Initial modes: Re A = -1/2, and Im A_n for n = 0, 1, ...

    ====== =================================================================
    "lin"  pi n
    "inv"  (N / pi) (N / (2n + 1) - 1)    with N = d_state
    "legs" the spectrum of HiPPO-LegS, which "inv" approximates
    ====== =================================================================

    dt is log-uniform in [dt_min, dt_max], C complex normal, D normal.

    Args:
        d_model: channels H.
        d_state: real state size N per channel, even.
        init: "lin", "inv" or "legs".
        discretization: "zoh" or "bilinear".
        dt_min, dt_max: range of the initial steps, 0 < dt_min <= dt_max. Modes forget over 2 / dt steps.
        backend: "auto", "torch", "cpp" or "cupy".
        device, dtype: of the parameters, as in ``torch.nn.Linear``. Whatever their dtype, the discrete
            matrices are computed in that of the state.

    Parameters ``log_dt`` [H], ``log_A_real`` [H, n], ``A_imag`` [H, n], ``C`` [H, n, 2], ``D`` [H].

    Shapes:
        x_seq, y_seq: [T, N, H], of one dtype (float32, float64, float16, bfloat16). State: complex [N, H, n],
        complex64 (complex128 for float64 input), the h above divided by B_bar.

    Raises:
        TypeError: a size that is not an int.
        ValueError: an odd ``d_state``, an unknown ``init`` or ``discretization``, an empty range of dt.

    Reference:
        A. Gu, A. Gupta, K. Goel, C. Re, On the Parameterization and Initialization of Diagonal State Space
        Models, arXiv 2206.11893 (2022).

    Example:
        >>> memory = S4D(d_model=4, d_state=8)
        >>> y, state = memory(torch.randn(10, 2, 4))
        >>> y.shape, state.shape
        (torch.Size([10, 2, 4]), torch.Size([2, 4, 4]))
    """

    dynamics = ("log_dt", "log_A_real", "A_imag")

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        init: Init = "lin",
        discretization: Discretization = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(backend=backend)
        check_dimension("d_model", d_model)
        check_dimension("d_state", d_state, even=True)
        check_choice("init", init, INITS)
        check_choice("discretization", discretization, DISCRETIZATIONS)
        if not 0 < dt_min <= dt_max < math.inf:
            raise ValueError(
                f"dt_min and dt_max must satisfy 0 < dt_min <= dt_max, got {dt_min} and {dt_max}"
            )
        self.d_model, self.d_state = d_model, d_state
        self.init, self.discretization = init, discretization
        self.dt_min, self.dt_max = dt_min, dt_max

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.log_dt = empty(d_model)
        self.log_A_real = empty(d_model, d_state // 2)
        self.A_imag = empty(d_model, d_state // 2)
        self.C = empty(d_model, d_state // 2, 2)
        self.D = empty(d_model)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial parameters again."""
        nn.init.uniform_(self.log_dt, math.log(self.dt_min), math.log(self.dt_max))
        nn.init.constant_(self.log_A_real, math.log(0.5))
        self.A_imag.copy_(
            _INIT_FREQUENCIES[self.init](self.d_state).to(self.A_imag.dtype).expand_as(self.A_imag)
        )
        nn.init.normal_(self.C, std=math.sqrt(0.5))  # |C|^2 is 1 in the mean
        nn.init.normal_(self.D)

    def discrete(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """A_bar and C_bar = 2 C B_bar [H, n], complex, for a state of ``dtype``, float32 or float64."""
        log_dt, log_A_real, A_imag, C = (
            p.to(dtype) for p in (self.log_dt, self.log_A_real, self.A_imag, self.C)
        )
        A = torch.complex(-torch.exp(log_A_real), A_imag)
        rule = discretize.zoh if self.discretization == "zoh" else discretize.bilinear
        A_bar, B_bar = rule(A, 1.0, torch.exp(log_dt)[:, None])
        return A_bar, 2 * torch.complex(C[..., 0], C[..., 1]) * B_bar

    def kernel(self, steps: int) -> Tensor:
        """State-space kernel K [H, steps]: from a fresh state y = K * x + D x, a convolution over time."""
        dtype = torch.float64 if self.C.dtype == torch.float64 else torch.float32
        impulse = torch.zeros(steps, 1, self.d_model, dtype=dtype, device=self.C.device)
        impulse[:1] = 1
        y, _ = ops.diagonal_ssm(impulse, *self.discrete(dtype), backend=self.backend)
        return y[:, 0].T

    def forward(self, x_seq: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output [T, N, H] and the final state [N, H, n] of a sequence [T, N, H]."""
        check_sequence(x_seq)
        check_channels(x_seq, self.d_model)
        dtype = state_dtype(x_seq)
        A_bar, C_bar = self.discrete(dtype)
        return ops.diagonal_ssm(x_seq, A_bar, C_bar, self.D.to(dtype), state=state, backend=self.backend)

    def initial_state(self, x: Tensor) -> Tensor:
        """Zeros [N, H, n], complex, for one step ``x`` [N, H]."""
        check_step(x)
        check_channels(x, self.d_model)
        return torch.zeros((*x.shape, self.d_state // 2), dtype=complex_state_dtype(x), device=x.device)

    def extra_repr(self) -> str:
        choices = f"init={self.init!r}, discretization={self.discretization!r}"
        return f"{self.d_model}, d_state={self.d_state}, {choices}"


def _linear(d_state: int) -> Tensor:
    return math.pi * torch.arange(d_state // 2, dtype=torch.float64)


def _inverse(d_state: int) -> Tensor:
    n = torch.arange(d_state // 2, dtype=torch.float64)
    return d_state / math.pi * (d_state / (2 * n + 1) - 1)


def _legs(d_state: int) -> Tensor:
    """Positive imaginary parts of the spectrum of HiPPO-LegS plus its rank-one term, descending as in "inv".

    The matrix is -1/2 I + S with S real and skew: S_nk = -sqrt(n + 1/2) sqrt(k + 1/2) for n > k.
    """
    root = torch.sqrt(torch.arange(d_state, dtype=torch.float64) + 0.5)
    lower = torch.tril(root[:, None] * root, -1)
    return torch.linalg.eigvalsh(1j * (lower - lower.T))[d_state // 2 :].flip(0)


_INIT_FREQUENCIES = {"lin": _linear, "inv": _inverse, "legs": _legs}
