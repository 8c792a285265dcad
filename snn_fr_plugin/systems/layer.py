"""``SpikingLayer``: any memory module in front of any spiking module."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from .._checks import check_channels, check_choice, check_sequence, check_step
from .._module import SequenceModule
from .optim import param_groups

__all__ = ["Norm", "SpikingLayer", "SpikingLayerState", "factory", "make_norm"]

Norm = Literal["batch", "layer"]
_NORMS: tuple[Norm, ...] = ("batch", "layer")


class SpikingLayerState(NamedTuple):
    """State of a ``SpikingLayer``: those of its two parts."""

    memory: Any
    spiking: Any


class _BatchNorm(nn.BatchNorm1d):
    """Per channel (last dimension) over time and batch; affine in evaluation. Computes in its own dtype."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        return super().forward(x.flatten(0, -2)).view(x.shape) if x.numel() else x


class _LayerNorm(nn.LayerNorm):
    """Over the channels of each step. Computes in its own dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def factory(module: nn.Module) -> dict[str, Any]:
    """Where, and in which dtype, the parameters of a module live."""
    first = next(module.parameters(), None)
    return {} if first is None else {"device": first.device, "dtype": first.dtype}


def make_norm(norm: Norm, d_model: int | None, like: nn.Module) -> nn.Module:
    """The norm over ``d_model`` channels, where the parameters of ``like`` are."""
    check_choice("norm", norm, _NORMS)
    if d_model is None:
        raise ValueError(
            f"norm={norm!r} needs d_model, the number of channels, which the memory does not tell"
        )
    return (_BatchNorm if norm == "batch" else _LayerNorm)(d_model, **factory(like))


class SpikingLayer(nn.Module):
    """A memory module and a spiking module: real sequences in, binary spikes out.

    ::

        drive  = norm(spiking.integrate(memory(x)))
        spikes = spiking.fire(drive)

    ``integrate`` is the filter of a PSN and the identity of a threshold. The layer is as parallel over time
    as its parts, and holds no state: a sequence equals its steps, and its chunks with the state carried
    along, in evaluation (training statistics of a batch norm see the steps they are given).

    Args:
        memory: ``snn_fr_plugin.memory`` module, or any with ``forward``, ``step`` and ``initial_state``.
        spiking: ``snn_fr_plugin.spiking`` module, or any with ``integrate``, ``fire`` and ``initial_state``.
        norm: "batch" (per channel over batch and time), "layer", a module applied to the drive, or ``None``.
        d_model: channels; by default what the memory says.

    Shapes:
        x_seq, spikes: [T, N, d_model], of one dtype. State: ``SpikingLayerState``.

    Raises:
        TypeError: a part that is not a module, a state that is not a pair.
        ValueError: an unknown norm, or channels that differ from d_model.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling, arXiv
        2504.17751.

    Example:
        >>> from snn_fr_plugin.memory import Leaky
        >>> from snn_fr_plugin.spiking import FixedRefractory
        >>> layer = SpikingLayer(Leaky(0.9), FixedRefractory(1))
        >>> layer(torch.full((6, 1), 0.6))[0].flatten().tolist()
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """

    def __init__(
        self,
        memory: nn.Module,
        spiking: nn.Module,
        norm: Norm | nn.Module | None = None,
        *,
        d_model: int | None = None,
    ) -> None:
        super().__init__()
        for name, part in (("memory", memory), ("spiking", spiking)):
            if not isinstance(part, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {type(part).__name__}")
        told = getattr(memory, "d_model", None)
        if None not in (d_model, told) and d_model != told:
            raise ValueError(f"d_model must be the memory's, {told}, got {d_model}")
        self.d_model: int | None = told if d_model is None else d_model
        self.memory: Any = memory
        self.spiking: Any = spiking
        if norm is not None and not isinstance(norm, nn.Module):
            norm = make_norm(norm, self.d_model, self)
        self.norm: nn.Module | None = norm

    def forward(
        self, x_seq: Tensor, state: SpikingLayerState | tuple[Any, Any] | None = None
    ) -> tuple[Tensor, SpikingLayerState]:
        """Binary spikes [T, N, d_model] and the state."""
        spikes, _, after = self.forward_with_drive(x_seq, state)
        return spikes, after

    def forward_with_drive(
        self, x_seq: Tensor, state: SpikingLayerState | tuple[Any, Any] | None = None
    ) -> tuple[Tensor, Tensor, SpikingLayerState]:
        """Spikes, the drive that the threshold saw [T, N, d_model], and the state."""
        check_sequence(x_seq)
        if self.d_model is not None:
            check_channels(x_seq, self.d_model)
        memory_state, spiking_state = _pair(state)
        y_seq, memory_state = self.memory(self._encode(x_seq), memory_state)
        drive, spiking_state = self.spiking.integrate(self._decode(y_seq), spiking_state)
        if self.norm is not None:
            drive = self.norm(drive)
        spikes, spiking_state = self.spiking.fire(drive, spiking_state)
        return spikes.to(x_seq.dtype), drive, SpikingLayerState(memory_state, spiking_state)

    def _encode(self, x_seq: Tensor) -> Tensor:
        """What the memory reads of the input; a system may have an encoder of its own."""
        return x_seq

    def _decode(self, y_seq: Tensor) -> Tensor:
        """What the spiking module sees of the memory; a system may scale it."""
        return y_seq

    def step(
        self, x: Tensor, state: SpikingLayerState | tuple[Any, Any] | None = None
    ) -> tuple[Tensor, SpikingLayerState]:
        """Binary spikes [N, d_model] of one step, and the state."""
        check_step(x)
        self.check_causal()
        spikes, after = self.forward(x[None], state)
        return spikes[0], after

    def check_causal(self) -> None:
        """Raise a RuntimeError if a part may read later inputs: there are no single steps then."""
        for part in (self.memory, self.spiking):
            if isinstance(part, SequenceModule):
                part.check_causal()

    def initial_state(self, x: Tensor) -> SpikingLayerState:
        """The fresh state for inputs like ``x``, one step [N, d_model]."""
        return SpikingLayerState(self.memory.initial_state(x), self.spiking.initial_state(x))

    def param_groups(
        self, lr: float = 1e-2, *, ssm_lr: float | None = None, weight_decay: float = 0.01
    ) -> list[dict[str, Any]]:
        """Groups for an optimizer; see ``systems.param_groups``."""
        return param_groups(self, lr, ssm_lr=ssm_lr, weight_decay=weight_decay)


def _pair(state: Any) -> tuple[Any, Any]:
    if state is None:
        return None, None
    if not isinstance(state, tuple) or len(state) != 2:
        raise TypeError(f"state must be a SpikingLayerState (memory, spiking), got {type(state).__name__}")
    return state
