"""Builds a ``.cpp`` of the package with the host compiler into a per-user cache, and loads it with ctypes.

Objects are compiled with OpenMP and linked without: its symbols resolve to the runtime that torch has loaded.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch  # first of all: loads the OpenMP runtime that the kernels use

from . import _cache

__all__ = ["CompilerError", "Toolchain", "available", "load", "toolchain"]

_INSTALL = (
    "backend='cpp' needs a C++17 compiler (g++ or clang++): apt install g++, dnf install gcc-c++, "
    "xcode-select --install or conda install -c conda-forge cxx-compiler; or point $CXX to one"
)
# One rounding per operation: no contraction to FMA, no fast-math. The last two only say that nobody reads
# errno or the floating-point exception flags, without which conditional arithmetic is not vectorised.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_HOST_FLAGS = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())
_PROBE = Path(__file__).with_name("_probe.cpp")


class CompilerError(RuntimeError):
    """No usable C++ compiler, or a kernel that did not compile; the message holds the compiler's own."""


class Toolchain(NamedTuple):
    """A compiler that has been seen to build, load and run code on this machine."""

    command: tuple[str, ...]  # the compiler, with what $CXX adds to it
    flags: tuple[str, ...]
    openmp: bool
    version: str
    identity: str  # compiler version and instruction set, as far as generated code depends on them


@functools.cache
def _find() -> Toolchain | CompilerError:
    """The compiler to use, or why there is none; looked for once in a process."""
    if os.name != "posix":
        return CompilerError("backend='cpp' serves Linux and macOS: use backend='torch' or backend='auto'")
    if own := os.environ.get("CXX"):
        commands = [tuple(shlex.split(own))]
    else:
        commands = [(name,) for name in ("c++", "g++", "clang++") if shutil.which(name)]
    failures: list[str] = [] if commands else ["none of c++, g++, clang++ is on the PATH"]
    # a compiler whose OpenMP is not torch's serves with one thread, as a last resort
    for openmp in (True, False):
        for command in commands:
            try:
                found = _inspect(command, openmp)
                if _open("probe", _PROBE, (), found).snn_fr_probe(4, 1) == 10:
                    return found
                failures.append(f"{shlex.join(command)} builds code that computes wrongly")
            except CompilerError as error:
                failures.append(str(error))
    return CompilerError("\n".join([_INSTALL, *dict.fromkeys(failures)]))


def _inspect(command: tuple[str, ...], openmp: bool) -> Toolchain:
    version = _run([*command, "--version"]).partition("\n")[0]
    for i, host in enumerate(_HOST_FLAGS):
        flags = (*_FLAGS, *host, *(("-fopenmp",) if openmp else ()))
        try:
            macros = _run([*command, *flags, "-dM", "-E", "-x", "c++", os.devnull])
        except CompilerError:
            if i == len(_HOST_FLAGS) - 1:
                raise
        else:
            break
    return Toolchain(command, flags, openmp, version, f"{version}\n{macros}")


def toolchain() -> Toolchain:
    """The compiler in use.

    Raises:
        CompilerError: there is none that works; the message says what was tried and what to install.
    """
    found = _find()
    if isinstance(found, CompilerError):
        raise found
    return found


def available() -> bool:
    """Whether compiled kernels can be used here. The first call in a process may start the compiler."""
    return isinstance(_find(), Toolchain)


# What torch.compiler.assume_constant_result does, without importing Dynamo: tracing keeps the first answer.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def load(source: Path, dtype: torch.dtype, *flags: str) -> ctypes.CDLL:
    """The library built from ``source`` for tensors of ``dtype``, from the cache where possible.

    Args:
        source: a ``.cpp`` file; what it includes in quotes is found beside it. ``SNN_FR_FLOAT32``,
            ``SNN_FR_BFLOAT16`` and so on, after ``dtype``, is defined in it.
        flags: what to add to the compiler's command line, such as ``-DNAME=value``.

    Raises:
        CompilerError: no compiler, or the source does not compile.
    """
    kind = str(dtype).removeprefix("torch.")
    label = f"{source.parent.name}-{kind}"
    return _open(label, source, (f"-DSNN_FR_{kind.upper()}", *flags), toolchain())


def _open(label: str, source: Path, flags: tuple[str, ...], chain: Toolchain) -> ctypes.CDLL:
    key = _cache.key(source, (*chain.command, *chain.flags, chain.identity, *flags))
    try:
        return _cache.obtain(
            f"{label}-{key}",
            lambda scratch: _build(source, flags, chain, scratch),
            lambda library: ctypes.CDLL(str(library)),
        )
    except OSError as error:
        raise CompilerError(
            f"{shlex.join(chain.command)} built a library that cannot be loaded: {error}"
        ) from error


def _build(source: Path, flags: tuple[str, ...], chain: Toolchain, scratch: Path) -> Path:
    compiled, linked = scratch / f"{source.stem}.o", scratch / f"{source.stem}.so"
    shared = ["-dynamiclib", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    _run([*chain.command, *chain.flags, *flags, "-c", str(source), "-o", str(compiled)])
    _run([*chain.command, *shared, str(compiled), "-o", str(linked)])
    return linked


def _run(command: list[str]) -> str:
    """Standard output of the compiler."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise CompilerError(f"{shlex.join(command)}: {error}") from error
    if done.returncode:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise CompilerError(f"{shlex.join(command)} ended with {how}:\n{done.stderr.strip()[-4000:]}")
    return done.stdout
