"""Open an .onnx file as a graph that can be changed, and write it again.

Weights of any size are memory-mapped and read one at a time, so that changing a graph takes
little more memory than its largest weight.
"""

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError

_GRAPH_ATTRIBUTES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_CONVERTED = frozenset({
    ir.DataType.FLOAT16, ir.DataType.BFLOAT16,
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4,
})  # fmt: skip


def open_graph(path: Path) -> ir.Model:
    """Open an .onnx file; its weights stay on disk until they are read.

    Types and shapes are inferred, and Constant nodes become initializers.
    """
    file = OnnxFile.read(path)
    file.check_external_data()
    proto = onnx.load_model_from_string(file.expose(()))
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))
    ir.external_data.set_base_dir(model.graph, file.weights_folder)
    LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    for node in model.graph.all_nodes():
        if any(attribute.type in _GRAPH_ATTRIBUTES for attribute in node.attributes.values()):
            raise ArtifactError(
                f"{path}: has control flow ({node.op_type} {node.name!r}), whose branches cannot "
                "be converted",
                hint="export the model without branches or loops",
            )
    return model


def open_fp32_graph(path: Path) -> ir.Model:
    """Open an .onnx file as `open_graph`; ArtifactError where weights were converted already."""
    model = open_graph(path)
    dtypes = {value.dtype for value in model.graph.initializers.values() if value.dtype}
    if converted := sorted(str(dtype.numpy()) for dtype in dtypes & _CONVERTED):
        raise ArtifactError(
            f"{path}: has {', '.join(converted)} weights, so it was converted already",
            hint="convert the fp32 artifact instead",
        )
    return model


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph to a new file, its weights to `path` + `.data`."""
    ir.save(model, path, external_data=path.name + ".data")
