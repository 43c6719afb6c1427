"""How the process holds memory that torch has freed on the CPU."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the C library's names for these two: see mallopt(3)


def keep_freed_memory(most: int = 1 << 30) -> bool:
    """Lets the C library hold freed memory for the next allocation instead of giving it back to the system.

    A call of a compiled circuit frees and allocates values of some megabytes at every node; given back, each costs
    its page faults anew, a tenth of the time of a call. This changes the whole process and cannot be undone: it
    holds up to `most` bytes more than it uses. tapeout's commands do it; libraries that are imported should not.

    Args:
        most: bytes of freed memory to hold.

    Returns:
        Whether it took effect: it does with glibc (Linux).
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    bound = min(most, (1 << 31) - 1)
    return bool(library.mallopt(_MMAP_THRESHOLD, bound)) and bool(library.mallopt(_TRIM_THRESHOLD, bound))
