"""Neurons of this package against those of snnTorch and SpikingJelly that they extend or replace.

    python benchmarks/neurons.py --json benchmarks/results/neurons.json --plot benchmarks/results/neurons.png
    python benchmarks/neurons.py --device cuda --old-spikingjelly DIR --json neurons_gpu.json

Before anything is timed: the FR neurons at refractory period 0 must give their parents' spikes exactly, and
SlidingPSN those of SpikingJelly's wherever the drive is not within rounding of the threshold. StateLeaky is a
different equation (a linear leak that its threshold does not reset) and is timed, on the CPU, for what it
offers.

On a GPU the counterparts are SpikingJelly's fused nodes: LIFNode of 2.0 (Triton, or native CUDA where that is
built), and of 0.0.0.0.14 on CuPy, which DIR holds (``pip install --no-deps --target DIR
spikingjelly==0.0.0.0.14``) and another process times. ``--compiled`` adds the FR neuron as a user would have
it compiled: a SpikingJelly FlexSN core, and torch.compile of the reference loop. Peers that do not run here
are left out, and the output says why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import snntorch
import torch
from harness import Benchmark, inference, options, training
from peers import FRAsCompiledLoop, FRAsFlexSN, fr, lif_node_name, old_lif_node
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from snn_fr_plugin import SlidingPSN
from snn_fr_plugin.integrations.snntorch import FRLeaky
from snn_fr_plugin.integrations.spikingjelly.neuron import FRLIFNode

BACKENDS = {"cpu": ["torch", "cpp"], "cuda": ["cupy"]}
SHAPES = {
    "cpu": [(128, 16, 128), (1024, 16, 128), (4096, 16, 128), (1024, 1, 128), (1024, 64, 128)],
    "cuda": [
        *((1024, batch, 128) for batch in (1, 16, 64, 128, 512)),
        *((steps, 16, 128) for steps in (4096, 16384)),
    ],
}
SWEPT = 16 * 128  # neurons of the sweep over T
QUADRATIC = 1024  # steps beyond which rows that cost T^2 are left out
LOOPED = 1024  # steps beyond which a GPU is not kept waiting by a loop over time
TAPS = 8

Peer = Callable[[Tensor], Tensor]

LOOP, NAIVE_LOOP = "snnTorch Leaky, unbind", "snnTorch Leaky, x[t]"
STATE_LEAKY, THEIR_PSN = "snnTorch StateLeaky", "SpikingJelly SlidingPSN"
OLD_NODE = "SpikingJelly 0.0.0.0.14 LIFNode, CuPy"
FLEX, COMPILED = "FR as a FlexSN core", "FR by torch.compile"


@functools.cache
def built(make: Callable[..., nn.Module], device: torch.device, **options: Any) -> Any:
    """A module that is made once, as for training."""
    return make(**options).to(device)


def leaky_loop(x: Tensor, *, unbind: bool) -> Tensor:
    """snnTorch's Leaky step by step: over ``unbind`` views or, as in its tutorials, ``x[t]``."""
    layer, mem, spikes = built(snntorch.Leaky, x.device, beta=0.9), torch.zeros_like(x[0]), []
    for x_t in x.unbind(0) if unbind else (x[t] for t in range(len(x))):
        spike, mem = layer(x_t, mem)
        spikes.append(spike)
    return torch.stack(spikes)


def state_leaky(x: Tensor) -> Tensor:
    return built(snntorch.StateLeaky, x.device, beta=0.9, channels=x.shape[-1])(x)[0]


def fr_leaky(x: Tensor, backend: str, period: int = 1) -> Tensor:
    kind = {"beta": 0.9, "refractory_period": period, "multistep": True, "backend": backend}
    return built(FRLeaky, x.device, **kind)(x)[0]


def from_rest(layer: nn.Module, x: Tensor) -> Tensor:
    """A node of SpikingJelly, which keeps its state for the next call."""
    spikes = layer(x)
    functional.reset_net(layer)
    return spikes


