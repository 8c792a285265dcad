"""``ops.diagonal_ssm`` against the ways to compute it in plain torch.

    python benchmarks/ssm.py --json benchmarks/results/ssm.json --plot benchmarks/results/ssm.png

The peers are what a user of torch would write, differentiated by autograd: the kernel from a Vandermonde
matrix [H, n, T] and an FFT, the same with the matrix split into two levels of about sqrt(T) powers, and
chunks of 64 steps by matrix products with a carried state. The torch provider is the second with a backward
of its own. Before anything is timed, outputs and gradients must agree.
"""

from __future__ import annotations

import math

import torch
from harness import Benchmark, inference, options, training
from torch import Tensor

from snn_fr_plugin import ops

LENGTHS = [1024, 4096, 16384]
NAIVE_BYTES = 4e9  # of [H, n, T] complex numbers, beyond which the naive form is left out
FFT_FORMS = ("naive Vandermonde + FFT", "two-level Vandermonde + FFT", "chunked matmul", "torch")


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
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--channels", type=int, default=128, help="H")
    parser.add_argument("--pairs", type=int, default=32, help="n, complex states of a channel")
    parser.add_argument("--steps", type=int, nargs="+", default=LENGTHS, help="multiples of 64")
    parser.add_argument("--backend", nargs="+", default=["torch", "cpp"], help="providers to time")
    bench = Benchmark(parser.parse_args())
    batch, channels, pairs = (getattr(bench.arguments, name) for name in ("batch", "channels", "pairs"))
    dt = torch.logspace(-3, -1, channels)[:, None]  # S4D-Lin
    A = torch.exp(dt * torch.complex(torch.full((pairs,), -0.5), math.pi * torch.arange(pairs)))
    A, C = (m.to(bench.device) for m in (A, dt * torch.randn(channels, pairs, dtype=torch.complex64)))
    A, C = A.requires_grad_(), C.requires_grad_()
    for steps in bench.arguments.steps:
        x, gradient = bench.random(steps, batch, channels), bench.random(steps, batch, channels)
        peers = {
            "two-level Vandermonde + FFT": lambda v: two_level(v, A, C),
            "chunked matmul": lambda v: chunked(v, A, C),
        }
        if 8 * A.numel() * steps < NAIVE_BYTES / 8:  # autograd keeps several of them
            peers["naive Vandermonde + FFT"] = lambda v: naive(v, A, C)
        for backend in bench.arguments.backend:
            peers[backend] = lambda v, b=backend: ops.diagonal_ssm(v, A, C, backend=b)[0]
        check(peers, x, gradient)
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
            for backend in bench.arguments.backend:
                bench.compare(backend, [name for name in FFT_FORMS if name != backend])
    bench.finish()


if __name__ == "__main__":
    main()
