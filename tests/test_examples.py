"""The examples: what they promise about their data, checkpoints and results, run on a few digits."""

from __future__ import annotations

import csv
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import snntorch as snn
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snn_fr_plugin import systems
from tests.support import assert_some_spikes

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
data: Any = importlib.import_module("digits.data")
models: Any = importlib.import_module("digits.models")
training: Any = importlib.import_module("digits.training")
script: Any = importlib.import_module("sequential_digits")
load_all = data.load


def few(split: str = "random") -> Any:
    """A few digits of every part."""
    everything = load_all(split)
    return data.Digits(
        *(part.take(torch.arange(n)) for part, n in zip(everything, (64, 24, 24), strict=True))
    )


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "load", few)


@pytest.fixture
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training on a few digits."""
    monkeypatch.setattr(script.figure, "draw", lambda *_: None)


def run(folder: Path, *arguments: str) -> list[Any]:
    results: list[Any] = script.run(script.parse(["--out-dir", str(folder), *arguments]))
    return results


def without_times(results: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for result in results:
        row = {name: getattr(result, name) for name in result.__dataclass_fields__}
        row["history"] = [(e.loss, e.validation_accuracy, e.validation_loss) for e in result.history]
        del row["seconds_per_epoch"]
        rows.append(row)
    return rows


def best_network(folder: Path, model: str) -> dict[str, Tensor]:
    checkpoint = torch.load(folder / model / "checkpoint_max.pth", weights_only=True)
    network: dict[str, Tensor] = checkpoint["network"]
    return network


def assert_same_network(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


# --- data


def test_random_split_is_a_fixed_partition() -> None:
    digits = load_all("random")
    assert [part.x.shape for part in digits] == [(64, 1197, 1), (64, 300, 1), (64, 300, 1)]
    torch.manual_seed(1)
    assert all(torch.equal(a.x, b.x) for a, b in zip(digits, load_all("random"), strict=True))
    images = torch.cat([part.x for part in digits], 1)[..., 0].T * 16
    rows = sorted(zip(images.tolist(), torch.cat([part.y for part in digits]).tolist(), strict=True))
    x, y = load_digits(return_X_y=True)
    assert rows == sorted(zip(x.tolist(), y.tolist(), strict=True))


def test_ordered_split_keeps_the_order_of_the_data_set() -> None:
    digits = load_all("ordered")
    assert digits.train.y[:10].tolist() == list(range(10))
    images = torch.as_tensor(load_digits().images)
    for part, start in zip(digits, (0, 1197, 1497), strict=True):
        assert torch.equal(part.x[:, 5, 0].view(8, 8), images[start + 5].float() / 16)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split must be 'random' or 'ordered', got 'sorted'"):
        load_all("sorted")


# --- models


@pytest.mark.parametrize("framework", models.FRAMEWORKS)
@pytest.mark.parametrize("name", ["frssm", "pssm"])
@pytest.mark.parametrize("training_mode", [False, True])
def test_block_is_the_block_of_the_package(framework: str, name: str, training_mode: bool) -> None:
    """Around a native layer as around the core's: same parameters, same output."""
    types = models.FRAMEWORKS[framework](2, "auto")
    native = getattr(types, name)(6)
    block = models.Block(6, native, types, nn.Identity(), 0.1)
    core = systems.SpikingBlock(getattr(types, name)(6).system)
    core.load_state_dict(
        {k.replace("spiking.system.", "layer.", 1): v for k, v in block.state_dict().items()}
    )
    x = torch.randn(20, 5, 6)
    outputs = []
    for module in (block, core):
        torch.manual_seed(1)  # dropout
        outputs.append(module.train(training_mode)(x)[0])
    assert torch.equal(*outputs)
    assert_some_spikes(block(x)[1])


def test_lif_of_snntorch_is_its_leaky() -> None:
    """What the note under the table says."""
    neuron = models.SnnTorch(2, "auto").lif(6)
    parent = snn.Leaky(neuron.beta.detach(), reset_mechanism="zero")
    x = torch.randn(30, 4, 6)
    mem, expected = parent.reset_mem(), []
    for x_t in x.unbind(0):
        spikes, mem = parent(x_t, mem)
        expected.append(spikes)
    assert torch.equal(neuron(x)[0], torch.stack(expected))
    assert_some_spikes(torch.stack(expected))


