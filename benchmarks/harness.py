"""What every benchmark shares: interleaved rounds, medians, ratios to a copy, peak memory, the machine.

Absolute times drift with the machine; ratios of one run do not. So all rows of a table run in turn, round by
round, and a same-size ``copy_`` is the first of them. What ``ms`` and ``device_ms`` are on a GPU is said in
``clocks.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import torch
from clocks import clock
from torch import Tensor

import snn_fr_plugin
from snn_fr_plugin.ops import _cupy
from snn_fr_plugin.ops._providers import BACKENDS

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from digits import report

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_PACKAGES = (
    "torch", "snntorch", "spikingjelly", "cupy-cuda12x", "cupy-cuda13x", "triton",
    "accelerated-scan", "mamba-ssm", "snn-fr-plugin",
)  # fmt: skip


@dataclass
class Row:
    """One line of a table: what runs, how often in a round, and the seconds of the rounds."""

    name: str
    run: Callable[[], Any]
    calls: int = 1
    seconds: list[float] = field(default_factory=list)
    device_seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def options(description: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="where the tensors are: cpu or cuda")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds; medians are reported")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch.set_num_threads")
    parser.add_argument("--fast-alloc", action="store_true", help="enable_fast_alloc()")
    parser.add_argument("--json", type=Path, help="write the tables to this file")
    parser.add_argument("--plot", type=Path, help="draw time against T into this PNG")
    return parser


class Benchmark:
    """A run of a benchmark: its options, and the tables it has measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        if self.device.type == "cuda":
            _cupy.require()  # or "auto" would have PyTorch timed in its place
        self.clock = clock(self.device)
        self.tables: list[dict[str, Any]] = []
        self.goals: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}
        torch.set_num_threads(arguments.threads)
        torch.manual_seed(0)
        self.machine = machine(self.device) | {"threads": str(torch.get_num_threads())}
        if arguments.fast_alloc and self.device.type == "cpu":
            self.machine["allocation"] = "fast" if snn_fr_plugin.enable_fast_alloc() else "default"
        print("  ".join(f"{k} {v}" for k, v in self.machine.items()))

    def random(self, *shape: int) -> Tensor:
        """Standard normal values on the device."""
        return torch.randn(shape).to(self.device)

    def table(
        self,
        title: str,
        like: Tensor,
        peers: dict[str, Callable[[], Any]],
        elsewhere: Sequence[dict[str, Any]] = (),
        **facts: Any,
    ) -> None:
        """Measure ``peers`` and a copy of ``like`` in turn, print the table and keep it.

        ``elsewhere``: rows that another process has measured, with ratios to its own copy. ``facts`` say what
        distinguishes the table from others; ``plot`` needs ``mode``, ``steps``, ``series``.
        """
        target = torch.empty_like(like)
        rows = [Row("copy", lambda: target.copy_(like)), *(Row(*peer) for peer in peers.items())]
        for row in rows:
            row.calls = self.clock.calls(row.run)
        for round_ in range(-1, self.arguments.rounds):  # the first warms up
            for row in rows:
                elapsed = self.clock.seconds(row.run, row.calls)
                on_device = self.clock.device_seconds(row.run, row.calls, elapsed)
                if round_ >= 0:
                    row.seconds.append(elapsed)
                    row.device_seconds += [] if on_device is None else [on_device]
        entries = [self._entry(row, rows[0].median, like) for row in rows]
        entries += elsewhere
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            within = 2 * like.nbytes <= getattr(
                torch.cuda.get_device_properties(self.device), "L2_cache_size", 0
            )
            facts["fits_l2"] = within
            title += ", within the L2 cache" if within else ""
        print(f"\n{title}")
        width = max(len(entry["name"]) for entry in entries)
        device_ms = f"  {'device ms':>9}" if on_gpu else ""
        print(f"{'':{width}}  {'ms':>9}{device_ms}  {'ns/element':>10}  {'x copy':>8}  {'peak MB':>8}")
        for entry in entries:
            if on_gpu:
                device_ms = f"  {_or_dash(entry['device_ms'], '9.4f')}"
            print(
                f"{entry['name']:{width}}  {entry['ms']:9.3f}{device_ms}  {entry['ns_per_element']:10.3f}  "
                f"{entry['times_copy']:8.2f}  {_or_dash(entry['peak_mb'], '8.1f')}"
            )
        self.tables.append({"title": title, "elements": like.numel(), **facts, "rows": entries})
        self._write()

    def _entry(self, row: Row, copy: float, like: Tensor) -> dict[str, Any]:
        peak = peak_memory(row.run, self.device)
        entry = {
            "name": row.name,
            "ms": round(row.median * 1e3, 5),
            "ns_per_element": round(row.median / like.numel() * 1e9, 4),
            "times_copy": round(row.median / copy, 3),
            "peak_mb": None if peak is None else round(peak / 1e6, 1),
        }
        if self.device.type == "cuda":
            told = len(row.device_seconds) == len(row.seconds)
            entry["device_ms"] = round(statistics.median(row.device_seconds) * 1e3, 5) if told else None
        return entry

    def compare(self, ours: str, theirs: Sequence[str]) -> float | None:
        """Print how much faster a row of the last table is than the fastest of others, and return it."""
        ms = {row["name"]: row["ms"] for row in self.tables[-1]["rows"]}
        present = [name for name in theirs if name in ms]
        if ours not in ms or not present:
            return None
        best = min(present, key=ms.__getitem__)
        print(f"{ours} is {ms[best] / ms[ours]:.1f} x as fast as {best}")
        return ms[best] / ms[ours]

    def goal(self, what: str, bound: str, limit: float, measured: float | None, unit: str) -> None:
        """Print and keep what was aimed at, and what was measured; ``bound`` is "<=" or ">="."""
        if measured is None:
            met, found = None, "not measured"
        else:
            met = measured <= limit if bound == "<=" else measured >= limit
            found = f"{measured:.4g} {unit}, {'met' if met else 'missed'}"
        print(f"goal {what} {bound} {limit:g} {unit}: {found}")
        self.goals.append(
            {"what": what, "bound": bound, "limit": limit, "unit": unit, "measured": measured, "met": met}
        )
        self._write()

    def leave_out(self, name: str, reason: str) -> None:
        """Say, once, why a peer is in no table."""
        if name not in self.left_out:
            self.left_out[name] = reason
            print(f"left out: {name}: {reason}")

    def runs(self, name: str, run: Callable[[], Any]) -> bool:
        """Whether somebody else's code runs here; it is left out where it does not."""
        try:
            run()
        except (Exception, SystemExit) as error:  # whatever it raises, or our refusal of what it gives
            lines = str(error).strip().splitlines() or [""]
            self.leave_out(name, f"{type(error).__name__}: {lines[0][:200]}")
            return False
        return True

    def finish(self) -> None:
        """Write the tables and the plot where the options say."""
        if self._write():
            print(f"\nwritten to {self.arguments.json}")
        if (path := self.arguments.plot) is not None and any(table.get("series") for table in self.tables):
            where = "{processor} · {threads} threads · torch {torch}".format(**self.machine)
            plot(self.tables, path, where)
            print(f"drawn into {path}")

    def _write(self) -> bool:
        """The file that the options name, after every table: a run that is cut short leaves what it has."""
        if (path := self.arguments.json) is None:
            return False
        found: dict[str, Any] = {"machine": self.machine, "tables": self.tables}
        for name, facts in (("goals", self.goals), ("left_out", self.left_out)):
            if facts:
                found[name] = facts
        path.write_text(json.dumps(found, indent=1) + "\n")
        return True


