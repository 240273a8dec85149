"""Runtime cache of TensorRT-RTX: a file of the kernels that it compiled on this machine."""

import os
import secrets
import threading
import warnings
from pathlib import Path
from typing import Any

from vit_export.errors import OutputError, ProviderWarning


class RuntimeCache:
    """Compiled kernels, read from a file and written back; of two processes, the later one wins.

    Attributes:
        kernels: TensorRT-RTX's `IRuntimeCache`, which contexts read and fill.
    """

    def __init__(self, engine: Any, path: Path) -> None:
        self._path = path
        self._saved = b""
        self._shapes: set[object] = set()
        self._lock = threading.Lock()
        try:
            if not path.parent.is_dir():
                raise FileNotFoundError("there is no such folder")
            if path.exists():
                self._saved = path.read_bytes()
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be the runtime cache ({error.strerror or error})",
                hint="name another file",
            ) from error
        runtime_config = engine.create_runtime_config()
        self.kernels = runtime_config.create_runtime_cache()
        self._writes = not self._saved or self.kernels.deserialize(self._saved)
        if not self._writes:
            warnings.warn(
                f"{path}: neither used nor replaced: it is the runtime cache of another "
                "TensorRT-RTX, GPU or driver, or none at all; delete it, or name another file",
                ProviderWarning,
                stacklevel=2,
            )

    def save_after(self, shapes: object) -> None:
        """Write the file after the first run of shapes, for which kernels may be new."""
        if shapes not in self._shapes:
            self._shapes.add(shapes)
            self.save()

    def save(self) -> None:
        """Write the file if there are new kernels; a reader sees a whole file."""
        with self._lock:
            kernels = bytes(memoryview(self.kernels.serialize())) if self._writes else self._saved
            if kernels == self._saved:
                return
            part = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}.part")
            try:
                part.write_bytes(kernels)
                os.replace(part, self._path)
                self._saved = kernels
            except OSError as error:
                self._writes = False
                warnings.warn(
                    f"{self._path}: the runtime cache cannot be written: {error.strerror or error}",
                    ProviderWarning,
                    stacklevel=2,
                )
            finally:
                part.unlink(missing_ok=True)
