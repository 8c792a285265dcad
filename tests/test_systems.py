"""The systems and their block: equations, identities, and the laws of a state carried through time."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn_fr_plugin import ops
from snn_fr_plugin.memory import S4D, Leaky, Resonator
from snn_fr_plugin.ops.refractory.reference import fixed_refractory as reference_refractory
from snn_fr_plugin.ops.ssm.reference import diagonal_ssm as reference_ssm
from snn_fr_plugin.spiking import PSN, FixedRefractory, MaskedPSN, SlidingPSN, Threshold
from snn_fr_plugin.surrogate import Sigmoid
from snn_fr_plugin.systems import (
    PMSN,
    PRF,
    BinaryS4D,
    PSpikeSSM,
    SPikESSM,
    SpikingBlock,
    SpikingFRSSM,
    SpikingLayer,
    SpikingLayerState,
    SpikingPSSM,
    SpikingSSM,
)

from .support import PROVIDERS_AND_CUDA, assert_close, assert_some_spikes, gradients, graph_size, random_like

H, T = 5, 33
FAST: dict[str, Any] = {"dt_min": 0.05, "dt_max": 0.5}
Make = Callable[..., Any]

LAYERS: dict[str, Make] = {
    "frssm": lambda **k: SpikingFRSSM(H, 8, refractory_period=2, **FAST, **k),
    "frssm-window": lambda **k: SpikingFRSSM(H, 6, scheme="window", surrogate=Sigmoid(), **FAST, **k),
    "frssm-fixed-threshold": lambda **k: SpikingFRSSM(
        H, 8, threshold=0.5, learn_threshold=False, **FAST, **k
    ),
    "pssm": lambda **k: SpikingPSSM(H, 8, k=4, **FAST, **k),
    "pssm-masked-closed": lambda **k: closed(SpikingPSSM(H, 8, k=4, psn="masked", T=T, **FAST, **k)),
    "binary": lambda **k: BinaryS4D(H, 8, discretization="bilinear", **FAST, **k),
    "leaky": lambda **k: SpikingLayer(Leaky(0.8, learn_beta=True), FixedRefractory(), d_model=H, **k),
    "resonator": lambda **k: SpikingLayer(Resonator(H, tau=4.0), Threshold(0.5), **k),
}
# systems of other papers, whose spiking modules test_vectors.py holds to published values
OTHERS: dict[str, Make] = {
    "spiking-ssm": lambda **k: SpikingSSM(H, 8, **FAST, **k),
    "spiking-ssm-exact": lambda **k: SpikingSSM(H, 8, exact=True, **FAST, **k),
    "spike-ssm": lambda **k: SPikESSM(H, 8, **FAST, **k),
    "spike-ssm-exact": lambda **k: SPikESSM(H, 8, exact=True, **FAST, **k),
    "p-spike-ssm": lambda **k: PSpikeSSM(H, 8, deterministic=True, **FAST, **k),
    "pmsn": lambda **k: PMSN(H, **FAST, **k),
    "pmsn-burst": lambda **k: PMSN(H, burst=True, **FAST, **k),
    "prf": lambda **k: PRF(H, tau=4.0, **k),
}
OPEN: dict[str, Make] = {
    "pssm-masked-open": lambda **k: SpikingPSSM(H, 8, k=4, psn="masked", T=T, **FAST, **k),
    "pssm-full": lambda **k: SpikingPSSM(H, 8, psn="full", T=T, **FAST, **k),
}


def in_block(make: Make) -> Make:
    return lambda: SpikingBlock(make())


def with_norm(make: Make) -> Make:
    return lambda: make(norm="batch")


CASES: dict[str, Make] = {
    **LAYERS,
    **{f"{name}-batch": with_norm(make) for name, make in LAYERS.items()},
    "frssm-layer-norm": lambda: LAYERS["frssm"](norm="layer"),
    **{f"block-{name}": in_block(make) for name, make in LAYERS.items()},
    "block-layer-norm": lambda: SpikingBlock(LAYERS["pssm"](), norm="layer"),
    "block-no-norm": lambda: SpikingBlock(LAYERS["frssm"](), norm=None),
}
CASES_OPEN: dict[str, Make] = {
    **OPEN,
    **{f"block-{name}": in_block(make) for name, make in OPEN.items()},
}
modelled = pytest.mark.parametrize("make", (CASES | CASES_OPEN).values(), ids=(CASES | CASES_OPEN).keys())
CASES |= {
    **OTHERS,
    **{f"{name}-batch": with_norm(make) for name, make in OTHERS.items()},
    **{f"block-{name}": in_block(make) for name, make in OTHERS.items()},
}
causal = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
everyone = pytest.mark.parametrize("make", (CASES | CASES_OPEN).values(), ids=(CASES | CASES_OPEN).keys())
EVERY_LAYER = LAYERS | OTHERS | OPEN
layers = pytest.mark.parametrize("make", EVERY_LAYER.values(), ids=EVERY_LAYER.keys())


def closed(layer: Any) -> Any:
    layer.spiking.lambda_ = 1.0
    return layer


def varied(module: Any) -> Any:
    """Parameters and running statistics away from their initial values."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "A_imag" not in name:
                p.add_(0.1 * torch.randn_like(p))
            if name.endswith("spiking.bias"):
                p.add_(0.4)  # the initial filters are weak: spikes enough to compare
        for name, b in module.named_buffers():
            if "running_mean" in name:
                b.uniform_(-0.5, 0.1)
            elif "running_var" in name:
                b.uniform_(0.5, 2.0)
    return module


