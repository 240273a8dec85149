"""Backends: the modules `tensorrt` and `tensorrt_rtx`, which have one API.

TensorRT reports errors through its logger, and keeps the first logger of a process for good.
"""

import contextlib
import functools
import importlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from packaging.version import Version

from vit_export.artifact.manifest import TensorSpec
from vit_export.errors import ProviderError, check_known

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST = {"tensorrt": Version("10.3"), "tensorrt-rtx": Version("1.4")}
DTYPES = {  # names of TensorRT's DataType -> numpy's
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32",
    "INT64": "int64", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(eq=False)  # two threads may have collected the same
class Messages:
    """Errors and warnings that TensorRT logged, one line each."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    thread: int = field(default_factory=threading.get_ident)  # that calls TensorRT

    def reason(self) -> str:
        """Return the first three errors on one line; later ones mostly follow from them."""
        lines = [" ".join(line.split()) for line in dict.fromkeys(self.errors)]
        return "; ".join(lines[:3]) or "TensorRT gave no reason"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A loaded module."""

    name: str  # "tensorrt" or "tensorrt-rtx"
    trt: Any  # the module
    version: str  # e.g. "11.4.0.106"
    logger: Any  # its ILogger

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt-rtx"

    @contextlib.contextmanager
    def collect_messages(self) -> Iterator[Messages]:
        """Collect what TensorRT logs inside the context, in this thread or in one of its own."""
        messages = Messages()
        self.logger.collectors.append(messages)
        try:
            yield messages
        finally:
            self.logger.collectors.remove(messages)


@functools.cache
def load_backend(name: str) -> Backend:
    """Load TensorRT or TensorRT-RTX; ProviderError where it is not usable."""
    check_known("backend", name, MODULES)
    install = f"pip install 'vit-export[{name}]'"
    try:
        trt = importlib.import_module(MODULES[name])
    except ModuleNotFoundError as error:
        raise ProviderError(
            f"{name} is not installed: there is no Python module {error.name}", hint=install
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise ProviderError(
            f"{name} is installed, but its libraries cannot be loaded: {error}",
            hint="see: vit-export doctor",
        ) from error
    version = str(trt.__version__)
    if Version(version) < OLDEST[name]:
        raise ProviderError(
            f"{name} {version} is too old: {OLDEST[name]} is the first that works", hint=install
        )
    return Backend(name=name, trt=trt, version=version, logger=_logger(trt))


def tensor_spec(name: str, dtype: Any, shape: Sequence[int]) -> TensorSpec:
    """Describe a tensor of TensorRT; a dynamic dimension is `"?"`."""
    sizes = tuple("?" if size < 0 else int(size) for size in shape)
    return TensorSpec(str(name), DTYPES.get(dtype.name, dtype.name), sizes)


def without_names(spec: TensorSpec) -> TensorSpec:
    """Replace the names of dynamic dimensions, which TensorRT does not keep, by `"?"`."""
    sizes = tuple("?" if isinstance(size, str) else size for size in spec.shape)
    return TensorSpec(spec.name, spec.dtype, sizes)


def _logger(trt: Any) -> Any:
    severity = trt.ILogger.Severity

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Adds errors and warnings to the collectors of the thread that logs.

        A thread of TensorRT's own has none, and may work for any of the callers: all of them get
        what it logs.
        """

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.collectors: list[Messages] = []

        def log(self, level: Any, message: str) -> None:
            collectors = tuple(self.collectors)
            own = [c for c in collectors if c.thread == threading.get_ident()]
            for messages in own or collectors:
                if level in (severity.INTERNAL_ERROR, severity.ERROR):
                    messages.errors.append(message)
                elif level == severity.WARNING:
                    messages.warnings.append(message)

    return Logger()
