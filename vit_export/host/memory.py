"""Return freed memory to the operating system."""

from __future__ import annotations

import ctypes
import gc
import sys


def trim_memory() -> None:
    """Collect garbage and return free memory of the C allocator (glibc's `malloc_trim`).

    A large model leaves free memory in pieces, which glibc keeps otherwise.
    """
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # musl has none
            libc.malloc_trim(0)
