"""An image preparation as a model of its own, and a session on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import IMAGE, PIXEL_VALUES
from vit_export.graph.preprocess import preparation


def preparation_model(preprocess: Preprocess, resize: str, *, opset: int = 20) -> onnx.ModelProto:
    """Return the model `image` -> `pixel_values`."""
    channels = 3 if preprocess.color else len(preprocess.mean)
    shape = ["batch_size", "image_height", "image_width", channels]
    image = ir.Value(name=IMAGE, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(shape))
    add, prepared = preparation(image, preprocess, resize)
    prepared.name, prepared.type = PIXEL_VALUES, ir.TensorType(ir.DataType.FLOAT)
    prepared.shape = ir.Shape(["batch_size", len(preprocess.mean), *preprocess.size])
    graph = ir.Graph(
        [image],
        [prepared],
        nodes=add.nodes,
        initializers=add.constants,
        opset_imports={"": opset},
        name="preparation",
    )
    return ir.to_proto(ir.Model(graph, ir_version=10))


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
