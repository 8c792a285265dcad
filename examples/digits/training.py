"""Training with checkpoints from which a run continues exactly, and the one look at the test part."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from snn_fr_plugin.systems import param_groups

from .data import Digits, Part
from .models import Network

LATEST, BEST = "checkpoint_latest.pth", "checkpoint_max.pth"  # SpikingJelly's names


@dataclass(frozen=True)
class Settings:
    """What determines a run. Its checkpoints hold them, and are continued only under the same."""

    model: str
    framework: str
    split: str
    refractory_period: int
    epochs: int
    lr: float
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Epoch:
    """What an epoch left behind."""

    loss: float  # on the training part, label smoothing included
    validation_accuracy: float
    validation_loss: float
    seconds: float  # of training, without the validation

    @property
    def merit(self) -> tuple[float, float]:
        """By this the best epoch is chosen: accuracy, then loss, both on the validation part."""
        return self.validation_accuracy, -self.validation_loss


@dataclass(frozen=True)
class Result:
    """A row of the table, and the learning curves behind it."""

    title: str
    settings: Settings
    test_accuracy: float
    firing_rate: float  # spikes per neuron and step, on the test part
    parameters: int
    seconds_per_epoch: float  # median
    best_epoch: int  # counted from 1
    history: list[Epoch]

    def as_row(self) -> dict[str, Any]:
        """Without the learning curves, flat."""
        row = asdict(self)
        settings, history = row.pop("settings"), row.pop("history")
        best = history[self.best_epoch - 1]
        return {**settings, **row, "validation_accuracy": best["validation_accuracy"]}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or belongs to another run."""


class DivergedError(RuntimeError):
    """Training went wrong; the last checkpoint is from before."""


@torch.no_grad()
def evaluate(network: Network, part: Part) -> tuple[float, float, float]:
    """Accuracy, cross-entropy, and spikes per neuron and step."""
    network.eval()
    scores, spikes = network(part.x)
    accuracy = (scores.argmax(1) == part.y).float().mean()
    rate = torch.stack([s.mean() for s in spikes]).mean()  # the stages are equally wide
    return accuracy.item(), nn.functional.cross_entropy(scores, part.y).item(), rate.item()


class Run:
    """A network in training: all that a checkpoint must hold to continue as if nothing had happened.

    AdamW with weight decay on the synapses alone, a one-cycle learning rate, label smoothing .05, gradients
    clipped to norm 1. The time scales of the memories learn as fast as the rest. ``make`` builds the network,
    after the seed is set.
    """

    def __init__(
        self, settings: Settings, make: Callable[[], Network], digits: Digits, folder: Path, title: str
    ) -> None:
        self.settings, self.digits, self.folder, self.title = settings, digits, folder, title
        self.history: list[Epoch] = []
        torch.manual_seed(settings.seed)
        self.device = digits.train.x.device
        self.network = make().to(self.device)
        self.optimizer = torch.optim.AdamW(
            param_groups(self.network, settings.lr, ssm_lr=settings.lr, weight_decay=0.01), fused=True
        )
        batches = math.ceil(len(digits.train.y) / settings.batch_size)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, settings.lr, total_steps=settings.epochs * batches, pct_start=0.2
        )

    def fit(self, *, progress: bool = True) -> None:
        """Train to the end; the network is then that of the best epoch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tqdm(
            total=self.settings.epochs,
            initial=len(self.history),
            desc=f"{self.title:>20}",
            unit="epoch",
            disable=not progress,
        ) as bar:
            while len(self.history) < self.settings.epochs:
                epoch = self._train_epoch()
                is_best = all(epoch.merit > earlier.merit for earlier in self.history)
                self.history.append(epoch)
                if is_best:  # before the other, which says that this epoch is done
                    _save(self.folder / BEST, self._identity() | {"network": self.network.state_dict()})
                _save(self.folder / LATEST, self._state())
                bar.set_postfix_str(f"loss {epoch.loss:.3f}, validation {epoch.validation_accuracy:.3f}")
                bar.update()
        self.network.load_state_dict(_load(self.folder / BEST, self.settings)["network"])

    def _train_epoch(self) -> Epoch:
        start, losses, norms = time.perf_counter(), [], []
        self.network.train()
        parameters = list(self.network.parameters())
        train, validation, _ = self.digits
        for index in torch.randperm(len(train.y)).split(self.settings.batch_size):
            batch = train.take(index.to(self.device))
            scores, _ = self.network(batch.x)
            loss = nn.functional.cross_entropy(scores, batch.y, label_smoothing=0.05)
            self.optimizer.zero_grad()
            loss.backward()
            norms.append(nn.utils.clip_grad_norm_(parameters, 1.0))
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        if not torch.stack(norms).isfinite().all():
            raise DivergedError(
                f"the gradient of {self.settings.model} became infinite or NaN in epoch "
                f"{len(self.history) + 1}: try a lower rate than --lr {self.settings.lr:g}"
            )
        mean_loss = torch.stack(losses).mean().item()
        seconds = time.perf_counter() - start
        accuracy, validation_loss, _ = evaluate(self.network, validation)
        return Epoch(mean_loss, accuracy, validation_loss, seconds)

    def test(self) -> Result:
        """The one look at the test part, after ``fit``."""
        accuracy, _, rate = evaluate(self.network, self.digits.test)
        return Result(
            title=self.title,
            settings=self.settings,
            test_accuracy=accuracy,
            firing_rate=rate,
            parameters=sum(p.numel() for p in self.network.parameters()),
            seconds_per_epoch=median(epoch.seconds for epoch in self.history),
            best_epoch=1 + max(range(len(self.history)), key=lambda e: self.history[e].merit),
            history=self.history,
        )

    def _identity(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "history": [asdict(epoch) for epoch in self.history]}

    def _state(self) -> dict[str, Any]:
        on_gpu = self.device.type == "cuda"
        return self._identity() | {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if on_gpu else None,
        }

    def resume(self) -> None:
        """Continue from the last checkpoint of the folder; from the beginning where there is none.

        Raises:
            CheckpointError: the checkpoint cannot be read, or was made under other settings.
        """
        if not (self.folder / LATEST).exists():
            return
        state = _load(self.folder / LATEST, self.settings)
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.history = [Epoch(**epoch) for epoch in state["history"]]
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.folder / LATEST} does not fit this version: {error}") from error
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["rng_cuda"] is not None:
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)


def _save(path: Path, content: dict[str, Any]) -> None:
    """In one move: whoever is interrupted here leaves the old file or the new one, never half of it."""
    unfinished = path.with_suffix(".tmp")
    torch.save(content, unfinished)
    unfinished.replace(path)


def _load(path: Path, settings: Settings) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        made_under = state["settings"]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of this script: {error}") from error
    wanted = asdict(settings)
    if made_under != wanted:
        differences = ", ".join(
            f"{name}={made_under.get(name)!r} there and {value!r} now"
            for name, value in wanted.items()
            if made_under.get(name) != value
        )
        raise CheckpointError(f"{path} is from a run with other settings: {differences}")
    return state
