"""snnTorch's neurons with a fixed refractory period.

Each type is its snnTorch parent plus ``refractory_period``, ``refractory_input``, ``multistep`` and
``backend``, keyword-only: the parent's arguments keep their order, a call its arguments and its returns.
"""

from __future__ import annotations

from typing import Any

import snntorch as snn
import torch
from torch import Tensor

from snn_fr_plugin.integrations.snntorch._refractory import RefractoryMixin, Result, Start, floating
from snn_fr_plugin.ops import fixed_refractory

__all__ = ["FRAlpha", "FRLapicque", "FRLeaky", "FRRLeaky", "FRRSynaptic", "FRSynaptic"]


class FRLeaky(RefractoryMixin, snn.Leaky):
    """``snntorch.Leaky`` with a fixed refractory period.

    One step, with ``open = (r == 0)`` and R = ``refractory_period``::

        mem = clip(beta, 0, 1) * mem + input_ - reset         "ignore": held while not open
        spk = (mem > threshold) and open
        r   = R where spk else max(r - 1, 0)

    After a spike the next one comes R + 1 steps later at the earliest. The reset is the parent's
    ("subtract", "zero" or "none"; one step after the spike, or in its step with ``reset_delay=False``) and
    follows the spikes that were emitted.

    The counter r belongs to the membrane that was returned with it: passing ``mem``, ``mem.detach()`` or a
    part of the batch ``mem[:n]`` back in continues it, several streams through one module keep theirs apart,
    and a membrane that this module did not return (zeros, a copy) starts open. Inside ``torch.compile`` only
    the membrane that the last call returned is recognised, undetached.

    Args:
        beta: decay per step, clipped to [0, 1]: a float, or a tensor that broadcasts to a step.
        *args: the parent's other arguments in its order: threshold, spike_grad, surrogate_disable,
            init_hidden, inhibition, learn_beta, learn_threshold, reset_mechanism, state_quant, output,
            graded_spikes_factor, learn_graded_spikes_factor, reset_delay. ``spike_grad=None`` is
            ``snn_fr_plugin.surrogate.ATan()``, the parent's default as an object that can be pickled; a
            surrogate of this package fires strictly above the threshold here, as all of snnTorch.
        refractory_period: R >= 0, in steps; default 1. 0 is ``snntorch.Leaky``, to the last bit in float32.
        refractory_input: "integrate" (default), or "ignore": the membrane is held, neither leaking nor
            charged, while refractory.
        multistep: ``False`` (default): a call is one step. ``True``: a call takes ``input_`` [T, B, *] and
            returns the parent's tuple with sequences, equal to the last bit to its steps. It begins at
            rest, at ``mem`` [B, *] if given (``mem[-1]`` of the call before continues the sequence), or
            with ``init_hidden=True`` at the state that the module keeps. The fused operator serves it,
            except with ``state_quant``, ``inhibition`` or (at R = 0) a reset without delay, or a
            ``spike_grad`` that is no strict step function: then the steps run one by one.
        backend: provider of the fused operator, "auto", "torch", "cpp" or "cupy"; a single step is the
            parent's own code.

    Returns:
        ``spk, mem``; ``spk`` alone with ``init_hidden=True`` and not ``output``. Spikes have the dtype of
        ``input_``, the membrane is float32 (float64 for float64 input).

    Raises:
        TypeError: an argument of the wrong type or dtype; ``mem`` together with ``init_hidden=True``.
        ValueError: a wrong value or shape; the message says what was expected and what came.

    Reference:
        E. Zhang, Revisiting Reset Mechanisms in Spiking Neural Networks for Sequential Modeling, arXiv
        2504.17751 (2025).

    Example:
        >>> lif = FRLeaky(beta=0.9, refractory_period=2)
        >>> mem, fired = lif.reset_mem(), []
        >>> for _ in range(8):
        ...     spk, mem = lif(torch.full((1, 1), 0.8), mem)
        ...     fired.append(int(spk))
        >>> fired
        [0, 1, 0, 0, 1, 0, 0, 1]
        >>> whole = FRLeaky(beta=0.9, refractory_period=2, multistep=True)
        >>> whole(torch.full((8, 1, 1), 0.8))[0].flatten().int().tolist()
        [0, 1, 0, 0, 1, 0, 0, 1]
    """

    _states = ("mem",)

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """``spk, mem`` of a step [B, *], or with ``multistep=True`` of a sequence [T, B, *]."""
        return self._run(input_, (mem,))

    def _fused(self, input_: Tensor, start: Start) -> Result | None:
        out = self._lif(input_, _decay(self.beta), start)
        if out is None:
            return None
        spikes, mem, final = out
        return Result(spikes, {"mem": mem}, {"mem": final.v}, final.refractory)


