"""Join image preparation and scores to a network, and take them off again.

The input of a network, `pixel_values`, becomes an inner tensor of that name. The nodes before it
and behind `logits` have names of their own sections, and the network is left as it was.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import onnx_ir as ir

from vit_export.artifact.manifest import Manifest, TensorSpec
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import (
    IMAGE,
    IMAGE_HW,
    LOGITS,
    PIXEL_VALUES,
    PROBABILITIES,
    SCORE_OUTPUTS,
    TOP_CLASSES,
    TOP_INDEX,
    TOP_SCORE,
    Activation,
)
from vit_export.errors import UsageError
from vit_export.graph.builder import remove_unread_constants
from vit_export.graph.io import open_graph, save_graph
from vit_export.graph.preprocess import check_expressible, preparation
from vit_export.graph.section import Section


def check_embeddable(
    inputs: Sequence[TensorSpec],
    outputs: Collection[str],
    preprocess: Preprocess | None,
    resize: str,
) -> Preprocess:
    """Return the image preparation of a network; UsageError where its graph cannot have it."""
    spec = inputs[0]
    if preprocess is None or len(inputs) > 1 or spec.name != PIXEL_VALUES:
        raise UsageError(
            f"--preprocess embedded: the model takes {'; '.join(map(str, inputs))}, expected one "
            f"input {PIXEL_VALUES}"
        )
    if any(isinstance(side, str) for side in spec.shape[2:]):
        raise UsageError(
            f"--preprocess embedded: images are prepared for one size, and the model takes {spec}",
            hint="export one file per size with --img-size, without --dynamic-size",
        )
    if taken := sorted({*outputs} & {*SCORE_OUTPUTS}):
        raise UsageError(
            f"--preprocess embedded adds the output {taken[0]!r}, and the model has one already"
        )
    preprocess.check_known("--preprocess embedded")
    check_expressible(preprocess, resize)
    return preprocess


def embed_preparation(
    source: Path, destination: Path, manifest: Manifest, resize: str
) -> tuple[Manifest, Preprocess]:
    """Write a network with its image preparation in front, and scores behind its logits.

    The input is `image`, uint8 (B, H, W, C) of any size: RGB, also for a model of grey images.
    Where `logits` (B, num_classes) is an output, so are `probabilities` float32 (B, num_classes),
    `top_index` int64 and `top_score` float32 (B, 5): the best classes, best first.

    Args:
        source: The network.
        destination: File to write; its weights go to `destination` + `.data`.
        manifest: Of the network.
        resize: How images are interpolated, one of `RESIZE_FORMS`.

    Returns:
        The manifest with the inputs and outputs of the new file, and its image preparation.

    Raises:
        UsageError: The preparation cannot be expressed.
    """
    names = [spec.name for spec in manifest.outputs]
    preprocess = check_embeddable(manifest.inputs, names, manifest.preprocess, resize)
    model = open_graph(source)
    graph = model.graph
    given = graph.inputs.pop()
    channels = 3 if preprocess.color else len(preprocess.mean)
    batch = manifest.inputs[0].shape[0]
    image = ir.Value(
        name=IMAGE,
        type=ir.TensorType(ir.DataType.UINT8),
        shape=ir.Shape([batch, *IMAGE_HW, channels]),
    )
    graph.inputs.append(image)
    add, prepared = preparation(image, preprocess, resize)
    if given.dtype not in (None, ir.DataType.FLOAT):
        prepared = add("Cast", prepared, to=given.dtype)
    prepared.name, prepared.type, prepared.shape = given.name, given.type, given.shape
    for reader, index in list(given.uses()):
        reader.replace_input_with(index, prepared)
    add.add_to(graph, first=True)
    logits = next((v for v in graph.outputs if v.name == LOGITS and LOGITS in names), None)
    if logits is not None and len((spec := _spec(logits)).shape) == 2:
        graph.outputs.extend(_scores(graph, logits, spec, manifest.activation))
    save_graph(model, destination)
    extra = (_spec(value) for value in graph.outputs if value.name in SCORE_OUTPUTS)
    outputs = (*manifest.outputs, *extra)
    return manifest.replace(inputs=(_spec(image),), outputs=outputs, resize=resize), preprocess


def _scores(
    graph: ir.Graph, logits: ir.Value, spec: TensorSpec, activation: Activation
) -> Sequence[ir.Value]:
    """Add probabilities and the best classes of logits, and return them."""
    add, (batch, classes) = Section("scores"), spec.shape
    wide = logits
    if logits.dtype is not ir.DataType.FLOAT:
        wide = add("Cast", logits, to=ir.DataType.FLOAT)
    if activation == "softmax":
        probabilities = add("Softmax", wide, axis=-1)
    else:
        probabilities = add("Sigmoid" if activation == "sigmoid" else "Identity", wide)
    top = min(TOP_CLASSES, int(classes))
    score, index = add.several("TopK", probabilities, [top], count=2, axis=-1)
    add.add_to(graph)
    for value, name, dtype, width in (
        (probabilities, PROBABILITIES, ir.DataType.FLOAT, classes),
        (index, TOP_INDEX, ir.DataType.INT64, top),
        (score, TOP_SCORE, ir.DataType.FLOAT, top),
    ):
        value.name, value.type = name, ir.TensorType(dtype)
        value.shape = ir.Shape([batch, width])
    return probabilities, index, score


def take_off_preparation(source: Path, destination: Path, manifest: Manifest) -> Manifest:
    """Write the network alone of a file that `embed_preparation` wrote; return its manifest."""
    model = open_graph(source)
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    prepared = values[PIXEL_VALUES]
    given = ir.Value(name=PIXEL_VALUES, type=prepared.type, shape=prepared.shape)
    for reader, index in list(prepared.uses()):
        reader.replace_input_with(index, given)
    kept = [value for value in graph.outputs if value.name not in SCORE_OUTPUTS]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    added = [n for n in graph if (n.name or "").startswith(("preprocess/", "scores/"))]
    graph.remove(added, safe=True)
    graph.inputs.clear()
    graph.inputs.append(given)
    remove_unread_constants(graph)
    save_graph(model, destination)
    outputs = tuple(spec for spec in manifest.outputs if spec.name not in SCORE_OUTPUTS)
    return manifest.replace(inputs=(_spec(given),), outputs=outputs, resize="")


def _spec(value: ir.Value) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape or ())
    dtype = value.dtype.numpy().name if value.dtype is not None else ""
    return TensorSpec(value.name or "", dtype, shape)
