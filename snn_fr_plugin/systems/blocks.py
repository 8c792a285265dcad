"""The residual blocks around a ``SpikingLayer``."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from .._checks import check_choice, check_step
from .layer import Norm, SpikingLayer, SpikingLayerState, factory, make_norm
from .optim import param_groups
from .pairings import PMSN, PSpikeSSM

__all__ = ["SpikeResidualBlock", "SpikingBlock", "paper_block"]

_MIXERS = ("glu", "gelu")


class _Block(nn.Module):
    """What the blocks share: they take a layer over, and their state is the layer's."""

    def __init__(self, layer: SpikingLayer, norm: Norm | None, dropout: float, widen: int) -> None:
        super().__init__()
        if not isinstance(layer, SpikingLayer):
            raise TypeError(f"layer must be a SpikingLayer, got {type(layer).__name__}")
        if layer.d_model is None:
            raise ValueError(
                "layer must know its number of channels: SpikingLayer(memory, spiking, d_model=...)"
            )
        self.d_model = layer.d_model
        self.layer = layer
        self.dropout = nn.Dropout(dropout)
        self.synapse = nn.Linear(self.d_model, widen * self.d_model, **factory(layer))
        self.norm = None if norm is None else make_norm(norm, self.d_model, layer)

    def forward(
        self, x_seq: Tensor, state: SpikingLayerState | tuple[Any, Any] | None = None
    ) -> tuple[Tensor, SpikingLayerState]:
        """Output [T, N, d_model] and the state."""
        raise NotImplementedError

    def step(
        self, x: Tensor, state: SpikingLayerState | tuple[Any, Any] | None = None
    ) -> tuple[Tensor, SpikingLayerState]:
        """Output [N, d_model] of one step, and the state."""
        check_step(x)
        self.layer.check_causal()
        y_seq, after = self.forward(x[None], state)
        return y_seq[0], after

    def initial_state(self, x: Tensor) -> SpikingLayerState:
        """The fresh state for inputs like ``x``, one step [N, d_model]."""
        return self.layer.initial_state(x)

    def param_groups(
        self, lr: float = 1e-2, *, ssm_lr: float | None = None, weight_decay: float = 0.01
    ) -> list[dict[str, Any]]:
        """Groups for an optimizer; see ``systems.param_groups``."""
        return param_groups(self, lr, ssm_lr=ssm_lr, weight_decay=weight_decay)


class SpikingBlock(_Block):
    """The residual block around a ``SpikingLayer``.

    ::

        s   = layer(x)                              memory -> norm -> spiking
        y   = GLU(W dropout(s) + b)                 mixer "glu": the synapse, W: H -> 2H
              GELU(W s + b)                         mixer "gelu": W: H -> H
        out = norm(x + dropout(y))

    The synapse reads binary spikes in evaluation. ``norm`` chooses two norms: one after the residual, and one
    on the drive of the layer (after its memory and the filter of its PSN, before its threshold). The latter
    becomes ``layer.norm``; a layer that already has a norm keeps its own. "batch" normalises each channel
    over batch and time; in evaluation it is affine, hence causal, and can be folded into its neighbours.

    Args:
        layer: any ``SpikingLayer`` that knows its ``d_model``. The block takes it over.
        norm: "batch", "layer" or ``None``.
        dropout: probability, on the output of the synapse, and with "glu" on the spikes.
        mixer: "glu", or "gelu", the SpikeMixer of P-SpikeSSM.

    Shapes:
        x_seq, y_seq: [T, N, H], of one dtype. State: that of the layer.

    Raises:
        TypeError: ``layer`` is not a SpikingLayer.
        ValueError: an unknown norm or mixer, or a layer without ``d_model``.

    Reference:
        "glu": the recipe of SpikingSSM's block (arXiv 2408.14909) with a norm before the threshold and after
        the residual. "gelu": P-SpikeSSM (arXiv 2406.02923), with a norm before the second sampling.

    Example:
        >>> from snn_fr_plugin.systems import SpikingFRSSM
        >>> block = SpikingBlock(SpikingFRSSM(4, d_state=8))
        >>> y, state = block(torch.randn(10, 2, 4))
        >>> y.shape
        torch.Size([10, 2, 4])
    """

    def __init__(
        self,
        layer: SpikingLayer,
        *,
        norm: Norm | None = "batch",
        dropout: float = 0.1,
        mixer: Literal["glu", "gelu"] = "glu",
    ) -> None:
        check_choice("mixer", mixer, _MIXERS)
        super().__init__(layer, norm, dropout, 2 if mixer == "glu" else 1)
        self.mixer = mixer
        if norm is not None and layer.norm is None:
            layer.norm = make_norm(norm, self.d_model, layer)

    def forward(
        self, x_seq: Tensor, state: SpikingLayerState | tuple[Any, Any] | None = None
    ) -> tuple[Tensor, SpikingLayerState]:
        """Output [T, N, d_model] and the state."""
        spikes, after = self.layer(x_seq, state)
        spikes = spikes.to(self.synapse.weight.dtype)
        if self.mixer == "glu":
            mixed = nn.functional.glu(self.synapse(self.dropout(spikes)), -1)
        else:
            mixed = nn.functional.gelu(self.synapse(spikes))
        y_seq = x_seq + self.dropout(mixed)
        if self.norm is not None:
            y_seq = self.norm(y_seq)
        return y_seq.to(x_seq.dtype), after


