"""``python -m snn_fr_plugin info``: true facts, a check that can fail, an exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import snn_fr_plugin
from snn_fr_plugin.__main__ import main
from snn_fr_plugin.ops.lif import torch_provider

from .support import PROVIDERS

OPERATORS = {"lif", "fixed_refractory", "diagonal_ssm"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snn_fr_plugin", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_report_of_a_fresh_cache(tmp_path: Path) -> None:
    done = run("info", "--json", SNN_FR_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["versions"]["snn_fr_plugin"] == snn_fr_plugin.__version__
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert facts["providers"]["cpu"]["serves"] == PROVIDERS[-1]
    checked = {(c["device"], c["provider"], c["operator"]): c["result"] for c in facts["checks"]}
    on_cpu = {key: result for key, result in checked.items() if key[0] == "cpu"}
    assert on_cpu == {("cpu", p, o): "ok" for p in PROVIDERS for o in OPERATORS}
    assert facts["cache"]["directory"] == str(tmp_path)
    assert facts["cache"]["entries"] == {p.name: p.stat().st_size for p in tmp_path.iterdir()}
    assert len(facts["cache"]["entries"]) == (4 if "cpp" in PROVIDERS else 0)  # the probe and three kernels


def test_without_a_compiler_the_report_says_what_is_missing(tmp_path: Path) -> None:
    done = run("info", "--json", SNN_FR_CACHE=str(tmp_path), CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["providers"]["cpu"]["serves"] == "torch"
    assert "needs a C++17 compiler" in facts["providers"]["cpu"]["why"]
    assert "no-such-compiler" in facts["providers"]["cpu"]["why"]
    assert {c["provider"] for c in facts["checks"] if c["device"] == "cpu"} == {"torch"}
    assert facts["versions"]["compiler"] is None


def test_the_page_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    page = capsys.readouterr().out
    assert f"torch            {torch.__version__.partition('+')[0]}" in page
    assert "cpu tensors      " + PROVIDERS[-1] in page
    assert page.count(" ok") >= len(PROVIDERS) * len(OPERATORS)


@pytest.mark.parametrize("fault", ["spikes", "gradient", "raises"])
def test_a_provider_that_computes_wrongly_is_reported(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = {"forward": torch_provider.forward, "backward": torch_provider.backward}

    def forward(*arguments: Any) -> tuple[torch.Tensor, ...]:
        if fault == "raises":
            raise RuntimeError("out of order")
        spikes, *rest = right["forward"](*arguments)
        return 1 - spikes if fault == "spikes" else spikes, *rest

    def backward(*arguments: Any) -> tuple[torch.Tensor, ...]:
        grad, *rest = right["backward"](*arguments)
        return -grad if fault == "gradient" else grad, *rest

    monkeypatch.setattr(torch_provider, "forward", forward)
    monkeypatch.setattr(torch_provider, "backward", backward)
    assert main(["info", "--json"]) == 1
    results = {
        (c["provider"], c["operator"]): c["result"] for c in json.loads(capsys.readouterr().out)["checks"]
    }
    said = {"spikes": "13200 of 13200 spikes", "gradient": "gradient differs", "raises": "out of order"}
    assert said[fault] in results.pop(("torch", "lif"))
    assert set(results.values()) == {"ok"}


def test_a_command_is_required() -> None:
    done = run()
    assert done.returncode == 2
    assert "the following arguments are required" in done.stderr
