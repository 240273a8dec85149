from vit_export.engine.settings import EngineSettings as EngineSettings
from vit_export.pipeline.engine import build_engine as build_engine
from vit_export.pipeline.export import export as export
from vit_export.pipeline.quantize import quantize as quantize
from vit_export.pipeline.settings import ExportSettings as ExportSettings
from vit_export.pipeline.settings import ValidateSettings as ValidateSettings
from vit_export.pipeline.validate import validate as validate
from vit_export.quantization.settings import QuantizeSettings as QuantizeSettings
from vit_export.runtime import load as load

__version__: str
