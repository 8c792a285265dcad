"""What the compiled kernels of ``fixed_refractory`` are told."""

from __future__ import annotations

import ctypes

from ... import surrogate

SCHEMES = {"absolute": 0, "window": 1, "strided": 2, "onset": 3}
KINDS = {kind: i for i, kind in enumerate(surrogate.KINDS)}


class Arguments(ctypes.Structure):
    """``struct Arguments`` of ``kernel.cpp``, and the first fields of that of ``kernel.cu``, one by one."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "neurons")),
        ("alpha", ctypes.c_double),
        *(
            (name, ctypes.c_int)
            for name in ("period", "scheme", "inclusive", "kind", "threads", "threshold_stride")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("drive", "threshold", "state", "spikes", "is_open", "final_state"),
                *("grad_spikes", "was_open", "grad_drive", "grad_threshold"),
            )
        ),
    )
