"""All that a machine with a GPU should be asked, in one go: ``pytest -m gpu``, then the benchmarks.

    python benchmarks/gpu.py OUT [--old-spikingjelly DIR] [--seconds 480]

OUT gets ``tests.txt``, and for each benchmark its output, its tables as JSON and its plot. What matters most
comes first; a part that fails or takes too long is noted, and the next begins. The goals are printed at the
end, with what was left out.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SECONDS = 480
SHOWN = ("goal ", "left out: ", "refusing ", "FAILED ", "ERROR ")


class Part(NamedTuple):
    """A command, and the seconds that it may take."""

    name: str
    arguments: list[str]
    limit: int


def parts(out: Path, old: Path | None) -> list[Part]:
    def benchmark(name: str, limit: int, *more: str, plot: bool = False, script: str = "") -> Part:
        arguments = [str(HERE / f"{script or name}.py"), "--device", "cuda", *more]
        arguments += ["--json", str(out / f"{name}.json")]
        return Part(name, arguments + (["--plot", str(out / f"{name}.png")] if plot else []), limit)

    tests = ["-m", "pytest", "-m", "gpu", "tests/test_gpu.py", "tests", "-v", "--durations=15"]
    # a test file that cannot be imported here, for want of a framework, is no reason to run none
    tests += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    old_release = [] if old is None else ["--old-spikingjelly", str(old)]
    return [
        benchmark("bandwidth", 60),
        benchmark("launch", 40),
        Part("tests", tests, 180),
        benchmark("ssm", 90, "--rounds", "5", plot=True),
        benchmark("neurons", 120, "--rounds", "5", *old_release, plot=True),
        benchmark("gate", 60, "--rounds", "5", plot=True),
        benchmark(
            "neurons_compiled", 150, "--compiled", "--rounds", "5", "--shape", "1024", "16", "128",
            script="neurons",
        ),
    ]  # fmt: skip


def run(part: Part, out: Path, limit: float) -> str:
    """How it ended; its output goes to a file as it comes."""
    start = time.monotonic()
    with (out / f"{part.name}.txt").open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *part.arguments],
            cwd=HERE.parent,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started
            process.wait()
            return f"stopped after {limit:.0f} s"
    taken = f"{time.monotonic() - start:.0f} s"
    return taken if status == 0 else f"exit status {status} after {taken}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder for what is found")
    parser.add_argument("--old-spikingjelly", type=Path, metavar="DIR", help="where 0.0.0.0.14 is installed")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything")
    parser.add_argument("--only", nargs="+", metavar="PART", help="names of parts; all by default")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    old = None if arguments.old_spikingjelly is None else arguments.old_spikingjelly.resolve()
    chosen = parts(out, old)
    if arguments.only:
        unknown = set(arguments.only) - {part.name for part in chosen}
        if unknown:
            parser.error(f"no part {sorted(unknown)}, there are {[part.name for part in chosen]}")
        chosen = [part for part in chosen if part.name in arguments.only]
    end = time.monotonic() + arguments.seconds
    done = []
    for part in chosen:
        left = end - time.monotonic()
        if left < 5:
            print(f"{part.name}: not begun, no time left", flush=True)
            continue
        print(f"{part.name}: {run(part, out, min(part.limit, left))}", flush=True)
        done.append(part)
    for part in done:
        lines = (out / f"{part.name}.txt").read_text(errors="replace").splitlines()
        print(f"\n{part.name}")
        for line in [line for line in lines if line.startswith(SHOWN)] + lines[-1:]:
            print(f"  {line}")


if __name__ == "__main__":
    main()
