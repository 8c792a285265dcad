"""The LIF neuron of SpikingSSM, its reset guessed by a small frozen network: parallel over time."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_flag, check_sequence, check_state, check_step, state_dtype
from .._module import SpikingModule
from ..surrogate import Triangle
from ._positive import get_positive, register_positive, show_positive

__all__ = ["SurrogateDynamics", "SurrogateDynamicsLIF"]

WEIGHTS = Path(__file__).with_name("sdn.json")
_DEFAULT_SURROGATE = Triangle()


class SurrogateDynamics(nn.Module):
    """The surrogate dynamic network (SDN): what the last inputs of a LIF neuron leave in its membrane.

    ::

        z     = relu(W1 [x[t-8], ..., x[t-1]] + b1)          W1: 8 -> 8
        m_t   = w3 relu(W2 z + b2 + z) + b3                  W2: 8 -> 8, w3: 8 -> 1

    One network for all neurons, 153 weights: convolutions over time of width 8, 1 and 1. It is trained by
    ``examples/train_sdn.py`` to give beta v[t-1], the decayed membrane after its reset, of a LIF neuron with
    threshold 1.

    Shapes:
        recent [8, N, *] (the inputs before the sequence) and x_seq [T, N, *], of one dtype; m [T, N, *].

    Reference:
        SpikingSSMs: Learning Long Sequences with Sparse and Parallel Spiking State Space Models, arXiv
        2408.14909 (2024).

    Example:
        >>> network = SurrogateDynamics()
        >>> sum(p.numel() for p in network.parameters())
        153
        >>> network(torch.zeros(8, 2, 3), torch.randn(5, 2, 3)).shape
        torch.Size([5, 2, 3])
    """

    TAPS = 8

    def __init__(self) -> None:
        super().__init__()
        self.window = nn.Linear(self.TAPS, 8)
        self.mix = nn.Linear(8, 8)
        self.readout = nn.Linear(8, 1)

    def forward(self, recent: Tensor, x_seq: Tensor) -> Tensor:
        """The estimate for every step of ``x_seq``."""
        if len(x_seq) == 0:
            return torch.empty_like(x_seq)
        windows = torch.cat([recent, x_seq])[:-1].unfold(0, self.TAPS, 1)  # [T, N, *, 8]
        z = torch.relu(_linear(windows, self.window))
        z = torch.relu(_linear(z, self.mix) + z)
        return _linear(z, self.readout).squeeze(-1)

    def frozen(self) -> SurrogateDynamics:
        """Itself, its weights made buffers: no optimizer sees them, the state_dict still does."""
        for part in self.children():
            for name, parameter in list(part.named_parameters()):
                delattr(part, name)
                part.register_buffer(name, parameter.detach())
        return self


def _linear(x: Tensor, part: Any) -> Tensor:
    return nn.functional.linear(x, part.weight.to(x.dtype), part.bias.to(x.dtype))


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


class SurrogateDynamicsLIF(SpikingModule):
    """LIF neuron with hard reset, parallel over time: a frozen network stands in for the recurrence.

    ::

        x_t = drive_t / threshold
        m_t = SDN(x[t-8], ..., x[t-1])            about beta v[t-1] of the LIF below; no gradient
        s_t = 1[m_t + x_t >= 1]

        the LIF:  h_t = beta v[t-1] + x_t,  s_t = 1[h_t >= 1],  v_t = 0 where s_t else h_t

    ``exact=True`` takes m from that LIF, run step after step by ``ops.lif``: the same spikes as
    ``LIF(beta)``, and the same gradient as above, which is local in time. beta is 0.125, what the network was
    trained for. On N(0, 1) traces the network's spikes agree with the LIF's on 99.98% of the steps; at this
    decay, though, no reset at all already agrees on 99.1%, and a plain threshold on 98.4%.

    Args:
        threshold: a float > 0, or a tensor broadcastable to one step of the drive.
        learn_threshold: learn ``log_threshold``, starting from the given threshold.
        exact: run the true LIF.
        weights: file written by ``examples/train_sdn.py``; ``None`` is the one shipped with the package.
        surrogate: a surrogate of this package, or any callable applied to ``m + x - 1``. Default: triangle.
        backend: "auto", "torch", "cpp" or "cupy", for the threshold and the true LIF.

    Buffers ``network.*``: the 153 weights.

    Shapes:
        x_seq, spikes: [T, N, *], of one dtype. State: the last 8 inputs divided by the threshold [8, N, *],
        or with ``exact`` the membrane v [N, *]; float32 (float64 for float64 input).

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a threshold that is not positive.

    Reference:
        SpikingSSMs, arXiv 2408.14909 (2024).

    Example:
        >>> x = torch.tensor([0.5, 0.9, 1.2, 0.2, 0.99, 0.1, 0.95])[:, None]
        >>> [SurrogateDynamicsLIF(exact=e)(x)[0].flatten().int().tolist() for e in (False, True)]
        [[0, 0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 1, 0, 0]]
    """

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        *,
        learn_threshold: bool = False,
        exact: bool = False,
        weights: str | Path | None = None,
        surrogate: Callable[[Tensor], Tensor] = _DEFAULT_SURROGATE,
        backend: str = "auto",
    ) -> None:
        super().__init__(backend=backend)
        check_flag("exact", exact)
        if not callable(surrogate):
            raise TypeError(f"surrogate must be callable, got {type(surrogate).__name__}")
        register_positive(self, "threshold", threshold, learn_threshold)
        self.learn_threshold, self.exact, self.surrogate = learn_threshold, exact, surrogate
        content = _read(WEIGHTS if weights is None else Path(weights))
        self.beta = float(content["beta"])
        self.network = SurrogateDynamics()
        self.network.load_state_dict(
            {name: torch.tensor(value) for name, value in content["weights"].items()}
        )
        self.network.frozen()

    @property
    def threshold(self) -> float | Tensor:
        """What the membrane is compared with."""
        return get_positive(self, "threshold")

    def fire(self, drive_seq: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spikes [T, N, *] of a drive [T, N, *], and the state."""
        check_sequence(drive_seq)
        dtype = state_dtype(drive_seq)
        threshold = self.threshold
        x_seq = drive_seq.to(dtype) / (threshold.to(dtype) if isinstance(threshold, Tensor) else threshold)
        if state is None:
            state = self._zeros(drive_seq.shape[1:], drive_seq)
        else:
            shape = drive_seq.shape[1:] if self.exact else (SurrogateDynamics.TAPS, *drive_seq.shape[1:])
            check_state("state", state, shape, dtype, drive_seq.device)
        with torch.no_grad():
            membrane, state = (self._true if self.exact else self._guessed)(x_seq.detach(), state)
        spikes, _ = ops.fixed_refractory(
            membrane + x_seq, 1.0, period=0, surrogate=self.surrogate, backend=self.backend
        )
        return spikes.to(drive_seq.dtype), state

    def _guessed(self, x_seq: Tensor, recent: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x_seq.device.type, enabled=False):  # the guess keeps its precision
            membrane = self.network(recent, x_seq)
        return membrane, torch.cat([recent, x_seq])[len(x_seq) :].clone()

    def _true(self, x_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start = ops.LIFState(v, torch.zeros(v.shape, dtype=torch.int32, device=v.device))
        _, membrane, final = ops.lif(
            x_seq, self.beta, 1.0, reset="zero", state=start, return_membrane=True, backend=self.backend
        )
        assert membrane is not None
        return self.beta * torch.cat([v[None], membrane])[:-1], final.v

    def initial_state(self, x: Tensor) -> Tensor:
        """Zeros [8, N, *], or with ``exact`` [N, *], for one step ``x`` [N, *]."""
        check_step(x)
        return self._zeros(x.shape, x)

    def _zeros(self, shape: torch.Size, like: Tensor) -> Tensor:
        leading = () if self.exact else (SurrogateDynamics.TAPS,)
        return torch.zeros((*leading, *shape), dtype=state_dtype(like), device=like.device)

    def extra_repr(self) -> str:
        own = f"learn_threshold={self.learn_threshold}, exact={self.exact}"
        return f"beta={self.beta:g}, {show_positive(self, 'threshold')}, {own}"
