"""An .onnx file opened as a graph, its weights left on disk.

Weights of any size, inside the file or beside it, are mapped where they lie and read one at a
time; so a graph is changed with little more memory than its largest weight.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError


def open_graph(path: Path) -> ir.Model:
    """Open an .onnx file; its large weights are `ir.ExternalTensor`s that are read when asked for.

    Types and shapes are inferred, and Constant nodes become initializers.

    Raises:
        ArtifactError: The file is missing, damaged or lacks its weights.
    """
    file = OnnxFile.read(path)
    file.check_external_data()
    proto = onnx.load_model_from_string(file.expose(()))
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))
    ir.external_data.set_base_dir(model.graph, file.weights_folder)
    LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
               for a in node.attributes.values()):  # fmt: skip
            raise ArtifactError(
                f"{path}: has control flow ({node.op_type} {node.name!r}), whose branches cannot "
                "be converted; export the model without it"
            )
    return model


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph to a new file, its weights to `path` + `.data`; `onnxpack.pack` joins them."""
    ir.save(model, path, external_data=path.name + ".data")
