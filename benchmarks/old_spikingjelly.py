"""LIFNode of SpikingJelly 0.0.0.0.14 on CuPy; started by ``neurons.py --old-spikingjelly``, for its tables.

Its spikes are compared with those of ``ops.lif`` first.
"""

from __future__ import annotations

import functools

import numpy as np

if not hasattr(np, "int"):
    np.int = int  # type: ignore[attr-defined]  # the release asks for it, numpy took it away in 1.24

import torch
from harness import Benchmark, inference, options, training
from spikingjelly.activation_based import functional, neuron
from torch import Tensor

from snn_fr_plugin import ops


@functools.cache
def built(backend: str) -> neuron.LIFNode:
    return neuron.LIFNode(tau=2.0, step_mode="m", backend=backend)


def lif_node(x: Tensor) -> Tensor:
    layer = built("cupy" if x.is_cuda else "torch")
    spikes = layer(x)
    functional.reset_net(layer)
    return spikes


def check(x: Tensor) -> None:
    ours, _, _ = ops.lif(x, tau=2.0, reset="zero", backend="torch")
    theirs = lif_node(x)
    if not torch.equal(ours, theirs) or not 0.001 < ours.mean() < 0.999:
        raise SystemExit(f"refusing to time: {int((ours != theirs).sum())} of {ours.numel()} spikes differ")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--name", default="SpikingJelly 0.0.0.0.14 LIFNode", help="of the row")
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("T", "N", "C"), required=True)
    bench = Benchmark(parser.parse_args())
    for steps, batch, channels in bench.arguments.shape:
        x, gradient = bench.random(steps, batch, channels), bench.random(steps, batch, channels)
        check(x[:256])
        for mode, run in (
            ("forward", inference(lif_node, x)),
            ("forward + backward", training(lif_node, x, gradient)),
        ):
            bench.table(
                f"{mode}, [{steps}, {batch}, {channels}] float32",
                x,
                {bench.arguments.name: run},
                mode=mode,
                steps=steps,
                neurons=batch * channels,
            )
    bench.finish()


if __name__ == "__main__":
    main()
