"""The systems that SpikingFRSSM and SpikingPSSM are compared with, as layers of snnTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn

from snn_fr_plugin import systems
from snn_fr_plugin.integrations.snntorch._sequence import SequenceLayer, surrogate_option
from snn_fr_plugin.systems import S4DOptions
from snn_fr_plugin.systems.layer import Norm

__all__ = ["PMSN", "PRF", "BinaryS4D", "PSpikeSSM", "SPikESSM", "SpikingSSM"]


class BinaryS4D(SequenceLayer):
    """State-space memory behind a plain threshold, for whole sequences.

    ``systems.BinaryS4D``::

        mem = norm(S4D(input_))
        spk = 1[mem >= threshold]

    Args:
        d_model: channels C, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        threshold: initial threshold, a float or one per channel. Default 1.0.
        learn_threshold: learn log(threshold) per channel. Default True.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        spike_grad: a surrogate of ``snn_fr_plugin.surrogate``, or any callable applied to
            ``mem - threshold``, snnTorch's own included. ``None`` (default) is ATan.
        output: return ``spk, mem`` (default), or ``mem`` alone.
        init_hidden: whether a call goes on where the last one ended. Default False.
        backend: provider of the operators, "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Shapes:
        input_, spk: [T, B, C], of one dtype; mem: [T, B, C].

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Example:
        >>> spk, mem = BinaryS4D(4, d_state=8)(torch.randn(10, 2, 4))
        >>> bool((spk == (mem >= 1)).all())
        True
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        norm: Norm | nn.Module | None = None,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        output: bool = True,
        init_hidden: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        system = systems.BinaryS4D(
            d_model, d_state, threshold=threshold, learn_threshold=learn_threshold, norm=norm,
            backend=backend, device=device, dtype=dtype, **surrogate_option(spike_grad), **s4d,
        )  # fmt: skip
        super().__init__(system, output, init_hidden)