def inputs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(T, 3, H, dtype=dtype) + 0.4


def leaves(state: Any) -> list[Any]:
    return [leaf for s in state for leaf in leaves(s)] if isinstance(state, tuple) else [state]


def assert_same_state(got: Any, expected: Any) -> None:
    assert isinstance(got, SpikingLayerState)
    for a, b in zip(leaves(got), leaves(expected), strict=True):
        if isinstance(a, Tensor) and (a.is_floating_point() or a.is_complex()):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        elif isinstance(a, Tensor) and a.dtype == torch.int64:  # 2^-48 thresholds of a sum that wraps around
            apart = (a - b).abs()
            assert (torch.minimum(apart, 2**48 - apart) < 1e-10 * 2**48).all()
        else:
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def spikes_of(module: Any, x: Tensor) -> Tensor:
    """What a layer, or the layer of a block, sends on."""
    return (module.layer if isinstance(module, SpikingBlock) else module)(x)[0]


# the equations, written once more as plain loops


def loop_norm(norm: Any, x: Tensor) -> Tensor:
    if norm is None:
        return x
    if isinstance(norm, nn.LayerNorm):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    elif norm.training:
        mean, var = x.mean((0, 1)), x.var((0, 1), unbiased=False)
    else:
        mean, var = norm.running_mean, norm.running_var
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def loop_memory(memory: Any, x: Tensor, state: Tensor | None) -> Tensor:
    if isinstance(memory, Leaky):
        m, rows = memory.initial_state(x[0]) if state is None else state, []
        for x_t in x.unbind(0):
            m = memory.beta * m + x_t
            rows.append(m)
        return torch.stack(rows)
    if isinstance(memory, Resonator):
        A_bar = torch.exp(memory.dt * torch.complex(-1 / memory.log_tau.exp(), memory.theta))[:, None]
        return reference_ssm(x, A_bar, torch.full_like(A_bar, memory.dt), state=state)[0]
    A, dt = torch.complex(-memory.log_A_real.exp(), memory.A_imag), memory.log_dt.exp()[:, None]
    if memory.discretization == "zoh":
        A_bar, B_bar = torch.exp(dt * A), (torch.exp(dt * A) - 1) / A
    else:
        A_bar, B_bar = (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)
    return reference_ssm(x, A_bar, 2 * torch.view_as_complex(memory.C) * B_bar, memory.D, state=state)[0]