class FRSynaptic(RefractoryMixin, snn.Synaptic):
    """``snntorch.Synaptic`` with a fixed refractory period: ``spk, syn, mem``.

    ::

        syn = clip(alpha, 0, 1) * syn + input_
        mem = clip(beta, 0, 1) * mem + syn - reset            "ignore": held, syn goes on

    Firing, counter, ``multistep`` and the keyword-only arguments are those of ``FRLeaky``. The parent's
    "zero" wipes the input of the step in which it lands, so with ``reset_delay=True`` a sequence with that
    reset runs step by step.

    Args:
        alpha: decay of the synaptic current, clipped to [0, 1].
        beta: decay of the membrane, clipped to [0, 1].
        *args: the parent's other arguments in its order: threshold, spike_grad, surrogate_disable,
            init_hidden, inhibition, learn_alpha, learn_beta, learn_threshold, reset_mechanism, state_quant,
            output, reset_delay.

    Example:
        >>> neuron = FRSynaptic(alpha=0.5, beta=0.9, refractory_period=3, multistep=True)
        >>> spk, syn, mem = neuron(torch.full((8, 1, 1), 0.5))
        >>> spk.flatten().int().tolist()
        [0, 1, 0, 0, 0, 1, 0, 0]
    """

    _states = ("syn", "mem")
    _constants = _shown = ("alpha", "beta", "threshold")

    def forward(self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None) -> Any:
        """``spk, syn, mem`` of a step [B, *], or with ``multistep=True`` of a sequence [T, B, *]."""
        return self._run(input_, (syn, mem))

    def _fused(self, input_: Tensor, start: Start) -> Result | None:
        if self._reset == "zero" and self._reset_delay:
            return None
        syn, last = self._current("syn", input_, _decay(self.alpha), start)
        out = self._lif(syn, _decay(self.beta), start)
        if out is None:
            return None
        spikes, mem, final = out
        return Result(spikes, {"syn": syn, "mem": mem}, {"syn": last, "mem": final.v}, final.refractory)


class FRLapicque(RefractoryMixin, snn.Lapicque):
    """``snntorch.Lapicque`` with a fixed refractory period: ``spk, mem``.

    ::

        mem = input_ / C * time_step + (1 - time_step / (R C)) * mem - reset      "ignore": held

    R and C are the parent's resistance and capacitance, one of which it derives from ``beta``; the refractory
    period is ``refractory_period``. Firing, counter, ``multistep`` and the keyword-only arguments are those
    of ``FRLeaky``. The parent's "zero" wipes the input of the step in which it lands, so a sequence with
    that reset runs step by step.

    Args:
        *args: the parent's arguments in its order: beta, R, C, time_step, threshold, spike_grad,
            surrogate_disable, init_hidden, inhibition, learn_beta, learn_threshold, reset_mechanism,
            state_quant, output.

    Example:
        >>> neuron = FRLapicque(beta=0.5, refractory_period=1, multistep=True)
        >>> neuron(torch.full((8, 1, 1), 2.0))[0].flatten().int().tolist()
        [1, 0, 1, 0, 1, 0, 1, 0]
    """

    _states = ("mem",)
    _constants = ("R", "C", "time_step", "threshold")
    _shown = ("beta", "R", "C", "threshold")

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """``spk, mem`` of a step [B, *], or with ``multistep=True`` of a sequence [T, B, *]."""
        return self._run(input_, (mem,))

    def _fused(self, input_: Tensor, start: Start) -> Result | None:
        if self._reset == "zero":
            return None
        # the parent's order of rounding
        current = input_.to(start.dtype) * self.R * (1 / (self.R * self.C)) * self.time_step
        out = self._lif(current, 1 - self.time_step / (self.R * self.C), start)
        if out is None:
            return None
        spikes, mem, final = out
        return Result(spikes, {"mem": mem}, {"mem": final.v}, final.refractory)


