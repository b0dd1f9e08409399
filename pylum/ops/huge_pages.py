"""Large pages of memory for large tables."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

import torch

HUGE = 1 << 21
# Of Linux's madvise(2): large pages from now on, and, from 6.1, for what is there already.
_ADVISE, _COLLAPSE = 14, 25


def huge_pages(tensor: torch.Tensor) -> int:
    """Ask for pages of 2 MiB under a large CPU tensor; its values do not change.

    Looking up random rows of a table far larger than the caches takes an address translation a row,
    and on pages of 4 KiB those misses cost more than the rows. Call it once on an embedding table
    and the state of its optimiser, best before they are filled: memory that is in use already is
    copied into large pages, where the kernel can do that. No op calls it on its arguments; only
    pools of :func:`pylum.ops.pages_like` are made on such pages.

    Args:
        tensor: any dtype, contiguous.

    Returns:
        Bytes that were asked for: the whole 2 MiB pages inside the tensor. 0 for smaller ones, for
        other devices than the CPU, and where the system has no such pages or does not allow them.

    Raises:
        ValueError: the tensor is not contiguous.
    """
    if not tensor.is_contiguous():
        raise ValueError(f"tensor must be contiguous, got strides {tensor.stride()}")
    advise = _madvise()
    if tensor.device.type != "cpu" or advise is None:
        return 0
    begin = -(-tensor.data_ptr() // HUGE) * HUGE
    length = (tensor.data_ptr() + tensor.nbytes) // HUGE * HUGE - begin
    if length <= 0 or advise(begin, length, _ADVISE) != 0:
        return 0
    # Without it the kernel does the same in time, or not at all.
    advise(begin, length, _COLLAPSE)
    return length


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    call = ctypes.CDLL(None, use_errno=True).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    call.restype = ctypes.c_int
    return call
