"""``ops.fixed_refractory``, the refractory gate alone, against the loop that a user would write.

    python benchmarks/gate.py --json benchmarks/results/gate.json --plot benchmarks/results/gate.png

Before anything is timed, all absolute gates must give the same spikes.
"""

from __future__ import annotations

import torch
from harness import Benchmark, inference, options, training
from torch import Tensor

from snn_fr_plugin import ops
from snn_fr_plugin.surrogate import ATan

SCHEMES = ("absolute", "window", "strided", "onset")
SHAPES = [(128, 2048), (1024, 2048), (4096, 2048), (1024, 16384)]
SWEPT = 2048  # neurons of the sweep over T
PERIODS = (1, 16)


def loop(drive: Tensor, period: int) -> Tensor:
    """The absolute scheme, a step at a time."""
    surrogate, left, spikes = ATan(), torch.zeros_like(drive[0], dtype=torch.int32), []
    for drive_t in drive.unbind(0):
        spike = surrogate(drive_t - 1) * (left == 0)
        left = torch.where(spike.detach() > 0, period, (left - 1).clamp_min(0))
        spikes.append(spike)
    return torch.stack(spikes)


def check(peers: dict[str, object], drive: Tensor) -> None:
    """Refuses to time absolute gates that do not give the spikes of the loop."""
    for period in PERIODS:
        expected = peers[f"loop, R = {period}"](drive)  # type: ignore[operator]
        for name, run in peers.items():
            absolute = name.startswith("absolute") and name.endswith(f"R = {period}")
            if absolute and not (torch.equal(run(drive), expected) and expected.any()):  # type: ignore[operator]
                raise SystemExit(f"refusing to time: {name} differs from the loop, or nothing fires")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--shape", type=int, nargs=2, action="append", metavar=("T", "M"))
    parser.add_argument("--backend", nargs="+", default=["torch", "cpp"], help="providers to time")
    bench = Benchmark(parser.parse_args())
    for steps, neurons in bench.arguments.shape or SHAPES:
        x, gradient = bench.random(steps, neurons), bench.random(steps, neurons)
        peers = {f"loop, R = {period}": lambda v, r=period: loop(v, r) for period in PERIODS}
        for backend in bench.arguments.backend:
            for period in PERIODS:
                peers[f"absolute, {backend}, R = {period}"] = lambda v, b=backend, r=period: (
                    ops.fixed_refractory(v, period=r, backend=b)[0]
                )
            for scheme in SCHEMES[1:]:
                peers[f"{scheme}, {backend}, R = 1"] = lambda v, b=backend, s=scheme: ops.fixed_refractory(
                    v, period=1, scheme=s, backend=b
                )[0]
        check(peers, x)
        for mode, wrap in (
            ("forward", lambda run, x=x: inference(run, x)),
            ("forward + backward", lambda run, x=x, g=gradient: training(run, x, g)),
        ):
            bench.table(
                f"{mode}, [{steps}, {neurons}] float32",
                x,
                {name: wrap(run) for name, run in peers.items()},
                mode=mode,
                steps=steps,
                neurons=neurons,
                series=f"fixed_refractory on [T, {neurons}] float32" if neurons == SWEPT else None,
            )
            for backend in bench.arguments.backend:
                bench.compare(f"absolute, {backend}, R = 1", ["loop, R = 1"])
    bench.finish()


if __name__ == "__main__":
    main()