def lif_node(x: Tensor) -> Tensor:
    return from_rest(built(neuron.LIFNode, x.device, tau=2.0, step_mode="m"), x)


def fr_lif_node(x: Tensor, backend: str, period: int = 1) -> Tensor:
    kind = {"tau": 2.0, "step_mode": "m", "refractory_period": period, "backend": backend}
    return from_rest(built(FRLIFNode, x.device, **kind), x)


def their_sliding_psn(x: Tensor) -> Tensor:
    return built(neuron.SlidingPSN, x.device, k=TAPS, step_mode="m")(x)


def our_sliding_psn(x: Tensor, backend: str) -> Tensor:
    return built(SlidingPSN, x.device, k=TAPS, backend=backend)(x)[0]


def check(x: Tensor, backend: str, peers: dict[str, Peer], node: str) -> None:
    """The gate in front of the clock: at R = 0 the FR neuron is its parent, and neurons do fire."""
    same = [(fr_leaky(x, backend, 0), leaky_loop(x, unbind=True))]
    if node in peers:
        same.append((fr_lif_node(x, backend, 0), lif_node(x)))
    if THEIR_PSN in peers:
        drive = SlidingPSN(k=TAPS, device=x.device).integrate(x)[0] - 1
        clear = drive.abs() > 1e-4
        same.append((our_sliding_psn(x, backend)[clear], their_sliding_psn(x)[clear]))
    for ours, theirs in same:
        if not torch.equal(ours, theirs) or not 0.001 < ours.mean() < 0.999:
            raise SystemExit("refusing to time: the spikes differ from the parent's, or there are none")


def their_peers(bench: Benchmark, x: Tensor, gradient: Tensor, node: str) -> dict[str, Peer]:
    """Neurons of the frameworks, but for what would take too long."""
    peers: dict[str, Peer] = {
        NAIVE_LOOP: partial(leaky_loop, unbind=False),
        LOOP: partial(leaky_loop, unbind=True),
        STATE_LEAKY: state_leaky,
        node: lif_node,
        THEIR_PSN: their_sliding_psn,
    }
    if len(x) > QUADRATIC:
        for name in (NAIVE_LOOP, STATE_LEAKY, THEIR_PSN):
            bench.leave_out(f"{name}, beyond {QUADRATIC} steps", "costs T^2")
            del peers[name]
    if bench.device.type == "cpu":
        return peers
    for name, reason in ((NAIVE_LOOP, "never faster than over unbind"), (STATE_LEAKY, "another equation")):
        bench.leave_out(name, reason)
        peers.pop(name, None)
    if len(x) > LOOPED:
        bench.leave_out(f"{LOOP}, beyond {LOOPED} steps", "takes longer than all others together")
        del peers[LOOP]
    return {name: run for name, run in peers.items() if bench.runs(name, training(run, x, gradient))}


def fr_peers(bench: Benchmark, x: Tensor, gradient: Tensor) -> dict[str, Peer]:
    """The FR neuron without a reset, as it is here and compiled by others; the spikes must be the same."""
    leaf = x.detach().requires_grad_()
    backends = bench.arguments.backend or BACKENDS[bench.device.type]
    peers: dict[str, Peer] = {f"FR, {b}": partial(fr, backend=b) for b in backends}
    expected = fr(leaf, backend=backends[-1])
    (wanted,) = torch.autograd.grad(expected, leaf, gradient)
    for name, make in ((FLEX, FRAsFlexSN), (COMPILED, FRAsCompiledLoop)):
        peer = make()

        def trial(peer: Peer = peer) -> None:
            with torch.no_grad():
                silent = peer(x)  # other kernels than those of a graph
            spikes = peer(leaf)
            (grad,) = torch.autograd.grad(spikes, leaf, gradient)
            wrong = int((spikes != expected).sum() + (silent != expected).sum())
            if wrong:
                raise ValueError(f"{wrong} of {2 * spikes.numel()} spikes differ")
            if not (grad - wanted).norm() < 1e-3 * wanted.norm():
                raise ValueError("the gradient differs")

        if bench.runs(name, trial):
            peers[name] = peer
    return peers


