"""The tiny artifact with other weights, without another export."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vit_export.artifact.golden import golden_path, pictures
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import stamp
from vit_export.images.prepare import normalize
from vit_export.model.last_block import LastBlock
from vit_export.model.vit import VisionTransformer
from vit_export.pipeline.export import ExportResult
from vit_export.reference.oracle import record
from vit_export.reference.outputs import vit_outputs

CHANNEL, MASSIVE = 7, 7e4
Change = Callable[[VisionTransformer], None]


@dataclass(frozen=True)
class Artifact:
    """An fp32 artifact with its golden file."""

    path: Path
    golden: Path
    manifest: Manifest


def write_weights(source: Path, path: Path, model: VisionTransformer) -> None:
    """Write a graph with the weights of another model of the same config, metadata included."""
    tensors = model.state_dict()
    last = LastBlock(model.blocks[-1], read=1).state_dict()  # as it is exported
    tensors |= {f"blocks.{len(model.blocks) - 1}.{name}": tensor for name, tensor in last.items()}
    state = {name: tensor.numpy() for name, tensor in tensors.items()}
    proto = onnx.load(source)
    transposed = {node.input[1] for node in proto.graph.node if node.op_type == "MatMul"}
    for tensor in proto.graph.initializer:
        if tensor.name in state:
            array = state[tensor.name]
            array = array.T if tensor.name in transposed else array
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    onnx.save(proto, path)


@pytest.fixture(scope="session")
def reweighted(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_export: ExportResult,
    make_model: Callable[..., VisionTransformer],
) -> Callable[[Change], Artifact]:
    """Makes the tiny artifact with weights that a function changed in place.

    The position embedding and class token must stay: the export folds them.
    """

    def make(change: Change) -> Artifact:
        model = make_model()
        change(model)
        path = tmp_path_factory.mktemp("reweighted") / "tiny.onnx"
        write_weights(tiny_export.path, path, model)
        preprocess = tiny_export.manifest.preprocess
        images = pictures(32, 32, 3)
        inputs = {"pixel_values": normalize(images, preprocess)}
        record(vit_outputs(model), inputs, images=images).write(golden_path(path))
        sha256 = OnnxFile.read(path).graph_sha256()
        manifest = tiny_export.manifest.replace(graph_sha256=sha256)
        stamp(path, manifest.metadata())
        return Artifact(path, golden_path(path), manifest)

    return make


@pytest.fixture
def copied(tiny_export: ExportResult, tmp_path: Path) -> Callable[..., Path]:
    """Copies the tiny artifact and its golden file, with fields of the manifest changed."""

    def copy(name: str = "tiny.onnx", **fields: object) -> Path:
        path = tmp_path / name
        shutil.copy(tiny_export.path, path)
        shutil.copy(tiny_export.golden, golden_path(path))
        stamp(path, tiny_export.manifest.replace(**fields).metadata())
        return path

    return copy


@pytest.fixture(scope="session")
def massive_bias(reweighted: Callable[[Change], Artifact]) -> Artifact:
    """From block 1 on, one residual channel is 7e4: a bias that float16 cannot hold."""

    def change(model: VisionTransformer) -> None:
        model.blocks[1].mlp.fc2.bias.data[CHANNEL] = MASSIVE

    return reweighted(change)


@pytest.fixture(scope="session")
def massive_product(reweighted: Callable[[Change], Artifact]) -> Artifact:
    """The same channel from weights that all fit: 6e4 from a bias, 1.5e4 from a product."""

    def change(model: VisionTransformer) -> None:
        mlp = model.blocks[1].mlp
        mlp.fc2.bias.data[CHANNEL] = 6e4
        mlp.fc1.bias.data[5] = 100.0
        mlp.fc2.weight.data[CHANNEL, 5] = 150.0

    return reweighted(change)
