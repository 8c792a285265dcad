"""The leaky integrator: the membrane of a LIF neuron that is never reset."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_flag, check_step, state_dtype
from .._module import MemoryModule

__all__ = ["Leaky"]


class Leaky(MemoryModule):
    """Leaky integrator, the memory of the LIF neuron without reset.

    ::

        m_t = beta * m[t-1] + x_t

    The membrane is that of ``ops.lif(x, beta, reset="none")``, to the last bit.

    Args:
        beta: decay per step, a float or a tensor broadcastable to one step of the input (one decay per
            neuron); 0 < beta < 1 leaks, 1.0 is the perfect integrator. A tensor is kept in the state_dict.
        learn_beta: make ``beta`` a parameter. It is used as it is: the optimiser may carry it out of (0, 1).
        backend: "auto", "torch", "cpp" or "cupy".

    Shapes:
        x_seq, y_seq: [T, N, *]; y is float32 (float64 for float64 input). State: the membrane [N, *], as y.

    Raises:
        TypeError: ``beta`` is neither a float nor a floating-point tensor.

    Example:
        >>> y, m = Leaky(beta=0.5)(torch.ones(3, 1))
        >>> y.flatten().tolist(), m.tolist()
        ([1.0, 1.5, 1.75], [1.75])
    """

    beta: float | Tensor
    dynamics = ("beta",)

    def __init__(
        self, beta: float | Tensor = 0.9, *, learn_beta: bool = False, backend: str = "auto"
    ) -> None:
        super().__init__(backend=backend)
        check_flag("learn_beta", learn_beta)
        if isinstance(beta, Tensor):
            if not beta.is_floating_point():
                raise TypeError(f"beta must be a floating-point tensor, got {beta.dtype}")
        elif isinstance(beta, bool) or not isinstance(beta, (int, float)):
            raise TypeError(f"beta must be a float or a tensor, got {type(beta).__name__}")
        if learn_beta:
            self.beta = nn.Parameter(torch.as_tensor(beta, dtype=_dtype(beta)).detach().clone())
        elif isinstance(beta, Tensor):
            self.register_buffer("beta", beta.detach().clone())
        else:
            self.beta = float(beta)

    def forward(self, x_seq: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Membrane [T, N, *] of every step, and the last one [N, *]."""
        start = None
        if state is not None:
            start = ops.LIFState(state, torch.zeros(x_seq.shape[1:], dtype=torch.int32, device=x_seq.device))
        _, membrane, final = ops.lif(
            x_seq, self.beta, reset="none", state=start, return_membrane=True, backend=self.backend
        )
        assert membrane is not None
        return membrane, final.v

    def initial_state(self, x: Tensor) -> Tensor:
        """Zeros [N, *] for one step ``x`` [N, *]."""
        check_step(x)
        return torch.zeros(x.shape, dtype=state_dtype(x), device=x.device)

    def extra_repr(self) -> str:
        beta = f"{self.beta:g}" if isinstance(self.beta, float) else f"tensor{tuple(self.beta.shape)}"
        return f"beta={beta}, learn_beta={isinstance(self.beta, nn.Parameter)}"


def _dtype(beta: float | Tensor) -> torch.dtype:
    return beta.dtype if isinstance(beta, Tensor) else torch.get_default_dtype()
