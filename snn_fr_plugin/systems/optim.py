"""How the parameters of a network with state-space memories are best optimised: in three groups."""

from __future__ import annotations

from typing import Any

from torch import nn

from .._module import MemoryModule, SequenceModule

__all__ = ["param_groups"]


def param_groups(
    network: nn.Module, lr: float = 1e-2, *, ssm_lr: float | None = None, weight_decay: float = 0.01
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: what decays, what does not, and what moves slowly.

    ====================================================== ========= ==================
    parameters                                             lr        weight decay
    ====================================================== ========= ==================
    weight matrices outside memory and spiking modules     lr        ``weight_decay``
    all others: biases, norms, thresholds, filters, C, D   lr        0
    time scales of the memories: dt, A, B; tau, theta      ssm_lr    0
    ====================================================== ========= ==================

    Args:
        network: any module, such as a system, a block, or a whole network of them.
        lr: learning rate.
        ssm_lr: that of the time scales; ``None`` is the smaller of lr and 1e-3, the custom of S4D.
        weight_decay: of the weight matrices.

    Returns:
        Dictionaries of "params", "lr" and "weight_decay", one for each group that is not empty. Every
        parameter that is learned is in exactly one.

    Reference:
        A. Gu et al., arXiv 2206.11893, whose experiments train dt and A so.

    Example:
        >>> from snn_fr_plugin.systems import SpikingBlock, SpikingFRSSM
        >>> groups = param_groups(SpikingBlock(SpikingFRSSM(4, d_state=8)), lr=1e-2)
        >>> [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups]
        [(1, 0.01, 0.01), (8, 0.01, 0.0), (3, 0.001, 0.0)]
    """
    slow, inside = set(), set()
    for module in network.modules():
        if isinstance(module, MemoryModule):
            for name, parameter in module.named_parameters(recurse=True):
                if set(name.split(".")) & set(module.dynamics):  # parametrized ones have a longer name
                    slow.add(parameter)
        if isinstance(module, SequenceModule):
            inside |= set(module.parameters())
    synapses, others, time_scales = [], [], []
    for parameter in network.parameters():
        if not parameter.requires_grad:
            continue
        if parameter in slow:
            time_scales.append(parameter)
        elif parameter.dim() >= 2 and parameter not in inside:
            synapses.append(parameter)
        else:
            others.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": synapses, "lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
        {"params": time_scales, "lr": min(lr, 1e-3) if ssm_lr is None else ssm_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
