"""Memory modules: the equations, the published vectors, and the laws of a state carried through time."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn_fr_plugin import ops
from snn_fr_plugin.memory import S4D, Leaky, Resonator

from .support import assert_close, gradients, graph_size, random_like

H = 5
Make = Callable[[], nn.Module]
MEMORIES: dict[str, Make] = {
    "leaky": lambda: Leaky(0.9),
    "leaky-per-neuron": lambda: Leaky(torch.linspace(0.1, 1.0, H)),
    "leaky-learned": lambda: Leaky(torch.linspace(0.1, 1.0, H), learn_beta=True),
    "s4d-lin-zoh": lambda: S4D(H, 8, dt_min=0.01, dt_max=0.5),
    "s4d-inv-bilinear": lambda: S4D(H, 6, init="inv", discretization="bilinear"),
    "s4d-legs-zoh": lambda: S4D(H, 2, init="legs"),
    "s4d-legs-bilinear": lambda: S4D(H, 64, init="legs", discretization="bilinear"),
    "resonator": lambda: Resonator(H, tau=8.0, dt=0.5),
}
every_memory = pytest.mark.parametrize("make", MEMORIES.values(), ids=MEMORIES.keys())


def loop(memory: nn.Module, x_seq: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The equations of the docstrings, step by step."""
    if isinstance(memory, Leaky):
        m = memory.initial_state(x_seq[0]) if state is None else state
        rows = []
        for x in x_seq.unbind(0):
            m = memory.beta * m + x
            rows.append(m)
        return torch.stack(rows), m
    if isinstance(memory, S4D):
        A = torch.complex(-memory.log_A_real.exp(), memory.A_imag)
        dt = memory.log_dt.exp()[:, None]
        if memory.discretization == "zoh":
            A_bar, B_bar = torch.exp(dt * A), (torch.exp(dt * A) - 1) / A
        else:
            A_bar, B_bar = (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)
        C, D = 2 * torch.view_as_complex(memory.C), memory.D
    else:
        assert isinstance(memory, Resonator)
        gamma = -1 / memory.log_tau.exp()
        A_bar = torch.exp(memory.dt * torch.complex(gamma, memory.theta))[:, None]
        B_bar, C, D = torch.full_like(A_bar, memory.dt), torch.ones_like(A_bar), torch.zeros_like(gamma)
    # the modules keep h / B_bar, which is linear in the input alone
    h = B_bar * (memory.initial_state(x_seq[0]) if state is None else state)
    rows = []
    for x in x_seq.unbind(0):
        h = A_bar * h + B_bar * x[..., None]
        rows.append((C * h).sum(-1).real + D * x)
    return torch.stack(rows), h / B_bar


def random_state(memory: Any, x: Tensor) -> Tensor:
    return torch.randn_like(memory.initial_state(x)).requires_grad_()


# the equations


@every_memory
@pytest.mark.parametrize("steps", [1, 33, 63])
@pytest.mark.parametrize("with_state", [False, True])
def test_outputs_and_gradients_are_those_of_the_loop(make: Make, steps: int, with_state: bool) -> None:
    memory = make().double()
    x = torch.randn(steps, 3, H, dtype=torch.float64, requires_grad=True)
    state = random_state(memory, x[0]) if with_state else None
    inputs = [x, *memory.parameters()] + ([state] if state is not None else [])
    got, expected = memory(x, state), loop(memory, x, state)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    cotangents = random_like(got)
    for a, b in zip(gradients(got, cotangents, inputs), gradients(expected, cotangents, inputs), strict=True):
        assert_close(a, b, "gradient")


@every_memory
def test_gradcheck(make: Make) -> None:
    memory = make().double()
    x = torch.randn(4, 1, H, dtype=torch.float64, requires_grad=True)
    state = random_state(memory, x[0])
    names = [name for name, _ in memory.named_parameters()]

    def call(x: Tensor, state: Tensor, *parameters: Tensor) -> Any:
        return torch.func.functional_call(memory, dict(zip(names, parameters, strict=True)), (x, state))

    assert torch.autograd.gradcheck(call, (x, state, *memory.parameters()), fast_mode=True)


def test_leaky_is_the_membrane_of_lif_to_the_last_bit() -> None:
    x, beta = torch.randn(200, 3, H), torch.rand(H)
    y, state = Leaky(beta)(x)
    _, membrane, final = ops.lif(x, beta, reset="none", return_membrane=True)
    assert torch.equal(y, membrane) and torch.equal(state, final.v)


def test_leaky_takes_any_shape() -> None:
    y, state = Leaky(0.5)(torch.ones(2, 3, 2, 2, 2))
    assert y.shape == (2, 3, 2, 2, 2) and torch.equal(state, torch.full((3, 2, 2, 2), 1.5))


