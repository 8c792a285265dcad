"""The picture: what went in, what a layer remembered and sent on, and how all models learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from .data import SIDE
from .models import Trace
from .training import Result

# Okabe and Ito's palette, which colour-blind readers can tell apart
COLOURS = {
    "lif": "#999999",
    "fr-lif": "#E69F00",
    "lif-block": "#333333",
    "leaky-block": "#56B4E9",
    "fr-lif-block": "#CC79A7",
    "frssm": "#0072B2",
    "pssm": "#D55E00",
}
NEURON_COLOURS = ("#0072B2", "#009E73", "#D55E00")
PLAIN = "#555555"
SMALL_LEGEND: dict[str, Any] = {"fontsize": 9, "frameon": False, "columnspacing": 1.2, "handlelength": 1.5}


def draw(path: Path, title: str, x: Tensor, label: int, trace: Trace, results: Sequence[Result]) -> None:
    """Write the PNG.

    Args:
        path: where to.
        title: of the model whose layer is shown.
        x: the sequence that it read [T].
        label: its class.
        trace: what the layer did with it.
        results: the models whose learning curves are drawn.
    """
    figure = Figure(figsize=(14, 9), dpi=120, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.2, 1), hspace=0.04)
    _draw_layer(halves[0], title, x.cpu(), label, trace)
    _draw_learning(halves[1], results)
    figure.savefig(path)


def _draw_layer(figure: SubFigure, title: str, x: Tensor, label: int, trace: Trace) -> None:
    figure.suptitle(f"{title}: one test digit in the first layer", fontsize=14, fontweight="bold")
    grid = figure.add_gridspec(3, 3, width_ratios=(0.9, 1.4, 1.6))
    _draw_digit(figure.add_subplot(grid[:, 0]), x, label)
    chosen = _telling_neurons(trace.spikes)
    raster = figure.add_subplot(grid[:, 1])
    _draw_raster(raster, trace.spikes, chosen)
    panels: list[Axes] = []
    for row, neuron in enumerate(chosen):
        axes = figure.add_subplot(grid[row, 2], sharex=raster)
        _draw_memory(axes, trace, neuron, NEURON_COLOURS[row])
        panels.append(axes)
    for axes in panels[:-1]:
        axes.tick_params(labelbottom=False)
    panels[0].set_title("Memory traces", loc="left")
    panels[0].legend(loc="lower right", bbox_to_anchor=(1.02, 0.98), ncols=4, **SMALL_LEGEND)
    panels[-1].set_xlabel("time step (pixel)")


def _draw_digit(axes: Axes, x: Tensor, label: int) -> None:
    axes.imshow(x.view(SIDE, SIDE).numpy(), cmap="Greys", vmin=0, vmax=1)
    for row in range(SIDE):
        axes.annotate(
            "",
            (SIDE - 0.6, row),
            (-0.4, row),
            arrowprops={"arrowstyle": "->", "color": NEURON_COLOURS[0], "alpha": 0.35},
        )
    axes.set_title(f"Input: a {label}, read row by row")
    axes.set_xlabel("column (pixels)")
    axes.set_ylabel("row (8 steps each)")
    axes.set_xticks(range(SIDE))
    axes.set_yticks(range(SIDE))


def _draw_raster(axes: Axes, spikes: Tensor, chosen: Sequence[int]) -> None:
    steps, neurons = spikes.shape
    for neuron in range(neurons):
        colour = NEURON_COLOURS[chosen.index(neuron)] if neuron in chosen else PLAIN
        fired = spikes[:, neuron].nonzero().flatten().numpy()
        axes.scatter(fired, np.full(len(fired), neuron), marker="|", s=22, linewidths=1.3, color=colour)
    for boundary in range(SIDE, steps, SIDE):
        axes.axvline(boundary - 0.5, color="#dddddd", linewidth=0.6, zorder=0)
    rate = spikes.mean().item()
    axes.set_title(f"Spike raster: {rate:.3f} spikes per neuron and step")
    axes.set_xlabel("time step (pixel)")
    axes.set_ylabel("neuron (in colour: traced on the right)")
    axes.set_xlim(-1, steps)
    axes.set_ylim(-1, neurons)
    axes.set_xticks(range(0, steps + 1, SIDE))


def _telling_neurons(spikes: Tensor) -> list[int]:
    """Three neurons, from the most active to a quiet one that still fires, where there are that many."""
    counts = spikes.sum(0)
    order = counts.argsort(descending=True, stable=True)
    active = max(int((counts > 0).sum()), min(3, len(order)))
    return [int(order[i]) for i in (0, active // 3, 2 * active // 3)]


def _draw_memory(axes: Axes, trace: Trace, neuron: int, colour: str) -> None:
    memory, threshold = trace.memory[:, neuron].numpy(), float(trace.threshold[neuron])
    fired = trace.spikes[:, neuron].nonzero().flatten().numpy()
    for i, t in enumerate(fired.tolist() if trace.refractory_period else ()):
        axes.axvspan(
            t + 0.5,
            t + trace.refractory_period + 0.5,
            color="#f2d9c9",
            linewidth=0,
            label="refractory" if i == 0 else None,
        )
    axes.plot(memory, color=colour, linewidth=1.5, label="memory")
    axes.axhline(threshold, color=PLAIN, linewidth=0.9, linestyle="--", label="threshold")
    axes.plot(fired, memory[fired], "o", color=colour, markersize=5, label="spike")
    axes.set_ylabel(f"neuron {neuron}\nmemory (a.u.)", color=colour, fontsize=9)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_learning(figure: SubFigure, results: Sequence[Result]) -> None:
    figure.suptitle("Learning, all models", fontsize=14, fontweight="bold")
    accuracy, loss, cost = figure.subplots(1, 3)
    for result in results:
        colour, history = COLOURS[result.settings.model], result.history
        epochs = range(1, len(history) + 1)
        best = 100 * history[result.best_epoch - 1].validation_accuracy
        percents = [100 * e.validation_accuracy for e in history]
        accuracy.plot(epochs, percents, color=colour, linewidth=1.6, label=result.title)
        accuracy.plot(result.best_epoch, best, "o", color=colour, markersize=7)
        loss.plot(epochs, [e.loss for e in history], color=colour, linewidth=1.6)
        cost.plot(100 * result.firing_rate, 100 * result.test_accuracy, "o", color=colour, markersize=11)
    for axes, title, x, y in (
        (accuracy, "Validation accuracy (dot: the epoch chosen)", "epoch", "accuracy (%)"),
        (loss, "Training loss", "epoch", "cross-entropy (nats)"),
        (cost, "Accuracy against activity", "firing rate (% of neurons a step)", "test accuracy (%)"),
    ):
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(color="#eeeeee")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (accuracy, loss):
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss.set_ylim(bottom=0)
    cost.margins(0.12)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=7, **SMALL_LEGEND)
