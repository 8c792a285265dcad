"""The systems that SpikingFRSSM and SpikingPSSM are compared with, as layers of SpikingJelly.

In every one ``h`` holds the modes of the memory: complex64, complex128 for float64 input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn

from snn_fr_plugin import systems
from snn_fr_plugin.integrations.spikingjelly._paired import PairedLayer, surrogate_option
from snn_fr_plugin.systems import S4DOptions
from snn_fr_plugin.systems.layer import Norm

__all__ = ["PMSN", "PRF", "BinaryS4D", "PSpikeSSM", "SPikESSM", "SpikingSSM"]


class BinaryS4D(PairedLayer):
    """State-space memory behind a plain threshold, as a SpikingJelly layer.

    ``systems.BinaryS4D``::

        s_t = 1[norm(S4D(x))_t >= threshold]

    Memories: ``h`` [N, d_model, d_state / 2], and ``gate``, always zero (int32, [N, d_model]).

    Args:
        d_model: channels, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        step_mode: 's', x is [N, d_model] and a call is a step, or 'm', x is [T, N, d_model]. Default 's'.
        threshold: initial threshold, a float or one per channel. Default 1.0.
        learn_threshold: learn log(threshold) per channel. Default True.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        surrogate_function: a surrogate of SpikingJelly or of ``snn_fr_plugin.surrogate``, or any callable.
            ``None`` (default) is the ATan of ``snn_fr_plugin``.
        backend: provider of the operators: "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Example:
        >>> layer = BinaryS4D(4, d_state=8, step_mode="m")
        >>> layer(torch.randn(10, 2, 4)).shape, layer.h.shape
        (torch.Size([10, 2, 4]), torch.Size([2, 4, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        step_mode: str = "s",
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        norm: Norm | nn.Module | None = None,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        system = systems.BinaryS4D(
            d_model, d_state, threshold=threshold, learn_threshold=learn_threshold, norm=norm,
            backend=backend, device=device, dtype=dtype, **surrogate_option(surrogate_function), **s4d,
        )  # fmt: skip
        super().__init__(system, step_mode, ("h", "gate"))


class SpikingSSM(PairedLayer):
    """State-space memory sampled by LIF neurons with hard reset, parallel by a surrogate dynamic network.

    ``systems.SpikingSSM``, which documents the equations::

        x_t = norm(S4D(input))_t / threshold
        s_t = 1[SDN(x before t) + x_t >= 1]                about the spikes of a LIF with beta = 0.125

    Memories: ``h`` [N, d_model, d_state / 2], and ``recent``, the last x ([8, N, d_model]), or with ``exact``
    the membrane ``v`` ([N, d_model]).

    Args:
        d_model: channels, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        step_mode: 's', x is [N, d_model] and a call is a step, or 'm', x is [T, N, d_model]. Default 's'.
        exact: run the true LIF in place of the network. Default False.
        threshold: initial threshold, a float or one per channel. Default 1.0.
        learn_threshold: learn log(threshold) per channel. Default True.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        surrogate_function: a surrogate of SpikingJelly or of ``snn_fr_plugin.surrogate``, or any callable.
            ``None`` (default) is the paper's triangle.
        backend: provider of the operators: "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        SpikingSSMs, arXiv 2408.14909 (2024).

    Example:
        >>> layer = SpikingSSM(4, d_state=8, step_mode="m")
        >>> layer(torch.randn(10, 2, 4)).shape, layer.recent.shape
        (torch.Size([10, 2, 4]), torch.Size([8, 2, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        step_mode: str = "s",
        exact: bool = False,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        norm: Norm | nn.Module | None = None,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        system = systems.SpikingSSM(
            d_model, d_state, exact=exact, threshold=threshold, learn_threshold=learn_threshold, norm=norm,
            backend=backend, device=device, dtype=dtype, **surrogate_option(surrogate_function), **s4d,
        )  # fmt: skip
        super().__init__(system, step_mode, ("h", "v" if exact else "recent"))


class SPikESSM(PairedLayer):
    """State-space memory sampled by LIF neurons with soft reset, parallel by closing bounds (PMBC).

    ``systems.SPikESSM``, which documents the equations::

        h_t = beta v[t-1] + norm(S4D(x))_t,   s_t = 1[h_t >= threshold],   v_t = h_t - rho s_t

    Memories: ``h`` [N, d_model, d_state / 2], and ``sums``, the leaky sums from which v and its bounds are
    made ([2 + 2 iterations, N, d_model]), or with ``exact`` the membrane ``v`` ([N, d_model]).

    Args:
        d_model: channels, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        step_mode: 's', x is [N, d_model] and a call is a step, or 'm', x is [T, N, d_model]. Default 's'.
        beta: decay per step of the neurons. Default 0.5.
        iterations: rounds of the bounds. Default 3.
        exact: run the neurons step after step, so that no step is guessed. Default False.
        threshold: initial threshold, a float or one per channel. Default 1.0.
        learn_threshold: learn log(threshold) per channel. Default True.
        reset_magnitude: initial rho, a float or one per channel. Default 1.0.
        learn_reset_magnitude: learn log(rho) per channel. Default True.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        surrogate_function: a surrogate of SpikingJelly or of ``snn_fr_plugin.surrogate``, or any callable.
            ``None`` (default) is the ATan of ``snn_fr_plugin``.
        backend: provider of the operators: "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init``, ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        SPikE-SSM, arXiv 2410.17268 (2024).

    Example:
        >>> layer = SPikESSM(4, d_state=8, step_mode="m", exact=True)
        >>> layer(torch.randn(10, 2, 4)).shape, layer.v.shape
        (torch.Size([10, 2, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        step_mode: str = "s",
        beta: float = 0.5,
        iterations: int = 3,
        exact: bool = False,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        reset_magnitude: float | Tensor = 1.0,
        learn_reset_magnitude: bool = True,
        norm: Norm | nn.Module | None = None,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        system = systems.SPikESSM(
            d_model, d_state, beta=beta, iterations=iterations, exact=exact, threshold=threshold,
            learn_threshold=learn_threshold, reset_magnitude=reset_magnitude,
            learn_reset_magnitude=learn_reset_magnitude, norm=norm, backend=backend, device=device,
            dtype=dtype, **surrogate_option(surrogate_function), **s4d,
        )  # fmt: skip
        super().__init__(system, step_mode, ("h", "v" if exact else "sums"))


class PSpikeSSM(PairedLayer):
    """Random spikes into an S4 memory, random spikes out of it, as a SpikingJelly layer.

    ``systems.PSpikeSSM``, which documents the equations::

        z     ~ Bernoulli(input_norm(a_in x + b_in))
        drive = norm(a_out S4(z) + b_out)
        s     ~ Bernoulli(drive)                     both probabilities clamped to [0, 1]

    It samples in evaluation too, unless ``deterministic``. Its gradient is that of the clamp: there is no
    surrogate to choose. One memory, ``h`` [N, d_model, d_state / 2]; ``reset_net`` forgets it, and the random
    numbers go on.

    Args:
        d_model: channels, the last dimension of the input.
        d_state: real state size per channel, even. Default 64.
        step_mode: 's', x is [N, d_model] and a call is a step, or 'm', x is [T, N, d_model]. Default 's'.
        seed: of two generators of its own, copied and pickled with the layer; ``None`` (default) draws from
            torch's.
        deterministic: fire where a probability is above 1/2. Default False; may be set at any time.
        input_norm: before the first sampling, "batch" (default), "layer", a module or ``None``.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        backend: provider of the operators: "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.
        s4d: ``init`` (default "legs"), ``discretization``, ``dt_min``, ``dt_max`` of ``memory.S4D``.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        P-SpikeSSM, arXiv 2406.02923 (2024), and its official code.

    Example:
        >>> layer = PSpikeSSM(4, d_state=8, step_mode="m", seed=0)
        >>> layer(torch.randn(10, 2, 4)).shape, layer.h.shape
        (torch.Size([10, 2, 4]), torch.Size([2, 4, 4]))
    """

    system: systems.PSpikeSSM

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        step_mode: str = "s",
        seed: int | None = None,
        deterministic: bool = False,
        input_norm: Norm | nn.Module | None = "batch",
        norm: Norm | nn.Module | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4d: Unpack[S4DOptions],
    ) -> None:
        system = systems.PSpikeSSM(
            d_model, d_state, seed=seed, deterministic=deterministic, input_norm=input_norm, norm=norm,
            backend=backend, device=device, dtype=dtype, **s4d,
        )  # fmt: skip
        super().__init__(system, step_mode, ("h",))

    @property
    def deterministic(self) -> bool:
        """Whether a threshold of 1/2 stands in for the sampling."""
        return self.system.deterministic

    @deterministic.setter
    def deterministic(self, value: bool) -> None:
        self.system.deterministic = value


class PMSN(PairedLayer):
    """Four coupled compartments sampled by a cumulative threshold, as a SpikingJelly layer.

    ``systems.PMSN``, which documents the equations::

        y = MultiCompartment(x)
        s = 1[the sum of relu(norm(y)) crosses a multiple of the threshold]

    Memories: ``h`` [N, d_model, d_state], and ``remainder``, what the sum is above the last multiple, in
    2^-48 thresholds (int64, [N, d_model]).

    Args:
        d_model: channels, the last dimension of the input.
        d_state: compartments per channel. Default 4.
        step_mode: 's', x is [N, d_model] and a call is a step, or 'm', x is [T, N, d_model]. Default 's'.
        threshold: a float > 0 (default 1.0), or one per channel. Not learned.
        burst: emit every crossing: the output counts them. Default False.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        surrogate_function: a surrogate of SpikingJelly or of ``snn_fr_plugin.surrogate``, or any callable.
            ``None`` (default) is the paper's triangle.
        dt_min, dt_max: range of the initial steps of the memory.
        backend: provider of the operators: "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        PMSN, arXiv 2408.14917 (2024), and its official code.

    Example:
        >>> layer = PMSN(4, step_mode="m")
        >>> layer(torch.randn(10, 2, 4)).shape, layer.remainder.shape
        (torch.Size([10, 2, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 4,
        *,
        step_mode: str = "s",
        threshold: float | Tensor = 1.0,
        burst: bool = False,
        norm: Norm | nn.Module | None = None,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        system = systems.PMSN(
            d_model, d_state, threshold=threshold, burst=burst, norm=norm, dt_min=dt_min, dt_max=dt_max,
            backend=backend, device=device, dtype=dtype, **surrogate_option(surrogate_function),
        )  # fmt: skip
        super().__init__(system, step_mode, ("h", "remainder"))


class PRF(PairedLayer):
    """A damped oscillation per channel behind a plain threshold, as a SpikingJelly layer.

    ``systems.PRF``, which documents the equations::

        u_t = exp(dt (-1 / tau + i theta)) u[t-1] + dt x_t
        s_t = 1[norm(Re u)_t >= threshold]

    Memories: ``h``, which is u / dt ([N, d_model, 1]), and ``gate``, always zero (int32, [N, d_model]).

    Args:
        d_model: channels, the last dimension of the input.
        step_mode: 's', x is [N, d_model] and a call is a step, or 'm', x is [T, N, d_model]. Default 's'.
        tau, theta, dt: of ``memory.Resonator``: initial time constant (default 10.0), initial angular
            frequency (default ``None``, drawn) and step (default 1.0).
        threshold: a float (default 1.0), or one per channel.
        learn_threshold: learn log(threshold) per channel. Default True.
        norm: of the drive, "batch", "layer", a module or ``None`` (default).
        surrogate_function: a surrogate of SpikingJelly or of ``snn_fr_plugin.surrogate``, or any callable.
            ``None`` (default) is the ATan of ``snn_fr_plugin``.
        backend: provider of the operators: "auto" (default), "torch", "cpp" or "cupy".
        device, dtype: of the parameters.

    Raises:
        TypeError: an argument or the input is of the wrong type or dtype.
        ValueError: an argument is out of range, or the input has other channels or too few dimensions.

    Reference:
        PRF, arXiv 2410.03530 (2024).

    Example:
        >>> layer = PRF(4, step_mode="m")
        >>> layer(torch.randn(10, 2, 4)).shape, layer.h.shape
        (torch.Size([10, 2, 4]), torch.Size([2, 4, 1]))
    """

    def __init__(
        self,
        d_model: int,
        *,
        step_mode: str = "s",
        tau: float | Tensor = 10.0,
        theta: float | Tensor | None = None,
        dt: float = 1.0,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = True,
        norm: Norm | nn.Module | None = None,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        system = systems.PRF(
            d_model, tau=tau, theta=theta, dt=dt, threshold=threshold, learn_threshold=learn_threshold,
            norm=norm, backend=backend, device=device, dtype=dtype, **surrogate_option(surrogate_function),
        )  # fmt: skip
        super().__init__(system, step_mode, ("h", "gate"))
