"""A named backend is obeyed or refused; only "auto" may choose."""

from __future__ import annotations

import pytest
import torch

from snn_fr_plugin.ops import _compile
from snn_fr_plugin.ops._providers import choose

CPU = torch.device("cpu")


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
    assert choose("auto", torch.device("cuda", 0)) == "torch"


def test_a_provider_of_a_later_release_is_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match="backend='cupy' is not part of this release"):
        choose("cupy", torch.device("cuda", 0))
