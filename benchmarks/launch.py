"""What a call costs the host: microseconds of Python and of the driver, and nothing is waited for.

    python benchmarks/launch.py --device cuda --json launch_gpu.json

The tensors are so small that a GPU is done before the next call comes; a call that would wait for it is
named, by PyTorch's own check for that. On the CPU the same calls compute as well, and there is no launch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import Benchmark, options
from spikingjelly.activation_based import neuron

from snn_fr_plugin import ops
from snn_fr_plugin.ops import _cupy

CALLS = 200  # of a round
STEPS, NEURONS, PAIRS = 32, 128, 4
OPERATORS = ("lif", "fixed_refractory", "diagonal_ssm")


def calls(device: torch.device) -> dict[str, Callable[[], Any]]:
    """What is timed, by name: copy first."""
    x = torch.randn(STEPS, 1, NEURONS).to(device)
    target, gradient = torch.empty_like(x), torch.randn_like(x)
    A = torch.full((NEURONS, PAIRS), 0.5 + 0.3j).to(device)
    leaf = x.clone().requires_grad_()
    runs = {
        "lif": lambda v: ops.lif(v, 0.9, refractory_period=1)[0],
        "fixed_refractory": lambda v: ops.fixed_refractory(v, period=1)[0],
        "diagonal_ssm": lambda v: ops.diagonal_ssm(v, A, A)[0],
        "SpikingJelly LIFNode": lambda v: neuron.LIFNode(step_mode="m")(v),
    }
    found: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(x)}
    for name, run in runs.items():
        found[name] = partial(run, x)
        found[f"{name}, with a graph"] = partial(run, leaf)
        found[f"{name}, backward"] = lambda run=run, made=[]: _backward(run, leaf, gradient, made)
    return found


def _backward(run: Callable[..., Any], leaf: torch.Tensor, gradient: torch.Tensor, made: list[Any]) -> None:
    """The backward of an output that is made once."""
    if not made:
        made.append(run(leaf))
    torch.autograd.grad(made[0], leaf, gradient, retain_graph=True)


def launches(run: Callable[[], Any]) -> list[Callable[[], None]]:
    """The launches of a call, each to be made again on its own."""
    found: list[Callable[[], None]] = []
    launch = _cupy.launch

    def note(*args: Any, **kwargs: Any) -> None:
        found.append(partial(launch, *args, **kwargs))
        launch(*args, **kwargs)

    _cupy.launch = note
    try:
        run()
    finally:
        _cupy.launch = launch
    return found


def waits(run: Callable[[], Any]) -> bool:
    """Whether a call waits for the GPU somewhere that PyTorch knows of."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def microseconds(run: Callable[[], Any], device: torch.device) -> float:
    """Of one call, among many one after the other."""
    start = time.perf_counter()
    for _ in range(CALLS):
        run()
    elapsed = time.perf_counter() - start
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # behind the clock
    return elapsed / CALLS * 1e6


def main() -> None:
    bench = Benchmark(options(__doc__).parse_args())
    device = bench.device
    runs = calls(device)
    for name in [name for name in runs if name.startswith("SpikingJelly")]:
        if not bench.runs(name, runs[name]):
            del runs[name]
    for run in runs.values():
        run()  # compiles
    if device.type == "cuda":
        runs["a launch through CuPy"] = launches(runs["lif"])[0]
        for name in [name for name, run in runs.items() if waits(run)]:
            print(f"{name}: waits for the GPU")
            bench.machine[f"waits: {name}"] = "yes"
    else:
        bench.leave_out("a launch through CuPy", "there is no GPU")
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(-1, bench.arguments.rounds):
        for name, run in runs.items():
            taken = microseconds(run, device)
            if round_ >= 0:
                rounds[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in rounds.items()}
    title = f"one call, [{STEPS}, 1, {NEURONS}] float32"
    print(f"\n{title}\n{'':32}  {'us':>8}  {'x copy':>8}")
    rows = []
    for name, us in medians.items():
        rows.append({"name": name, "us": round(us, 3), "times_copy": round(us / medians["copy"], 3)})
        print(f"{name:32}  {us:8.2f}  {us / medians['copy']:8.2f}")
    bench.tables.append({"title": title, "elements": STEPS * NEURONS, "rows": rows})
    if device.type == "cuda":
        bench.goal("a launch through CuPy", "<=", 15, medians["a launch through CuPy"], "us")
        for name in OPERATORS:
            bench.goal(f"a call of {name}", "<=", 60, medians[name], "us")
    bench.finish()


if __name__ == "__main__":
    main()
