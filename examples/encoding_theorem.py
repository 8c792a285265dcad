"""Draw the encoding theorem: the spikes of a neuron are samples of a memory that no reset touches.

    python examples/encoding_theorem.py                                   # seconds; runs/encoding_theorem.png
    python examples/encoding_theorem.py --refractory-period 8 --out fr8.png

One input, two slow waves and some noise, drives three leaky neurons: one without reset, one with a fixed
refractory period (FR), one with hard reset that ignores its input while refractory. On the left is the memory
that they share, and the threshold that it has to reach for a spike. On the right is what the samples tell of
it, joined by straight lines: the error is the root mean square difference, in standard deviations of the
memory. The spikes are found from the memory alone, and compared with those of ``ops.lif``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn_fr_plugin import Leaky, ops
from snn_fr_plugin.encoding import spike_times_from_memory

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
except ModuleNotFoundError as error:
    raise SystemExit("this example needs matplotlib: pip install 'snn-fr-plugin[demo]'") from error

# Okabe and Ito's palette, which colour-blind readers can tell apart
MEMORY, THRESHOLD, REFRACTORY = "#444444", "#E69F00", "#EEEEEE"


class Neuron(NamedTuple):
    """A row of the figure."""

    name: str
    rule: str
    colour: str
    options: dict[str, Any]  # of ops.lif and of the theorem


class Trace(NamedTuple):
    """What a neuron makes of the memory."""

    neuron: Neuron
    times: np.ndarray  # [K], of its spikes
    threshold: np.ndarray  # [T], what the memory was compared with; inf while refractory
    told: np.ndarray  # [T], the memory by its samples
    error: float
    as_lif: bool


def neurons(period: int) -> list[Neuron]:
    """The three that are compared."""
    silent = {"refractory_period": period}
    moving = r"$m_t \geq \theta + \beta^{\,t-t_k-R}\, m_{t_k+R}$: a moving threshold"
    return [
        Neuron("No reset", r"$m_t \geq \theta$", "#009E73", {}),
        Neuron(
            f"Fixed refractory, R = {period}",
            r"$m_t \geq \theta$, and silent for R steps after a spike",
            "#0072B2",
            silent,
        ),
        Neuron(
            f"Hard reset, R = {period}",
            moving,
            "#D55E00",
            {**silent, "reset": "zero", "refractory_input": "ignore"},
        ),
    ]


def current(steps: int, seed: int) -> Tensor:
    """The input [T, 1]."""
    t = torch.arange(steps, dtype=torch.float64)
    waves = 0.9 * torch.sin(2 * math.pi * t / 80) + 0.6 * torch.sin(2 * math.pi * t / 31 + 1)
    noise = torch.randn(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.3 + 0.3 * waves + 0.1 * noise)[:, None]


def sample(x: Tensor, m: Tensor, beta: float, threshold: float, neuron: Neuron) -> Trace:
    """The spikes of a neuron from the memory alone, and what they tell of it."""
    samples = spike_times_from_memory(m, beta, threshold, **neuron.options)
    spikes, _, _ = ops.lif(x, beta, threshold, **neuron.options)
    times, memory = samples.times[:, 0].numpy(), m[:, 0].numpy()
    told = np.interp(np.arange(len(memory)), [-1, *times], [0, *memory[times]])  # it begins at 0
    return Trace(
        neuron,
        times,
        samples.moving_threshold[:, 0].numpy(),
        told,
        error=float(np.sqrt(np.mean((told - memory) ** 2)) / memory.std()),
        as_lif=torch.equal(samples.spikes, spikes),
    )


def draw(path: Path, memory: np.ndarray, traces: Sequence[Trace]) -> None:
    """Write the PNG."""
    figure = Figure(figsize=(13, 8.2), dpi=100, layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.06))
    figure.suptitle(
        "Reset and refractory period decide when a memory is sampled, not what it holds",
        fontsize=15,
        fontweight="bold",
    )
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.25, 1), wspace=0.03)
    panels: Any = [half.subplots(len(traces), 1, sharex=True, sharey=True) for half in halves]
    for trace, sampling, telling in zip(traces, *panels, strict=True):
        _draw_sampling(sampling, memory, trace)
        _draw_telling(telling, memory, trace)
    low, high = min(memory.min(), 0.0), memory.max()
    for axes in (panel for column in panels for panel in column):
        axes.set_xlim(-1, len(memory))
        axes.set_ylim(low - 0.25 * (high - low), high + 0.12 * (high - low))
        axes.spines[["top", "right"]].set_visible(False)
    remembered = Line2D([], [], color=MEMORY, linewidth=1.4, label="memory $m_t$")
    _finish(
        halves[0],
        "The memory is sampled when it reaches the threshold",
        remembered,
        Line2D([], [], color=THRESHOLD, linewidth=2, label="threshold"),
        Line2D([], [], color="black", linestyle="", marker="o", markersize=5, label="spike: a sample"),
        Patch(color=REFRACTORY, label="refractory: no threshold"),
    )
    _finish(
        halves[1],
        "What the samples tell of the memory",
        remembered,
        Line2D([], [], color="black", marker="o", markersize=4, label="samples, joined"),
        Patch(color="#CCCCCC", label="error (rms / s.d. of $m$)"),
    )
    figure.savefig(path)


def _finish(half: Any, title: str, *legend: Line2D | Patch) -> None:
    half.suptitle(title, fontsize=13)
    half.axes[-1].set_xlabel("time step")
    half.legend(
        handles=legend, loc="outside lower center", ncols=4, fontsize=10, frameon=False, columnspacing=1.5
    )


def _draw_sampling(axes: Axes, memory: np.ndarray, trace: Trace) -> None:
    colour, period = trace.neuron.colour, trace.neuron.options.get("refractory_period", 0)
    for t in trace.times if period else ():
        axes.axvspan(t + 0.5, t + period + 0.5, color=REFRACTORY, linewidth=0)
    edges = np.arange(len(memory))[:, None] + (-0.5, 0.5)  # a threshold of one step is a step wide
    axes.plot(edges.ravel(), trace.threshold.repeat(2), color=THRESHOLD, linewidth=2)
    axes.plot(memory, color=MEMORY, linewidth=1.4)
    axes.plot(trace.times, memory[trace.times], "o", color=colour, markersize=4.5)
    train = axes.get_xaxis_transform()  # the spikes once more, as ticks at the bottom
    axes.vlines(trace.times, 0.03, 0.1, transform=train, color=colour, linewidth=1.5)
    axes.set_title(f"{trace.neuron.name}:  {trace.neuron.rule}", loc="left", color=colour)
    axes.set_ylabel("memory")


def _draw_telling(axes: Axes, memory: np.ndarray, trace: Trace) -> None:
    colour = trace.neuron.colour
    axes.fill_between(range(len(memory)), memory, trace.told, color=colour, alpha=0.25, linewidth=0)
    axes.plot(memory, color=MEMORY, linewidth=1.4)
    axes.plot(trace.told, color=colour, linewidth=1.4)
    axes.plot(trace.times, memory[trace.times], "o", color=colour, markersize=3.5)
    axes.set_title(f"{len(trace.times)} spikes, error {trace.error:.2f}", loc="left", color=colour)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: sample, draw, and say what came out."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--beta", type=float, default=0.9, help="decay of the memory per step")
    add("--threshold", type=float, default=1.0, help="of all three neurons")
    add("--refractory-period", type=int, default=4, metavar="R", help="silent steps after a spike")
    add("--steps", type=int, default=160, metavar="T", help="of the input")
    add("--seed", type=int, default=0, help="of the noise")
    add("--out", type=Path, default=Path("runs/encoding_theorem.png"), metavar="PNG", help="file to write")
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error(f"argument --steps: must be >= 2, got {options.steps}")
    x = current(options.steps, options.seed)
    m, _ = Leaky(options.beta)(x)
    try:
        traces = [
            sample(x, m, options.beta, options.threshold, n) for n in neurons(options.refractory_period)
        ]
    except ValueError as error:
        parser.error(str(error))
    for trace in traces:
        check = "as by ops.lif" if trace.as_lif else "not as by ops.lif: a tie"
        print(f"{trace.neuron.name:<24}{len(trace.times):4} spikes, {check}, error {trace.error:.3f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(options.out, m[:, 0].numpy(), traces)
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