def loop_layer(layer: Any, x: Tensor, state: Any) -> Tensor:
    memory_state, spiking_state = (None, None) if state is None else state
    y, spiking = loop_memory(layer.memory, x, memory_state), layer.spiking
    if isinstance(spiking, Threshold):
        threshold = spiking.log_threshold.exp() if spiking.learn_threshold else spiking.threshold
        return reference_refractory(
            loop_norm(layer.norm, y), threshold, period=spiking.refractory_period, scheme=spiking.scheme,
            surrogate=spiking.surrogate, state=spiking_state,
        )[0]  # fmt: skip
    if isinstance(spiking, SlidingPSN):
        recent = y.new_zeros(spiking.k - 1, *y.shape[1:]) if state is None else spiking_state
        padded = torch.cat([recent, y])
        h = torch.stack(
            [sum(spiking.weight[i] * padded[t + i] for i in range(spiking.k)) for t in range(len(y))]  # type: ignore[misc]
        )
        return spiking.surrogate(loop_norm(layer.norm, h) + spiking.bias)
    weight = spiking.masked_weight() if isinstance(spiking, MaskedPSN) else spiking.weight
    h = torch.einsum("ts,snc->tnc", weight, y)
    return spiking.surrogate(loop_norm(layer.norm, h) + spiking.bias[..., None])


def loop(module: Any, x: Tensor, state: Any) -> Tensor:
    if isinstance(module, SpikingLayer):
        return loop_layer(module, x, state)
    a, b = module.synapse(loop_layer(module.layer, x, state)).chunk(2, -1)
    return loop_norm(module.norm, x + a * torch.sigmoid(b))


@modelled
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_outputs_and_gradients_are_those_of_the_loop(make: Make, training: bool, with_state: bool) -> None:
    module = varied(make()).double().train(training)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    x = inputs().requires_grad_()
    leaf = [x, *module.parameters()]
    state = None
    if with_state:
        state = module.initial_state(x[0])
        memory = torch.randn_like(state.memory).requires_grad_()
        leaf.append(memory)
        spiking = state.spiking
        if isinstance(spiking, Tensor) and spiking.is_floating_point():
            spiking = torch.randn_like(spiking).requires_grad_()
            leaf.append(spiking)
        state = SpikingLayerState(memory, spiking)
    got, expected = module(x, state)[0], loop(module, x, state)
    assert_some_spikes(spikes_of(module, x))
    if isinstance(module, SpikingLayer):
        assert torch.equal(got, expected)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    cotangents = random_like([got])
    for a, b in zip(gradients([got], cotangents, leaf), gradients([expected], cotangents, leaf), strict=True):
        assert_close(a, b)


def test_every_parameter_learns() -> None:
    for make in (CASES | CASES_OPEN).values():
        module = make()
        module(inputs(torch.float32))[0].square().sum().backward()
        for name, p in module.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), (repr(module), name)


@pytest.mark.parametrize("make", (LAYERS | OPEN).values(), ids=(LAYERS | OPEN).keys())
def test_the_drive_is_what_the_threshold_saw(make: Make) -> None:
    for norm in (None, "batch"):
        layer = varied(make(norm=norm)).double().eval()
        x = inputs()
        spikes, drive, state = layer.forward_with_drive(x)
        again, after = layer(x)
        assert torch.equal(spikes, again)
        assert_same_state(state, after)
        assert_some_spikes(spikes)
        if isinstance(layer.spiking, Threshold) and layer.spiking.refractory_period == 0:
            assert torch.equal(spikes, (drive >= layer.spiking.threshold).double())
        elif isinstance(layer.spiking, Threshold):
            assert ((drive >= layer.spiking.threshold) >= spikes.bool()).all()
        else:
            bias = layer.spiking.bias if layer.spiking.bias.dim() == 0 else layer.spiking.bias[..., None]
            assert torch.equal(spikes, (drive + bias >= 0).double())


