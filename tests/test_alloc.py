"""``enable_fast_alloc``: pages that are kept, and C libraries that are not glibc."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from snn_fr_plugin import _alloc

ROOT = Path(_alloc.__file__).parents[1]

# 20 times 48 MiB, taken and given back: with no pages kept, each time is paid for with page faults
FAULTS = """
import resource, sys, torch
from snn_fr_plugin._alloc import enable_fast_alloc

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(12 * 2**20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
fresh = faults()
enabled = enable_fast_alloc()
faults()
print(enabled, fresh, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_pages_are_kept() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FAULTS], check=True, capture_output=True, text=True, cwd=ROOT
    )
    enabled, fresh, kept = done.stdout.split()
    assert enabled == "True"
    assert int(kept) < 200 and int(kept) < int(fresh) / 2


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_elsewhere_it_says_so_and_does_nothing(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Foreign:
        def __init__(self, name: None) -> None:
            if error is not AttributeError:
                raise error("no such library")

    monkeypatch.setattr(ctypes, "CDLL", Foreign)
    with pytest.warns(RuntimeWarning, match="works with glibc only: the allocator .* was left as it is"):
        assert _alloc.enable_fast_alloc() is False
