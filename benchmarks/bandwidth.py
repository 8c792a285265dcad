"""The fused FR neuron against the memory's limit: forward, backward, and both through autograd.

    python benchmarks/bandwidth.py --json benchmarks/results/bandwidth.json
    python benchmarks/bandwidth.py --device cuda --json bandwidth_gpu.json

Forward reads x and writes spikes (a copy's traffic, and a state every 32 steps); backward reads x and a
gradient and writes a gradient (one and a half times that). On the CPU the allocator keeps what was freed, so
that outputs lie in memory that was used before, as a preallocated one would. On a GPU the goals are those for
an H200, and of what the kernels take: "device ms". The provider is ``auto``'s; its spikes are compared with
those of the torch loop first.
"""

from __future__ import annotations

import torch
from harness import Benchmark, inference, options, training
from torch import Tensor

from snn_fr_plugin import ops

SHAPES = {"cpu": [(4096, 2048), (1024, 16384)], "cuda": [(1024, 65536), (1024, 16384), (4096, 2048)]}
ROWS = {
    "float32": [("FR", "none"), ("FR, reset to zero", "zero"), ("FR, reset by subtraction", "subtract")],
    "bfloat16": [("FR", "none")],
    "float16": [("FR", "none")],
}
GOALS = {"float32": {"forward": 0.16, "backward": 0.24}, "bfloat16": {"forward": 0.085, "backward": 0.125}}
GOAL_SHAPE = (1024, 65536)


def spikes(x: Tensor, reset: str, backend: str = "auto") -> Tensor:
    out, _, _ = ops.lif(x, 0.9, refractory_period=1, reset=reset, backend=backend)  # type: ignore[arg-type]
    return out


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(fast_alloc=True)
    parser.add_argument("--shape", type=int, nargs=2, action="append", metavar=("T", "M"))
    bench = Benchmark(parser.parse_args())
    for steps, neurons in bench.arguments.shape or SHAPES[bench.device.type]:
        for name, variants in ROWS.items():
            dtype = getattr(torch, name)
            x, gradient = (bench.random(steps, neurons).to(dtype) for _ in range(2))
            peers = {}
            for label, reset in variants:
                if not torch.equal(spikes(x[:512], reset), spikes(x[:512], reset, "torch")):
                    raise SystemExit(
                        f"refusing to time: the spikes of {label} differ from the torch provider's"
                    )
                leaf = x.detach().requires_grad_()
                out = spikes(leaf, reset)
                peers[f"{label}: forward"] = inference(lambda v, r=reset: spikes(v, r), x)
                peers[f"{label}: backward"] = lambda o=out, v=leaf, g=gradient: torch.autograd.grad(
                    o, v, g, retain_graph=True
                )
                peers[f"{label}: both"] = training(lambda v, r=reset: spikes(v, r), x, gradient)
            bench.table(f"[{steps}, {neurons}] {name}", x, peers, steps=steps, neurons=neurons, dtype=name)
            if bench.device.type == "cuda" and (steps, neurons) == GOAL_SHAPE:
                rows = {row["name"]: row["device_ms"] for row in bench.tables[-1]["rows"]}
                for part, limit in GOALS.get(name, {}).items():
                    bench.goal(f"{list(GOAL_SHAPE)} {name} FR {part}", "<=", limit, rows[f"FR: {part}"], "ms")
    bench.finish()


if __name__ == "__main__":
    main()
