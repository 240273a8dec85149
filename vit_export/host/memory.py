"""Return freed memory to the operating system."""

from __future__ import annotations

import ctypes
import gc
import sys


def trim_memory(*, collect: bool = True) -> None:
    """Return free memory of the C allocator to the operating system (glibc's `malloc_trim`).

    Args:
        collect: Collect garbage first; needed for objects in reference cycles. Takes up to a
            second with torch loaded.
    """
    if collect:
        gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # musl has none
            libc.malloc_trim(0)
