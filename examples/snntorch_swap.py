"""The two-layer network of snnTorch's tutorials: with FRLeaky in place of Leaky, then without its loop."""

from __future__ import annotations

import time

import snntorch as snn
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snn_fr_plugin.integrations.snntorch import FRLeaky

STEPS = 25


class Net(nn.Module):
    def __init__(self, neuron: type[snn.Leaky], **options: object) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 100), neuron(beta=0.9, **options)
        self.fc2, self.lif2 = nn.Linear(100, 10), neuron(beta=0.9, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output spikes [T, B, 10] and hidden spikes [T, B, 100], one step a call as in the tutorials."""
        mem1, mem2, hidden, output = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            hidden.append(spk1)
            output.append(spk2)
        return torch.stack(output), torch.stack(hidden)


class MultistepNet(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same, one call for all steps."""
        hidden, _ = self.lif1(self.fc1(x).expand(STEPS, -1, -1))
        return self.lif2(self.fc2(hidden))[0], hidden


def main(epochs: int = 10) -> None:
    x, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    for net in Net(snn.Leaky), Net(FRLeaky), MultistepNet(FRLeaky, refractory_period=4, multistep=True):
        start, optimizer = time.perf_counter(), torch.optim.Adam(net.parameters(), lr=5e-3)
        for index in (i for _ in range(epochs) for i in torch.randperm(1500).split(100)):
            loss = nn.functional.cross_entropy(10 * net(x[index])[0].mean(0), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        output, hidden = net(x[1500:])
        accuracy = (output.sum(0).argmax(1) == y[1500:]).float().mean()
        seconds = time.perf_counter() - start
        print(f"{accuracy:.3f} test accuracy, {hidden.mean():.3f} firing rate, {seconds:.1f} s: {net.lif1}")


if __name__ == "__main__":
    main()
