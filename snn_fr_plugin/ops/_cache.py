"""A per-user cache of compiled kernels.

A cache entry is one file, ``<operator>-<dtype>-<key>-<digest>.<kind>``: the key covers all that the code
depends on, the digest is of the file itself. So an entry appears by one rename, a damaged one is recognised
before it is loaded, and processes that build at the same time cannot disturb each other. An entry is code: it
is loaded only if this user owns it and nobody else can write to it or to its directory. Where the cache
cannot be used, kernels are built for this process alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

__all__ = ["closure", "directory", "includes", "key", "obtain"]

Loaded = TypeVar("Loaded")


def directory() -> Path:
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


def obtain(name: str, build: Callable[[Path], Path], load: Callable[[Path], Loaded]) -> Loaded:
    """What ``load`` makes of the cached build called ``name``, or of a new one, which is kept.

    Args:
        build: makes the file in the directory that it is given, and says where.
        load: raises ``OSError`` where the file is of no use; that of a build which is not kept goes to the
            caller.
    """
    kept = directory()
    refusal = _refusal(kept)
    if refusal is None:
        for entry in _entries(kept, name):
            try:
                return load(entry)
            except OSError as error:
                refusal = str(error)
    with tempfile.TemporaryDirectory(prefix="snn_fr_plugin-") as scratch:
        built = build(Path(scratch))
        if refusal is None:
            try:
                return load(_publish(built, kept, name))
            except OSError as error:
                refusal = str(error)
        loaded = load(built)
        _warn_of(kept, refusal)
        return loaded


def key(source: Path, parts: Iterable[str]) -> str:
    """Digest of a source, of all that it includes in quotes, and of what else a build depends on."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    for file in closure(source):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:32]


def includes(file: Path) -> dict[str, Path]:
    """What a file includes in quotes, as it is written there, and where that is."""
    names = re.findall(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', file.read_text(), re.MULTILINE)
    return {name: (file.parent / name).resolve() for name in names}


def closure(source: Path) -> list[Path]:
    """``source`` and every file it includes in quotes, directly or not."""
    files = [source.resolve()]
    for file in files:
        files.extend(found for found in includes(file).values() if found not in files)
    return files


def _refusal(directory: Path) -> str | None:
    """Why code must not be kept in the directory, which is made if need be; ``None`` if it may."""
    if os.name != "posix":
        return "who owns a file is not known on this system"
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
    for path in sorted(directory.glob(f"{name}-*")):
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


def _publish(built: Path, directory: Path, name: str) -> Path:
    """Puts a build into the cache under its final name, in one step."""
    entry = directory / f"{name}-{_digest(built)}{built.suffix}"
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
