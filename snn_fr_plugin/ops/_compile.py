"""Builds a ``.cpp`` of the package with the host compiler into a per-user cache, and loads it with ctypes.

A cache entry is one file, ``<operator>-<dtype>-<key>-<digest>.so``: the key covers all that the code depends
on, the digest is of the file itself. So an entry appears by one rename, a damaged one is recognised before
it is loaded, and processes that build at the same time cannot disturb each other. An entry is code: it is
loaded only if this user owns it and nobody else can write to it or to its directory. Where the cache cannot
be used, kernels are built for this process alone.

Objects are compiled with OpenMP and linked without: its symbols resolve to the runtime that torch has loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch  # first of all: loads the OpenMP runtime that the kernels use

__all__ = ["CompilerError", "Toolchain", "available", "cache_directory", "load", "toolchain"]

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


def cache_directory() -> Path:
    """Where compiled kernels are kept: ``$SNN_FR_CACHE``, else the platform's cache directory."""
    if own := os.environ.get("SNN_FR_CACHE"):
        return Path(own).expanduser().absolute()
    if sys.platform != "darwin" and (caches := os.environ.get("XDG_CACHE_HOME")):
        return Path(caches).absolute() / "snn_fr_plugin"
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home directory, as in some containers
        return Path(tempfile.gettempdir()) / f"snn_fr_plugin-{os.geteuid()}"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "snn_fr_plugin"


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
    directory = cache_directory()
    name = f"{label}-{_key(source, flags, chain)}"
    refusal = _refusal(directory)
    if refusal is None:
        for entry in _entries(directory, name):
            try:
                return ctypes.CDLL(str(entry))
            except OSError as error:
                refusal = str(error)
    with tempfile.TemporaryDirectory(prefix="snn_fr_plugin-") as scratch:
        built = _build(source, flags, chain, Path(scratch))
        if refusal is None:
            try:
                return ctypes.CDLL(str(_publish(built, directory, name)))
            except OSError as error:
                refusal = str(error)
        try:
            library = ctypes.CDLL(str(built))
        except OSError as error:
            raise CompilerError(
                f"{shlex.join(chain.command)} built a library that cannot be loaded: {error}"
            ) from error
        _warn_of(directory, refusal)
        return library


def _key(source: Path, flags: tuple[str, ...], chain: Toolchain) -> str:
    digest = hashlib.sha256()
    for part in (*chain.command, *chain.flags, chain.identity, *flags):
        digest.update(part.encode() + b"\0")
    for file in _closure(source):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:32]


def _closure(source: Path) -> list[Path]:
    """``source`` and every file it includes in quotes, directly or not."""
    files = [source.resolve()]
    for file in files:
        for include in re.findall(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', file.read_text(), re.MULTILINE):
            if (found := (file.parent / include).resolve()) not in files:
                files.append(found)
    return files


def _refusal(directory: Path) -> str | None:
    """Why code must not be kept in the directory, which is made if need be; ``None`` if it may."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = directory.stat()
        exposed = [d for d in directory.resolve().parents if d.stat().st_mode & 0o1002 == 0o002]
    except OSError as error:
        return str(error)
    if info.st_uid != os.geteuid():
        return f"it belongs to user {info.st_uid}, not to {os.geteuid()}"
    if info.st_mode & 0o022:
        return f"others can write to it (mode {stat.S_IMODE(info.st_mode):o})"
    return f"others can replace it, for they can write to {exposed[0]}" if exposed else None


def _entries(directory: Path, name: str) -> Iterator[Path]:
    """Cached builds that are whole and belong to this user alone; a damaged one is removed."""
    for path in sorted(directory.glob(f"{name}-*.so")):
        with contextlib.suppress(OSError):
            info = path.lstat()
            if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
                continue
            if path.stem == f"{name}-{_digest(path)}":
                yield path
            else:
                path.unlink()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


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


def _publish(built: Path, directory: Path, name: str) -> Path:
    """Puts the library into the cache under its final name, in one step."""
    entry = directory / f"{name}-{_digest(built)}.so"
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=".building-")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(built.read_bytes())
        Path(temporary).replace(entry)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return entry


_warned = False


def _warn_of(directory: Path, reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"compiled kernels cannot be kept in {directory}: {reason}. They are built again in every "
            "process; set SNN_FR_CACHE to a directory that only you can write to.",
            RuntimeWarning,
            stacklevel=2,
        )
