"""``ops.diagonal_ssm`` against the ways to compute it in plain torch.

    python benchmarks/ssm.py --json benchmarks/results/ssm.json --plot benchmarks/results/ssm.png
    python benchmarks/ssm.py --device cuda --json ssm_gpu.json --plot ssm_gpu.png

The peers are what a user of torch would write, differentiated by autograd: the kernel from a Vandermonde
matrix [H, n, T] and an FFT, the same with the matrix split into two levels of about sqrt(T) powers, and
chunks of 64 steps by matrix products with a carried state. The torch provider is the second with a backward
of its own. Before anything is timed, outputs and gradients must agree.

On a GPU there are also, where they are installed, accelerated-scan's complex scan over states that lie in
memory, and mamba-ssm's selective scan with constant matrices. What does not run is left out, and the output
says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from harness import Benchmark, inference, options, training
from torch import Tensor

from snn_fr_plugin import ops

LENGTHS = [1024, 4096, 16384]
BATCH = {"cpu": 8, "cuda": 64}
BACKENDS = {"cpu": ["torch", "cpp"], "cuda": ["torch", "cupy"]}
GOAL_SHAPE = (1024, 64, 128, 32)  # T, N, H, n
STATES_BYTES = 4e9  # of [N, H, n, T] complex numbers, beyond which a scan over states is left out
NAIVE_BYTES = 4e9  # of [H, n, T] complex numbers, beyond which the naive form is left out
FFT = "two-level Vandermonde + FFT"
FFT_FORMS = ("naive Vandermonde + FFT", FFT, "chunked matmul", "torch")


def naive(x: Tensor, A: Tensor, C: Tensor) -> Tensor:
    """The taps from all powers of A at once."""
    powers = torch.exp(torch.log(A)[..., None] * torch.arange(len(x), device=x.device))
    return convolve(x, (C[..., None] * powers).sum(1).real)


def two_level(x: Tensor, A: Tensor, C: Tensor) -> Tensor:
    """The taps from A^j and A^(kB), one real matrix product for each channel."""
    steps = len(x)
    width = 2 ** math.ceil(math.log2(steps) / 2)
    log = torch.log(A)[..., None]
    low = torch.exp(log * torch.arange(width, device=x.device))
    high = C[..., None] * torch.exp(log * width * torch.arange(-(-steps // width), device=x.device))
    left, right = torch.cat([high.real, -high.imag], 1), torch.cat([low.real, low.imag], 1)
    return convolve(x, torch.bmm(left.transpose(1, 2), right).flatten(1)[:, :steps])


def convolve(x: Tensor, taps: Tensor) -> Tensor:
    """Causal convolution of [T, N, H] with [H, T] by FFT."""
    steps = len(x)
    spectrum = torch.fft.rfft(x.permute(1, 2, 0), 2 * steps) * torch.fft.rfft(taps, 2 * steps)
    return torch.fft.irfft(spectrum, 2 * steps)[..., :steps].permute(2, 0, 1)


def chunked(x: Tensor, A: Tensor, C: Tensor, chunk: int = 64) -> Tensor:
    """Matrix products within chunks, a loop over chunks that carries the state."""
    steps, batch, channels = x.shape
    rows = (
        x.view(-1, chunk, batch, channels).permute(3, 1, 0, 2).reshape(channels, chunk, -1)
    )  # [H, chunk, K N]
    log, j = torch.log(A)[..., None], torch.arange(chunk, device=x.device)
    powers = torch.exp(log * j)  # [H, n, chunk]
    taps = (C[..., None] * powers).sum(1).real
    lag = j[:, None] - j
    within = torch.where(lag >= 0, taps[:, lag.clamp_min(0)], 0)  # [H, chunk, chunk]
    into = torch.cat([powers.real, powers.imag], 1).flip(-1)  # [H, 2n, chunk]
    out = C[..., None] * torch.exp(log * (j + 1))
    out = torch.cat([out.real, -out.imag], 1).transpose(1, 2)  # [H, chunk, 2n]
    real, imag = torch.bmm(into, rows).unflatten(2, (-1, batch)).chunk(2, 1)  # [H, n, K, N]
    decay = torch.exp(log * chunk)
    state, states = torch.zeros_like(torch.complex(real[:, :, 0], imag[:, :, 0])), []
    for block in torch.complex(real, imag).unbind(2):
        states.append(state)
        state = decay * state + block
    carried = torch.stack(states, 2).flatten(2)
    y = torch.bmm(within, rows) + torch.bmm(out, torch.cat([carried.real, carried.imag], 1))
    return y.view(channels, chunk, -1, batch).permute(2, 1, 3, 0).reshape(steps, batch, channels)


def accelerated_scan(x: Tensor, A: Tensor, C: Tensor) -> Tensor:
    """The states as a tensor [N, H n, T], by accelerated-scan on Triton."""
    from accelerated_scan.complex import scan

    steps, batch, channels = x.shape
    pairs = A.shape[1]
    forget = A.flatten()[None, :, None].expand(batch, -1, steps).contiguous()
    inputs = x.permute(1, 2, 0)[:, :, None].expand(-1, -1, pairs, -1).flatten(1, 2).contiguous()
    states = scan(forget, inputs).unflatten(1, (channels, pairs))
    return torch.einsum("hn,bhnt->tbh", C, states).real


def selective_scan(x: Tensor, A: Tensor, C: Tensor) -> Tensor:
    """mamba-ssm's kernel: h_t = exp(delta A) h[t-1] + delta B x_t, y = 2 Re(C h) for complex A."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u = x.permute(1, 2, 0).contiguous()
    return selective_scan_fn(u, torch.ones_like(u), torch.log(A), torch.ones_like(A), C / 2).permute(2, 0, 1)


