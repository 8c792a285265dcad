"""Two memories, one of them reading backwards in time."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .._checks import check_sequence, check_step
from .._module import MemoryModule

__all__ = ["Bidirectional"]


class Bidirectional(MemoryModule):
    """The sum of a memory of the past and a memory of the future.

    ::

        y = past(x) + reverse(future(reverse(x)))

    Not causal: it reads whole sequences only. It has no steps, and no state from which a sequence could go
    on.

    Args:
        past: any memory module.
        future: another; for equal treatment, one of the same kind.

    Shapes:
        x_seq, y_seq: those of the memories. State: the number of steps read, an int.

    Raises:
        TypeError: a part that is not a module.
        ValueError: parts of different ``d_model``.
        RuntimeError: ``step``, or a sequence that continues an earlier one.

    Reference:
        A. Gu et al., arXiv 2206.11893 (the bidirectional layers of S4D).

    Example:
        >>> from snn_fr_plugin.memory import Leaky
        >>> y, _ = Bidirectional(Leaky(0.5), Leaky(0.5))(torch.tensor([0.0, 1.0, 0.0])[:, None])
        >>> y.flatten().tolist()
        [0.5, 2.0, 0.5]
    """

    def __init__(self, past: nn.Module, future: nn.Module) -> None:
        super().__init__()
        for name, part in (("past", past), ("future", future)):
            if not isinstance(part, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {type(part).__name__}")
        channels = [getattr(part, "d_model", None) for part in (past, future)]
        if channels[0] != channels[1]:
            raise ValueError(
                f"past and future must have the same d_model, got {channels[0]} and {channels[1]}"
            )
        self.d_model: int | None = channels[0]
        self.past: Any = past
        self.future: Any = future

    def forward(self, x_seq: Tensor, state: int | None = None) -> tuple[Tensor, int]:
        """Output of a whole sequence, and the number of its steps."""
        check_sequence(x_seq)
        if state:
            raise RuntimeError(
                "Bidirectional cannot go on with a sequence: each of its outputs depends on the whole of it, "
                f"got a state after {state} steps"
            )
        return self.past(x_seq)[0] + self.future(x_seq.flip(0))[0].flip(0), len(x_seq)

    def check_causal(self) -> None:
        """Always raises."""
        raise RuntimeError(
            "Bidirectional cannot run step by step: each of its outputs depends on the whole sequence. "
            "Use forward on a sequence, or one of its memories"
        )

    def initial_state(self, x: Tensor) -> int:
        """0: no step read."""
        check_step(x)
        return 0