class SpikeResidualBlock(_Block):
    """PMSN's block: a residual stream of spike counts.

    ::

        out = x + layer(norm(dropout(W x + b)))

    Fed with spikes, or with the output of such a block, it puts out whole numbers: the stream sums up the
    spikes of all layers so far, and every synapse reads that sum. Where the blocks are cut is ours: the
    published order, norm, neuron, 1x1 convolution, dropout, is the same chain.

    Args:
        layer: any ``SpikingLayer`` that knows its ``d_model``. The block takes it over.
        norm: before the memory, "batch", "layer" or ``None``.
        dropout: probability, on the output of the synapse.

    Shapes:
        x_seq, y_seq: [T, N, H], of one dtype. State: that of the layer.

    Raises:
        TypeError: ``layer`` is not a SpikingLayer.
        ValueError: an unknown norm, or a layer without ``d_model``.

    Reference:
        PMSN, arXiv 2408.14917 (2024), and its official code.

    Example:
        >>> from snn_fr_plugin.systems import PMSN
        >>> y, _ = SpikeResidualBlock(PMSN(4)).eval()(torch.ones(10, 2, 4))
        >>> bool((y == y.round()).all())
        True
    """

    def __init__(self, layer: SpikingLayer, *, norm: Norm | None = "batch", dropout: float = 0.1) -> None:
        super().__init__(layer, norm, dropout, 1)

    def forward(
        self, x_seq: Tensor, state: SpikingLayerState | tuple[Any, Any] | None = None
    ) -> tuple[Tensor, SpikingLayerState]:
        """Output [T, N, d_model] and the state."""
        current = self.dropout(self.synapse(x_seq.to(self.synapse.weight.dtype)))
        if self.norm is not None:
            current = self.norm(current)
        spikes, after = self.layer(current, state)
        return x_seq + spikes.to(x_seq.dtype), after


def paper_block(layer: SpikingLayer, **options: Any) -> SpikingBlock | SpikeResidualBlock:
    """The block that the paper of a system puts around it.

    Args:
        layer: a system. ``PMSN`` gets a ``SpikeResidualBlock``, ``PSpikeSSM`` a ``SpikingBlock`` with its
            SpikeMixer, every other layer a plain ``SpikingBlock``.
        options: ``norm`` and ``dropout`` of the block.

    Example:
        >>> from snn_fr_plugin.systems import PSpikeSSM
        >>> paper_block(PSpikeSSM(4, d_state=8)).mixer
        'gelu'
    """
    if isinstance(layer, PMSN):
        return SpikeResidualBlock(layer, **options)
    return SpikingBlock(layer, mixer="gelu" if isinstance(layer, PSpikeSSM) else "glu", **options)
