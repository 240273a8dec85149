"""A file of kernel timings, which several builds may share at the same time.

TensorRT times kernels on the GPU, for minutes; a cache of the timings makes the next build of a
like network short. A build takes what the file holds when it starts, and when it ends merges what
it learnt into what the file holds by then, under a lock.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_export.artifact.engine_sidecar import Gpu
from vit_export.errors import OutputError
from vit_export.runtime.tensorrt.backend import Backend

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def cache_key(backend: Backend, gpu: Gpu | None) -> str:
    """What a cache must have been made for to be of use; TensorRT checks the same."""
    if backend.is_rtx or gpu is None:
        return ""
    return f"{backend.name} {backend.version}, {gpu}"


def load_cache(config: Any, path: Path) -> Any:
    """Give a builder's config the timings of a file, or none where there is no file.

    Raises:
        OutputError: The file is not a cache of this TensorRT and this GPU.
    """
    with locked(path):
        data = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise OutputError(
            f"{path}: TensorRT does not take this timing cache; it was made by another version "
            "or on another GPU, or is damaged; name another file"
        )
    return cache


def save_cache(config: Any, path: Path) -> None:
    """Merge a builder's timings into a file.

    Raises:
        OutputError: The file became one of another version meanwhile, or cannot be written.
    """
    cache = config.get_timing_cache()
    with locked(path):
        if path.exists():
            theirs = config.create_timing_cache(path.read_bytes())
            if theirs is None or not cache.combine(theirs, False):
                raise OutputError(f"{path}: was replaced meanwhile by a cache that does not fit")
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(memoryview(cache.serialize()))
        os.replace(part, path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, `PATH.lock`, waiting for whoever has it.

    Raises:
        OutputError: The lock cannot be made, or a folder has the file's name.
    """
    if path.is_dir():
        raise OutputError(f"cannot lock {path}: it is a folder; name a file with --timing-cache")
    try:
        stream = path.with_name(path.name + ".lock").open("ab")
    except OSError as error:
        raise OutputError(f"cannot lock {path}: {error.strerror or error}") from error
    with stream:
        if sys.platform == "win32":
            msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK, 1)
        else:
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back
