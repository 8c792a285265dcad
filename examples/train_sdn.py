"""Train the surrogate dynamic network of SpikingSSM: what ``SurrogateDynamicsLIF`` runs in place of a reset.

    python examples/train_sdn.py --out sdn.json            # two minutes on one core
    SurrogateDynamicsLIF(weights="sdn.json")

The network sees the last eight inputs of a leaky integrate-and-fire neuron (hard reset to 0, threshold 1) and
learns what they leave in its membrane, on N(0, 1) input. How often its spikes agree with the neuron's is
measured on fresh traces, beside two controls: at a small beta even a neuron without reset, and a plain
threshold, agree most of the time. The file that the package ships, ``snn_fr_plugin/spiking/sdn.json``, was
written by this script with its default options.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snn_fr_plugin import ops
from snn_fr_plugin.spiking import SurrogateDynamics


class Traces(NamedTuple):
    """A LIF neuron on N(0, 1) input."""

    x: Tensor  # [T, N]
    spikes: Tensor  # [T, N]
    remembered: Tensor  # [T, N], beta v[t-1]: what a step begins with


class Agreement(NamedTuple):
    """The fraction of steps on which three stand-ins spike as the LIF neuron does."""

    network: float
    no_reset: float
    plain_threshold: float


def simulate(beta: float, steps: int, neurons: int) -> Traces:
    """The neuron that the network learns."""
    x = torch.randn(steps, neurons)
    spikes, membrane, _ = ops.lif(x, beta, reset="zero", return_membrane=True)
    assert membrane is not None
    return Traces(x, spikes, beta * torch.cat([torch.zeros(1, neurons), membrane[:-1]]))


@torch.no_grad()
def agreement(network: SurrogateDynamics, beta: float, steps: int = 1024, neurons: int = 200) -> Agreement:
    """On fresh traces."""
    x, spikes, _ = simulate(beta, steps, neurons)
    guessed = network(torch.zeros(SurrogateDynamics.TAPS, neurons), x) + x >= 1
    no_reset, _, _ = ops.lif(x, beta)
    same = [(other == spikes.bool()).double().mean().item() for other in (guessed, no_reset.bool(), x >= 1)]
    return Agreement(*same)


def train(beta: float, steps: int, seed: int) -> SurrogateDynamics:
    """Adam with a cosine schedule; a loss that is quadratic below an error of 0.01 and linear above."""
    torch.manual_seed(seed)
    network = SurrogateDynamics()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start = torch.zeros(SurrogateDynamics.TAPS, 32)
    for step in range(1, steps + 1):
        x, _, remembered = simulate(beta, 256, 32)
        loss = nn.functional.smooth_l1_loss(network(start, x), remembered, beta=0.01)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            print(f"step {step}: loss {loss.item():.2e}")
    return network


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: train, measure, write."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--beta", type=float, default=0.125, help="decay per step of the neuron")
    parser.add_argument("--steps", type=int, default=30_000, help="of training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("sdn.json"), help="file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    network = train(options.beta, options.steps, options.seed)
    same = agreement(network, options.beta)
    print("spikes that agree with the LIF neuron, on fresh traces:")
    for name, value in same._asdict().items():
        print(f"  {name.replace('_', ' '):<16}{value:8.3%}")
    content = {
        "about": "Weights of snn_fr_plugin.spiking.SurrogateDynamics, written by examples/train_sdn.py",
        "made": {"steps": options.steps, "seed": options.seed, "torch": torch.__version__},
        "agreement": {name: round(value, 5) for name, value in same._asdict().items()},
        "beta": options.beta,
        "weights": {name: _digits(p.tolist()) for name, p in network.state_dict().items()},
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    options.out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _digits(values: object) -> object:
    """Nested lists of float32, each with the nine digits that hold it."""
    return [_digits(v) for v in values] if isinstance(values, list) else float(f"{values:.9g}")


if __name__ == "__main__":
    main()
