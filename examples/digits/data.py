"""Sequential digits: the 1,797 handwritten digits of scikit-learn, read pixel by pixel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

CLASSES = 10
SIDE = 8  # an image is 8 x 8 pixels, a sequence 64 steps
SPLITS = ("random", "ordered")
SPLIT_SIZES = (1197, 300, 300)
SPLIT_SEED = 0  # not the seed of a run: every run sees the same three parts


class Part(NamedTuple):
    """Sequences and their labels."""

    x: Tensor  # [T = 64, n, 1], grey values in [0, 1], row by row
    y: Tensor  # [n], 0 to 9

    def take(self, index: Tensor) -> Part:
        """The examples at ``index``."""
        return Part(self.x[:, index], self.y[index])

    def to(self, device: torch.device) -> Part:
        """The same examples on another device."""
        return Part(self.x.to(device), self.y.to(device))


class Digits(NamedTuple):
    """Three parts that share no image."""

    train: Part
    validation: Part
    test: Part


def load(split: str = "random") -> Digits:
    """1,197 training, 300 validation and 300 test sequences.

    Args:
        split: "random" shuffles with a fixed seed, which probably puts digits of one writer into several
            parts; "ordered" cuts the data set in its own order, first images for training, last for the
            test, and is harder.

    Raises:
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'random' or 'ordered', got {split!r}")
    images, labels = load_digits(return_X_y=True)
    sequences = torch.as_tensor(images, dtype=torch.float32).div(16).T.unsqueeze(-1)
    everything = Part(sequences, torch.as_tensor(labels, dtype=torch.long))
    order = torch.arange(len(labels))
    if split == "random":
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    return Digits(*(everything.take(part) for part in order.split(SPLIT_SIZES)))
