"""Freed memory is kept for the next inner step instead of being given back to the operating system."""

import ctypes
import os
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 2**30


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to 1 GiB of freed memory, and take tensors below that size from what it keeps.

    By default it asks the operating system for every tensor of some MiB anew, whose pages are then mapped and cleared
    one by one: a fifth of the time of an outer step on a CPU. It is a setting of the whole process; the environment
    variable `LIGHTNING_META_KEEP_MEMORY=0` leaves it as it was.

    Returns:
        Whether it could be set: on Linux with glibc.
    """
    if not sys.platform.startswith("linux") or os.environ.get("LIGHTNING_META_KEEP_MEMORY") == "0":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return all([mallopt(option, _KEPT) == 1 for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD)])
