from vit_export.pipeline.engine import make_engine as build_engine
from vit_export.pipeline.export import export as export
from vit_export.pipeline.quantize import quantize as quantize
from vit_export.pipeline.validate import revalidate as validate
from vit_export.runtime import load as load

__all__ = ["__version__", "build_engine", "export", "load", "quantize", "validate"]

__version__: str
