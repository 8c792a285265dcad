"""How long a call takes: by the wall on the CPU, by events on a GPU.

On a GPU a call is timed in two ways. *As called*: several calls one after the other, as a training loop makes
them; a short kernel then waits for Python. *On the device*: the same calls queued behind a kernel that sleeps
until all of them are in the queue, so that nothing but the kernels is timed; there is no such figure for a
call of hundreds of launches, which do not fit the queue, or one that waits for the GPU.

The second-level cache is not flushed between calls: what fits is found there, as it would be behind the layer
that has written it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

Run = Callable[[], Any]

_ROUND = 5e-3  # seconds of calls that one measurement takes at least, unless that is more than _CALLS
_CALLS = 50
_CYCLES = 2e9  # of a GPU in a second, roughly: how long it sleeps
_SLEEP = 0.1  # seconds at most


class HostClock:
    """A call by the wall."""

    def calls(self, run: Run) -> int:
        """Calls that make a measurement."""
        return 1

    def seconds(self, run: Run, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    def device_seconds(self, run: Run, calls: int, seconds: float) -> float | None:
        """There is no other device."""
        return None


class CudaClock:
    """A call by CUDA events on the current stream, of which it is a part."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def calls(self, run: Run) -> int:
        """Enough for a few milliseconds; the first run may compile, and is not counted."""
        run()
        return max(1, min(_CALLS, math.ceil(_ROUND / self.seconds(run, 1))))

    def seconds(self, run: Run, calls: int) -> float:
        """As called."""
        return self._between_events(run, calls, sleep=0)[0]

    def device_seconds(self, run: Run, calls: int, seconds: float) -> float | None:
        """On the device, where that can be told of calls that take ``seconds`` each as called."""
        sleep = 2 * seconds * calls + 1e-3
        if sleep > _SLEEP:
            return None
        elapsed, queued = self._between_events(run, calls, sleep)
        return elapsed if queued else None

    def _between_events(self, run: Run, calls: int, sleep: float) -> tuple[float, bool]:
        """Seconds a call, and whether all calls were queued before the first could start."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        if sleep:
            torch.cuda._sleep(int(sleep * _CYCLES))
        start.record()
        for _ in range(calls):
            run()
        queued = not start.query()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) * 1e-3 / calls, queued


def clock(device: torch.device) -> HostClock | CudaClock:
    return CudaClock(device) if device.type == "cuda" else HostClock()
