"""The main job, provider by provider: seconds of an epoch, and how much of it is spent in the operators.

    python benchmarks/main_job.py --json benchmarks/results/main_job.json

Trains the networks of ``examples/sequential_digits.py`` on its data with its optimizer and batch size and,
as it does, on one thread. Epochs of the providers alternate; medians are reported. The time in the operators
is that of ``snn_fr::*`` in the profiles of as many more epochs, so Python outside of them is not in it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import Benchmark, options
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from digits import data, models

MODELS = ("fr-lif", "frssm", "pssm")
BATCH, PERIOD, OPERATORS = 32, 2, "snn_fr::"


def epoch(network: nn.Module, optimizer: torch.optim.Optimizer, part: Any) -> None:
    """One pass over the training part."""
    for index in torch.randperm(len(part.y)).split(BATCH):
        batch = part.take(index)
        loss = nn.functional.cross_entropy(network(batch.x)[0], batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def seconds_in_operators(run: Any) -> tuple[float, str]:
    """Seconds in the operators, forward and backward, and the profile by operator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    averages = profile.key_averages()
    ours = [event for event in averages if event.key.startswith(OPERATORS)]
    return sum(event.cpu_time_total for event in ours) / 1e6, averages.table(
        sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40
    )


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(threads=1, rounds=5)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=models.MODELS)
    parser.add_argument("--backend", nargs="+", default=["torch", "cpp"], help="providers to time")
    parser.add_argument("--profile", action="store_true", help="print the profile of every epoch")
    bench = Benchmark(parser.parse_args())
    backends = bench.arguments.backend
    train = data.load().train
    print(f"\n{'':8} {'backend':8} {'s/epoch':>8} {'s in operators':>15}")
    for name in bench.arguments.models:
        runs = {}
        for backend in backends:
            torch.manual_seed(0)
            network = models.build(name, models.FRAMEWORKS["snntorch"](PERIOD, backend)).train()
            optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
            runs[backend] = lambda n=network, o=optimizer: epoch(n, o, train)
        seconds: dict[str, list[float]] = {backend: [] for backend in backends}
        inside: dict[str, list[float]] = {backend: [] for backend in backends}
        for round_ in range(-1, bench.arguments.rounds):
            for backend, run in runs.items():
                start = time.perf_counter()
                run()
                if round_ >= 0:
                    seconds[backend].append(time.perf_counter() - start)
        for _ in range(bench.arguments.rounds):
            for backend, run in runs.items():
                spent, profile = seconds_in_operators(run)
                inside[backend].append(spent)
                if bench.arguments.profile:
                    print(profile)
        rows = [
            {"backend": backend, "epoch_s": median(seconds[backend]), "operators_s": median(inside[backend])}
            for backend in backends
        ]
        for row in rows:
            print(f"{name:8} {row['backend']:8} {row['epoch_s']:8.3f} {row['operators_s']:15.3f}")
        first, last = rows[0], rows[-1]
        faster = {key: first[key] / last[key] for key in ("epoch_s", "operators_s")}
        print(f"{name:8} epoch {faster['epoch_s']:.1f} x, operators {faster['operators_s']:.1f} x as fast")
        bench.tables.append({"title": name, "rows": rows})
    bench.finish()


if __name__ == "__main__":
    main()
