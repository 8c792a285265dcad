"""Coupled compartments: the memory of the parallel multi-compartment spiking neuron (PMSN)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import discretize, ops
from .._checks import check_channels, check_dimension, check_sequence, check_step, state_dtype
from .._module import MemoryModule, complex_state_dtype

__all__ = ["MultiCompartment"]


class MultiCompartment(MemoryModule):
    """A chain of coupled compartments per channel, diagonalised so that it runs in parallel over time.

    ::

        dv/dt = S v + 1 x          S tridiagonal: S_ii = -1/2, S_i,i+1 = 5 i, S_i+1,i = -5 i  (i = 1, 2, ...)
        y     = v_N + D x          what reaches the last compartment

    is where it starts: S = V diag(A) V^H, and the modes h = V^H v are learned on their own::

        dh/dt = A h + B x          A = -exp(log_A_real) + i A_imag
        h_t   = A_bar h[t-1] + B_bar x_t
        y_t   = Re(sum_n C_n h_t,n) + D x_t

    with B = V^H 1, C = e_N V and a zero-order hold of dt = exp(log_dt). All N modes are kept: nothing ties
    them into conjugate pairs, so there is no factor 2. dt starts log-uniform in [dt_min, dt_max], D normal.

    Args:
        d_model: channels H.
        d_state: compartments N per channel.
        dt_min, dt_max: range of the initial steps, 0 < dt_min <= dt_max.
        backend: "auto", "torch", "cpp" or "cupy".
        device, dtype: of the parameters. Whatever their dtype, the discrete matrices are computed in that of
            the state.

    Parameters ``log_dt`` [H], ``log_A_real`` [H, N], ``A_imag`` [H, N], ``B`` [H, N, 2], ``C`` [H, N, 2],
    ``D`` [H].

    Shapes:
        x_seq, y_seq: [T, N, H], of one dtype. State: complex [N, H, d_state], the h above divided by B_bar.

    Raises:
        TypeError: a size that is not an int.
        ValueError: a size that is not positive, an empty range of dt.

    Reference:
        PMSN: A Parallel Multi-compartment Spiking Neuron for Multi-scale Temporal Processing, arXiv
        2408.14917 (2024), and its official code.

    Example:
        >>> y, state = MultiCompartment(d_model=3)(torch.randn(10, 2, 3))
        >>> y.shape, state.shape
        (torch.Size([10, 2, 3]), torch.Size([2, 3, 4]))
    """

    dynamics = ("log_dt", "log_A_real", "A_imag", "B")

    def __init__(
        self,
        d_model: int,
        d_state: int = 4,
        *,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(backend=backend)
        check_dimension("d_model", d_model)
        check_dimension("d_state", d_state)
        if not 0 < dt_min <= dt_max < math.inf:
            raise ValueError(
                f"dt_min and dt_max must satisfy 0 < dt_min <= dt_max, got {dt_min} and {dt_max}"
            )
        self.d_model, self.d_state = d_model, d_state
        self.dt_min, self.dt_max = dt_min, dt_max

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.log_dt = empty(d_model)
        self.log_A_real = empty(d_model, d_state)
        self.A_imag = empty(d_model, d_state)
        self.B = empty(d_model, d_state, 2)
        self.C = empty(d_model, d_state, 2)
        self.D = empty(d_model)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial parameters again."""
        frequencies, V = _modes(self.d_state)
        nn.init.uniform_(self.log_dt, math.log(self.dt_min), math.log(self.dt_max))
        nn.init.constant_(self.log_A_real, math.log(0.5))
        for parameter, start in (
            (self.A_imag, frequencies),
            (self.B, torch.view_as_real(V.sum(0).conj_physical())),  # V^H 1
            (self.C, torch.view_as_real(V[-1].clone())),  # e_N V
        ):
            parameter.copy_(start.to(parameter.dtype).expand_as(parameter))
        nn.init.normal_(self.D)

    def discrete(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """A_bar and C_bar = C B_bar [H, N], complex, for a state of ``dtype``, float32 or float64."""
        log_dt, log_A_real, A_imag, B, C = (
            p.to(dtype) for p in (self.log_dt, self.log_A_real, self.A_imag, self.B, self.C)
        )
        A = torch.complex(-torch.exp(log_A_real), A_imag)
        A_bar, B_bar = discretize.zoh(A, torch.complex(B[..., 0], B[..., 1]), torch.exp(log_dt)[:, None])
        return A_bar, torch.complex(C[..., 0], C[..., 1]) * B_bar

    def forward(self, x_seq: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output [T, N, H] and the final state [N, H, d_state] of a sequence [T, N, H]."""
        check_sequence(x_seq)
        check_channels(x_seq, self.d_model)
        dtype = state_dtype(x_seq)
        A_bar, C_bar = self.discrete(dtype)
        return ops.diagonal_ssm(x_seq, A_bar, C_bar, self.D.to(dtype), state=state, backend=self.backend)

    def initial_state(self, x: Tensor) -> Tensor:
        """Zeros [N, H, d_state], complex, for one step ``x`` [N, H]."""
        check_step(x)
        check_channels(x, self.d_model)
        return torch.zeros((*x.shape, self.d_state), dtype=complex_state_dtype(x), device=x.device)

    def extra_repr(self) -> str:
        return f"{self.d_model}, d_state={self.d_state}"


def _modes(compartments: int) -> tuple[Tensor, Tensor]:
    """Frequencies [N], ascending, and modes [N, N] of S + 1/2, which is real and skew."""
    coupling = 5.0 * torch.arange(1, compartments, dtype=torch.float64)
    skew = torch.diag(coupling, 1) - torch.diag(coupling, -1)
    frequencies, modes = torch.linalg.eigh(-1j * skew)
    return frequencies, modes