@pytest.mark.parametrize("framework", models.FRAMEWORKS)
@pytest.mark.parametrize("name", models.MODELS)
def test_networks_begin_at_rest_and_keep_their_period(framework: str, name: str) -> None:
    network = models.build(name, models.FRAMEWORKS[framework](3, "auto"), channels=12).eval()
    x = few().test.x
    scores, spikes = network(x)
    assert scores.shape == (24, 10) and [s.shape for s in spikes] == [(64, 24, 12)] * 2
    assert torch.equal(network(x)[0], scores)
    assert set(spikes[0].unique().tolist()) == {0.0, 1.0}
    period = models.trace(network, x[:, :1]).refractory_period
    assert period == (3 if name.startswith("fr") else 0)
    for lag in range(1, period + 1):
        assert not (spikes[0][lag:] * spikes[0][:-lag]).any()


@pytest.mark.parametrize("framework", models.FRAMEWORKS)
@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("stage", [0, 1])
def test_trace_shows_what_crossed_the_threshold(framework: str, name: str, stage: int) -> None:
    network = models.build(name, models.FRAMEWORKS[framework](2, "auto"), channels=32)
    for _ in range(10):
        network(few().train.x)  # statistics of the norms
    x = few().test.x[:, :1]
    spikes, memory, threshold, _ = models.trace(network, x, stage)
    assert torch.equal(spikes, network(x)[1][stage][:, 0])
    assert_some_spikes(spikes)
    if not (framework == "spikingjelly" and "lif" in name):  # its membrane is the one after the reset
        assert (memory[spikes > 0] >= threshold.expand_as(memory)[spikes > 0]).all()
    if name == "pssm":  # nothing but the threshold decides
        assert torch.equal(spikes > 0, memory >= threshold)


