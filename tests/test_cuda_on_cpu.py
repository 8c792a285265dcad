"""The stand-in for a GPU: it runs what is right, and notices what CUDA does not allow."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

from snn_fr_plugin.ops import _compile

from .cuda_on_cpu import KernelError, launch

pytestmark = pytest.mark.skipif(not _compile.available(), reason="no C++ compiler")

DEVICE = Path(_compile.__file__).with_name("device.h")
THREADS, BLOCKS = 128, 5
# Sums of 128 elements each: by shuffles within warps, by shared memory between them.
KERNEL = """
namespace snn_fr {
struct Arguments { index n; const io* x; real* sums; };
extern "C" __global__ void __launch_bounds__(128) snn_fr_sum(const __grid_constant__ Arguments a)
{
    __shared__ real parts[4];
    SNN_FR_DYNAMIC_SHARED(real, copies);
    const index i = blockIdx.x * index(blockDim.x) + threadIdx.x;
    real x = i < a.n ? widen(read_once(a.x + i)) : real(0);
    copies[threadIdx.x] = x;
    for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(0xffffffff, x, by);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    const real all = parts[0] + parts[1] + parts[2] + parts[3];
    if (threadIdx.x == 0) write_once(a.sums + 2 * blockIdx.x, all);
    if (threadIdx.x == 1) write_once(a.sums + 2 * blockIdx.x + 1, copies[127 - threadIdx.x]);
}
}
"""


class Arguments(ctypes.Structure):
    _fields_ = (("n", ctypes.c_int64), ("x", ctypes.c_void_p), ("sums", ctypes.c_void_p))


def _sums(tmp_path: Path, kernel: str, dtype: torch.dtype = torch.float32, n: int = 600) -> bool:
    """Whether the kernel computes the sums, and an element of each block by way of shared memory."""
    source = tmp_path / "unit" / "kernel.cu"
    source.parent.mkdir(exist_ok=True)
    source.write_text(f'#include "{DEVICE}"\n{kernel}')
    x = torch.randn(n).to(dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    sums = torch.empty(BLOCKS, 2, dtype=real)
    launch(
        source, "snn_fr_sum", dtype, BLOCKS, THREADS, Arguments(n=n), {"x": x}, {"sums": sums},
        shared_bytes=THREADS * sums.element_size(),
    )  # fmt: skip
    padded = torch.zeros(BLOCKS * THREADS, dtype=real)
    padded[:n] = x
    blocks = padded.view(BLOCKS, THREADS)
    return torch.allclose(sums[:, 0], blocks.sum(1), atol=1e-5) and torch.equal(sums[:, 1], blocks[:, 126])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_barriers_shuffles_and_shared_memory(tmp_path: Path, dtype: torch.dtype) -> None:
    assert _sums(tmp_path, KERNEL, dtype)


SHIFTED = "__ldcs(reinterpret_cast<const int*>(reinterpret_cast<const char*>(a.x) + 1));"
# what stands there, what is put in its place, and the error, if there is one
WRONG = {
    "a missing barrier": ("__syncthreads();", "", None),
    "a barrier that some do not reach": ("__sync", "if (i < a.n) __sync", "others do not reach"),
    "an early end": ("    copies[", "    if (i >= a.n) return;\n    copies[", "others do not reach"),
    "a shuffle in a branch": ("/= 2) x +=", "/= 2) if (threadIdx.x % 32 < 8) x +=", "others do not reach"),
    "a mask without its own lane": ("0xffffffff", "0x0000ffff", "leaves its own lane out"),
    "a read beyond the end": ("i < a.n ?", "i <= a.n ?", "outside of all tensors"),
    "a write beyond the end": ("blockIdx.x + 1,", "(blockIdx.x + 5) + 1,", "outside of all tensors"),
    "a quiet write beyond the end": (
        "write_once(a.sums + 2 * blockIdx.x, all)",
        "a.sums[2 * blockIdx.x + 2] = all",
        "wrote beside sums",
    ),
    "a write into an input": ("x += __", "const_cast<io*>(a.x)[0] = a.x[1], x += __", "into its input x"),
    "a misaligned access": ("    copies[", f"    {SHIFTED}\n    copies[", "misaligned"),
    "shared memory that nobody wrote": ("(threadIdx.x % 32 == 0) parts", "(threadIdx.x == 0) parts", None),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_noticed(tmp_path: Path, what: str) -> None:
    """By an error, or by what is computed."""
    old, new, message = WRONG[what]
    assert old in KERNEL
    kernel = KERNEL.replace(old, new)
    if message is None:
        assert not _sums(tmp_path, kernel)
    else:
        with pytest.raises(KernelError, match=f"snn_fr_sum.*{message}"):
            _sums(tmp_path, kernel)


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [(1, 1025, 0), (1, (1, 1, 65), 0), ((1, 1 << 16), 32, 0), (1, 32, 1 << 20)],
    ids=str,
)
def test_what_no_gpu_can_start(grid: Any, block: Any, shared: int) -> None:
    empty: dict[str, torch.Tensor] = {}
    with pytest.raises(AssertionError, match=r"CUDA has no|no GPU has"):
        launch(
            Path("none.cu"),
            "none",
            torch.float32,
            grid,
            block,
            Arguments(),
            empty,
            empty,
            shared_bytes=shared,
        )