def test_leaky_and_fixed_refractory_are_the_fr_neuron() -> None:
    """Same spikes as the fused operator, to the last bit, half precision included."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(200, 3, H).to(dtype)
        layer = SpikingLayer(Leaky(0.9), FixedRefractory(2))
        spikes, state = layer(x)
        expected, _, final = ops.lif(x, 0.9, refractory_period=2)
        assert_some_spikes(spikes)
        assert spikes.dtype == dtype and torch.equal(spikes, expected)
        assert torch.equal(state.memory, final.v) and torch.equal(state.spiking, final.refractory)


# identities


def test_spiking_pssm_is_one_convolution_and_a_threshold() -> None:
    layer = varied(SpikingPSSM(H, 8, k=4, **FAST)).double()
    x = inputs()
    K, w = layer.memory.kernel(T), layer.spiking.weight
    taps = K.clone()
    taps[:, 0] += layer.memory.D  # feed-through is a tap at lag 0
    joint = torch.zeros_like(taps)
    for lag in range(4):  # K * w
        joint[:, lag:] += w[3 - lag] * taps[:, : T - lag]
    drive = torch.stack([(joint.T[: t + 1].flip(0)[:, None] * x[: t + 1]).sum(0) for t in range(T)])
    spikes, got, _ = layer.forward_with_drive(x)
    torch.testing.assert_close(got, drive, rtol=1e-10, atol=1e-10)
    assert_some_spikes(spikes)
    assert torch.equal(spikes, (drive + layer.spiking.bias >= 0).double())


def test_spiking_pssm_with_one_tap_is_binary_s4d() -> None:
    pssm, binary = SpikingPSSM(H, 8, k=1, **FAST), BinaryS4D(H, 8, **FAST)
    pssm.memory.load_state_dict(binary.memory.state_dict())
    assert pssm.spiking.weight.tolist() == [1] and pssm.spiking.bias == -1  # threshold 1, as binary's
    x = inputs(torch.float32)
    spikes, drive, _ = pssm.forward_with_drive(x)
    expected, membrane, _ = binary.forward_with_drive(x)
    assert_some_spikes(spikes)
    assert torch.equal(drive, membrane) and torch.equal(spikes, expected)


@pytest.mark.parametrize("scheme", ["absolute", "window", "strided", "onset"])
def test_spiking_frssm_without_a_period_is_binary_s4d(scheme: Any) -> None:
    frssm = SpikingFRSSM(H, 8, refractory_period=0, scheme=scheme, **FAST)
    binary = BinaryS4D(H, 8, **FAST)
    binary.load_state_dict(frssm.state_dict(), strict=True)
    x = inputs(torch.float32)
    spikes, expected = frssm(x)[0], binary(x)[0]
    assert_some_spikes(spikes)
    assert torch.equal(spikes, expected)


def test_the_refractory_period_leaves_the_memory_alone() -> None:
    x, dense = inputs(), BinaryS4D(H, 8, **FAST).double()
    candidates, drive, _ = dense.forward_with_drive(x)
    counts = [candidates.sum().item()]
    for period in (1, 3):
        sparse = SpikingFRSSM(H, 8, refractory_period=period, **FAST).double()
        sparse.load_state_dict(dense.state_dict(), strict=True)
        spikes, same, _ = sparse.forward_with_drive(x)
        assert torch.equal(same, drive) and (spikes <= candidates).all()
        assert spikes.unfold(0, period + 1, 1).sum(-1).max() == 1
        counts.append(spikes.sum().item())
    assert counts[0] > counts[1] > counts[2] > 0


# laws, in evaluation


@causal
def test_a_sequence_equals_its_steps_and_its_chunks(make: Make) -> None:
    module = varied(make()).double().eval()
    x = inputs()
    whole, final = module(x)
    assert_some_spikes(spikes_of(module, x))
    steps, state = [], module.initial_state(x[0])
    for x_t in x.unbind(0):
        y, state = module.step(x_t, state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps), whole, rtol=1e-10, atol=1e-10)
    assert_same_state(state, final)
    chunks, state = [], None
    for chunk in x.split([7, 1, 25]):
        y, state = module(chunk, state)
        chunks.append(y)
    torch.testing.assert_close(torch.cat(chunks), whole, rtol=1e-10, atol=1e-10)
    assert_same_state(state, final)


@pytest.mark.parametrize("provider", PROVIDERS_AND_CUDA, indirect=True)
@pytest.mark.parametrize("name", OTHERS)
def test_every_provider_gives_the_same_system(name: str, provider: str) -> None:
    layer = varied(OTHERS[name](norm="batch")).double()
    layer(inputs())  # statistics of the norm
    layer.eval()
    x = inputs()
    spikes, drive, _ = layer.forward_with_drive(x)
    assert_some_spikes(spikes.clamp(max=1))
    on_torch = copy.deepcopy(layer)
    for module in on_torch.modules():
        if hasattr(module, "backend"):
            module.backend = "torch"
    expected, expected_drive, _ = on_torch.forward_with_drive(x)
    torch.testing.assert_close(drive, expected_drive, rtol=1e-10, atol=1e-10)
    assert torch.equal(spikes, expected)


def first_changes(module: Any) -> tuple[bool, bool]:
    """Whether a perturbation of x from step 20 on is seen before, and from, step 20."""
    x = inputs()
    perturbed = x.clone()
    perturbed[20:] += 3
    change = (module(perturbed)[0] - module(x)[0]).abs().amax((1, 2)) > 1e-9
    return bool(change[:20].any()), bool(change[20:].any())


@causal
def test_causality(make: Make) -> None:
    assert first_changes(varied(make()).double().eval()) == (False, True)


@pytest.mark.parametrize("make", CASES_OPEN.values(), ids=CASES_OPEN.keys())
def test_what_is_not_causal_says_so(make: Make) -> None:
    module = varied(make()).double().eval()
    assert first_changes(module) == (True, True)
    x = inputs()
    with pytest.raises(RuntimeError, match=r"cannot run step by step|only when lambda_ >= 1"):
        module.step(x[0], module.initial_state(x[0]))
    with pytest.raises(ValueError, match="reads a whole sequence of T=33 steps"):
        module(x[:7])


@everyone
def test_the_graph_does_not_grow_with_time(make: Make) -> None:
    sizes = set()
    for steps in (T, 2):
        module = make()
        for part in [m for m in module.modules() if isinstance(m, (PSN, MaskedPSN))]:
            part.T = steps
            for name in ("weight", "bias"):
                setattr(part, name, nn.Parameter(getattr(part, name).detach()[:steps]))
            part.weight = nn.Parameter(part.weight.detach()[:, :steps])
            if isinstance(part, MaskedPSN):
                part.mask0, part.mask1 = part.mask0[:steps, :steps], part.mask1[:steps, :steps]
        sizes.add(graph_size(module(torch.randn(steps, 2, H, requires_grad=True))[0]))
    assert len(sizes) == 1


@causal
@pytest.mark.parametrize("training", [False, True])
def test_an_empty_sequence_returns_a_copy_of_the_state(make: Make, training: bool) -> None:
    module = make().train(training)
    x = inputs(torch.float32)
    _, state = module(x[:20])
    before = copy.deepcopy(module.state_dict())
    y, after = module(x[:0], state)
    assert y.shape == (0, 3, H)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert_same_state(after, state)
    for a, b in zip(leaves(after), leaves(state), strict=True):
        assert not isinstance(a, Tensor) or a.numel() == 0 or a.data_ptr() != b.data_ptr()


@everyone
def test_a_state_keeps_no_sequence_alive(make: Make) -> None:
    _, state = make()(inputs(torch.float32))
    for leaf in leaves(state):
        if isinstance(leaf, Tensor):
            assert leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size()


@causal
def test_layout_does_not_matter(make: Make) -> None:
    module = make().double().eval()
    x = torch.randn(H, 7, T, dtype=torch.float64).permute(2, 1, 0) + 0.4
    torch.testing.assert_close(module(x)[0], module(x.contiguous())[0], rtol=1e-10, atol=1e-10)


def test_neurons_of_a_batch_are_independent() -> None:
    for make in LAYERS.values():
        module, x = SpikingBlock(make()).double().eval(), inputs()
        order = [2, 0, 1]
        torch.testing.assert_close(module(x[:, order])[0], module(x)[0][:, order], rtol=1e-10, atol=1e-10)


# the block


def test_what_enters_the_synapse_is_binary_in_evaluation() -> None:
    for make in (LAYERS | OPEN).values():
        block, seen = varied(SpikingBlock(make(), dropout=0.5)), []
        block.synapse.register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # noqa: B023
        block.eval()(inputs(torch.float32))
        assert_some_spikes(seen[0])
        assert torch.equal(seen[0], (seen[0] > 0).float())
        block.train()(inputs(torch.float32))
        assert set(seen[1].unique().tolist()) == {0.0, 2.0}  # dropout scales what it keeps


def test_dropout_is_on_the_spikes_and_on_the_output() -> None:
    block = SpikingBlock(LAYERS["frssm"](), norm=None, dropout=0.5)
    x = inputs(torch.float32)
    untouched = (block(x)[0] == x).double().mean()
    assert 0.4 < untouched < 0.6
    assert (block.eval()(x)[0] == x).double().mean() < 0.01


def test_the_block_gives_its_layer_a_norm() -> None:
    layer = LAYERS["frssm"]()
    assert layer.norm is None
    block = SpikingBlock(layer)
    for norm in (layer.norm, block.norm):
        assert isinstance(norm, nn.BatchNorm1d) and norm.num_features == H
    assert layer.norm is not block.norm
    x = inputs(torch.float32)
    _, drive, _ = layer.forward_with_drive(x)  # training: unit statistics per channel over batch and time
    torch.testing.assert_close(drive.mean((0, 1)), torch.zeros(H), rtol=0, atol=1e-5)
    torch.testing.assert_close(drive.var((0, 1), unbiased=False), torch.ones(H), rtol=1e-3, atol=0)
    assert isinstance(SpikingBlock(LAYERS["pssm"](), norm="layer").layer.norm, nn.LayerNorm)


def test_the_block_keeps_a_norm_that_the_layer_has() -> None:
    for norm in ("batch", None):
        layer = LAYERS["frssm"](norm="layer")
        own = layer.norm
        assert isinstance(own, nn.LayerNorm)
        assert SpikingBlock(layer, norm=norm).layer.norm is own  # type: ignore[arg-type]
    custom = nn.Identity()
    assert SpikingBlock(LAYERS["frssm"](norm=custom)).layer.norm is custom
    block = SpikingBlock(LAYERS["frssm"](), norm=None)
    assert block.norm is None and block.layer.norm is None


def test_the_bias_of_a_psn_comes_after_the_norm() -> None:
    layer = SpikingPSSM(H, 8, norm="batch", **FAST)
    x = inputs(torch.float32)
    _, before, _ = layer.forward_with_drive(x)
    with torch.no_grad():
        layer.spiking.bias -= 5
    spikes, after, _ = layer.forward_with_drive(x)
    assert torch.equal(before, after) and not spikes.any()


def test_batch_norm_in_evaluation_is_affine() -> None:
    block = varied(SpikingBlock(LAYERS["pssm"]())).double().eval()
    norm, x = block.norm, inputs()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(norm(x), scale * x + norm.bias - scale * norm.running_mean)


# torch


@pytest.mark.parametrize(("name", "backend"), [("frssm", "inductor"), ("pssm", "aot_eager")])
def test_compile(name: str, backend: str) -> None:
    """A training block with its state carried: outputs and gradients of eager, one graph for every call."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    block = SpikingBlock(LAYERS[name](), dropout=0.0).double()
    twin = copy.deepcopy(block)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    state = expected_state = block.initial_state(inputs()[0])
    for _ in range(3):
        x = inputs().requires_grad_()
        y, final = compiled(x, state)
        expected, expected_final = block(x, expected_state)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        assert_same_state(final, expected_final)
        cotangents = random_like([y])
        got = gradients([y], cotangents, [x, *twin.parameters()])
        for a, b in zip(got, gradients([expected], cotangents, [x, *block.parameters()]), strict=True):
            assert_close(a, b)
        state, expected_state = (SpikingLayerState(*(s.detach() for s in f)) for f in (final, expected_final))
    assert counters["stats"]["unique_graphs"] == 1
    assert_some_spikes(block.layer(inputs())[0])


