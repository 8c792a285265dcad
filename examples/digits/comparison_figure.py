"""The picture of a comparison: accuracy against energy, and against activity."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from .comparison import Summary
from .data import SPLIT_SIZES
from .systems import SYSTEMS

# Okabe and Ito's palette, which colour-blind readers can tell apart
COLOURS = {"S4D": "#0072B2", "other modes": "#009E73", "leaky": "#D55E00"}
MARKERS = {"S4D": "o", "other modes": "s", "leaky": "^"}
MEANINGS = {
    "S4D": "S4D memory",
    "other modes": "compartments or resonator",
    "leaky": "leaky memory",
}
ACCURACIES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)
ENERGIES = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10)
ONE = 1 / SPLIT_SIZES[2]  # a test digit: the scale ends half of it from 0 and 1
DIRECTIONS = (
    *((1, 0), (-1, 0), (0, 1), (0, -1)),
    *((0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7)),
    *((0.3, 0.9), (0.3, -0.9), (-0.3, 0.9), (-0.3, -0.9)),
)
DISTANCES = (9, 16, 24, 34, 46, 60, 80, 105)  # of a label from its point, in points


def draw(path: Path, title: str, summaries: Sequence[Summary]) -> None:
    """Write the PNG. Systems of which no run came to its end are left out."""
    shown = [summary for summary in summaries if summary.accuracies]
    figure = Figure(figsize=(14, 6.6), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=14, fontweight="bold")
    energy, activity = figure.subplots(1, 2, sharey=True)
    _draw_points(energy, shown, [summary.energy_nj / 1000 for summary in shown])
    energy.set_xscale("log")
    energy.set_xlabel("energy of an inference (µJ: 4.6 pJ a MAC, 0.9 pJ an AC; without memory access)")
    energy.xaxis.set_major_locator(FixedLocator(ENERGIES))
    energy.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    energy.xaxis.set_minor_locator(NullLocator())
    energy.set_ylabel("test accuracy (%), mean and range over seeds")
    _draw_points(activity, shown, [100 * summary.firing_rate for summary in shown])
    activity.set_xlabel("firing rate (spikes per 100 neurons and step)")
    activity.set_xlim(left=0)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=5, frameon=False, fontsize=10)
    figure.draw_without_rendering()  # the layout, before labels look for their places
    for axes, x in ((energy, lambda s: s.energy_nj / 1000), (activity, lambda s: 100 * s.firing_rate)):
        _label(axes, [(x(s), _clipped(s.accuracy), s) for s in shown])
    figure.savefig(path)


def _clipped(accuracy: float) -> float:
    return min(max(accuracy, ONE / 2), 1 - ONE / 2)


def _style(summary: Summary) -> dict[str, Any]:
    memory = SYSTEMS[summary.system].memory
    colour = COLOURS[memory]
    face = "white" if summary.is_control else colour
    return {"color": colour, "marker": MARKERS[memory], "markerfacecolor": face}


def _draw_points(axes: Axes, summaries: Sequence[Summary], x: Sequence[float]) -> None:
    axes.set_yscale("logit")
    for at, summary in zip(x, summaries, strict=True):
        ends = [_clipped(min(summary.accuracies)), _clipped(max(summary.accuracies))]
        style = _style(summary)
        axes.plot([at, at], ends, color=style["color"], linewidth=1.6, alpha=0.45, solid_capstyle="butt")
        axes.plot(at, _clipped(summary.accuracy), markersize=9, markeredgewidth=1.8, linestyle="", **style)
    axes.yaxis.set_major_locator(FixedLocator(ACCURACIES))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.2, y=0.12)
    axes.grid(color="#e8e8e8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend() -> list[Line2D]:
    style: dict[str, Any] = {"linestyle": "", "markersize": 9, "markeredgewidth": 1.8}
    memories = [
        Line2D([], [], color=COLOURS[m], marker=MARKERS[m], label=MEANINGS[m], **style) for m in COLOURS
    ]
    control = Line2D(
        [], [], color="#555555", marker="o", markerfacecolor="white", label="hollow: control", **style
    )
    return [*memories, control]


def _label(axes: Axes, points: Sequence[tuple[float, float, Summary]]) -> None:
    """Write each title at the nearest free place, nearer to its own point than to others.

    No leader crosses a title or another point.
    """
    figure: Any = axes.figure
    pixels = figure.dpi / 72
    centres = [axes.transData.transform((x, y)) for x, y, _ in points]
    marks = [Bbox.from_bounds(*(at - 7 * pixels), 14 * pixels, 14 * pixels) for at in centres]
    taken, titles = list(marks), []
    for (_, _, summary), at in zip(points, centres, strict=True):
        ends = [axes.transData.transform((0, _clipped(f(summary.accuracies))))[1] for f in (min, max)]
        taken.append(Bbox.from_extents(at[0] - 2, ends[0], at[0] + 2, ends[1]))
    for (x, y, summary), at, own in zip(points, centres, marks, strict=True):
        colour = _style(summary)["color"]
        text = axes.annotate(
            summary.title,
            (x, y),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=10,
            color=colour,
            style="italic" if summary.is_control else "normal",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6, "shrinkB": 6},
        )
        width, height = text.get_window_extent().size
        others = [mark for mark in marks if not mark.shrunk(0.8, 0.8).overlaps(own.shrunk(0.8, 0.8))]
        avoided = [*titles, *others]
        # where no place is nearer to its own point, any free one serves
        for strict, distance, (right, up) in itertools.product((True, False), DISTANCES, DIRECTIONS):
            dx = right * distance * pixels + _sign(right) * width / 2
            dy = up * distance * pixels + _sign(up) * height / 2
            box = Bbox.from_bounds(at[0] + dx - width / 2, at[1] + dy - height / 2, width, height)
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and axes.bbox.y0 < box.y0
            nearest = not strict or _distance(box, at) <= min(_distance(box, other) for other in centres)
            leader = _leader(box, at)
            crossed = any(step.count_overlaps(avoided) for step in leader)
            if inside and nearest and not crossed and not box.count_overlaps(taken):
                break
        titles.append(box)
        taken += [box, *leader]
        text.set_position((dx / pixels, dy / pixels))


def _leader(box: Bbox, point: Any) -> list[Bbox]:
    """The line from a title to its point, in small boxes."""
    nearest = np.clip(point, (box.x0, box.y0), (box.x1, box.y1))
    return [
        Bbox.from_bounds(*(nearest + part * (point - nearest) - 1), 2, 2)
        for part in np.linspace(0, 1, 60)[1:]
    ]


def _distance(box: Bbox, point: Any) -> float:
    """From a point to the nearest of a box."""
    nearest = np.clip(point, (box.x0, box.y0), (box.x1, box.y1))
    return float(np.hypot(*(point - nearest)))


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
