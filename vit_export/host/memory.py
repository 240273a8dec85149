"""Memory that was freed, back to the system: a large model leaves the allocator full of holes."""

from __future__ import annotations

import ctypes
import gc
import sys


def trim_memory() -> None:
    """Collect garbage, and return what the C allocator keeps of it (glibc's `malloc_trim`)."""
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # musl has none
            libc.malloc_trim(0)