@layers
def test_states_and_steps_are_traced_without_a_break(make: Make) -> None:
    torch._dynamo.reset()
    layer, x = make(), inputs(torch.float32)[0]
    state = torch.compile(layer.initial_state, backend="eager", fullgraph=True)(x)
    assert_same_state(state, layer.initial_state(x))
    if not isinstance(layer.spiking, (PSN, MaskedPSN)):  # these ask first whether they can step at all
        spikes, _ = torch.compile(layer.step, backend="eager", fullgraph=True)(x, state)
        assert torch.equal(spikes, layer.step(x, state)[0])


@everyone
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(make: Make, dtype: torch.dtype) -> None:
    x = inputs(torch.float32).to(dtype).requires_grad_()
    for module in (make(), make().to(dtype)):  # float32 parameters, and half ones
        y, state = module.eval()(x)
        assert y.dtype == dtype and y.isfinite().all()
        assert all(
            leaf.dtype in (torch.float32, torch.complex64, torch.int32, torch.int64)
            for leaf in leaves(state)
            if isinstance(leaf, Tensor)
        )
        assert_some_spikes(spikes_of(module, x))
        y.float().square().mean().backward()
        assert x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@everyone
def test_autocast(make: Make) -> None:
    module, head = make(), nn.Linear(H, H)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = module(head(inputs(torch.float32)))
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    for p in (*head.parameters(), *module.parameters()):
        assert p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all()


