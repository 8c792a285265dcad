"""Neurons of others that take more than a line: FlexSN, a compiled loop, SpikingJelly's old release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import Benchmark
from spikingjelly.activation_based import functional, surrogate
from spikingjelly.activation_based.neuron.flexsn import FlexSN
from torch import Tensor

from snn_fr_plugin import ops
from snn_fr_plugin.ops.lif.reference import lif as reference

# With a beta of 1/2 the product is exact: a compiler that contracts it with the sum changes no spike.
BETA, PERIOD = 0.5, 1
CHUNK = 32  # steps that both compilers unroll: their time grows faster than that, to minutes at 128 steps
OLD_RELEASE_LIMIT = 120  # seconds

_spike = surrogate.ATan(alpha=2.0)


def fr(x: Tensor, backend: str) -> Tensor:
    """The FR neuron of this package."""
    return ops.lif(x, BETA, refractory_period=PERIOD, backend=backend)[0]


def fr_core(x: Tensor, v: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step of the FR neuron as FlexSN wants it: all tensors of one dtype, steps left included.

    Whether a neuron fired is asked of the membrane, since FlexSN has no rule for ``detach``.
    """
    h = BETA * v + x
    is_open = (left <= 0).to(x.dtype)
    fired = (h >= 1.0).to(x.dtype) * is_open
    return _spike(h - 1.0) * is_open, h, PERIOD * fired + (1 - fired) * (left - 1).clamp_min(0)


class FRAsFlexSN:
    """``fr_core`` over a sequence, by chunks that carry the state, since FlexSN unrolls all steps."""

    def __init__(self) -> None:
        self.node = FlexSN(fr_core, num_states=2, step_mode="m")

    def __call__(self, x: Tensor) -> Tensor:
        spikes = torch.cat([self.node(chunk) for chunk in x.split(CHUNK)])
        functional.reset_net(self.node)
        if x.is_cuda and getattr(self.node, "_triton_handle", None) is None:
            raise RuntimeError("FlexSN found no kernel and ran a loop")
        return spikes


def fr_steps(x: Tensor, v: Tensor, refractory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A chunk of the reference loop."""
    spikes, _, (v, refractory) = reference(x, BETA, refractory_period=PERIOD, state=(v, refractory))
    return spikes, v, refractory


class FRAsCompiledLoop:
    """``fr_steps`` by torch.compile, chunk by chunk."""

    def __init__(self) -> None:
        self.steps = torch.compile(fr_steps, fullgraph=True, dynamic=False)

    def __call__(self, x: Tensor) -> Tensor:
        v, refractory = torch.zeros_like(x[0]), torch.zeros_like(x[0], dtype=torch.int32)
        spikes = []
        for chunk in x.split(CHUNK):
            chunk_spikes, v, refractory = self.steps(chunk, v, refractory)
            spikes.append(chunk_spikes)
        return torch.cat(spikes)


def lif_node_name(bench: Benchmark) -> str:
    """SpikingJelly's LIFNode and, on a GPU, which of its implementations serves it."""
    if bench.device.type == "cpu":
        return "SpikingJelly LIFNode"
    served = functional.neuron_implementation("lif", bench.device)
    for name, reason in served["unavailable"].items():
        bench.leave_out(f"SpikingJelly LIFNode, {name}", reason)
    return f"SpikingJelly LIFNode, {served['implementation']}"


def old_lif_node(
    bench: Benchmark, shapes: Sequence[tuple[int, int, int]], name: str
) -> dict[tuple[str, int, int], list[dict[str, Any]]]:
    """Rows of SpikingJelly 0.0.0.0.14 by mode, steps and neurons, from ``old_spikingjelly.py``.

    Two releases cannot be imported into one process, so another one times it, against its own copy.
    """
    where = bench.arguments.old_spikingjelly
    if where is None:
        bench.leave_out(name, "--old-spikingjelly does not say where it is")
        return {}
    path = [str(where.resolve()), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "old.json")
        command = [sys.executable, str(Path(__file__).with_name("old_spikingjelly.py")), "--json", str(file)]
        command += ["--device", str(bench.device), "--rounds", str(bench.arguments.rounds), "--name", name]
        for shape in shapes:
            command += ["--shape", *map(str, shape)]
        sys.stdout.flush()
        try:
            subprocess.run(
                command,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
                stderr=subprocess.PIPE,
                text=True,
                check=True,
                timeout=OLD_RELEASE_LIMIT,
            )
        except subprocess.TimeoutExpired:
            bench.leave_out(f"{name}, from some shape on", f"takes more than {OLD_RELEASE_LIMIT} s")
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
            bench.leave_out(name, lines[-1][:200])
        tables = json.loads(file.read_text())["tables"] if file.exists() else []
    return {
        (table["mode"], table["steps"], table["neurons"]): [
            row for row in table["rows"] if row["name"] == name
        ]
        for table in tables
    }