def goals(bench: Benchmark, where: str, neurons: int, faster: dict[str, float | None]) -> None:
    """What an H200 should show at T = 1024, of the factors that were measured."""
    limit = 2 if neurons <= 16384 else 1
    if neurons <= 16384 or neurons == 65536:
        bench.goal(
            f"{where}: FRLIFNode against SpikingJelly's best LIFNode", ">=", limit, faster["FRLIFNode"], "x"
        )
        if faster["FR"] is not None:
            bench.goal(f"{where}: FR against FlexSN", ">=", limit, faster["FR"], "x")
    bench.goal(f"{where}: FRLeaky against snnTorch's loop", ">=", 100, faster["FRLeaky"], "x")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("T", "N", "C"))
    parser.add_argument("--backend", nargs="+", help="providers to time; torch and cpp, or cupy on a GPU")
    parser.add_argument("--old-spikingjelly", type=Path, metavar="DIR", help="where 0.0.0.0.14 is installed")
    parser.add_argument("--compiled", action="store_true", help="also what compiles for tens of seconds")
    bench = Benchmark(parser.parse_args())
    device = bench.device.type
    backends = bench.arguments.backend or BACKENDS[device]
    shapes = bench.arguments.shape or SHAPES[device]
    node = lif_node_name(bench)
    old = old_lif_node(bench, shapes, OLD_NODE) if device == "cuda" else {}
    if device == "cuda" and not bench.arguments.compiled:
        for name in (FLEX, COMPILED):
            bench.leave_out(name, "compiles for tens of seconds, and again for every shape: --compiled")
    for steps, batch, channels in shapes:
        x, gradient = bench.random(steps, batch, channels), bench.random(steps, batch, channels)
        peers = their_peers(bench, x, gradient, node)
        for backend in backends:
            check(x[:QUADRATIC], backend, peers, node)
            peers[f"FRLeaky, {backend}"] = partial(fr_leaky, backend=backend)
            peers[f"FRLIFNode, {backend}"] = partial(fr_lif_node, backend=backend)
            peers[f"SlidingPSN, {backend}"] = partial(our_sliding_psn, backend=backend)
        if bench.arguments.compiled:
            peers |= fr_peers(bench, x, gradient)
        series = f"Neurons on [T, {batch}, {channels}] float32" if batch * channels == SWEPT else None
        for mode, wrap in (
            ("forward", lambda run, x=x: inference(run, x)),
            ("forward + backward", lambda run, x=x, g=gradient: training(run, x, g)),
        ):
            bench.table(
                f"{mode}, [{steps}, {batch}, {channels}] float32",
                x,
                {name: wrap(run) for name, run in peers.items()},
                old.get((mode, steps, batch * channels), ()),
                mode=mode,
                steps=steps,
                neurons=batch * channels,
                series=series,
            )
            for backend in backends:
                faster = {
                    "FRLeaky": bench.compare(f"FRLeaky, {backend}", [LOOP]),
                    "FRLIFNode": bench.compare(f"FRLIFNode, {backend}", [node, OLD_NODE]),
                    "SlidingPSN": bench.compare(f"SlidingPSN, {backend}", [THEIR_PSN]),
                    "FR": bench.compare(f"FR, {backend}", [FLEX]),
                }
                bench.compare(f"FR, {backend}", [COMPILED])
                if backend == "cupy" and steps == 1024:
                    goals(bench, f"{mode}, [{steps}, {batch * channels}]", batch * channels, faster)
    bench.finish()


if __name__ == "__main__":
    main()
