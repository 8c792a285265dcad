"""The comparison of systems: equal parameters, operations as counted by hand, and what failures do."""

from __future__ import annotations

import csv
import importlib
import json
import multiprocessing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from torch import nn

from snn_fr_plugin.systems import BinaryS4D, SpikingFRSSM
from tests.support import assert_some_spikes
from tests.test_examples import Interrupt, data, few, models, training

comparison: Any = importlib.import_module("digits.comparison")
operations: Any = importlib.import_module("digits.operations")
systems: Any = importlib.import_module("digits.systems")
script: Any = importlib.import_module("compare_systems")


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "load", few)


def job(folder: Path, system: str = "lif", **changes: Any) -> Any:
    settings = {"seed": 0, "channels": 8, "epochs": 1, "lr": 0.01, "split": "random", "backend": "auto"}
    settings["resume"] = False
    return comparison.Job(system=system, folder=folder, **settings | changes)


def without_times(trial: Any) -> Any:
    return replace(trial, seconds_per_epoch=None)


# --- networks


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_all_networks_have_about_the_same_parameters(name: str) -> None:
    channels = systems.channels_for(name)
    sizes = [systems.parameters(systems.build(name, c)) for c in (channels - 1, channels, channels + 1)]
    errors = [abs(size - systems.PARAMETERS) for size in sizes]
    assert errors[1] == min(errors)
    assert errors[1] < 0.015 * systems.PARAMETERS


def test_an_impossible_budget_is_refused() -> None:
    for budget in (10, 10**9):
        with pytest.raises(ValueError, match=rf"budget must be between \d+ and \d+ parameters, got {budget}"):
            systems.channels_for("lif", budget)


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_networks_begin_at_rest_and_spike(name: str) -> None:
    network = systems.build(name, 12)
    x = few().train.x
    for _ in range(10):
        network(x)  # statistics of the norms
    network.eval()
    if name == "pspikessm":
        for stage in network.stages:
            stage.block.layer.deterministic = True
    scores, spikes = network(x)
    assert scores.shape == (64, 10) and [s.shape for s in spikes] == [(64, 64, 12)] * 2
    assert torch.equal(network(x)[0], scores)
    for s in spikes:
        assert set(s.unique().tolist()) == {0.0, 1.0}
        assert_some_spikes(s)
        if name.startswith("fr"):
            assert not (s[1:] * s[:-1]).any() and not (s[2:] * s[:-2]).any()


