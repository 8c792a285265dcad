"""FR neurons against the neurons they extend: snnTorch's Leaky and SpikingJelly's LIFNode.

    python benchmarks/neurons.py --json benchmarks/results/neurons.json

Before anything is timed, the FR neuron at refractory period 0 must give its parent's spikes exactly.
"""

from __future__ import annotations

import snntorch
import torch
from harness import Row, finish, measure, parser, report, start
from spikingjelly.activation_based import functional, neuron
from torch import Tensor

from snn_fr_plugin.integrations.snntorch import FRLeaky
from snn_fr_plugin.integrations.spikingjelly.neuron import FRLIFNode


def leaky_loop(x: Tensor, *, unbind: bool) -> Tensor:
    """snnTorch's Leaky step by step: over ``unbind`` views or, as in its tutorials, ``x[t]``."""
    layer, mem, spikes = snntorch.Leaky(beta=0.9), torch.zeros_like(x[0]), []
    for x_t in x.unbind(0) if unbind else (x[t] for t in range(len(x))):
        spike, mem = layer(x_t, mem)
        spikes.append(spike)
    return torch.stack(spikes)


def fr_leaky(x: Tensor, backend: str, period: int = 1) -> Tensor:
    layer = FRLeaky(beta=0.9, refractory_period=period, multistep=True, backend=backend)
    return layer(x)[0]


def lif_node(x: Tensor) -> Tensor:
    layer = neuron.LIFNode(tau=2.0, step_mode="m")
    spikes = layer(x)
    functional.reset_net(layer)
    return spikes


def fr_lif_node(x: Tensor, backend: str, period: int = 1) -> Tensor:
    return FRLIFNode(tau=2.0, step_mode="m", refractory_period=period, backend=backend)(x)


def check(x: Tensor, backend: str) -> None:
    """The gate in front of the clock: at R = 0 the FR neuron is its parent, and neurons do fire."""
    for ours, theirs in (
        (fr_leaky(x, backend, 0), leaky_loop(x, unbind=True)),
        (fr_lif_node(x, backend, 0), lif_node(x)),
    ):
        if not torch.equal(ours, theirs) or not 0.001 < ours.mean() < 0.999:
            raise SystemExit("refusing to time: the spikes differ from the parent's, or there are none")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", type=int, nargs=3, action="append", metavar=("T", "N", "C"))
    options.add_argument("--backend", nargs="+", default=["torch"], help="providers to time")
    arguments = options.parse_args()
    start(arguments)
    tables = []
    for steps, batch, channels in arguments.shape or [(128, 16, 128), (1024, 16, 128)]:
        x = torch.randn(steps, batch, channels)
        gradient, target = torch.randn_like(x), torch.empty_like(x)
        peers = {
            "snnTorch Leaky, x[t]": lambda v: leaky_loop(v, unbind=False),
            "snnTorch Leaky, unbind": lambda v: leaky_loop(v, unbind=True),
            "SpikingJelly LIFNode": lif_node,
        }
        for backend in arguments.backend:
            check(x, backend)
            peers[f"FRLeaky, {backend}"] = lambda v, b=backend: fr_leaky(v, b)
            peers[f"FRLIFNode, {backend}"] = lambda v, b=backend: fr_lif_node(v, b)

        def forward(run: object, x: Tensor = x) -> None:
            with torch.no_grad():
                run(x)  # type: ignore[operator]

        def training(run: object, x: Tensor = x, gradient: Tensor = gradient) -> None:
            leaf = x.detach().requires_grad_()
            run(leaf).backward(gradient)  # type: ignore[operator]

        for label, mode in (("forward", forward), ("forward + backward", training)):
            copy = Row("copy", lambda x=x, target=target: target.copy_(x))
            rows = [copy, *(Row(n, lambda m=mode, r=run: m(r)) for n, run in peers.items())]
            measure(rows, arguments.rounds)
            tables.append(report(f"{label}, [{steps}, {batch}, {channels}] float32", rows, x.numel(), copy))
            by_name = {row.name: row.median for row in rows}
            for backend in arguments.backend:
                for ours, theirs in (
                    (f"FRLeaky, {backend}", "snnTorch Leaky, unbind"),
                    (f"FRLIFNode, {backend}", "SpikingJelly LIFNode"),
                ):
                    print(f"{ours} is {by_name[theirs] / by_name[ours]:.1f} x as fast as {theirs}")
    finish(arguments, tables)


if __name__ == "__main__":
    main()