def test_resonator_rings_at_its_frequency() -> None:
    memory = Resonator(1, tau=20.0, theta=0.3, dt=0.5).double()
    t = torch.arange(50, dtype=torch.float64)
    impulse = torch.zeros(50, 1, 1, dtype=torch.float64)
    impulse[0] = 1
    expected = 0.5 * torch.exp(-t * 0.5 / 20) * torch.cos(0.3 * 0.5 * t)
    torch.testing.assert_close(memory(impulse)[0].flatten(), expected, rtol=1e-6, atol=1e-7)


def test_resonator_initial_frequencies() -> None:
    theta = Resonator(2000, dt=0.5).theta
    assert 0 <= theta.min() < 0.1 and 2 * math.pi - 0.1 < theta.max() < 2 * math.pi
    assert torch.equal(Resonator(3, theta=torch.tensor([1.0, 2.0, 3.0])).theta, torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(Resonator(2, tau=4.0).log_tau, torch.full((2,), math.log(4.0)))


# S4D: published vectors


def test_s4d_lin_kernel_vector() -> None:
    memory = S4D(1, 4)
    with torch.no_grad():
        memory.C.copy_(torch.tensor([1.0, 0.0]).expand_as(memory.C))
        memory.log_dt.fill_(math.log(0.1))
    expected = torch.tensor([[0.387011, 0.350341, 0.300985, 0.244020]])
    torch.testing.assert_close(memory.kernel(4), expected, rtol=0, atol=1e-6)


def test_s4d_initial_modes() -> None:
    expected = {
        "lin": [0.0, math.pi, 2 * math.pi, 3 * math.pi],
        "inv": [17.825354, 4.244132, 1.527887, 0.363783],
        "legs": [19.857410, 5.354209, 1.957795, 0.427489],
    }
    for init, imaginary in expected.items():
        memory = S4D(3, 8, init=init).double()  # type: ignore[arg-type]
        torch.testing.assert_close(
            memory.A_imag, torch.tensor(imaginary, dtype=torch.float64).expand(3, 4), rtol=0, atol=2e-6
        )
        torch.testing.assert_close(memory.log_A_real, torch.full((3, 4), math.log(0.5), dtype=torch.float64))


def test_s4d_initial_distributions() -> None:
    torch.manual_seed(0)
    memory = S4D(4000, 8, dt_min=0.01, dt_max=1.0)
    log_dt = memory.log_dt / math.log(10)  # uniform in [-2, 0]
    assert log_dt.min() >= -2 and log_dt.max() <= 0
    assert abs(log_dt.mean() + 1) < 0.05 and abs(log_dt.std() - 2 / math.sqrt(12)) < 0.02
    assert abs(torch.view_as_complex(memory.C).abs().square().mean() - 1) < 0.03
    assert abs(memory.C.mean()) < 0.02
    assert abs(memory.D.mean()) < 0.05 and abs(memory.D.std() - 1) < 0.05


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_s4d_is_a_convolution_with_its_kernel(discretization: Any) -> None:
    memory = S4D(H, 8, discretization=discretization).double()
    x = torch.randn(40, 2, H, dtype=torch.float64)
    K, y = memory.kernel(40), memory(x)[0]
    assert K.shape == (H, 40)
    expected = torch.stack([(K.T[: t + 1].flip(0)[:, None] * x[: t + 1]).sum(0) for t in range(40)])
    torch.testing.assert_close(y, expected + memory.D * x, rtol=1e-10, atol=1e-10)
    assert memory.kernel(0).shape == (H, 0)


def test_s4d_reset_parameters_restores_the_initial_modes() -> None:
    memory = S4D(H, 8)
    before = copy.deepcopy(memory.state_dict())
    with torch.no_grad():
        for p in memory.parameters():
            p.fill_(float("nan"))
    memory.reset_parameters()
    for name, value in memory.state_dict().items():
        assert value.isfinite().all()
        assert torch.equal(value, before[name]) == (name in ("A_imag", "log_A_real"))


def test_s4d_at_dt_1e_5_keeps_its_digits_in_float32() -> None:
    memory = S4D(4, 64, dt_min=1e-5, dt_max=1e-5)
    x = torch.randn(64, 2, 4)
    _, C_bar = memory.discrete(torch.float32)
    _, exact = memory.double().discrete(torch.float64)
    assert ((C_bar - exact).abs() / exact.abs()).max() < 1e-6
    assert memory(x)[0].dtype == torch.float32  # float64 parameters serve float32 input too


# laws


@every_memory
def test_a_sequence_equals_its_steps_and_its_chunks(make: Make) -> None:
    memory = make().double()
    x = torch.randn(31, 3, H, dtype=torch.float64)
    for start in (None, random_state(memory, x[0]).detach()):
        whole, final = memory(x, start)
        steps, state = [], memory.initial_state(x[0]) if start is None else start
        for x_t in x.unbind(0):
            y, state = memory.step(x_t, state)
            steps.append(y)
        torch.testing.assert_close(torch.stack(steps), whole, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-10)
        chunks, state = [], start
        for chunk in x.split([7, 1, 23]):
            y, state = memory(chunk, state)
            chunks.append(y)
        torch.testing.assert_close(torch.cat(chunks), whole, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-10)


@every_memory
def test_a_step_needs_no_state(make: Make) -> None:
    memory = make()
    x = torch.randn(3, H)
    y, state = memory.step(x)
    expected, after = memory(x[None])
    assert torch.equal(y, expected[0]) and torch.equal(state, after)


@every_memory
def test_causality(make: Make) -> None:
    memory = make().double()
    x = torch.randn(33, 2, H, dtype=torch.float64)
    perturbed = x.clone()
    perturbed[20] += 1
    before, after = memory(x)[0], memory(perturbed)[0]
    torch.testing.assert_close(after[:20], before[:20], rtol=1e-10, atol=1e-10)
    assert ((after[20] - before[20]).abs() > 1e-6).all()


@every_memory
def test_the_graph_does_not_grow_with_time(make: Make) -> None:
    memory = make()
    sizes = set()
    for steps in (2, 50):
        x = torch.randn(steps, 2, H, requires_grad=True)
        sizes.add(graph_size(memory(x, random_state(memory, x[0]))[0]))
    assert len(sizes) == 1


@every_memory
def test_an_empty_sequence_returns_a_copy_of_the_state(make: Make) -> None:
    memory = make()
    x = torch.randn(0, 3, H)
    state = random_state(memory, torch.randn(3, H)).detach()
    y, after = memory(x, state)
    assert y.shape == (0, 3, H)
    assert torch.equal(after, state) and after.data_ptr() != state.data_ptr()
    assert torch.equal(memory(x)[1], memory.initial_state(torch.randn(3, H)))


@every_memory
def test_layout_does_not_matter(make: Make) -> None:
    memory = make()
    x = torch.randn(H, 7, 33)
    torch.testing.assert_close(memory(x.permute(2, 1, 0))[0], memory(x.permute(2, 1, 0).contiguous())[0])


@every_memory
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_with_float32_parameters(make: Make, dtype: torch.dtype) -> None:
    memory = make()
    x = torch.randn(33, 2, H).to(dtype).requires_grad_()
    y, state = memory(x)
    exact, _ = memory(x.detach().float())
    assert state.dtype in (torch.float32, torch.complex64)
    assert_close(y.to(dtype), exact.to(dtype))
    y.float().square().sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all()
    step, _ = memory.step(x[0].detach(), memory.initial_state(x[0]))
    assert step.dtype == y.dtype
    assert_close(step, y[0].detach())


@every_memory
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_module(make: Make, dtype: torch.dtype) -> None:
    memory = make().to(dtype)
    x = torch.randn(33, 2, H, dtype=dtype)
    y, state = memory(x)
    assert all(p.dtype == dtype for p in memory.parameters())
    assert state.dtype in (torch.float32, torch.complex64)
    exact, _ = copy.deepcopy(memory).float()(x.float())  # the parameters' rounding apart, in float32
    assert_close(y.to(dtype), exact.to(dtype))
    if list(memory.parameters()):
        y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in memory.parameters())