@everyone
def test_copies_and_state_dict(make: Make) -> None:
    module = varied(make()).eval()
    x = inputs(torch.float32)
    y, _ = module(x)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    twins = copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)
    for twin in twins:
        assert torch.equal(twin(x)[0], y) and repr(twin) == repr(module)
    other = make().eval()
    other.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(other(x)[0], y)


def test_parameter_names() -> None:
    s4d = [f"memory.{name}" for name in ("log_dt", "log_A_real", "A_imag", "C", "D")]
    assert list(SpikingFRSSM(3, 4).state_dict()) == [*s4d, "spiking.log_threshold"]
    assert list(BinaryS4D(3, 4).state_dict()) == [*s4d, "spiking.log_threshold"]
    assert list(SpikingFRSSM(3, 4, learn_threshold=False).state_dict()) == s4d
    assert list(SpikingPSSM(3, 4).state_dict()) == [*s4d, "spiking.weight", "spiking.bias"]
    assert SpikingFRSSM(3, 4).spiking.log_threshold.tolist() == [0, 0, 0]
    torch.testing.assert_close(SpikingFRSSM(3, 4, threshold=0.5).spiking.threshold, torch.full((3,), 0.5))
    assert torch.equal(
        BinaryS4D(3, 4, threshold=torch.tensor([1.0, 2, 3]), learn_threshold=False).spiking.threshold,
        torch.tensor([1.0, 2, 3]),
    )


