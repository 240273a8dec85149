"""What torch exports is one node per operation, named, dynamic in the batch, and reproducible."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from vit_export.artifact.manifest import TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ExportError
from vit_export.graph.export import Exported, example_input, export_module
from vit_export.model.vit import VisionTransformer
from vit_export.reference.outputs import vit_outputs

IMAGES = TensorSpec("pixel_values", "float32", ("batch_size", 3, 32, 32))
X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(
    make_model: Callable[..., VisionTransformer], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """The tiny model, neither simplified nor packed."""
    path = tmp_path_factory.mktemp("exported") / "vit.onnx"
    return export_module(vit_outputs(make_model(), ("logits", "tokens")), path, [IMAGES])


def run(path: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    """What onnxruntime makes of a file."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def test_the_file_is_valid_and_says_what_it_takes_and_gives(exported):
    """Signature, operator set, taps as further outputs."""
    onnx.checker.check_model(exported.path, full_check=True)
    file = OnnxFile.read(exported.path)
    assert file.opsets[""] == 20
    assert file.inputs == exported.inputs == (IMAGES,)
    assert exported.outputs == (
        TensorSpec("logits", "float32", ("batch_size", 10)),
        TensorSpec("tokens", "float32", ("batch_size", 17, 32)),
        TensorSpec("features", "float32", ("batch_size", 32)),
    )
    assert exported.taps == ("blocks.0", "blocks.1", "blocks.2")
    assert [s.name for s in file.outputs] == [*(s.name for s in exported.outputs), *exported.taps]


def test_it_computes_what_torch_computes(exported, make_model):
    """Every output and tap."""
    with torch.no_grad():
        expected = vit_outputs(make_model(), ("logits", "tokens"))(torch.from_numpy(X))
    for found, wanted in zip(run(exported.path, pixel_values=X), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)


def test_operations_are_single_nodes_and_nothing_is_dynamic_but_the_batch(exported):
    """No Shape, Expand, Gather; one LayerNormalization per norm, one Gelu per MLP."""
    counts = OnnxFile.read(exported.path).op_counts
    assert counts["LayerNormalization"] == 2 * 3 + 1
    assert counts["Gelu"] == 3
    assert counts["Softmax"] == 3
    assert counts["Conv"] == 1
    assert not {"Shape", "Expand", "Gather", "Erf", "ReduceMean", "Tile", "Where"} & set(counts)


def test_nothing_tells_where_and_by_whom_it_was_exported(exported):
    """No stack trace, path or source file; neither beside it."""
    data = exported.path.read_bytes() + exported.path.with_name("vit.onnx.data").read_bytes()
    for trace in (b".py", b"File ", b"/home", b"/usr", b"/tmp", b"stack_trace", b"pkg.torch"):
        assert trace not in data, trace
    assert str(Path(torch.__file__).parents[1]).encode() not in data
    model = onnx.load(exported.path)
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert not model.metadata_props
    assert not model.doc_string


def test_nodes_and_weights_are_named_after_modules(exported, make_model):
    """Every parameter but the folded positions keeps its name; each node's name is its own."""
    model = onnx.load(exported.path)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"patch_embed.proj/Conv", "blocks.0.attn.qkv/MatMul", "norm/LayerNormalization"} <= set(
        names
    )
    weights = {tensor.name for tensor in model.graph.initializer}
    parameters = {name for name, _ in make_model().named_parameters()}
    assert parameters - weights == {"cls_token", "pos_embed"}


