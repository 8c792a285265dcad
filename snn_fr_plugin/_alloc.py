"""Keeping freed memory in the process, where handing it back costs more than the computation."""

from __future__ import annotations

import ctypes
import warnings

__all__ = ["enable_fast_alloc"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_NEVER = -1


def enable_fast_alloc() -> bool:
    """Lets the C library keep freed memory for the rest of the process (glibc only).

    glibc takes every large block fresh from the system and gives it back when it is freed, so each large
    tensor is paid for with a page fault for every 4 KiB. Afterwards blocks come from the heap, which is
    never trimmed: once a training step has run, the next finds its memory in place. The price is that the
    process stays as large as it has ever been.

    It concerns the whole process, cannot be undone, and is worth calling once, first thing. Where the C
    library is another (macOS, Windows, musl) it warns and changes nothing; under an allocator that was
    preloaded it has no effect.

    Returns:
        Whether the allocator was changed.

    Example:
        >>> import snn_fr_plugin
        >>> enabled = snn_fr_plugin.enable_fast_alloc()  # doctest: +SKIP
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 (glibc alone has it)
    except (AttributeError, OSError, TypeError):
        done = False
    else:
        done = bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))
    if not done:
        warnings.warn(
            "enable_fast_alloc() works with glibc only: the allocator of this process was left as it is",
            RuntimeWarning,
            stacklevel=2,
        )
    return done
