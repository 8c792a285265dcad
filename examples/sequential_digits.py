"""Train spiking networks on handwritten digits read pixel by pixel, and compare them.

    python examples/sequential_digits.py                                  # all models: minutes, on a CPU
    python examples/sequential_digits.py --model frssm --refractory-period 8
    python examples/sequential_digits.py --framework spikingjelly --split ordered
    python examples/sequential_digits.py --resume                         # after an interruption

The 1,797 digits come with scikit-learn. Each 8 x 8 image is a sequence of 64 steps of one grey value, so a
network has to remember the whole digit to name it. The models:

    lif, fr-lif     two plain layers of leaky neurons with reset, without and with a refractory period
    lif-block       the neurons of lif in the residual block that all of the following share
    leaky-block     leaky memory without reset, norm, threshold
    fr-lif-block    the same with a refractory period
    frssm, pssm     SpikingFRSSM and SpikingPSSM: state-space memory, parallel over time

The best epoch is chosen on the validation part; the test part is looked at once, at the end. The output
folder gets ``results.json``, ``results.csv``, ``digits.png``, and, for each model, ``checkpoint_latest.pth``
and ``checkpoint_max.pth``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

try:
    from digits import data, figure, models, report, training
    from digits.options import BACKENDS, UsageError, number, parser
except ModuleNotFoundError as error:
    raise SystemExit(f"this example needs {error.name}: pip install 'snn-fr-plugin[demo]'") from error


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    command = parser(__doc__)
    add = command.add_argument
    names = list(models.MODELS)
    add("--model", nargs="+", choices=names, default=names, metavar="NAME", help=f"any of {', '.join(names)}")
    add("--framework", choices=list(models.FRAMEWORKS), default="snntorch", help="whose native types to use")
    add("--refractory-period", type=number(int, 0), default=2, metavar="R", help="silent steps after a spike")
    add("--split", choices=data.SPLITS, default="random", help="or the data set's own order, which is harder")
    add("--epochs", type=number(int, 1), metavar="N", help="of every model; None: each model's own")
    add("--lr", type=number(float), metavar="RATE", help="peak learning rate; None: each model's own")
    add("--batch-size", type=number(int, 1), default=32, metavar="B", help="sequences a training step")
    add("--seed", type=number(int, 0), default=0, help="of weights, batches, dropout; not of the split")
    add("--backend", choices=BACKENDS, default="auto", help="provider of the operators")
    add("--device", default="cpu", help="where to train, such as cpu or cuda:0")
    add("--threads", type=number(int, 1), default=1, help="of the CPU; one is best for tensors this small")
    add("--out-dir", type=Path, default=Path("runs/sequential_digits"), metavar="DIR", help="for all results")
    add(
        "--resume", action="store_true", help="continue from the last checkpoints, instead of starting afresh"
    )
    return command.parse_args(arguments)


def run(options: argparse.Namespace) -> list[training.Result]:
    """Train, test, draw and write what the command line asks for."""
    torch.set_num_threads(options.threads)
    device = _device(options.device)
    framework = _framework(options)
    names = list(dict.fromkeys(options.model))
    folder = _folder(options, names)
    digits = data.Digits(*(part.to(device) for part in data.load(options.split)))
    shown = "frssm" if "frssm" in names else names[-1]
    results: list[training.Result] = []
    for name in names:
        model = models.MODELS[name]
        settings = training.Settings(
            model=name,
            framework=options.framework,
            split=options.split,
            refractory_period=options.refractory_period,
            epochs=options.epochs or model.epochs,
            lr=options.lr or model.lr,
            batch_size=options.batch_size,
            seed=options.seed,
        )
        job = training.Run(
            settings, partial(models.build, name, framework), digits, folder / name, model.title
        )
        if options.resume:
            job.resume()
        job.fit()
        results.append(job.test())
        if name == shown:
            trace = models.trace(job.network, digits.test.x[:, :1])
    figure.draw(
        folder / "digits.png",
        models.MODELS[shown].title,
        digits.test.x[:, 0, 0],
        int(digits.test.y[0]),
        trace,
        results,
    )
    _write(folder, options.framework, results)
    return results


def _device(name: str) -> torch.device:
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise UsageError(f"--device {name} cannot be used: {error}") from error


def _framework(options: argparse.Namespace) -> models.Framework:
    """The chosen framework's types, tried once on the chosen device and backend."""
    try:
        framework = models.FRAMEWORKS[options.framework](options.refractory_period, options.backend)
        framework.run(framework.frssm(2).to(options.device), torch.zeros(2, 2, 2, device=options.device))
    except ImportError as error:
        raise UsageError(f"{error}: pip install 'snn-fr-plugin[demo]'") from error
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"--backend {options.backend} with --device {options.device}: {error}") from error
    return framework


def _folder(options: argparse.Namespace, names: Sequence[str]) -> Path:
    """The output folder; only with ``--resume`` are there checkpoints of these models to continue from."""
    folder: Path = options.out_dir
    checkpoints = [folder / name / training.LATEST for name in names]
    if options.resume and not any(checkpoint.exists() for checkpoint in checkpoints):
        raise UsageError(f"--resume: there is no checkpoint of {', '.join(names)} in {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not options.resume:
            for checkpoint in checkpoints:
                checkpoint.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"--out-dir {folder} cannot be used: {error}") from error
    return folder


def _write(folder: Path, framework: str, results: Sequence[training.Result]) -> None:
    content = {
        "versions": report.versions("snn-fr-plugin", "torch", framework),
        "results": [asdict(result) for result in results],
    }
    report.write_json(folder / "results.json", content)
    report.write_csv(folder / "results.csv", [result.as_row() for result in results])


def table(results: Sequence[training.Result]) -> str:
    """The results for people, as Markdown."""
    heads = ("model", "test accuracy", "firing rate", "parameters", "s / epoch", "best epoch")
    rows = [
        (
            result.title,
            f"{result.test_accuracy:.3f}",
            f"{result.firing_rate:.3f}",
            f"{result.parameters:,}",
            f"{result.seconds_per_epoch:.2f}",
            f"{result.best_epoch} of {result.settings.epochs}",
        )
        for result in results
    ]
    return report.markdown(heads, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: train, then print the table."""
    options = parse(arguments)
    try:
        results = run(options)
    except (UsageError, training.CheckpointError, training.DivergedError) as error:
        raise SystemExit(f"sequential_digits.py: error: {error}") from error
    except KeyboardInterrupt:
        can_go_on = any((options.out_dir / name / training.LATEST).exists() for name in options.model)
        then = "the same command with --resume continues here" if can_go_on else "nothing was saved yet"
        raise SystemExit(f"\ninterrupted: {then}") from None
    print(f"\n{table(results)}\n")
    split = f"{options.split} split {'/'.join(map(str, data.SPLIT_SIZES))}"
    print(f"{options.framework}, {split}, R = {options.refractory_period}, seed {options.seed}.")
    print("Firing rate: spikes per neuron and step, on the test part. Best epoch: by the validation part.")
    print(f"{models.FRAMEWORKS[options.framework].note}.")
    print(f"Results, figure and checkpoints: {options.out_dir}")


if __name__ == "__main__":
    main()
