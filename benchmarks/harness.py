"""What every benchmark shares: interleaved rounds, medians, ratios to a copy, the machine's name.

Absolute times drift with the machine; ratios of one run do not. So all rows of a table run in turn, round by
round, and a same-size ``copy_`` is one of them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Row:
    """One line of a table: what runs, and the seconds of its rounds."""

    name: str
    run: Callable[[], Any]
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(rows: list[Row], rounds: int, warmup: int = 1) -> None:
    """Time every row once a round, all rows in turn."""
    for round_ in range(-warmup, rounds):
        for row in rows:
            start = time.perf_counter()
            row.run()
            elapsed = time.perf_counter() - start
            if round_ >= 0:
                row.seconds.append(elapsed)


def machine() -> dict[str, str]:
    """Versions and machine, for the head of a table."""
    versions = {}
    for package in ("torch", "snntorch", "spikingjelly", "snn-fr-plugin"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        cpu = f"{names[0]} ({len(names)} visible)" if names else cpu
    return {
        "python": platform.python_version(),
        **versions,
        "cpu": cpu,
        "threads": str(torch.get_num_threads()),
        "system": platform.system(),
    }


def report(title: str, rows: list[Row], elements: int, copy: Row) -> dict[str, Any]:
    """Print a table and return it as plain data."""
    width = max(len(row.name) for row in rows)
    print(f"\n{title}")
    print(f"{'':{width}}  {'ms':>9}  {'ns/element':>10}  {'x copy':>8}")
    table = []
    for row in rows:
        entry = {
            "name": row.name,
            "ms": row.median * 1e3,
            "ns_per_element": row.median / elements * 1e9,
            "times_copy": row.median / copy.median,
            "rounds": len(row.seconds),
        }
        table.append(entry)
        timing = f"{entry['ms']:9.3f}  {entry['ns_per_element']:10.3f}  {entry['times_copy']:8.1f}"
        print(f"{row.name:{width}}  {timing}")
    return {"title": title, "elements": elements, "rows": table}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=7, help="timed rounds; medians are reported")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch.set_num_threads")
    options.add_argument("--json", type=Path, default=None, help="write the tables to this file")
    return options


def start(arguments: argparse.Namespace) -> None:
    """Apply the common options and print where this runs."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print("  ".join(f"{k} {v}" for k, v in machine().items()))


def finish(arguments: argparse.Namespace, tables: list[dict[str, Any]]) -> None:
    """Write the tables where ``--json`` says."""
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": machine(), "tables": tables}, indent=2) + "\n")
        print(f"\nwritten to {arguments.json}")
