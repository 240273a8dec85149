from vit_export.engine.settings import EngineSettings
from vit_export.pipeline.engine import build_engine
from vit_export.pipeline.export import export
from vit_export.pipeline.quantize import quantize
from vit_export.pipeline.settings import ExportSettings, ValidateSettings
from vit_export.pipeline.validate import validate
from vit_export.quantization.settings import QuantizeSettings
from vit_export.runtime import load

__all__ = [
    "EngineSettings",
    "ExportSettings",
    "QuantizeSettings",
    "ValidateSettings",
    "__version__",
    "build_engine",
    "export",
    "load",
    "quantize",
    "validate",
]

__version__: str