def _or_dash(value: float | None, form: str) -> str:
    """A number, or a dash as wide."""
    return f"{'-':>{form.partition('.')[0]}}" if value is None else f"{value:{form}}"


def machine(device: torch.device) -> dict[str, str]:
    """Versions and machine, for the head of a table."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    more = {}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        processor = gpu.name
        more["l2"] = f"{getattr(gpu, 'L2_cache_size', 0) / 1e6:.0f} MB, not flushed"
        more["cuda"] = str(torch.version.cuda)
    else:
        processor = report.processor()
    return {
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version != "absent"},
        "processor": processor,
        "system": platform.system(),
        **more,
    }


def training(run: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Callable[[], None]:
    """One forward and backward of ``run``, from a leaf."""

    def step() -> None:
        run(x.detach().requires_grad_()).backward(gradient)

    return step


def inference(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """One forward of ``run`` without a graph."""

    def step() -> None:
        with torch.no_grad():
            run(x)

    return step


def peak_memory(run: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that a run takes at most beyond what was taken before; ``None`` where the system does not say."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed; what comes from there would not show
    reset.write_text("5")  # the peak begins anew at what is resident now
    before = _peak_resident()
    run()
    return _peak_resident() - before


def _peak_resident() -> int:
    (line,) = (s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _style(name: str, names: list[str]) -> dict[str, Any]:
    """A colour for what is computed, a line style for who computes it: cpp and cupy solid, torch dashed."""
    if name == "copy":
        return {"color": "black", "linestyle": ":", "marker": "."}
    subject, provider = _split(name)
    subjects = [s for s in dict.fromkeys(_split(n)[0] for n in names) if s != "copy"]
    i = subjects.index(subject)
    line = {"cpp": "-", "cupy": "-", "torch": "--"}.get(provider, "-.")
    return {"color": f"C{i % 10}", "marker": "osD^v<>PhX*d"[i % 12], "linestyle": line}


def _split(name: str) -> tuple[str, str]:
    """Name of a row without its provider, and the provider, if it has one."""
    parts = name.split(", ")
    provider = next((part for part in parts if part in BACKENDS), "")
    return ", ".join(part for part in parts if part != provider), provider


def plot(tables: list[dict[str, Any]], path: Path, subtitle: str) -> None:
    """ns per element against T, a panel for each mode, a line for each row, of the tables with ``series``."""
    chosen = [table for table in tables if table.get("series")]
    modes = list(dict.fromkeys(table["mode"] for table in chosen))
    names = list(dict.fromkeys(row["name"] for table in chosen for row in table["rows"]))
    figure, axes = plt.subplots(
        1, len(modes), figsize=(5 * len(modes) + 2.5, 4.5), sharey=True, squeeze=False
    )
    styles = {name: _style(name, names) for name in names}
    for ax, mode in zip(axes[0], modes, strict=True):
        for name in names:
            points = [
                (table["steps"], row["ns_per_element"])
                for table in chosen
                if table["mode"] == mode
                for row in table["rows"]
                if row["name"] == name
            ]
            ax.plot(*zip(*sorted(points), strict=True), label=name, markersize=5, **styles[name])
        ax.set(xscale="log", yscale="log", title=mode, xlabel="steps T")
        ticks = sorted({table["steps"] for table in chosen})
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("ns per element")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.suptitle(f"{chosen[0]['series']}\n{subtitle}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