def test_attention_as_an_operator_is_one_node_per_block(make_model, tmp_path):
    """From opset 23 on."""
    model = make_model().set_attention("op")
    path = tmp_path / "op.onnx"
    export_module(vit_outputs(model), path, [IMAGES], opset=23)
    file = OnnxFile.read(path)
    assert file.opsets[""] == 23
    assert file.op_counts["Attention"] == 3
    assert not {"Softmax", "Shape", "Expand"} & set(file.op_counts)
    with torch.no_grad():
        expected = make_model()(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(run(path, pixel_values=X)[0], expected, atol=2e-5)


def test_a_fixed_batch_is_fixed(make_model, tmp_path):
    """For devices that want every size known."""
    spec = TensorSpec("pixel_values", "float32", (1, 3, 32, 32))
    export = export_module(vit_outputs(make_model()), tmp_path / "one.onnx", [spec])
    assert export.outputs[0].shape == (1, 10)
    assert OnnxFile.read(export.path).inputs == (spec,)
    assert run(export.path, pixel_values=X[:1])[0].shape == (1, 10)


EXPORT = """
import sys
from pathlib import Path
from vit_export.graph.export import export_module
from vit_export.artifact.manifest import TensorSpec
from vit_export.reference.outputs import vit_outputs
from vit_export.model.vit import create_model
from vit_export.variants import ViTConfig

config = ViTConfig(
    variant="x", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3
)
spec = TensorSpec("pixel_values", "float32", ("batch_size", 3, 16, 16))
export_module(vit_outputs(create_model(config)), Path(sys.argv[1]), [spec])
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path, monkeypatch):
    """This one and a fresh one, with other seeds of hashes, in another folder."""
    files = [tmp_path / name / "m.onnx" for name in ("child", "here")]
    for file in files:
        file.parent.mkdir()
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", EXPORT, str(files[0])]
    child = subprocess.Popen(command, env={**os.environ, **environment})
    monkeypatch.setattr(sys, "argv", ["export", str(files[1])])
    exec(EXPORT, {})
    assert child.wait() == 0
    for suffix in ("", ".data"):
        found = {file.with_name(f"m.onnx{suffix}").read_bytes() for file in files}
        assert len(found) == 1


class FixesBatch(nn.Module):
    """Reshapes to the batch that it was written for."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3 * 32 * 32).sum(1, keepdim=True)


def test_a_module_that_fixes_its_batch_is_refused_with_what_to_do(tmp_path):
    """Not exported with a dimension that is dynamic in name only."""
    with pytest.raises(
        ExportError, match=r"FixesBatch.*fixes batch_size.*: try a fixed size.*--batch 1"
    ):
        export_module(FixesBatch(), tmp_path / "m.onnx", [IMAGES])
    assert not list(tmp_path.iterdir())
    fixed = TensorSpec("pixel_values", "float32", (2, 3, 32, 32))
    assert export_module(FixesBatch(), tmp_path / "m.onnx", [fixed]).outputs[0].shape == (2, 1)


class Branches(nn.Module):
    """Decides by the values of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else x.neg()


def test_a_module_that_torch_cannot_trace_is_refused_with_its_class(tmp_path):
    """A branch on data; the message holds no page of traceback."""
    with pytest.raises(ExportError, match=r"torch cannot export .*Branches as ONNX") as caught:
        export_module(Branches(), tmp_path / "m.onnx", [IMAGES])
    assert len(str(caught.value)) < 800
    assert not list(tmp_path.iterdir())


class TwoInputs(nn.Module):
    """Pictures and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 32)
        self.table = nn.Embedding(9, 4)

    def forward(self, image: Tensor, ids: Tensor) -> dict[str, Tensor]:
        return {"scores": self.embed(image).flatten(1) + self.table(ids), "double": ids * 2}


def test_a_module_of_two_inputs_keeps_their_names(tmp_path):
    """And that both share the batch."""
    torch.manual_seed(0)
    module = TwoInputs().eval()
    specs = [TensorSpec("photo", "float32", ("n", 3, 32, 32)), TensorSpec("ids", "int64", ("n",))]
    exported = export_module(module, tmp_path / "m.onnx", specs)
    file = OnnxFile.read(exported.path)
    assert file.inputs == tuple(specs)
    assert [str(s) for s in exported.outputs] == ["scores: float32 (n, 4)", "double: int64 (n)"]
    ids = np.array([1, 8, 3])
    scores, double = run(exported.path, photo=X, ids=ids)
    with torch.no_grad():
        expected = module(torch.from_numpy(X), torch.from_numpy(ids))
    np.testing.assert_allclose(scores, expected["scores"].numpy(), atol=1e-5)
    np.testing.assert_array_equal(double, 2 * ids)


def test_weights_of_anybodys_module_keep_their_names(tmp_path):
    """Each once."""
    exported = export_module(TwoInputs(), tmp_path / "m.onnx", [
        TensorSpec("photo", "float32", ("n", 3, 32, 32)), TensorSpec("ids", "int64", ("n",)),
    ])  # fmt: skip
    names = {tensor.name for tensor in OnnxFile.read(exported.path).initializers}
    assert {"embed.weight", "embed.bias", "table.weight"} <= names
    assert not [name for name in names if name.startswith(("_call", "module"))]


def test_an_example_has_two_of_what_is_dynamic():
    """torch.export takes sizes 0 and 1 for constants."""
    example = example_input(TensorSpec("ids", "int64", ("n", 5)))
    assert example.shape == (2, 5)
    assert example.dtype == torch.int64
