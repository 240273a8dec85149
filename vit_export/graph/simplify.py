"""ONNX to a smaller equivalent ONNX, by onnxsim.

The simplifier sees the graph and the small constants; large weights stay on disk, and stand in
the graph as inputs while it works. So models above 2 GiB take the same road as small ones, in
milliseconds and without a copy of their weights. What it returns is checked by the gate, not
here: onnxsim's own check holds a second model in memory and looks at batch 1 only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxsim
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from vit_export.errors import SimplifyError

FOLDABLE_BYTES = 1 << 22  # constants up to this size may be folded; larger ones are weights
# MatMul + Add stays: as Reshape, Gemm, Reshape it is no faster, and layers lose their names
SKIPPED_OPTIMIZERS = (
    "fuse_matmul_add_bias_into_gemm",
    "fuse_matmul_add_bias_into_gemm_batched",
)


@dataclass(frozen=True, kw_only=True)
class Simplified:
    """What the simplifier did.

    Attributes:
        path: The `.onnx` file; its large weights are those of the source.
        nodes_before: Number of nodes in the source.
        nodes: Number of nodes now.
    """

    path: Path
    nodes_before: int
    nodes: int


def simplify(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> Simplified:
    """Simplify a graph.

    Args:
        source: An `.onnx` file.
        destination: File to write, in the folder of the source, whose external data it shares.

    Raises:
        SimplifyError: The simplifier failed, or lost an input or output.
    """
    source, destination = Path(source), Path(destination)
    if source.resolve().parent != destination.resolve().parent:
        raise SimplifyError(
            f"cannot write {destination}: it must lie beside {source}, whose weights it shares"
        )
    model = onnx.load(source, load_external_data=False)
    nodes_before = len(model.graph.node)
    weights = _set_aside(model, source.parent)
    try:
        simplified, _ = onnxsim.simplify(
            model, check_n=0, skipped_optimizers=list(SKIPPED_OPTIMIZERS)
        )
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        said = " ".join(str(error).split())
        raise SimplifyError(
            f"onnxsim {onnxsim.__version__} failed on {source.name}: {said}; "
            "export without it: --no-simplify"
        ) from error
    _check_other_signature(model, simplified)
    _put_back(simplified, weights)
    for props in (simplified, simplified.graph, *simplified.graph.node):
        del props.metadata_props[:]
    onnx.save(simplified, destination)
    return Simplified(path=destination, nodes_before=nodes_before, nodes=len(simplified.graph.node))


def _set_aside(model: onnx.ModelProto, folder: Path) -> list[onnx.TensorProto]:
    """Take large external weights out of a graph, leaving inputs; load the small ones, in place."""
    weights = []
    for tensor in model.graph.initializer:
        if not uses_external_data(tensor):
            continue
        if _size(tensor) > FOLDABLE_BYTES:
            weights.append(tensor)
        else:
            load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    for tensor in weights:
        model.graph.initializer.remove(tensor)
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    return weights


def _put_back(model: onnx.ModelProto, weights: list[onnx.TensorProto]) -> None:
    """Undo `_set_aside`, in place."""
    names = {tensor.name for tensor in weights}
    for value in [value for value in model.graph.input if value.name in names]:
        model.graph.input.remove(value)
    model.graph.initializer.extend(weights)


def _size(tensor: onnx.TensorProto) -> int:
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    return FOLDABLE_BYTES + 1


def _check_other_signature(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Raise SimplifyError when inputs, outputs or operator sets are not what they were."""
    for what in ("input", "output"):
        names = [[value.name for value in getattr(m.graph, what)] for m in (before, after)]
        if names[0] != names[1]:
            raise SimplifyError(
                f"onnxsim changed the {what}s from {names[0]} to {names[1]}; "
                "export without it: --no-simplify"
            )
    opsets = [{entry.domain: entry.version for entry in m.opset_import} for m in (before, after)]
    if not opsets[1].items() <= opsets[0].items():
        raise SimplifyError(
            f"onnxsim changed the operator sets from {opsets[0]} to {opsets[1]}; "
            "export without it: --no-simplify"
        )