# --- the main job


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("framework", models.FRAMEWORKS)
def test_all_models_train_and_report(
    framework: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "not" / "there"
    script.main(["--out-dir", str(folder), "--framework", framework, "--epochs", "2"])
    printed = capsys.readouterr()
    titles = [model.title for model in models.MODELS.values()]
    shown = [line.split("|")[1].strip() for line in printed.out.splitlines() if line.startswith("|")]
    assert shown[2:] == titles
    assert f"{framework}, random split 1197/300/300, R = 2, seed 0." in printed.out
    assert "SpikingPSSM" in printed.err and "2/2" in printed.err  # the progress bar

    report = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert report["versions"].keys() == {"python", "snn-fr-plugin", "torch", framework}
    with (folder / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name, written, row in zip(models.MODELS, report["results"], rows, strict=True):
        assert written["settings"]["model"] == row["model"] == name
        assert 0 <= float(row["test_accuracy"]) <= 1 and 0 < float(row["firing_rate"]) < 1
        assert len(written["history"]) == 2
        network = best_network(folder, name)
        learned = sum(v.numel() for k, v in network.items() if "running" not in k and "num_batches" not in k)
        buffers = {"beta", "threshold", "graded_spikes_factor", "reset_mechanism_val"}
        learned -= sum(v.numel() for k, v in network.items() if k.rpartition(".")[2] in buffers - {"beta"})
        assert int(row["parameters"]) == learned
    assert not list(folder.rglob("*.tmp"))
    image = matplotlib.image.imread(folder / "digits.png")
    assert min(image.shape[:2]) > 500 and image[..., :3].std() > 0.05


class Interrupt:
    """Stands in for ``training._save``: lets ``saves`` writes of a kind pass, then interrupts the next."""

    def __init__(self, name: str, saves: int) -> None:
        self.name, self.saves, self.save = name, saves, training._save

    def __call__(self, path: Path, content: dict[str, Any]) -> None:
        if path.name == self.name:
            if not self.saves:
                raise KeyboardInterrupt
            self.saves -= 1
        self.save(path, content)


@pytest.mark.usefixtures("few_digits", "no_figure")
@pytest.mark.parametrize(
    ("framework", "file", "saves"),
    [
        ("snntorch", "checkpoint_latest.pth", 1),
        ("snntorch", "checkpoint_max.pth", 1),
        ("spikingjelly", "checkpoint_latest.pth", 4),
    ],
)
def test_resumed_equals_uninterrupted(
    framework: str, file: str, saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, wherever the interruption falls: in the first model, the second, or between files."""
    arguments = ["--framework", framework, "--model", "frssm", "fr-lif-block", "--epochs", "3", "--seed", "3"]
    expected = run(tmp_path / "whole", *arguments)
    with monkeypatch.context() as patched:
        patched.setattr(training, "_save", Interrupt(file, saves))
        with pytest.raises(SystemExit, match="interrupted: the same command with --resume continues"):
            script.main(["--out-dir", str(tmp_path / "parts"), *arguments])
    torch.manual_seed(99)
    got = run(tmp_path / "parts", *arguments, "--resume")
    assert without_times(got) == without_times(expected)
    for name in ("frssm", "fr-lif-block"):
        assert_same_network(best_network(tmp_path / "parts", name), best_network(tmp_path / "whole", name))


@pytest.mark.usefixtures("few_digits", "no_figure")
def test_interrupted_before_anything_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_save", Interrupt("checkpoint_max.pth", 0))
    assert refused(tmp_path) == "\ninterrupted: nothing was saved yet"


@pytest.mark.usefixtures("few_digits", "no_figure")
def test_resuming_what_is_finished_only_tests_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--model", "pssm", "--epochs", "1")
    expected = run(tmp_path, *arguments)
    monkeypatch.delattr(training.Run, "_train_epoch")
    assert without_times(run(tmp_path, *arguments, "--resume")) == without_times(expected)


@pytest.mark.usefixtures("few_digits", "no_figure")
def test_the_test_part_has_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--model", "frssm", "--epochs", "3")
    expected = run(tmp_path / "a", *arguments)
    digits = few()
    other = digits._replace(test=data.Part(torch.zeros_like(digits.test.x), digits.test.y * 0))
    monkeypatch.setattr(data, "load", lambda split: other)
    got = run(tmp_path / "b", *arguments)
    assert got[0].test_accuracy != expected[0].test_accuracy
    assert without_times(got)[0]["history"] == without_times(expected)[0]["history"]
    assert got[0].best_epoch == expected[0].best_epoch
    assert_same_network(best_network(tmp_path / "b", "frssm"), best_network(tmp_path / "a", "frssm"))


@pytest.mark.usefixtures("few_digits", "no_figure")
def test_best_epoch_has_highest_accuracy_then_lowest_loss_then_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = iter([(0.4, 1.0), (0.7, 0.9), (0.7, 0.5), (0.7, 0.5), (0.6, 0.1)])
    evaluate, weights = training.evaluate, []

    def scripted_evaluate(network: nn.Module, part: Any) -> tuple[float, float, float]:
        accuracy, loss, rate = evaluate(network, part)
        weights.append(network.readout.weight.detach().clone())
        return (*next(scripted, (accuracy, loss)), rate)

    monkeypatch.setattr(training, "evaluate", scripted_evaluate)
    (result,) = run(tmp_path, "--model", "lif", "--epochs", "5")
    assert result.best_epoch == 3
    assert torch.equal(best_network(tmp_path, "lif")["readout.weight"], weights[2])
    assert torch.equal(weights[5], weights[2])  # the network that was tested
    assert not torch.equal(weights[4], weights[2])


@pytest.mark.usefixtures("few_digits", "no_figure")
def test_seed_changes_the_run_and_nothing_else_does(tmp_path: Path) -> None:
    arguments = ("--model", "lif", "--epochs", "1", "--seed")
    first, again, other = (run(tmp_path, *arguments, seed) for seed in ("0", "0", "1"))
    assert without_times(first) == without_times(again)
    assert first[0].history[0].loss != other[0].history[0].loss


# --- what cannot be had


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--refractory-period", "-1"], "expected an integer >= 0, got '-1'"),
        (["--refractory-period", "1.5"], "expected an integer >= 0, got '1.5'"),
        (["--epochs", "0"], "expected an integer >= 1, got '0'"),
        (["--batch-size", "0"], "expected an integer >= 1, got '0'"),
        (["--lr", "0"], "expected a number > 0, got '0'"),
        (["--lr", "nan"], "expected a number > 0, got 'nan'"),
        (["--lr", "fast"], "expected a number > 0, got 'fast'"),
        (["--model", "rnn"], "invalid choice: 'rnn'"),
        (["--framework", "norse"], "invalid choice: 'norse'"),
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


def refused(folder: Path, *arguments: str) -> str:
    with pytest.raises(SystemExit) as error:
        script.main(["--out-dir", str(folder), "--model", "lif", "--epochs", "1", *arguments])
    return str(error.value.code)


@pytest.mark.usefixtures("few_digits", "no_figure")
def test_what_cannot_be_had_here_is_said_before_training(tmp_path: Path) -> None:
    assert "--backend cupy with --device cpu: backend='cupy' serves cuda tensors" in refused(
        tmp_path, "--backend", "cupy"
    )
    assert "--device gpu cannot be used" in refused(tmp_path, "--device", "gpu")
    assert f"--resume: there is no checkpoint of lif in {tmp_path}" in refused(tmp_path, "--resume")
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    assert f"--out-dir {file} cannot be used" in refused(file)
    assert sorted(tmp_path.iterdir()) == [file]


@pytest.mark.usefixtures("few_digits", "no_figure")
def test_a_foreign_checkpoint_is_refused_and_kept(tmp_path: Path) -> None:
    run(tmp_path, "--model", "lif", "--epochs", "1")
    latest = tmp_path / "lif" / "checkpoint_latest.pth"
    before = latest.read_bytes()
    message = refused(tmp_path, "--seed", "1", "--lr", "0.1", "--resume")
    assert "is from a run with other settings: lr=0.05 there and 0.1 now, seed=0 there and 1 now" in message
    assert latest.read_bytes() == before
    for broken in (before[: len(before) // 2], b"", b"not a checkpoint"):
        latest.write_bytes(broken)
        assert f"{latest} is not a checkpoint of this script" in refused(tmp_path, "--resume")
    torch.save([1, 2], latest)
    assert f"{latest} is not a checkpoint of this script" in refused(tmp_path, "--resume")
    latest.write_bytes(before)
    state = torch.load(latest, weights_only=True)
    del state["network"]["readout.bias"]
    torch.save(state, latest)
    assert f"{latest} does not fit this version" in refused(tmp_path, "--resume")


@pytest.mark.usefixtures("few_digits", "no_figure")
def test_a_fresh_start_leaves_nothing_old_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models_ = ("--model", "lif", "fr-lif")
    run(tmp_path, *models_, "--epochs", "1")
    with monkeypatch.context() as patched:
        patched.setattr(training, "_save", Interrupt("checkpoint_latest.pth", 1))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, *models_, "--epochs", "2")
    assert [len(result.history) for result in run(tmp_path, *models_, "--epochs", "2", "--resume")] == [2, 2]


def test_divergence_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = few()
    digits.train.x[0, 0] = torch.nan
    monkeypatch.setattr(data, "load", lambda split: digits)
    message = refused(tmp_path)
    assert "gradient of lif became infinite or NaN in epoch 1: try a lower rate than --lr 0.05" in message
    assert not list(tmp_path.rglob("*.pth"))


# --- the commands themselves


def test_the_command_runs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "sequential_digits.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--refractory-period" in done.stdout and "(default: runs/sequential_digits)" in done.stdout


def test_snntorch_swap(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("snntorch_swap").main(epochs=2)
    leaky, swapped, multistep = capsys.readouterr().out.splitlines()
    assert all(float(line.split()[0]) > 0.5 for line in (leaky, swapped, multistep))
    rates = [float(line.split(", ")[1].split()[0]) for line in (leaky, swapped, multistep)]
    assert rates[0] > rates[1] > rates[2] > 0  # the longer the period, the fewer spikes


def test_spikingjelly_layer(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("spikingjelly_layer").main(epochs=2)
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("epoch 2: test accuracy")
    assert float(last.split()[4].rstrip(",")) > 0.5


def test_encoding_theorem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The spikes are those of ``ops.lif``, fewer samples tell less, and a seed gives one figure."""
    example = importlib.import_module("encoding_theorem")
    images = []
    for path in (tmp_path / "new" / "first.png", tmp_path / "new" / "again.png"):
        example.main(["--steps", "120", "--out", str(path)])
        *rows, last = capsys.readouterr().out.splitlines()
        assert last == f"figure: {path}"
        found = [re.search(r"(\d+) spikes, as by ops.lif, error (.*)", row) for row in rows]
        (many, least), (some, more), (few, most) = (map(float, row.groups()) for row in found if row)
        assert many > 3 * some > 3 * few > 0 and 0 < least < more < most < 1
        images.append(matplotlib.image.imread(path))
    assert images[0].shape == (820, 1300, 4) and (images[0] == images[1]).all()
    assert not torch.equal(example.current(120, 0), example.current(120, 1))


def test_encoding_theorem_without_spikes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = importlib.import_module("encoding_theorem")
    example.main(["--steps", "20", "--threshold", "99", "--out", str(tmp_path / "silent.png")])
    assert capsys.readouterr().out.count("   0 spikes, as by ops.lif, error ") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1"], "argument --steps: must be >= 2, got 1"),
        (["--beta", "1.5"], "beta must lie in [0, 1], got 1.5"),
        (["--refractory-period", "-1"], "refractory_period must be an int >= 0"),
    ],
)
def test_encoding_theorem_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module("encoding_theorem").main([*arguments, "--out", str(tmp_path / "figure.png")])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
