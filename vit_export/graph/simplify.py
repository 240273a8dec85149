"""Simplify an ONNX graph with onnxsim.

onnxsim sees the graph and its small constants. Large weights stay on disk and are graph inputs
while it works, so that models above 2 GiB are simplified as fast as small ones, without a copy of
their weights. The gate validates the result: onnxsim's own check loads a second model and looks
at batch 1 only.
"""

from pathlib import Path

import onnx
import onnxsim
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from vit_export.errors import SimplifyError

FOLDABLE_BYTES = 1 << 22  # constants up to this size may be folded; larger ones are weights
NO_SIMPLIFY_HINT = "export without the simplifier: --no-simplify"
# MatMul + Add stays: as Reshape, Gemm, Reshape it is no faster, and layers lose their names
SKIPPED_OPTIMIZERS = ["fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched"]


def simplify(source: Path, destination: Path) -> None:
    """Simplify a graph into a file in the same folder, which shares its external data.

    Raises:
        SimplifyError: The simplifier failed, or changed an input, output or operator set.
    """
    model = onnx.load(source, load_external_data=False)
    weights = _replace_weights_by_inputs(model, source.parent)
    try:
        simplified, _ = onnxsim.simplify(model, check_n=0, skipped_optimizers=SKIPPED_OPTIMIZERS)
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
    """Replace large external weights by graph inputs, and return them; load the small ones."""
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
    old, new = (
        {
            "inputs": [value.name for value in model.graph.input],
            "outputs": [value.name for value in model.graph.output],
            "operator sets": {entry.domain: entry.version for entry in model.opset_import},
        }
        for model in (before, after)
    )
    for what, found in new.items():
        expected = old[what]
        if isinstance(expected, dict):  # a domain that no node uses may go
            expected = {domain: expected[domain] for domain in expected if domain in found}
        if found != expected:
            raise SimplifyError(
                f"onnxsim changed the {what} from {expected} to {found}", hint=NO_SIMPLIFY_HINT
            )