def test_pmsn_passes_whole_numbers_on() -> None:
    network = systems.build("pmsn", 12).eval()
    x = few().test.x
    first, second = network.stages
    spikes, same = first(x)
    stream, more = second(spikes)
    assert torch.equal(spikes, same) and torch.equal(stream, spikes + more)


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("name", ["spikingssm", "spikessm"])
def test_exact_neurons_are_tested(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that run in parallel are trained."""
    evaluate, exact = training.evaluate, []

    def watched(network: Any, part: Any) -> Any:
        exact.append([stage.block.layer.spiking.exact for stage in network.stages])
        return evaluate(network, part)

    monkeypatch.setattr(training, "evaluate", watched)
    comparison.run(job(tmp_path, name))
    assert exact == [[False, False], [True, True]]


# --- operations


def tiny(layer: Any) -> Any:
    """One block of 3 channels whose drive is far above its threshold at every step."""
    network = models.Network(nn.Linear(1, 3), [systems.PaperBlock(layer)], 3).eval()
    with torch.no_grad():
        layer.norm.bias.fill_(1000.0)
    return network


def test_operations_of_a_tiny_network() -> None:
    """By hand, for 5 steps, 3 channels, 2 complex modes and 10 classes."""
    x = torch.rand(5, 2, 1)
    encoder, memory, block, readout = 5 * 3, 5 * 3 * (2 * 6 + 1), 5 * 3 * 2, 3 * 10
    macs = encoder + memory + block + readout
    assert macs == 270
    every_step, every_second = 5 * 3 * 6, 3 * 3 * 6  # spikes to the 6 inputs of the GLU
    assert operations.count(tiny(BinaryS4D(3, 4)), x) == (macs, every_step)
    counted = operations.count(tiny(SpikingFRSSM(3, 4, refractory_period=1)), x)
    assert counted == (macs, every_second)
    assert counted.energy == pytest.approx((4.6 * 270 + 0.9 * 54) / 1000)


@pytest.mark.parametrize(
    ("name", "memory", "neuron", "block"),
    [
        ("frssm", 8 * 6 + 1, 0, 2),
        ("pssm", 8 * 6 + 1, 8, 2),
        ("spikingssm", 8 * 6 + 1, 1, 2),
        ("spikessm", 8 * 6 + 1, 1, 2),
        ("pspikessm", 8 * 6, 0, 3),  # it reads spikes, after an affine map
        ("pmsn", 4 * 6 + 1, 0, 0),
        ("prf", 4, 0, 2),
        ("fr-lif", 1, 0, 2),
        ("lif", 0, 1, 3),
        ("binary-s4d", 8 * 6 + 1, 0, 2),
        ("leaky", 1, 0, 2),
    ],
)
def test_operations_of_every_system(name: str, memory: int, neuron: int, block: int) -> None:
    steps, channels = 20, 6
    x = torch.rand(steps, 3, 1)
    network = systems.build(name, channels).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.constant_(module.bias, 0.5)  # some spikes
    torch.manual_seed(1)  # P-SpikeSSM's samples
    _, (first, second) = network(x)
    torch.manual_seed(1)
    counted = operations.count(network, x)
    assert_some_spikes(first)
    layers = 2 * channels * (memory + neuron + block)
    assert counted.macs == steps * (channels + layers) + channels * 10
    targets = {"pspikessm": channels, "pmsn": channels}.get(name, 2 * channels)
    synaptic = (first.sum() if name == "pmsn" else first.sum() + second.sum()).item() * targets / 3
    if name == "pspikessm":  # and the spikes that its memories read, one target each
        assert synaptic < counted.acs < synaptic + 2 * steps * channels
    else:
        assert counted.acs == pytest.approx(synaptic)


def test_whole_numbers_count_as_so_many_spikes() -> None:
    network = models.Network(nn.Linear(1, 3), [], 3)
    x = torch.tensor([[2.0, 0.0], [1.0, 1.0]])[..., None]  # [T, N, 1]
    assert operations.count(network, x) == (3 * 10, 2 * 3)  # four units, two sequences


# --- results


def summary(**changes: Any) -> Any:
    row = comparison.Summary(
        system="frssm",
        title="SpikingFRSSM",
        is_control=False,
        parameters=22410,
        errors=[],
        accuracies=[0.98, 0.99, 0.985],
        firing_rate=0.0815,
        macs=422528.0,
        acs=88400.0,
        energy_nj=2023.2,
        seconds_per_epoch=0.3811,
    )
    return replace(row, **changes)


def test_table() -> None:
    rows = [
        summary(),
        summary(title="LIF", is_control=True, errors=["seed 1: it diverged"]),
        summary(title="PRF", errors=["seed 0: it diverged"], accuracies=[]),
    ]
    lines = script.table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    measured = ["0.082", "22,410", "423 k", "88 k", "2.02 µJ", "0.38"]
    assert cells[2:] == [
        ["SpikingFRSSM", "0.985 (0.980-0.990)", *measured],
        ["LIF (control)", "0.985 (0.980-0.990), 1 failed", *measured],
        ["PRF", "failed", "", "22,410", "", "", "", ""],
    ]


@pytest.mark.usefixtures("few_digits")
def test_two_systems_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "not" / "there"
    arguments = ["--system", "pspikessm", "binary-s4d", "--seeds", "1", "0", "1", "--epochs", "2"]
    script.main([*arguments, "--jobs", "1", "--out-dir", str(folder)])
    printed = capsys.readouterr().out
    assert "| S4D, plain threshold (control) |" in printed
    assert "random split 1197/300/300, seeds 1, 0; accuracy" in printed
    assert "P-SpikeSSM, seed 0: test accuracy" in printed
    report = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert report["versions"].keys() == {"python", "snn-fr-plugin", "torch"} and report["processor"]
    with (folder / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = [("pspikessm", "1"), ("pspikessm", "0"), ("binary-s4d", "1"), ("binary-s4d", "0")]
    assert [(row["system"], row["seed"]) for row in rows] == expected
    for row, written in zip(rows, report["results"], strict=True):
        assert row.keys() == written.keys() == {f.name for f in fields(comparison.Trial)}
        assert abs(int(row["parameters"]) / systems.PARAMETERS - 1) < 0.015
        assert 0 <= float(row["test_accuracy"]) <= 1 and 0 < float(row["firing_rate"]) < 1
        energy = operations.Operations(float(row["macs"]), float(row["acs"])).energy
        assert float(row["energy_nj"]) == pytest.approx(energy)
        assert bool(row["deterministic_test_accuracy"]) == (row["system"] == "pspikessm")
        assert row["error"] == ""
    assert not list(folder.rglob("*.tmp"))
    image = matplotlib.image.imread(folder / "compare_systems.png")
    assert min(image.shape[:2]) > 500 and image[..., :3].std() > 0.05


@pytest.mark.usefixtures("few_digits")
def test_seed_changes_a_trial_and_nothing_else_does(tmp_path: Path) -> None:
    first, again, other = (comparison.run(job(tmp_path, seed=seed)) for seed in (0, 0, 1))
    assert without_times(first) == without_times(again)
    assert first.energy_nj != other.energy_nj


@pytest.mark.usefixtures("few_digits")
def test_a_system_that_diverges_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_epoch = training.Run._train_epoch

    def diverge(run: Any) -> Any:
        if (run.settings.model, run.settings.seed) == ("lif", 0):
            raise training.DivergedError("the gradient became NaN")
        return train_epoch(run)

    monkeypatch.setattr(training.Run, "_train_epoch", diverge)
    arguments = ["--system", "lif", "leaky", "--seeds", "0", "1", "--epochs", "1", "--jobs", "1"]
    with pytest.raises(SystemExit) as error:
        script.main([*arguments, "--out-dir", str(tmp_path)])
    assert str(error.value).splitlines()[1:] == ["LIF, seed 0: the gradient became NaN"]
    assert ", 1 failed" in capsys.readouterr().out
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["results"]
    assert [row["error"] for row in rows] == ["the gradient became NaN", None, None, None]
    assert [row["test_accuracy"] is None for row in rows] == [True, False, False, False]


@pytest.mark.usefixtures("few_digits")
def test_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples in the test included; what was finished before the interruption is on file."""
    arguments = ["--system", "lif", "pspikessm", "--seeds", "0", "--epochs", "2", "--jobs", "1"]
    whole, parts = ([*arguments, "--out-dir", str(tmp_path / name)] for name in ("whole", "parts"))
    expected = script.run(script.parse(whole))
    with monkeypatch.context() as patched:
        patched.setattr(training, "_save", Interrupt("checkpoint_latest.pth", 3))
        with pytest.raises(SystemExit, match="interrupted: the same command with --resume continues here"):
            script.main(parts)
    rows = json.loads((tmp_path / "parts" / "results.json").read_text(encoding="utf-8"))["results"]
    assert [row["system"] for row in rows] == ["lif"]
    torch.manual_seed(99)
    epochs, train_epoch = [], training.Run._train_epoch
    monkeypatch.setattr(training.Run, "_train_epoch", lambda r: epochs.append(r) or train_epoch(r))
    got = script.run(script.parse([*parts, "--resume"]))
    assert len(epochs) == 1  # what the interruption had lost
    assert [without_times(trial) for trial in got] == [without_times(trial) for trial in expected]


@pytest.mark.usefixtures("few_digits")
def test_a_fresh_start_leaves_nothing_old_to_resume(tmp_path: Path) -> None:
    arguments = [
        "--system",
        "lif",
        "--seeds",
        "0",
        "--epochs",
        "1",
        "--jobs",
        "1",
        "--out-dir",
        str(tmp_path),
    ]
    script.run(script.parse(arguments))
    (latest,) = tmp_path.rglob("checkpoint_latest.pth")
    script._jobs(script.parse([*arguments, "--resume"]))
    assert latest.exists()
    script._jobs(script.parse(arguments))
    assert not latest.exists()


def test_processes_give_the_same_trial_and_end_when_interrupted(tmp_path: Path) -> None:
    short, endless = job(tmp_path / "a"), job(tmp_path / "b", "leaky", epochs=10**6)
    trials = comparison.run_all([endless, short], 2)
    first = next(trials)
    with pytest.raises(KeyboardInterrupt):
        trials.throw(KeyboardInterrupt())
    assert not multiprocessing.active_children()
    torch.set_num_threads(1)
    assert without_times(first) == without_times(comparison.run(job(tmp_path / "c")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "rnn"], "invalid choice: 'rnn'"),
        (["--seeds", "-1"], "expected an integer >= 0, got '-1'"),
        (["--epochs", "0"], "expected an integer >= 1, got '0'"),
        (["--jobs", "0"], "expected an integer >= 1, got '0'"),
        (["--lr", "nan"], "expected a number > 0, got 'nan'"),
        (["--split", "sorted"], "invalid choice: 'sorted'"),
        (["--backend", "numpy"], "invalid choice: 'numpy'"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        script.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_had_here_is_said_before_training(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"error: --backend cupy: backend='cupy' serves cuda tensors"):
        script.main(["--backend", "cupy", "--out-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"error: --out-dir {file} cannot be used"):
        script.main(["--out-dir", str(file)])
    assert list(tmp_path.iterdir()) == [file]
