"""Return freed memory to the operating system."""

import ctypes
import sys


def trim_memory() -> None:
    """Return free memory of the C allocator to the operating system (glibc's `malloc_trim`)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # musl has none
            libc.malloc_trim(0)
