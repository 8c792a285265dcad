"""The stochastic spikes of P-SpikeSSM: a drive is a probability."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import check_flag, check_sequence, check_step, state_dtype
from .._module import SpikingModule

__all__ = ["BernoulliSampler"]


class BernoulliSampler(SpikingModule):
    """Fires with the probability that the drive gives, in evaluation too.

    ::

        s_t = 1[p_t > U_t]          U_t uniform in [0, 1), drawn for every element and step
        E[s_t] = clamp(p_t, 0, 1)   whose gradient, 1 for 0 <= p_t <= 1, is that of s_t

    Args:
        seed: draw from a generator of its own that starts from this int, and is copied and pickled with the
            module in the middle of its sequence of numbers. ``None``: torch's global generator, with which
            alone ``torch.compile(fullgraph=True)`` works.
        deterministic: fire where p_t > 1/2 instead.
        backend: accepted as by every module; the draw is torch's.

    Shapes:
        x_seq, spikes: [T, N, *], of one dtype. State: ``None``, it holds no history. With a seed, on the CPU,
        a sequence draws the same numbers as its steps and its chunks.

    Raises:
        TypeError: a seed that is not an int.

    Reference:
        P-SpikeSSM: Harnessing Probabilistic Spiking State Space Models for Long-Range Dependency Tasks, arXiv
        2406.02923 (2024), and its official code.

    Example:
        >>> p = torch.tensor([-0.5, 0.0, 0.3, 1.0, 1.5]).expand(10_000, 5)
        >>> [round(v, 1) for v in BernoulliSampler(seed=0)(p)[0].mean(0).tolist()]
        [0.0, 0.0, 0.3, 1.0, 1.0]
    """

    def __init__(
        self, *, seed: int | None = None, deterministic: bool = False, backend: str = "auto"
    ) -> None:
        super().__init__(backend=backend)
        check_flag("deterministic", deterministic)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be an int or None, got {type(seed).__name__}")
        self.seed, self.deterministic = seed, deterministic
        self._generator: torch.Generator | None = None

    def manual_seed(self, seed: int) -> None:
        """Begin the sequence of random numbers that belongs to ``seed``."""
        self.seed, self._generator = seed, None

    def fire(self, drive_seq: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Spikes [T, N, *] of probabilities [T, N, *]."""
        check_sequence(drive_seq)
        if state is not None:
            raise TypeError(f"state must be None: a sampler holds no history, got {type(state).__name__}")
        p = drive_seq.to(state_dtype(drive_seq))
        level = torch.full_like(p, 0.5) if self.deterministic else self._uniform(p)
        spikes: Tensor = _Sample.apply(p, level)
        return spikes.to(drive_seq.dtype), None

    def _uniform(self, like: Tensor) -> Tensor:
        if self.seed is None:
            return torch.rand_like(like, memory_format=torch.contiguous_format)
        if self._generator is None or self._generator.device != like.device:
            self._generator = torch.Generator(like.device).manual_seed(self.seed)
        return torch.rand(like.shape, generator=self._generator, dtype=like.dtype, device=like.device)

    def initial_state(self, x: Tensor) -> None:
        """``None``."""
        check_step(x)

    def extra_repr(self) -> str:
        return f"seed={self.seed}, deterministic={self.deterministic}"


class _Sample(torch.autograd.Function):
    """1[p > level] forward, the gradient of clamp(p, 0, 1) backward."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, level: Tensor) -> Tensor:
        ctx.save_for_backward(p)
        return (p > level).to(p.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        return grad * ((p >= 0) & (p <= 1)), None
