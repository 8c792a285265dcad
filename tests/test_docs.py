"""What the documentation shows runs: docstring examples, and the commands and code of the README."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model import spiking_resnet

import snn_fr_plugin

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _modules() -> list[str]:
    import snn_fr_plugin.integrations

    packages = (snn_fr_plugin, snn_fr_plugin.integrations)
    names = {m.name for p in packages for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")}
    return sorted(name for name in names if not name.endswith("__main__"))


@pytest.mark.parametrize("name", _modules())
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.failed == 0


def test_public_entries_have_examples() -> None:
    for name in ("lif", "refractory", "ssm"):
        module = importlib.import_module(f"snn_fr_plugin.ops.{name}")
        assert doctest.testmod(module, extraglobs={"torch": torch}).attempted > 0


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_two_commands_set_everything_up() -> None:
    """One runs the main job, one the tests; their extras and their script exist."""
    job, tests = _blocks("bash")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = settings["project"]["optional-dependencies"]
    for command, extra in ((job, "demo"), (tests, "test")):
        assert command.count("\n") == 1
        assert f"pip install -e '.[{extra}]'" in command and extra in extras
    assert (ROOT / job.split()[-1]).exists()
    assert tests.split()[-2:] == ["-m", "pytest"]


def test_readme_code_runs() -> None:
    """Both framework snippets and the plain loop that the fused operator equals."""
    in_snntorch, in_spikingjelly, plain_loop = _blocks("python")
    names: dict[str, object] = {"net": torch.nn.Sequential()}
    exec(in_snntorch, names)
    x = torch.randn(20, 3, 64) + 0.5
    for layer in ("seq", "ssm"):
        spikes, _ = names[layer](x)  # type: ignore[operator]
        assert spikes.shape == x.shape and 0 < spikes.mean() < 1
    names = {"functional": functional, "spiking_resnet": spiking_resnet}
    exec(in_spikingjelly, names)
    assert names["node"](x).shape == names["ssm"](x).shape == x.shape  # type: ignore[operator]

    beta, threshold, period = 0.9, 1.0, 2
    surrogate = snn_fr_plugin.surrogate.ATan()
    record = plain_loop.replace("for x_t in x:", "spikes = []\nfor x_t in x:") + "    spikes.append(spike)\n"
    names = {
        "torch": torch,
        "x": x,
        "beta": beta,
        "threshold": threshold,
        "R": period,
        "surrogate": surrogate,
    }
    exec(record, names)
    fused, _, _ = snn_fr_plugin.ops.lif(x, beta, threshold, refractory_period=period)
    assert torch.equal(fused, torch.stack(names["spikes"]))  # type: ignore[arg-type]
