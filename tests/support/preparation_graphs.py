"""An image preparation as a model of its own, and a session on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import IMAGE, PIXEL_VALUES
from vit_export.graph import preprocess as preprocess_graph


def preparation_model(preprocess: Preprocess, resize: str, *, opset: int = 20) -> onnx.ModelProto:
    """Return the model `image` -> `pixel_values`."""
    return ir.to_proto(preprocess_graph.preparation_model(preprocess, resize, opset=opset))


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Return a session on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def prepared_levels(
    session: ort.InferenceSession, images: npt.NDArray[np.uint8], preprocess: Preprocess
) -> npt.NDArray[np.float64]:
    """Return what a session prepares, as levels of 255: float64 (B, H, W, C)."""
    (values,) = session.run([PIXEL_VALUES], {IMAGE: images})
    assert isinstance(values, np.ndarray)
    levels: npt.NDArray[np.float64] = np.moveaxis(values.astype(np.float64), 1, -1)
    return (levels * preprocess.std + preprocess.mean) * 255