class FRAlpha(RefractoryMixin, snn.Alpha):
    """``snntorch.Alpha`` with a fixed refractory period: ``spk, syn_exc, syn_inh, mem``.

    ::

        syn_exc = alpha * syn_exc + input_
        syn_inh = beta * syn_inh - input_
        mem     = tau_alpha * (syn_exc + syn_inh),  tau_alpha = log(alpha) / (log(beta) - log(alpha)) + 1

    The membrane has no memory of its own and cannot be held, so ``refractory_input="ignore"`` is refused.
    Firing, counter, ``multistep`` and the other keyword-only arguments are those of ``FRLeaky``. A sequence
    is fused without reset (``reset_mechanism="none"``), and runs step by step with the parent's resets,
    which act on the currents.

    Args:
        alpha: decay of the excitatory current, > beta.
        beta: decay of the inhibitory current, < 1.
        *args: the parent's other arguments in its order: threshold, spike_grad, surrogate_disable,
            init_hidden, inhibition, learn_alpha, learn_beta, learn_threshold, reset_mechanism (default
            "zero"), state_quant, output.

    Example:
        >>> neuron = FRAlpha(0.9, 0.8, 0.5, reset_mechanism="none", refractory_period=2, multistep=True)
        >>> neuron(torch.full((8, 1, 1), 1.0))[0].flatten().int().tolist()
        [0, 0, 1, 0, 0, 1, 0, 0]
    """

    _states = ("syn_exc", "syn_inh", "mem")
    _constants = _shown = ("alpha", "beta", "threshold")

    def _check_modes(self, refractory_input: str, arguments: dict[str, Any]) -> None:
        if refractory_input == "ignore":
            raise ValueError(
                "refractory_input must be 'integrate' for FRAlpha, got 'ignore': its membrane is a function "
                "of its synaptic currents and cannot be held"
            )

    def forward(
        self,
        input_: Tensor,
        syn_exc: Tensor | None = None,
        syn_inh: Tensor | None = None,
        mem: Tensor | None = None,
    ) -> Any:
        """``spk, syn_exc, syn_inh, mem`` of a step, or with ``multistep=True`` of a sequence."""
        return self._run(input_, (syn_exc, syn_inh, mem))

    def _fused(self, input_: Tensor, start: Start) -> Result | None:
        if self._reset != "none":
            return None
        alpha, beta = _decay(self.alpha), _decay(self.beta)
        exc, exc_last = self._current("syn_exc", input_, alpha, start)
        inh, inh_last = self._current("syn_inh", -input_, beta, start)
        mem = (torch.log(alpha) / (torch.log(beta) - torch.log(alpha)) + 1) * (exc + inh)
        spikes, refractory = fixed_refractory(
            mem,
            floating(self.threshold),
            period=self.refractory_period,
            inclusive=False,
            surrogate=self.spike_grad,
            state=start.refractory,
            backend=self.backend,
        )
        if not self._fires_as_counted(spikes, mem, start):
            return None
        last = mem[-1].clone() if len(mem) else start.states.get("mem", mem.new_zeros(mem.shape[1:]))
        return Result(
            spikes,
            {"syn_exc": exc, "syn_inh": inh, "mem": mem},
            {"syn_exc": exc_last, "syn_inh": inh_last, "mem": last},
            refractory if self.refractory_period > 0 else None,
        )


