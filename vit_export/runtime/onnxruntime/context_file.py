"""Write a context file: an .onnx that contains the engine of a TensorRT provider."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import stamp
from vit_export.artifact.publish import publish, staging
from vit_export.errors import ProviderError
from vit_export.runtime.onnxruntime.options import (
    ProviderOptions,
    TensorrtOptions,
    TensorrtRtxOptions,
)


@contextlib.contextmanager
def staged_context_file(
    file: OnnxFile, options: TensorrtOptions | TensorrtRtxOptions, path: Path
) -> Iterator[ProviderOptions]:
    """Yield options with a temporary name, which a session writes to; then move it to `path`."""
    options.check_context_file(file, path)
    with staging(path) as stage:
        staged = stage / path.name
        yield replace(options, ep_context=staged)
        if not staged.is_file():
            raise ProviderError(
                f"provider {options.provider!r} built its engine but did not write {path.name}, "
                "the file of ep_context"
            )
        stamp(staged, file.metadata)  # so that images can be prepared for it
        publish([staged], path.parent)