class SpikingSSM(SequenceLayer):
    """State-space memory sampled by LIF neurons with hard reset, parallel by a surrogate dynamic network.

    ``systems.SpikingSSM``, which documents the equations::

        mem = norm(S4D(input_))
        x   = mem / threshold
        spk = 1[SDN(x before t) + x_t >= 1]               about the spikes of a LIF with beta = 0.125

    Args:
        d_model: channels C, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        exact: run the true LIF in place of the network. Default False.
        threshold: initial threshold, a float or one per channel. Default 1.0.
        learn_threshold: learn log(threshold) per channel. Default True.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        spike_grad: a surrogate of ``snn_fr_plugin.surrogate``, or any callable applied to the membrane
            minus 1, snnTorch's own included. ``None`` (default) is the paper's triangle.
        output: return ``spk, mem`` (default), or ``mem`` alone.
        init_hidden: whether a call goes on where the last one ended. Default False.
        backend: provider of the operators, "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Shapes:
        input_, spk: [T, B, C], of one dtype; mem: [T, B, C].

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        SpikingSSMs, arXiv 2408.14909 (2024).

    Example:
        >>> spk, mem = SpikingSSM(4, d_state=8)(torch.randn(10, 2, 4))
        >>> spk.shape, mem.shape
        (torch.Size([10, 2, 4]), torch.Size([10, 2, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        exact: bool = False,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        norm: Norm | nn.Module | None = None,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        output: bool = True,
        init_hidden: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        system = systems.SpikingSSM(
            d_model, d_state, exact=exact, threshold=threshold, learn_threshold=learn_threshold, norm=norm,
            backend=backend, device=device, dtype=dtype, **surrogate_option(spike_grad), **s4d,
        )  # fmt: skip
        super().__init__(system, output, init_hidden)


class SPikESSM(SequenceLayer):
    """State-space memory sampled by LIF neurons with soft reset, parallel by closing bounds (PMBC).

    ``systems.SPikESSM``, which documents the equations::

        mem = norm(S4D(input_))
        h_t = beta v[t-1] + mem_t,   spk_t = 1[h_t >= threshold],   v_t = h_t - rho spk_t

    Args:
        d_model: channels C, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        beta: decay per step of the neurons. Default 0.5.
        iterations: rounds of the bounds. Default 3.
        exact: run the neurons step after step, so that no step is guessed. Default False.
        threshold: initial threshold, a float or one per channel. Default 1.0.
        learn_threshold: learn log(threshold) per channel. Default True.
        reset_magnitude: initial rho, a float or one per channel. Default 1.0.
        learn_reset_magnitude: learn log(rho) per channel. Default True.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        spike_grad: a surrogate of ``snn_fr_plugin.surrogate``, or any callable applied to
            ``h - threshold``, snnTorch's own included. ``None`` (default) is ATan.
        output: return ``spk, mem`` (default), or ``mem`` alone.
        init_hidden: whether a call goes on where the last one ended. Default False.
        backend: provider of the operators, "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Shapes:
        input_, spk: [T, B, C], of one dtype; mem: [T, B, C].

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        SPikE-SSM, arXiv 2410.17268 (2024).

    Example:
        >>> spk, mem = SPikESSM(4, d_state=8, exact=True)(torch.randn(10, 2, 4))
        >>> spk.shape, mem.shape
        (torch.Size([10, 2, 4]), torch.Size([10, 2, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        beta: float = 0.5,
        iterations: int = 3,
        exact: bool = False,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        reset_magnitude: float | Tensor = 1.0,
        learn_reset_magnitude: bool = True,
        norm: Norm | nn.Module | None = None,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        output: bool = True,
        init_hidden: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        system = systems.SPikESSM(
            d_model, d_state, beta=beta, iterations=iterations, exact=exact, threshold=threshold,
            learn_threshold=learn_threshold, reset_magnitude=reset_magnitude,
            learn_reset_magnitude=learn_reset_magnitude, norm=norm, backend=backend, device=device,
            dtype=dtype, **surrogate_option(spike_grad), **s4d,
        )  # fmt: skip
        super().__init__(system, output, init_hidden)


class PSpikeSSM(SequenceLayer):
    """Random spikes into an S4 memory, random spikes out of it, for whole sequences.

    ``systems.PSpikeSSM``, which documents the equations::

        z   ~ Bernoulli(input_norm(a_in input_ + b_in))
        mem = norm(a_out S4(z) + b_out)
        spk ~ Bernoulli(mem)                     both probabilities clamped to [0, 1]

    It samples in evaluation too, unless ``deterministic``. Its gradient is that of the clamp: there is no
    surrogate to choose. ``reset_mem()`` forgets the memory; the random numbers go on.

    Args:
        d_model: channels C, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        seed: of two generators of its own, copied and pickled with the layer; ``None`` (default) draws from
            torch's.
        deterministic: fire where a probability is above 1/2. Default False; may be set at any time.
        input_norm: before the first sampling, "batch" (default), "layer", a module or ``None``.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        output: return ``spk, mem`` (default), or ``mem`` alone.
        init_hidden: whether a call goes on where the last one ended. Default False.
        backend: provider of the operators, "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init`` (default "legs"), ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Shapes:
        input_, spk: [T, B, C], of one dtype; mem: [T, B, C].

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        P-SpikeSSM, arXiv 2406.02923 (2024), and its official code.

    Example:
        >>> spk, mem = PSpikeSSM(4, d_state=8, seed=0)(torch.randn(10, 2, 4))
        >>> spk.shape, mem.shape
        (torch.Size([10, 2, 4]), torch.Size([10, 2, 4]))
    """

    system: systems.PSpikeSSM

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        seed: int | None = None,
        deterministic: bool = False,
        input_norm: Norm | nn.Module | None = "batch",
        norm: Norm | nn.Module | None = None,
        output: bool = True,
        init_hidden: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        system = systems.PSpikeSSM(
            d_model, d_state, seed=seed, deterministic=deterministic, input_norm=input_norm, norm=norm,
            backend=backend, device=device, dtype=dtype, **s4d,
        )  # fmt: skip
        super().__init__(system, output, init_hidden)

    @property
    def deterministic(self) -> bool:
        """Whether a threshold of 1/2 stands in for the sampling."""
        return self.system.deterministic

    @deterministic.setter
    def deterministic(self, value: bool) -> None:
        self.system.deterministic = value


class PMSN(SequenceLayer):
    """Four coupled compartments sampled by a cumulative threshold, for whole sequences.

    ``systems.PMSN``, which documents the equations::

        mem = norm(MultiCompartment(input_))
        spk = 1[the sum of relu(mem) crosses a multiple of the threshold]

    Args:
        d_model: channels C, the last dimension of the input.
        d_state: compartments per channel. Default 4.
        threshold: a float > 0 (default 1.0), or one per channel. Not learned.
        burst: emit every crossing: ``spk`` counts them. Default False.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        spike_grad: a surrogate of ``snn_fr_plugin.surrogate``, or any callable applied to the distance
            from the next multiple, snnTorch's own included. ``None`` (default) is the paper's triangle.
        output: return ``spk, mem`` (default), or ``mem`` alone.
        init_hidden: whether a call goes on where the last one ended. Default False.
        dt_min, dt_max: range of the initial steps of the memory.
        backend: provider of the operators, "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.

    Shapes:
        input_, spk: [T, B, C], of one dtype; mem: [T, B, C].

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        PMSN, arXiv 2408.14917 (2024), and its official code.

    Example:
        >>> spk, mem = PMSN(4)(torch.randn(10, 2, 4))
        >>> spk.shape, mem.shape
        (torch.Size([10, 2, 4]), torch.Size([10, 2, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 4,
        *,
        threshold: float | Tensor = 1.0,
        burst: bool = False,
        norm: Norm | nn.Module | None = None,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        output: bool = True,
        init_hidden: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        system = systems.PMSN(
            d_model, d_state, threshold=threshold, burst=burst, norm=norm, dt_min=dt_min, dt_max=dt_max,
            backend=backend, device=device, dtype=dtype, **surrogate_option(spike_grad),
        )  # fmt: skip
        super().__init__(system, output, init_hidden)


class PRF(SequenceLayer):
    """A damped oscillation per channel behind a plain threshold, for whole sequences.

    ``systems.PRF``, which documents the equations::

        u_t = exp(dt (-1 / tau + i theta)) u[t-1] + dt input_t
        mem = norm(Re u),  spk = 1[mem >= threshold]

    Args:
        d_model: channels C, the last dimension of the input.
        tau, theta, dt: of ``memory.Resonator``: initial time constant (default 10.0), initial angular
            frequency (default ``None``, drawn) and step (default 1.0).
        threshold: a float (default 1.0), or one per channel.
        learn_threshold: learn log(threshold) per channel. Default True.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        spike_grad: a surrogate of ``snn_fr_plugin.surrogate``, or any callable applied to
            ``mem - threshold``, snnTorch's own included. ``None`` (default) is ATan.
        output: return ``spk, mem`` (default), or ``mem`` alone.
        init_hidden: whether a call goes on where the last one ended. Default False.
        backend: provider of the operators, "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.

    Shapes:
        input_, spk: [T, B, C], of one dtype; mem: [T, B, C].

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        PRF, arXiv 2410.03530 (2024).

    Example:
        >>> spk, mem = PRF(4)(torch.randn(10, 2, 4))
        >>> spk.shape, mem.shape
        (torch.Size([10, 2, 4]), torch.Size([10, 2, 4]))
    """

    def __init__(
        self,
        d_model: int,
        *,
        tau: float | Tensor = 10.0,
        theta: float | Tensor | None = None,
        dt: float = 1.0,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        norm: Norm | nn.Module | None = None,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        output: bool = True,
        init_hidden: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        system = systems.PRF(
            d_model, tau=tau, theta=theta, dt=dt, threshold=threshold, learn_threshold=learn_threshold,
            norm=norm, backend=backend, device=device, dtype=dtype, **surrogate_option(spike_grad),
        )  # fmt: skip
        super().__init__(system, output, init_hidden)
