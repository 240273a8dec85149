"""Export Vision Transformers from PyTorch, with every stage measured against float64.

    import vit_export

    result = vit_export.export("b16", "b16.onnx", weights="vit_b16.safetensors")
    model = vit_export.load("b16.onnx")
    model.classify("cat.jpg", top=5)

Importing the package loads nothing else: a name is imported from its module when it is first
used, and `__init__.pyi` declares the types. `vit_export.runtime` needs neither torch nor onnx.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "export": "vit_export.pipeline.export",
    "quantize": "vit_export.pipeline.quantize",
    "build_engine": "vit_export.pipeline.engine",
    "validate": "vit_export.pipeline.validate",
    "load": "vit_export.runtime",
    "EngineSettings": "vit_export.engine.settings",
    "ExportSettings": "vit_export.pipeline.settings",
    "QuantizeSettings": "vit_export.quantization.settings",
    "ValidateSettings": "vit_export.pipeline.settings",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