@every_memory
def test_autocast(make: Make) -> None:
    memory, linear = make(), nn.Linear(H, H)
    x = torch.randn(20, 2, H)
    with torch.autocast("cpu", torch.bfloat16):
        drive = linear(x)
        y, _ = memory(drive)
    exact, _ = memory(drive.detach().float())
    assert drive.dtype == torch.bfloat16
    assert_close(y.to(torch.bfloat16), exact.to(torch.bfloat16))
    y.float().square().sum().backward()
    assert linear.weight.grad is not None and linear.weight.grad.isfinite().all()


@every_memory
def test_copies_and_state_dict(make: Make) -> None:
    memory = make()
    x = torch.randn(9, 2, H)
    y, _ = memory(x)
    for twin in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert torch.equal(twin(x)[0], y)
    other = make()
    other.load_state_dict(memory.state_dict(), strict=True)
    assert torch.equal(other(x)[0], y)


def test_parameter_names_and_shapes() -> None:
    assert {n: tuple(p.shape) for n, p in S4D(3, 8).state_dict().items()} == {
        "log_dt": (3,), "log_A_real": (3, 4), "A_imag": (3, 4), "C": (3, 4, 2), "D": (3,),
    }  # fmt: skip
    assert {n: tuple(p.shape) for n, p in Resonator(3).state_dict().items()} == {
        "log_tau": (3,), "theta": (3,),
    }  # fmt: skip
    assert list(Leaky(0.9).state_dict()) == []
    assert list(Leaky(torch.rand(3)).state_dict()) == ["beta"] and not list(Leaky(torch.rand(3)).parameters())
    assert {n: tuple(p.shape) for n, p in Leaky(0.9, learn_beta=True).named_parameters()} == {"beta": ()}


