"""``ops.fixed_refractory``, the refractory gate alone, against the loop that a user would write.

    python benchmarks/gate.py --json benchmarks/results/gate.json --plot benchmarks/results/gate.png

    python benchmarks/gate.py --device cuda --json gate_gpu.json

Before anything is timed, all absolute gates must give the same spikes.
"""

from __future__ import annotations

import torch
from harness import Benchmark, inference, options, training
from torch import Tensor

from snn_fr_plugin import ops
from snn_fr_plugin.surrogate import ATan

SCHEMES = ("absolute", "window", "strided", "onset")
SHAPES = {
    "cpu": [(128, 2048), (1024, 2048), (4096, 2048), (1024, 16384)],
    # chunks at once, where neurons are few and steps many, and one by one
    "cuda": [(1024, 2048), (4096, 2048), (16384, 2048), (16384, 128), (1024, 16384), (1024, 65536)],
}
SWEPT = 2048  # neurons of the sweep over T
LOOPED = 1024  # steps beyond which a GPU is not kept waiting by a loop over time
PERIODS = (1, 16)
BACKENDS = {"cpu": ["torch", "cpp"], "cuda": ["cupy"]}


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
    parser.add_argument("--backend", nargs="+", help="providers to time; torch and cpp, or cupy on a GPU")
    bench = Benchmark(parser.parse_args())
    backends = bench.arguments.backend or BACKENDS[bench.device.type]
    for steps, neurons in bench.arguments.shape or SHAPES[bench.device.type]:
        x, gradient = bench.random(steps, neurons), bench.random(steps, neurons)
        peers = {f"loop, R = {period}": lambda v, r=period: loop(v, r) for period in PERIODS}
        for backend in backends:
            for period in PERIODS:
                peers[f"absolute, {backend}, R = {period}"] = lambda v, b=backend, r=period: (
                    ops.fixed_refractory(v, period=r, backend=b)[0]
                )
            for scheme in SCHEMES[1:]:
                peers[f"{scheme}, {backend}, R = 1"] = lambda v, b=backend, s=scheme: ops.fixed_refractory(
                    v, period=1, scheme=s, backend=b
                )[0]
        check(peers, x)
        if bench.device.type == "cuda" and steps > LOOPED:
            for period in PERIODS:
                bench.leave_out(f"loop, R = {period}, beyond {LOOPED} steps", "takes longer than all others")
                del peers[f"loop, R = {period}"]
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
            for backend in backends:
                bench.compare(f"absolute, {backend}, R = 1", ["loop, R = 1"])
    bench.finish()


if __name__ == "__main__":
    main()