class FRRLeaky(RefractoryMixin, snn.RLeaky):
    """``snntorch.RLeaky``, whose spikes feed back into it, with a fixed refractory period: ``spk, mem``.

    ::

        mem = clip(beta, 0, 1) * mem + input_ + recurrent(spk) - reset            "ignore": held

    ``forward`` takes ``input_, spk, mem``. Firing, counter, ``multistep`` and the keyword-only arguments are
    those of ``FRLeaky``; a recurrent sequence runs step by step.

    Args:
        beta: decay of the membrane, clipped to [0, 1].
        *args: the parent's other arguments in its order: V, all_to_all, linear_features, conv2d_channels,
            kernel_size, threshold, spike_grad, surrogate_disable, init_hidden, inhibition, learn_beta,
            learn_threshold, learn_recurrent, reset_mechanism, state_quant, output, reset_delay.

    Example:
        >>> neuron = FRRLeaky(beta=0.9, V=1.0, all_to_all=False, refractory_period=3, multistep=True)
        >>> neuron(torch.full((8, 1, 1), 0.8))[0].flatten().int().tolist()
        [0, 1, 0, 0, 0, 1, 0, 0]
    """

    _states = ("spk", "mem")

    def forward(self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None) -> Any:
        """``spk, mem`` of a step [B, *], or with ``multistep=True`` of a sequence [T, B, *]."""
        return self._run(input_, (spk, mem))


class FRRSynaptic(RefractoryMixin, snn.RSynaptic):
    """``snntorch.RSynaptic``, whose spikes feed back into it, with a fixed refractory period.

    ::

        syn = clip(alpha, 0, 1) * syn + input_ + recurrent(spk)
        mem = clip(beta, 0, 1) * mem + syn - reset            "ignore": held, syn goes on

    ``forward`` takes ``input_, spk, syn, mem`` and returns ``spk, syn, mem``. Firing, counter, ``multistep``
    and the keyword-only arguments are those of ``FRLeaky``; a recurrent sequence runs step by step.

    Args:
        alpha: decay of the synaptic current, clipped to [0, 1].
        beta: decay of the membrane, clipped to [0, 1].
        *args: the parent's other arguments in its order: V, all_to_all, linear_features, conv2d_channels,
            kernel_size, threshold, spike_grad, surrogate_disable, init_hidden, inhibition, learn_alpha,
            learn_beta, learn_threshold, learn_recurrent, reset_mechanism, state_quant, output, reset_delay.

    Raises:
        ValueError: ``reset_delay=False``, with which the parent fails at its first step.

    Example:
        >>> neuron = FRRSynaptic(0.5, 0.9, V=1.0, all_to_all=False, refractory_period=3, multistep=True)
        >>> neuron(torch.full((8, 1, 1), 0.5))[0].flatten().int().tolist()
        [0, 1, 0, 0, 0, 1, 0, 0]
    """

    _states = ("spk", "syn", "mem")
    _constants = _shown = ("alpha", "beta", "threshold")

    def _check_modes(self, refractory_input: str, arguments: dict[str, Any]) -> None:
        if not arguments.get("reset_delay", True):
            raise ValueError(
                "reset_delay must be True for FRRSynaptic, got False: snntorch.RSynaptic cannot run without "
                "the delay"
            )

    def forward(
        self,
        input_: Tensor,
        spk: Tensor | None = None,
        syn: Tensor | None = None,
        mem: Tensor | None = None,
    ) -> Any:
        """``spk, syn, mem`` of a step [B, *], or with ``multistep=True`` of a sequence [T, B, *]."""
        return self._run(input_, (spk, syn, mem))


def _decay(rate: Tensor) -> Tensor:
    """A decay as the parents use it."""
    return floating(rate).clamp(0, 1)