def packages(
    bench: Benchmark, x: Tensor, gradient: Tensor, A: Tensor, C: Tensor
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Scans of other packages, where they run."""
    peers: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, run, stored in (
        ("accelerated-scan", accelerated_scan, 8 * A.shape[1] * x.numel()),
        ("mamba-ssm", selective_scan, 0),
    ):
        if stored > STATES_BYTES:
            bench.leave_out(f"{name}, {len(x)} steps", f"its states alone take {stored / 1e9:.1f} GB")
            continue
        both = {FFT: lambda v: two_level(v, A, C), name: lambda v, r=run: r(v, A, C)}
        if bench.runs(name, lambda b=both: check(b, x, gradient)):
            peers[name] = both[name]
    return peers


def check(peers: dict[str, object], x: Tensor, gradient: Tensor) -> None:
    """Refuses to time what does not compute the same."""
    expected = None
    for name, run in peers.items():
        leaf = x.detach().requires_grad_()
        y = run(leaf)  # type: ignore[operator]
        y.backward(gradient)
        got = (y.detach(), leaf.grad)
        expected = expected or got
        for ours, theirs in zip(got, expected, strict=True):
            if not (ours - theirs).norm() < 1e-3 * theirs.norm():
                raise SystemExit(f"refusing to time: {name} differs from {next(iter(peers))}")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, help="8, or 64 on a GPU")
    parser.add_argument("--channels", type=int, default=128, help="H")
    parser.add_argument("--pairs", type=int, default=32, help="n, complex states of a channel")
    parser.add_argument("--steps", type=int, nargs="+", default=LENGTHS, help="multiples of 64")
    parser.add_argument("--backend", nargs="+", help="providers to time; torch, and cpp or cupy")
    bench = Benchmark(parser.parse_args())
    device = bench.device.type
    batch, channels, pairs = (getattr(bench.arguments, name) for name in ("batch", "channels", "pairs"))
    batch = batch or BATCH[device]
    backends = bench.arguments.backend or BACKENDS[device]
    dt = torch.logspace(-3, -1, channels)[:, None]  # S4D-Lin
    A = torch.exp(dt * torch.complex(torch.full((pairs,), -0.5), math.pi * torch.arange(pairs)))
    A, C = (m.to(bench.device) for m in (A, dt * torch.randn(channels, pairs, dtype=torch.complex64)))
    A, C = A.requires_grad_(), C.requires_grad_()
    for steps in bench.arguments.steps:
        x, gradient = bench.random(steps, batch, channels), bench.random(steps, batch, channels)
        peers = {
            FFT: lambda v: two_level(v, A, C),
            "chunked matmul": lambda v: chunked(v, A, C),
        }
        if 8 * A.numel() * steps < NAIVE_BYTES / 8:  # autograd keeps several of them
            peers["naive Vandermonde + FFT"] = lambda v: naive(v, A, C)
        else:
            bench.leave_out(f"naive Vandermonde + FFT, {steps} steps", "all powers of A take too much memory")
        for backend in backends:
            peers[backend] = lambda v, b=backend: ops.diagonal_ssm(v, A, C, backend=b)[0]
        check(peers, x, gradient)
        if device == "cuda":
            peers |= packages(bench, x, gradient, A, C)
        for mode, wrap in (
            ("forward", lambda run, x=x: inference(run, x)),
            ("forward + backward", lambda run, x=x, g=gradient: training(run, x, g)),
        ):
            bench.table(
                f"{mode}, [{steps}, {batch}, {channels}], {pairs} complex pairs, float32",
                x,
                {name: wrap(run) for name, run in peers.items()},
                mode=mode,
                steps=steps,
                series=f"diagonal_ssm on [T, {batch}, {channels}], {pairs} complex pairs, float32",
            )
            for backend in backends:
                bench.compare(backend, [name for name in FFT_FORMS if name != backend])
            if device == "cuda" and mode != "forward" and (steps, batch, channels, pairs) == GOAL_SHAPE:
                faster = bench.compare("cupy", [FFT])
                bench.goal(
                    f"diagonal_ssm {mode}, {list(GOAL_SHAPE)}, against the FFT form", ">=", 5, faster, "x"
                )
    bench.finish()


if __name__ == "__main__":
    main()
