"""One system trained, tested and counted, and many of them in parallel."""

from __future__ import annotations

import math
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from tqdm import tqdm

from snn_fr_plugin.systems import PSpikeSSM

from . import data, operations, systems, training


@dataclass(frozen=True)
class Job:
    """What to train."""

    system: str
    seed: int  # of weights, batches, dropout; not of the split
    channels: int
    epochs: int
    lr: float
    split: str
    backend: str
    folder: Path  # for its checkpoints
    resume: bool  # from the last of them, where there is one


@dataclass(frozen=True)
class Trial:
    """What came out, or the error with which it ended. One row of ``results.csv``."""

    system: str
    title: str
    is_control: bool
    seed: int
    channels: int
    parameters: int
    lr: float
    epochs: int
    error: str | None = None
    test_accuracy: float | None = None
    validation_accuracy: float | None = None
    best_epoch: int | None = None  # by the validation part, counted from 1
    firing_rate: float | None = None  # spikes per neuron and step, on the test part
    macs: float | None = None  # multiply-accumulates of an inference
    acs: float | None = None  # its synaptic operations
    energy_nj: float | None = None
    seconds_per_epoch: float | None = None  # median
    deterministic_test_accuracy: float | None = None  # P-SpikeSSM without its sampling


@dataclass(frozen=True)
class Summary:
    """The trials of a system: a row of the table, a point of the figure."""

    system: str
    title: str
    is_control: bool
    parameters: int
    errors: list[str]
    accuracies: list[float]  # on the test part, of the seeds that did not end in an error
    firing_rate: float = math.nan  # these are means over the same seeds
    macs: float = math.nan
    acs: float = math.nan
    energy_nj: float = math.nan
    seconds_per_epoch: float = math.nan  # the median

    @property
    def accuracy(self) -> float:
        """Mean over the seeds."""
        return mean(self.accuracies)


def summarise(trials: Sequence[Trial]) -> list[Summary]:
    """By system, in the order in which they come."""
    summaries = []
    for system in dict.fromkeys(trial.system for trial in trials):
        every = [trial for trial in trials if trial.system == system]
        done: list[Any] = [trial for trial in every if trial.error is None]
        measured = ("firing_rate", "macs", "acs", "energy_nj")
        means = {name: mean(getattr(trial, name) for trial in done) for name in measured if done}
        if done:
            means["seconds_per_epoch"] = median(trial.seconds_per_epoch for trial in done)
        summaries.append(
            Summary(
                system=system,
                title=every[0].title,
                is_control=every[0].is_control,
                parameters=every[0].parameters,
                errors=[f"seed {trial.seed}: {trial.error}" for trial in every if trial.error],
                accuracies=[trial.test_accuracy for trial in done],
                **means,
            )
        )
    return summaries


def run(job: Job) -> Trial:
    """Train a system, test its best epoch, count its operations on the test part."""
    system = systems.SYSTEMS[job.system]
    settings = training.Settings(
        model=job.system,
        framework="snn_fr_plugin",
        split=job.split,
        refractory_period=systems.REFRACTORY_PERIOD,
        epochs=job.epochs,
        lr=job.lr,
        batch_size=32,
        seed=job.seed,
    )
    digits = data.load(job.split)
    make = partial(systems.build, job.system, job.channels, job.backend)
    training_run = training.Run(settings, make, digits, job.folder, system.title)
    network = training_run.network
    facts: dict[str, Any] = {
        "system": job.system,
        "title": system.title,
        "is_control": system.is_control,
        "seed": job.seed,
        "channels": job.channels,
        "parameters": systems.parameters(network),
        "lr": job.lr,
        "epochs": job.epochs,
    }
    try:
        if job.resume:
            training_run.resume()
        training_run.fit(progress=False)
    except (training.DivergedError, training.CheckpointError) as error:
        return Trial(**facts, error=str(error))
    systems.deploy(network)
    result = training_run.test()
    cost = operations.count(network, digits.test.x)
    samplers = [module for module in network.modules() if isinstance(module, PSpikeSSM)]
    for module in samplers:
        module.deterministic = True
    return Trial(
        **facts,
        test_accuracy=result.test_accuracy,
        validation_accuracy=result.history[result.best_epoch - 1].validation_accuracy,
        best_epoch=result.best_epoch,
        firing_rate=result.firing_rate,
        macs=cost.macs,
        acs=cost.acs,
        energy_nj=cost.energy,
        seconds_per_epoch=result.seconds_per_epoch,
        deterministic_test_accuracy=training.evaluate(network, digits.test)[0] if samplers else None,
    )


def run_all(jobs: Sequence[Job], processes: int) -> Iterator[Trial]:
    """The trials as they are done, in no order; with one process in this one."""
    if processes == 1:
        yield from map(run, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_begin) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            for child in multiprocessing.active_children():  # there are no others
                child.terminate()
            raise


def _begin() -> None:
    """One thread each. An interruption is the parent's to handle, which ends its children."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a terminated process leaves behind