def test_arguments_reach_their_parts() -> None:
    layer = SpikingPSSM(
        3, 4, k=2, init="legs", discretization="bilinear", dt_min=0.2, dt_max=0.3, dtype=torch.float64
    )
    assert isinstance(layer.memory, S4D) and layer.memory.init == "legs"
    assert layer.memory.discretization == "bilinear" and layer.spiking.k == 2
    assert ((layer.memory.log_dt.exp() > 0.19) & (layer.memory.log_dt.exp() < 0.31)).all()
    assert all(p.dtype == torch.float64 for p in SpikingBlock(layer).parameters())
    assert isinstance(SpikingPSSM(3, 4, psn="full", T=7).spiking, PSN)
    masked = SpikingPSSM(3, 4, psn="masked", T=7, k=2).spiking
    assert isinstance(masked, MaskedPSN) and (masked.k, masked.T, masked.lambda_) == (2, 7, 0)
    with pytest.raises(ValueError, match="backend='cupy' serves cuda tensors"):
        SpikingFRSSM(H, 4, backend="cupy")(inputs())


def test_repr_shows_the_period() -> None:
    text = repr(SpikingBlock(SpikingFRSSM(3, 4)))
    assert (
        "SpikingFRSSM(" in text
        and "refractory_period=1, scheme='absolute'" in text
        and "S4D(3, d_state=4" in text
    )


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: SpikingFRSSM(0), ValueError, "d_model must be a positive int, got 0"),
        (lambda: SpikingFRSSM(4, 3), ValueError, "d_state must be a positive even int, got 3"),
        (lambda: SpikingFRSSM(4, 4, refractory_period=-1), ValueError, "refractory_period must be"),
        (lambda: SpikingFRSSM(4, 4, refractory_period=1.0), TypeError, "refractory_period must be"),
        (lambda: SpikingFRSSM(4, 4, scheme="greedy"), ValueError, "scheme must be .* got 'greedy'"),
        (lambda: SpikingFRSSM(4, 4, init="hippo"), ValueError, "init must be .* got 'hippo'"),
        (lambda: SpikingFRSSM(4, 4, hidden=3), TypeError, "hidden"),
        (lambda: SpikingFRSSM(4, 4, threshold=torch.ones(3)), ValueError, "threshold must broadcast"),
        (lambda: SpikingFRSSM(4, 4, norm="instance"), ValueError, "norm must be .* got 'instance'"),
        (lambda: SpikingPSSM(4, 4, psn="open"), ValueError, "must be 'sliding', 'masked' or 'full', got"),
        (lambda: SpikingPSSM(4, 4, psn="full"), ValueError, "psn='full' needs T, got T=None"),
        (lambda: SpikingPSSM(4, 4, psn="masked"), ValueError, "psn='masked' needs T, got T=None"),
        (lambda: SpikingPSSM(4, 4, T=5), ValueError, "psn='sliding' takes no T, got T=5"),
        (lambda: SpikingPSSM(4, 4, k=0), ValueError, "k must be a positive int"),
        (lambda: BinaryS4D(4, 4, backend="gpu"), ValueError, "backend must be"),
        (lambda: SpikingLayer("leaky", Threshold()), TypeError, r"memory must be a torch.nn.Module, got str"),
        (lambda: SpikingLayer(Leaky(), None), TypeError, r"spiking must be a torch.nn.Module, got NoneType"),
        (lambda: SpikingLayer(Leaky(), Threshold(), "batch"), ValueError, "norm='batch' needs d_model"),
        (lambda: SpikingLayer(S4D(4, 4), Threshold(), d_model=5), ValueError, "the memory's, 4, got 5"),
        (lambda: SpikingBlock(S4D(4, 4)), TypeError, "layer must be a SpikingLayer, got S4D"),
        (lambda: SpikingBlock(SpikingLayer(Leaky(), Threshold())), ValueError, "number of channels"),
        (lambda: SpikingBlock(BinaryS4D(4, 4), norm="group"), ValueError, "norm must be .* got 'group'"),
        (lambda: SpikingBlock(BinaryS4D(4, 4), dropout=1.5), ValueError, "dropout"),
    ],
)  # fmt: skip
def test_bad_arguments(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


@everyone
def test_bad_input(make: Make) -> None:
    module, x = make().eval(), inputs(torch.float32)
    good = module.initial_state(x[0])
    with pytest.raises(TypeError, match=r"x must be float32, float64, float16 or bfloat16, got torch\.int64"):
        module(torch.ones(T, 3, H, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x must have shape \[T, N, .\], got \(5,\)"):
        module(x[0, 0])
    with pytest.raises(ValueError, match=r"d_model=5 channels .* got shape \(33, 3, 4\)"):
        module(x[..., :4])
    with pytest.raises(TypeError, match=r"state must be a SpikingLayerState .* got Tensor"):
        module(x, good.memory)
    with pytest.raises(ValueError, match="state"):
        module(x, SpikingLayerState(good.memory[:2], good.spiking))
    if isinstance(good.spiking, Tensor):
        with pytest.raises(ValueError, match="state"):
            module(x, SpikingLayerState(good.memory, good.spiking[..., :2]))


def test_a_failing_block_leaves_the_layer_alone() -> None:
    layer = BinaryS4D(4, 4)
    for wrong in ({"dropout": 2.0}, {"norm": "group"}):
        with pytest.raises(ValueError, match=r"must be|has to be"):
            SpikingBlock(layer, **wrong)  # type: ignore[arg-type]
        assert layer.norm is None
