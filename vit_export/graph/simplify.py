"""Simplify an ONNX graph with onnxsim.

onnxsim sees the graph and its small constants. Large weights stay on disk and are graph inputs
while it works, so that models above 2 GiB are simplified as fast as small ones, without a copy of
their weights. The gate validates the result: onnxsim's own check loads a second model and looks
at batch 1 only.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxsim
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from vit_export.errors import SimplifyError

FOLDABLE_BYTES = 1 << 22  # constants up to this size may be folded; larger ones are weights
NO_SIMPLIFY_HINT = "export without the simplifier: --no-simplify"
# MatMul + Add stays: as Reshape, Gemm, Reshape it is no faster, and layers lose their names
SKIPPED_OPTIMIZERS = ("fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched")


def simplify(source: Path, destination: Path) -> None:
    """Simplify a graph.

    Args:
        source: An `.onnx` file.
        destination: File to write, in the folder of the source, whose external data it shares.

    Raises:
        SimplifyError: The simplifier failed, or changed an input, output or operator set.
    """
    model = onnx.load(source, load_external_data=False)
    weights = _replace_weights_by_inputs(model, source.parent)
    try:
        simplified, _ = onnxsim.simplify(
            model, check_n=0, skipped_optimizers=list(SKIPPED_OPTIMIZERS)
        )
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise SimplifyError(
            f"onnxsim {onnxsim.__version__} failed on {source.name}: "
            f"{' '.join(str(error).split())}",
            hint=NO_SIMPLIFY_HINT,
        ) from error
    _check_signature(model, simplified)
    names = {tensor.name for tensor in weights}
    for value in [value for value in simplified.graph.input if value.name in names]:
        simplified.graph.input.remove(value)
    simplified.graph.initializer.extend(weights)
    for holder in (simplified, simplified.graph, *simplified.graph.node):
        del holder.metadata_props[:]
    onnx.save(simplified, destination)


def _replace_weights_by_inputs(model: onnx.ModelProto, folder: Path) -> list[onnx.TensorProto]:
    """Replace large external weights by graph inputs and load the small ones, in place.

    Returns:
        The weights that were replaced.
    """
    weights = []
    for tensor in model.graph.initializer:
        if not uses_external_data(tensor):
            continue
        lengths = [int(entry.value) for entry in tensor.external_data if entry.key == "length"]
        if not lengths or lengths[0] > FOLDABLE_BYTES:
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


def _check_signature(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Raise SimplifyError when inputs, outputs or operator sets changed."""
    names = [
        [[value.name for value in values] for values in (model.graph.input, model.graph.output)]
        for model in (before, after)
    ]
    opsets = [{e.domain: e.version for e in model.opset_import} for model in (before, after)]
    known = {domain: version for domain, version in opsets[0].items() if domain in opsets[1]}
    for what, old, new in (
        ("inputs", names[0][0], names[1][0]),
        ("outputs", names[0][1], names[1][1]),
        ("operator sets", known, opsets[1]),
    ):
        if old != new:
            raise SimplifyError(
                f"onnxsim changed the {what} from {old} to {new}", hint=NO_SIMPLIFY_HINT
            )
