"""Neurons of this package against those of snnTorch and SpikingJelly that they extend or replace.

    python benchmarks/neurons.py --json benchmarks/results/neurons.json --plot benchmarks/results/neurons.png

Before anything is timed: the FR neurons at refractory period 0 must give their parents' spikes exactly, and
SlidingPSN those of SpikingJelly's wherever the drive is not within rounding of the threshold. StateLeaky is a
different equation (a linear leak that its threshold does not reset) and is timed for what it offers.
"""

from __future__ import annotations

import snntorch
import torch
from harness import Benchmark, inference, options, training
from spikingjelly.activation_based import functional, neuron
from torch import Tensor

from snn_fr_plugin import SlidingPSN
from snn_fr_plugin.integrations.snntorch import FRLeaky
from snn_fr_plugin.integrations.spikingjelly.neuron import FRLIFNode

SHAPES = [(128, 16, 128), (1024, 16, 128), (4096, 16, 128), (1024, 1, 128), (1024, 64, 128)]
SWEPT = 16 * 128  # neurons of the sweep over T
QUADRATIC = 1024  # steps beyond which rows that cost T^2 are left out
TAPS = 8


def leaky_loop(x: Tensor, *, unbind: bool) -> Tensor:
    """snnTorch's Leaky step by step: over ``unbind`` views or, as in its tutorials, ``x[t]``."""
    layer, mem, spikes = snntorch.Leaky(beta=0.9).to(x.device), torch.zeros_like(x[0]), []
    for x_t in x.unbind(0) if unbind else (x[t] for t in range(len(x))):
        spike, mem = layer(x_t, mem)
        spikes.append(spike)
    return torch.stack(spikes)


def state_leaky(x: Tensor) -> Tensor:
    return snntorch.StateLeaky(beta=0.9, channels=x.shape[-1]).to(x.device)(x)[0]


def fr_leaky(x: Tensor, backend: str, period: int = 1) -> Tensor:
    layer = FRLeaky(beta=0.9, refractory_period=period, multistep=True, backend=backend).to(x.device)
    return layer(x)[0]


def lif_node(x: Tensor) -> Tensor:
    layer = neuron.LIFNode(tau=2.0, step_mode="m")
    spikes = layer(x)
    functional.reset_net(layer)
    return spikes


def fr_lif_node(x: Tensor, backend: str, period: int = 1) -> Tensor:
    return FRLIFNode(tau=2.0, step_mode="m", refractory_period=period, backend=backend)(x)


def their_sliding_psn(x: Tensor) -> Tensor:
    return neuron.SlidingPSN(k=TAPS, step_mode="m").to(x.device)(x)


def our_sliding_psn(x: Tensor, backend: str) -> Tensor:
    return SlidingPSN(k=TAPS, backend=backend, device=x.device)(x)[0]


def check(x: Tensor, backend: str) -> None:
    """The gate in front of the clock: at R = 0 the FR neuron is its parent, and neurons do fire."""
    same = [
        (fr_leaky(x, backend, 0), leaky_loop(x, unbind=True)),
        (fr_lif_node(x, backend, 0), lif_node(x)),
    ]
    drive = SlidingPSN(k=TAPS, device=x.device).integrate(x)[0] - 1
    clear = drive.abs() > 1e-4
    same.append((our_sliding_psn(x, backend)[clear], their_sliding_psn(x)[clear]))
    for ours, theirs in same:
        if not torch.equal(ours, theirs) or not 0.001 < ours.mean() < 0.999:
            raise SystemExit("refusing to time: the spikes differ from the parent's, or there are none")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("T", "N", "C"))
    parser.add_argument("--backend", nargs="+", default=["torch", "cpp"], help="providers to time")
    bench = Benchmark(parser.parse_args())
    backends = bench.arguments.backend
    for steps, batch, channels in bench.arguments.shape or SHAPES:
        x, gradient = bench.random(steps, batch, channels), bench.random(steps, batch, channels)
        peers = {
            "snnTorch Leaky, x[t]": lambda v: leaky_loop(v, unbind=False),
            "snnTorch Leaky, unbind": lambda v: leaky_loop(v, unbind=True),
            "snnTorch StateLeaky": state_leaky,
            "SpikingJelly LIFNode": lif_node,
            "SpikingJelly SlidingPSN": their_sliding_psn,
        }
        if steps > QUADRATIC:
            for name in ("snnTorch Leaky, x[t]", "snnTorch StateLeaky", "SpikingJelly SlidingPSN"):
                del peers[name]
        for backend in backends:
            check(x[:QUADRATIC], backend)
            peers[f"FRLeaky, {backend}"] = lambda v, b=backend: fr_leaky(v, b)
            peers[f"FRLIFNode, {backend}"] = lambda v, b=backend: fr_lif_node(v, b)
            peers[f"SlidingPSN, {backend}"] = lambda v, b=backend: our_sliding_psn(v, b)
        series = f"Neurons on [T, {batch}, {channels}] float32" if batch * channels == SWEPT else None
        for mode, wrap in (
            ("forward", lambda run, x=x: inference(run, x)),
            ("forward + backward", lambda run, x=x, g=gradient: training(run, x, g)),
        ):
            bench.table(
                f"{mode}, [{steps}, {batch}, {channels}] float32",
                x,
                {name: wrap(run) for name, run in peers.items()},
                mode=mode,
                steps=steps,
                neurons=batch * channels,
                series=series,
            )
            for backend in backends:
                bench.compare(f"FRLeaky, {backend}", ["snnTorch Leaky, unbind"])
                bench.compare(f"FRLIFNode, {backend}", ["SpikingJelly LIFNode"])
                bench.compare(f"SlidingPSN, {backend}", ["SpikingJelly SlidingPSN"])
    bench.finish()


if __name__ == "__main__":
    main()