def test_factory_arguments() -> None:
    for memory in (S4D(3, 4, dtype=torch.float64, device="cpu"), Resonator(3, dtype=torch.float64)):
        assert all(p.dtype == torch.float64 for p in memory.parameters())
    torch.testing.assert_close(
        S4D(1, 8, init="legs", dtype=torch.float64).A_imag[0, 0].item(), 19.8574103, rtol=1e-8, atol=0
    )


def test_repr() -> None:
    assert repr(S4D(3, 8, init="legs")) == "S4D(3, d_state=8, init='legs', discretization='zoh')"
    assert repr(Leaky(0.9)) == "Leaky(beta=0.9, learn_beta=False)"
    assert repr(Leaky(torch.rand(3), learn_beta=True)) == "Leaky(beta=tensor(3,), learn_beta=True)"
    assert repr(Resonator(3, dt=0.5)) == "Resonator(3, dt=0.5)"


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: S4D(0), ValueError, "d_model must be a positive int, got 0"),
        (lambda: S4D(2.0), TypeError, "d_model must be a positive int"),
        (lambda: S4D(4, 7), ValueError, "d_state must be a positive even int, got 7"),
        (lambda: S4D(4, init="hippo"), ValueError, "init must be 'lin', 'inv' or 'legs', got 'hippo'"),
        (lambda: S4D(4, discretization="euler"), ValueError, "must be 'zoh' or 'bilinear', got 'euler'"),
        (lambda: S4D(4, dt_min=0.1, dt_max=0.01), ValueError, "0 < dt_min <= dt_max, got 0.1 and 0.01"),
        (lambda: S4D(4, dt_min=0.0), ValueError, "0 < dt_min <= dt_max"),
        (lambda: S4D(4, backend="triton"), ValueError, "backend must be .* got 'triton'"),
        (lambda: Leaky("0.9"), TypeError, "beta must be a float or a tensor, got str"),
        (lambda: Leaky(True), TypeError, "beta must be a float or a tensor, got bool"),
        (lambda: Leaky(torch.ones(3, dtype=torch.int64)), TypeError, "beta must be a floating-point tensor"),
        (lambda: Leaky(0.9, learn_beta=1), TypeError, "learn_beta must be a bool"),
        (lambda: Leaky(0.9, backend=None), ValueError, "backend must be"),
        (lambda: Resonator(3, tau=0.0), ValueError, "tau must be > 0, got 0.0"),
        (lambda: Resonator(3, dt=-1.0), ValueError, "dt must be finite and > 0, got -1.0"),
        (lambda: Resonator(3, theta=torch.ones(2)), ValueError, r"theta must broadcast .* got shape \(2,\)"),
    ],
)  # fmt: skip
def test_bad_arguments(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("make", [Leaky, lambda **k: S4D(H, 4, **k), lambda **k: Resonator(H, **k)])
def test_a_named_backend_is_obeyed_or_refused(make: Callable[..., nn.Module]) -> None:
    x = torch.randn(4, 3, H)
    torch.manual_seed(0)
    expected, _ = make()(x)
    torch.manual_seed(0)
    torch.testing.assert_close(make(backend="torch")(x)[0], expected)
    with pytest.raises(ValueError, match="backend='cupy' serves cuda tensors, got a tensor on cpu"):
        make(backend="cupy")(x)


@every_memory
def test_bad_input(make: Make) -> None:
    memory = make()
    x = torch.randn(4, 3, H)
    good = memory.initial_state(x[0])
    with pytest.raises(TypeError, match=r"x must be float32, float64, float16 or bfloat16, got torch\.int64"):
        memory(torch.ones(4, 3, H, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x must have shape \[T, N, .\], got \(5,\)"):
        memory(torch.randn(H))
    with pytest.raises(ValueError, match="state"):
        memory(x, good[:2])
    with pytest.raises(TypeError, match="state"):
        memory(x, good.to(torch.complex128 if good.is_complex() else torch.float64))
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        memory.step([1.0], good)
    if not isinstance(memory, Leaky):
        with pytest.raises(ValueError, match=r"d_model=5 channels .* got shape \(4, 3, 6\)"):
            memory(torch.randn(4, 3, 6))
        with pytest.raises(ValueError, match="d_model=5 channels"):
            memory.initial_state(torch.randn(3, 6))
        with pytest.raises(ValueError, match=r"x must have shape \[T, N, H\], got \(4, 3, 2, 5\)"):
            memory(torch.randn(4, 3, 2, H))
