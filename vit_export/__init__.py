"""vit-export: Vision Transformers out of torch, every stage measured.

Importing the package costs nothing; import the module that does the work, e.g.
`from vit_export.runtime import load` (numpy and onnxruntime only) or
`from vit_export.pipeline.export import export` (the whole road from torch).
"""

__version__ = "0.1.0"
