"""The resonator: one damped oscillation per channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_channels, check_dimension, check_sequence, check_step, parameter, state_dtype
from .._module import MemoryModule, complex_state_dtype

__all__ = ["Resonator"]


class Resonator(MemoryModule):
    """Damped complex oscillator, one mode per channel: the memory of the parallel resonate-and-fire neuron
    (PRF).

    ::

        u_t = exp(dt (-1 / tau + i theta)) u[t-1] + dt x_t
        y_t = Re u_t

    Args:
        d_model: channels H.
        tau: initial time constant, > 0, in units of time: a float, or a tensor that broadcasts to [H].
        theta: initial angular frequency, in radians per unit of time: a float, or a tensor that broadcasts to
            [H]. ``None`` draws it uniformly from [0, pi / dt), all that a sequence of step dt can carry (our
            choice).
        dt: step, > 0, in units of time. Not learned: with tau and theta free it is only the scale of the
            input.
        backend: "auto", "torch", "cpp" or "cupy".
        device, dtype: of the parameters.

    Parameters ``log_tau`` [H], ``theta`` [H].

    Shapes:
        x_seq, y_seq: [T, N, H], of one dtype. State: u / dt, complex [N, H, 1].

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a ``tau`` or ``dt`` that is not positive, or a shape that does not broadcast to [H].

    Reference:
        PRF: Parallel Resonate and Fire Neuron for Long Sequence Learning in Spiking Neural Networks,
        arXiv 2410.03530 (2024).

    Example:
        >>> y, _ = Resonator(1, tau=1e9, theta=torch.pi / 2)(torch.tensor([1.0, 0, 0, 0, 0]).view(5, 1, 1))
        >>> [round(v, 3) + 0.0 for v in y.flatten().tolist()]
        [1.0, 0.0, -1.0, 0.0, 1.0]
    """

    dynamics = ("log_tau", "theta")

    def __init__(
        self,
        d_model: int,
        *,
        tau: float | Tensor = 10.0,
        theta: float | Tensor | None = None,
        dt: float = 1.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(backend=backend)
        check_dimension("d_model", d_model)
        if not 0 < dt < math.inf:
            raise ValueError(f"dt must be finite and > 0, got {dt}")
        dtype = dtype or torch.get_default_dtype()
        where = torch.device(device or torch.get_default_device())
        start = parameter("tau", tau, (d_model,), dtype, where)
        if not bool((start > 0).all()):
            raise ValueError(f"tau must be > 0, got {tau}")
        self.d_model, self.dt = d_model, float(dt)
        self.log_tau = nn.Parameter(start.detach().log().expand(d_model).clone())
        if theta is None:
            frequency = torch.rand(d_model, dtype=dtype, device=where) * (math.pi / dt)
        else:
            frequency = parameter("theta", theta, (d_model,), dtype, where).detach().expand(d_model).clone()
        self.theta = nn.Parameter(frequency)

    def forward(self, x_seq: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output [T, N, H] and the final state [N, H, 1] of a sequence [T, N, H]."""
        check_sequence(x_seq)
        check_channels(x_seq, self.d_model)
        dtype = state_dtype(x_seq)
        rate = torch.complex(-torch.exp(-self.log_tau.to(dtype)), self.theta.to(dtype))
        A_bar = torch.exp(self.dt * rate)[:, None]
        C_bar = torch.full_like(A_bar, self.dt)
        return ops.diagonal_ssm(x_seq, A_bar, C_bar, state=state, backend=self.backend)

    def initial_state(self, x: Tensor) -> Tensor:
        """Zeros [N, H, 1], complex, for one step ``x`` [N, H]."""
        check_step(x)
        check_channels(x, self.d_model)
        return torch.zeros((*x.shape, 1), dtype=complex_state_dtype(x), device=x.device)

    def extra_repr(self) -> str:
        return f"{self.d_model}, dt={self.dt:g}"
