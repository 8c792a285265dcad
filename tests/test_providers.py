"""A named backend is obeyed or refused; only "auto" may choose."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from snn_fr_plugin.ops import _compile, _cupy, _providers, diagonal_ssm
from snn_fr_plugin.ops._providers import choose

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_torch_is_always_there() -> None:
    assert choose("torch", CPU) == "torch"
    assert choose("torch", torch.device("cuda", 0)) == "torch"


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="backend must be 'auto', 'torch', 'cpp' or 'cupy', got 'triton'"):
        choose("triton", CPU)


def test_wrong_device_is_named() -> None:
    with pytest.raises(ValueError, match="backend='cupy' serves cuda tensors, got a tensor on cpu"):
        choose("cupy", CPU)
    with pytest.raises(ValueError, match="backend='cpp' serves cpu tensors, got a tensor on cuda:1"):
        choose("cpp", torch.device("cuda", 1))


def test_auto_takes_the_compiled_provider_where_a_compiler_works() -> None:
    assert choose("auto", CPU) == ("cpp" if _compile.available() else "torch")


def test_more_pairs_than_the_cuda_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" takes torch, the name is refused."""
    x, A = torch.randn(5, 2, 3), torch.full((3, 257), 0.5 + 0.1j)
    expected = diagonal_ssm(x, A, A, backend="torch")[0]
    monkeypatch.setattr(_providers, "choose", lambda backend, device: "cupy")
    assert torch.equal(diagonal_ssm(x, A, A, backend="auto")[0], expected)
    with pytest.raises(ValueError, match="serves up to 256 complex pairs a channel, got n=257"):
        diagonal_ssm(x, A, A, backend="cupy")


# ---- CuPy, whose presence and faults are played


class _NVRTC(types.ModuleType):
    def getVersion(self) -> tuple[int, int]:
        return 13, 0


def _installation(version: str = "14.2.0", built: int = 13020) -> dict[str, types.ModuleType | None]:
    """What ``import cupy`` and so on find."""
    names = ("cupy", "cupy.cuda", "cupy.cuda.driver", "cupy.cuda.function", "cupy.cuda.runtime")
    found = {name: types.ModuleType(name) for name in (*names, "cupy_backends.cuda.libs")}
    found["cupy_backends.cuda.libs.nvrtc"] = _NVRTC("nvrtc")
    for name, module in found.items():
        parent, _, last = name.rpartition(".")
        if parent in found:
            setattr(found[parent], last, module)
    vars(found["cupy"])["__version__"] = version
    vars(found["cupy.cuda.driver"])["get_build_version"] = lambda: built
    vars(found["cupy.cuda.runtime"])["is_hip"] = False
    return dict(found)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Plays a machine with a GPU, where all works but what is said otherwise."""

    def play(
        modules: dict[str, types.ModuleType | None], cuda: str | None = "13.0", driver: bool = True
    ) -> None:
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: driver)

    monkeypatch.setattr(_cupy, "_warned", False)
    _cupy._problem.cache_clear()
    yield play
    _cupy._problem.cache_clear()


def _no_nvrtc() -> dict[str, types.ModuleType | None]:
    modules = _installation()

    def fail() -> None:
        raise RuntimeError("libnvrtc.so.13 is nowhere")

    vars(modules["cupy_backends.cuda.libs.nvrtc"])["getVersion"] = fail
    return modules


def test_a_working_cupy_serves_cuda_tensors(machine: Callable[..., None]) -> None:
    machine(_installation())
    assert choose("auto", GPU) == choose("cupy", GPU) == "cupy"
    assert choose("torch", GPU) == "torch"


def test_without_cupy_auto_is_silent_and_the_name_says_what_to_install(machine: Callable[..., None]) -> None:
    machine({"cupy": None}, cuda="12.8")  # importing it is a ModuleNotFoundError
    assert choose("auto", GPU) == "torch"
    with pytest.raises(ImportError, match=r"needs CuPy: pip install 'snn-fr-plugin\[cuda12\]'"):
        choose("cupy", GPU)


def test_a_torch_without_cuda_needs_no_cupy(machine: Callable[..., None]) -> None:
    machine(_installation(), cuda=None)
    assert choose("auto", GPU) == "torch"
    with pytest.raises(RuntimeError, match="needs a PyTorch that is built for CUDA"):
        choose("cupy", GPU)


def _failing_import(error: Exception) -> Callable[..., Any]:
    original = __import__

    def import_(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in {"cupy", "cupy_backends"}:
            raise error
        return original(name, *args, **kwargs)

    return import_


BROKEN: list[tuple[str, dict[str, types.ModuleType | None], dict[str, Any], type[Exception], str]] = [
    ("old", _installation("12.3.0"), {}, RuntimeError, "needs CuPy 13 or later, found 12.3.0"),
    (
        "another CUDA", _installation(built=12090), {}, RuntimeError,
        r"CuPy is built for CUDA 12, torch for CUDA 13.0: .* pip install 'snn-fr-plugin\[cuda13\]'",
    ),
    ("no driver", _installation(), {"driver": False}, RuntimeError, "needs an NVIDIA GPU and its driver"),
    ("no NVRTC", _no_nvrtc(), {}, RuntimeError, r"does not find NVRTC \(libnvrtc.so.13 is nowhere\): pip"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("modules", "play", "kind", "message"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN]
)
def test_a_broken_cupy_is_mentioned_once(
    machine: Callable[..., None],
    modules: dict[str, types.ModuleType | None],
    play: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    machine(modules, **play)
    with pytest.raises(kind, match=message):
        choose("cupy", GPU)
    with pytest.warns(RuntimeWarning, match=f"served by plain PyTorch: .*{message}") as caught:
        assert [choose("auto", GPU) for _ in range(3)] == ["torch"] * 3
    assert len(caught) == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError("libcudart.so.13: no such file"),
        ModuleNotFoundError("No module named 'cupy._core'", name="cupy._core"),
    ],
)
def test_a_cupy_that_cannot_be_imported(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    machine({})
    with monkeypatch.context() as patch:
        patch.setattr("builtins.__import__", _failing_import(error))
        assert not _cupy.available()
    with pytest.raises(ImportError, match=rf"{re.escape(str(error))}.*install it again"):
        choose("cupy", GPU)
    with pytest.warns(RuntimeWarning, match="plain PyTorch"):
        assert choose("auto", GPU) == "torch"
