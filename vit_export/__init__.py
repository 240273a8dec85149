"""Export Vision Transformers from PyTorch, with every stage measured against float64.

    import vit_export

    result = vit_export.export("b16", "b16.onnx", weights="vit_b16.safetensors")
    model = vit_export.load("b16.onnx")
    model.classify("cat.jpg", top=5)

Importing the package loads nothing else: each function loads its module when it is first used.
`__init__.pyi` declares the types. `vit_export.runtime` needs numpy and onnxruntime only.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "export": "vit_export.pipeline.export:export",
    "quantize": "vit_export.pipeline.quantize:quantize",
    "build_engine": "vit_export.pipeline.engine:build_engine",
    "validate": "vit_export.pipeline.validate:validate",
    "load": "vit_export.runtime:load",
    "EngineSettings": "vit_export.engine.settings:EngineSettings",
    "ExportSettings": "vit_export.pipeline.settings:ExportSettings",
    "QuantizeSettings": "vit_export.quantization.settings:QuantizeSettings",
    "ValidateSettings": "vit_export.pipeline.settings:ValidateSettings",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Load a public function from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
