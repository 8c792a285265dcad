"""A SpikingJelly network with a state-space layer and refractory neurons among SpikingJelly's own modules."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn

from snn_fr_plugin.integrations.spikingjelly.layer import SpikingFRSSM
from snn_fr_plugin.integrations.spikingjelly.neuron import FRLIFNode


class Net(nn.Module):
    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.spiking = nn.Sequential(
            layer.Linear(8, channels),
            SpikingFRSSM(channels, d_state=8, refractory_period=1, norm="batch", dt_min=0.05, dt_max=1.0),
            layer.Linear(channels, channels),
            nn.LayerNorm(channels),
            FRLIFNode(tau=2.0, decay_input=False, refractory_period=1),
        )
        self.readout = nn.Linear(channels, 10)
        functional.set_step_mode(self, "m")

    def forward(self, x_seq: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores [N, 10] of sequences [T, N, 8], and the spikes [T, N, C] of the last layer."""
        spikes = self.spiking(x_seq)
        return self.readout(spikes.mean(0)), spikes


def main(epochs: int = 10) -> None:
    images, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
    x_seq = images.float().view(-1, 8, 8).transpose(0, 1) / 16  # the rows of a digit are its 8 steps
    net = Net()
    print(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for epoch in range(1, epochs + 1):
        net.train()
        for index in torch.randperm(1500).split(32):
            scores, _ = net(x_seq[:, index])
            loss = nn.functional.cross_entropy(scores, y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            functional.reset_net(net)
        net.eval()
        with torch.no_grad():
            scores, spikes = net(x_seq[:, 1500:])
        functional.reset_net(net)
        accuracy = (scores.argmax(1) == y[1500:]).float().mean()
        print(f"epoch {epoch}: test accuracy {accuracy:.3f}, firing rate {spikes.mean():.3f}")


if __name__ == "__main__":
    main()
