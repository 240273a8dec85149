"""Memory that was freed, back to the system: a large model leaves the allocator full of holes."""

from __future__ import annotations

import ctypes
import gc
import sys


def trim_memory(*, collect: bool = True) -> None:
    """Return memory that the C allocator keeps to the system (glibc's `malloc_trim`).

    Args:
        collect: Whether to collect garbage first. It takes up to a second with torch loaded, and
            frees nothing that reference counts have freed already.
    """
    if collect:
        gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # musl has none
            libc.malloc_trim(0)
