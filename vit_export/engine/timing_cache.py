"""Timing cache: a file of kernel timings that builds share, also at the same time.

TensorRT times kernels on the GPU, for minutes; the timings shorten later builds of similar
networks. A build reads the file when it starts, and merges its own timings into it when it ends.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_export.artifact.engine_sidecar import Gpu
from vit_export.artifact.open_file import replace_file
from vit_export.errors import OutputError
from vit_export.runtime.tensorrt.backend import Backend

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def cache_key(backend: Backend, gpu: Gpu | None) -> str:
    """Return the version and GPU that a cache is valid for; TensorRT checks the same."""
    return "" if backend.is_rtx or gpu is None else f"{backend.name} {backend.version}, {gpu}"


def load_cache(config: Any, path: Path) -> None:
    """Load the timings of a file, if there is one, into a builder's configuration."""
    with locked(path):
        data = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise OutputError(
            f"{path}: is no timing cache of this TensorRT and this GPU, or is damaged",
            hint="name another file with --timing-cache",
        )


def save_cache(config: Any, path: Path) -> None:
    """Merge a builder's timings into a file."""
    cache = config.get_timing_cache()
    with locked(path):
        if path.exists():
            current = config.create_timing_cache(path.read_bytes())
            if current is None or not cache.combine(current, False):
                raise OutputError(f"{path}: was replaced during the build by an incompatible cache")
        replace_file(path, bytes(memoryview(cache.serialize())))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, `PATH.lock`; wait while another process holds it."""
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        stream = path.with_name(path.name + ".lock").open("ab")
    except OSError as error:
        raise OutputError(
            f"cannot lock {path}: {error.strerror or error}",
            hint="name another file with --timing-cache",
        ) from error
    with stream:
        if sys.platform == "win32":
            msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK, 1)
        else:
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file releases the lock
