"""TensorRT or TensorRT-RTX: two modules with one API, of which one is loaded by name.

TensorRT tells what went wrong through its logger, and the first logger of a process is the one
that it uses ever after. So there is one per module, and whoever calls TensorRT listens to it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from packaging.version import Version

from vit_export.errors import ProviderError, UsageError, nearest

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST = {"tensorrt": Version("10.3"), "tensorrt-rtx": Version("1.4")}
DTYPES = {  # names of TensorRT's DataType -> numpy's
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32",
    "INT64": "int64", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
SHOWN_LINES = 3  # of TensorRT's own words, in a message


@dataclass
class Messages:
    """What TensorRT said, a line per message."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def why(self) -> str:
        """Its first errors, on one line; what came later mostly follows from them."""
        lines = [" ".join(line.split()) for line in dict.fromkeys(self.errors)]
        return "; ".join(lines[:SHOWN_LINES]) or "TensorRT gave no reason"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A loaded module.

    Attributes:
        name: `"tensorrt"` or `"tensorrt-rtx"`.
        trt: The module.
        version: e.g. `"11.4.0.106"`.
        logger: Its `ILogger`.
    """

    name: str
    trt: Any
    version: str
    logger: Any

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX."""
        return self.name == "tensorrt-rtx"

    @contextlib.contextmanager
    def listening(self) -> Iterator[Messages]:
        """Collect what TensorRT says while the context lasts."""
        said = Messages()
        self.logger.listeners.append(said)
        try:
            yield said
        finally:
            self.logger.listeners.remove(said)


@functools.cache
def load_backend(name: str) -> Backend:
    """Load TensorRT or TensorRT-RTX.

    Raises:
        UsageError: No such backend.
        ProviderError: It is not installed, cannot be loaded, or is too old.
    """
    if name not in MODULES:
        raise UsageError(
            f"unknown backend {name!r}{nearest(name, MODULES)} (known: {', '.join(MODULES)})"
        )
    try:
        trt = importlib.import_module(MODULES[name])
    except ModuleNotFoundError as error:
        raise ProviderError(
            f"{name}: the Python module {error.name} is not installed; install it with: "
            f"pip install 'vit-export[{name}]'"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise ProviderError(
            f"{name}: is installed, but its libraries cannot be loaded: {error}; "
            "see: vit-export doctor"
        ) from error
    version = str(trt.__version__)
    if Version(version) < OLDEST[name]:
        raise ProviderError(
            f"{name} {version} is too old, {OLDEST[name]} is the first that works",
            hint=f"pip install 'vit-export[{name}]'",
        )
    return Backend(name=name, trt=trt, version=version, logger=_logger(trt))


def _logger(trt: Any) -> Any:
    severity = trt.ILogger.Severity

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Hands every error and warning to whoever listens."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.listeners: list[Messages] = []

        def log(self, level: Any, message: str) -> None:
            for said in self.listeners:
                if level in (severity.INTERNAL_ERROR, severity.ERROR):
                    said.errors.append(message)
                elif level == severity.WARNING:
                    said.warnings.append(message)

    return Logger()
