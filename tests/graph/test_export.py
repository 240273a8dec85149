"""An export has one node per operation, module names, a dynamic batch, and the same bytes."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Sequence
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
from vit_export.graph import export as graph_export
from vit_export.graph.export import export_module
from vit_export.model.vit import create_model
from vit_export.reference.example import example_input
from vit_export.reference.outputs import module_outputs, vit_outputs

IMAGES = TensorSpec("pixel_values", "float32", ("batch_size", 3, 32, 32))
X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(raw_export: OnnxFile) -> OnnxFile:
    """The tiny model with tokens, neither simplified nor packed."""
    return raw_export


def export_any(module: nn.Module, path: Path, inputs: Sequence[TensorSpec]) -> OnnxFile:
    """Export a module that is no ViT."""
    outputs = module_outputs(module.eval(), [example_input(spec) for spec in inputs])
    return export_module(outputs, path, inputs)


def run(path: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    """Every output, by onnxruntime."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def test_the_file_is_valid_and_has_the_inputs_and_outputs_asked_for(exported):
    """And its operator set; the blocks are further outputs."""
    onnx.checker.check_model(exported.path, full_check=True)
    assert exported.opsets[""] == 20
    assert exported.inputs == (IMAGES,)
    assert exported.outputs == (
        TensorSpec("logits", "float32", ("batch_size", 10)),
        TensorSpec("tokens", "float32", ("batch_size", 17, 32)),
        TensorSpec("features", "float32", ("batch_size", 32)),
        *(TensorSpec(f"blocks.{i}", "float32", ("batch_size", 17, 32)) for i in range(3)),
    )


def test_every_output_and_block_is_that_of_torch(exported, make_model):
    """At a batch size that was not traced."""
    with torch.no_grad():
        expected = vit_outputs(make_model(), ("logits", "tokens"))(torch.from_numpy(X))
    for found, wanted in zip(run(exported.path, pixel_values=X), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)


def test_operations_are_single_nodes_and_only_the_batch_is_dynamic(exported):
    """No Shape, Expand, Gather; one LayerNormalization per norm, one Gelu per MLP."""
    counts = exported.op_counts
    assert counts["LayerNormalization"] == 2 * 3 + 1
    assert counts["Gelu"] == 3
    assert counts["Softmax"] == 3
    assert counts["Conv"] == 1
    assert not {"Shape", "Expand", "Gather", "Erf", "ReduceMean", "Tile", "Where"} & set(counts)


def test_the_file_does_not_reveal_where_it_was_exported(exported):
    """No stack trace, path or source file, and none in the file of weights."""
    data = exported.path.read_bytes() + exported.path.with_name("vit.onnx.data").read_bytes()
    for trace in (b".py", b"File ", b"/home", b"/usr", b"/tmp", b"stack_trace", b"pkg.torch"):
        assert trace not in data, trace
    assert str(Path(torch.__file__).parents[1]).encode() not in data
    model = onnx.load(exported.path)
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert not model.metadata_props
    assert not model.doc_string


def test_nodes_and_weights_are_named_after_modules(exported, make_model):
    """Every parameter but the folded positions keeps its name; node names are unique."""
    model = onnx.load(exported.path)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"patch_embed.proj/Conv", "blocks.0.attn.qkv/MatMul", "norm/LayerNormalization"} <= set(
        names
    )
    weights = {tensor.name for tensor in model.graph.initializer}
    parameters = {name for name, _ in make_model().named_parameters()}
    assert parameters - weights == {"cls_token", "pos_embed"}


class FixesBatch(nn.Module):
    """Reshapes to a batch of two."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3 * 32 * 32).sum(1, keepdim=True)


def test_a_module_that_fixes_its_batch_is_refused_with_a_hint(tmp_path):
    """The exporter would make a dimension that is dynamic in name only."""
    with pytest.raises(
        ExportError,
        match=r"FixesBatch.*fixes batch_size[\s\S]*hint: export it with a fixed size.*--batch 1",
    ):
        export_any(FixesBatch(), tmp_path / "m.onnx", [IMAGES])
    assert not list(tmp_path.iterdir())


class Branches(nn.Module):
    """Branches on the values of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else x.neg()


def test_a_module_that_torch_cannot_trace_is_refused_by_its_class(tmp_path):
    """The message is short, without a page of traceback."""
    with pytest.raises(ExportError, match=r"torch cannot export .*Branches as ONNX") as caught:
        export_any(Branches(), tmp_path / "m.onnx", [IMAGES])
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


def test_a_module_of_two_inputs_keeps_the_names_of_inputs_and_weights(tmp_path):
    """Both inputs share the batch size; each weight has the name of its parameter."""
    torch.manual_seed(0)
    module = TwoInputs().eval()
    specs = [TensorSpec("photo", "float32", ("n", 3, 32, 32)), TensorSpec("ids", "int64", ("n",))]
    exported = export_any(module, tmp_path / "m.onnx", specs)
    assert exported.inputs == tuple(specs)
    assert [str(s) for s in exported.outputs] == ["scores: float32 (n, 4)", "double: int64 (n)"]
    names = {tensor.name for tensor in exported.initializers}
    assert {"embed.weight", "embed.bias", "table.weight"} <= names
    assert not [name for name in names if name.startswith(("_call", "module"))]
    ids = np.array([1, 8, 3])
    scores, double = run(exported.path, photo=X, ids=ids)
    with torch.no_grad():
        expected = module(torch.from_numpy(X), torch.from_numpy(ids))
    np.testing.assert_allclose(scores, expected["scores"].numpy(), atol=1e-5)
    np.testing.assert_array_equal(double, 2 * ids)


def test_torchs_own_messages_are_silenced_and_its_log_level_is_restored(tmp_path, monkeypatch):
    """Without torchvision, torch warns about operators that no exported model uses."""
    find_spec = importlib.util.find_spec

    def without_torchvision(name: str, *arguments: object) -> object:
        return None if name == "torchvision" else find_spec(name, *arguments)

    monkeypatch.setattr(importlib.util, "find_spec", without_torchvision)
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    monkeypatch.setattr(handler, "emit", lambda record: messages.append(record.getMessage()))
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        spec = TensorSpec("pixel_values", "float32", (2, 3, 32, 32))
        exported = export_any(FixesBatch(), tmp_path / "m.onnx", [spec])
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert exported.outputs[0].shape == (2, 1)  # its hint: a fixed batch
    assert messages == []
    assert [logger.level for logger in loggers] == levels


def test_dynamic_dimensions_are_traced_with_two():
    """torch.export treats sizes 0 and 1 as constants."""
    example = example_input(TensorSpec("ids", "int64", ("n", 5)))
    assert example.shape == (2, 5)
    assert example.dtype == torch.int64


def structure(file: OnnxFile) -> list[tuple[str, str, tuple[str, ...]]]:
    """Operator, name and outputs of every node."""
    return [(node.op_type, node.name, node.outputs) for node in file.nodes]


def weights(path: Path) -> dict[str, bytes]:
    """Weights by the name of their layer, in the order of the file."""
    graph = onnx.load(path).graph
    return {t.name: t.raw_data for t in graph.initializer if not t.name.startswith("val_")}


def test_blocks_that_are_no_outputs_are_all_traced(tmp_path, make_model):
    """Nothing shows where a block begins and ends."""
    outputs = vit_outputs(make_model(depth=4))
    outputs.taps = ()
    file = export_module(outputs, tmp_path / "plain.onnx", [IMAGES])
    assert [spec.name for spec in file.outputs] == list(outputs.names)
    assert sum(node.op_type == "Softmax" for node in file.nodes) == 4


def test_repeated_blocks_are_those_that_torch_would_trace(tmp_path, make_model, monkeypatch):
    model = make_model(depth=6)
    outputs = vit_outputs(model)
    repeated = export_module(outputs, tmp_path / "repeated.onnx", [IMAGES])
    assert (len(model.blocks), outputs.taps[-1]) == (6, "blocks.5")
    monkeypatch.setattr(graph_export, "_shortened", lambda model: contextlib.nullcontext([]))
    traced = export_module(outputs, tmp_path / "traced.onnx", [IMAGES])
    assert structure(repeated) == structure(traced)
    assert [s.name for s in repeated.outputs] == [s.name for s in traced.outputs]
    assert list(weights(repeated.path).items()) == list(weights(traced.path).items())


def test_repeated_blocks_with_equal_weights_keep_their_own(tmp_path, tiny_config):
    """The exporter merges equal vectors, and only block 2 has another one."""
    model = create_model(tiny_config.replace({"depth": 5})).set_attention("decomposed")
    model.blocks[2].norm1.bias.data += 1
    file = export_module(vit_outputs(model), tmp_path / "x.onnx", [IMAGES])
    logits, *_ = run(file.path, pixel_values=X)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(torch.from_numpy(X)).numpy(), atol=1e-5)


def test_the_last_block_computes_only_the_tokens_that_are_read(make_model, tmp_path):
    """Its queries and what follows; q and kv are layers of their own; the model stays whole."""
    model = make_model(depth=2, distilled=True)
    outputs, last = vit_outputs(model), model.blocks[-1]
    file = export_module(outputs, tmp_path / "x.onnx", [IMAGES])
    assert file.outputs[-1] == TensorSpec("blocks.1", "float32", ("batch_size", 2, 32))
    graph = onnx.load(file.path, load_external_data=False).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert shapes["blocks.0.attn.qkv.weight"] == [32, 96]
    assert shapes["blocks.1.attn.q.weight"] == [32, 32]
    assert shapes["blocks.1.attn.kv.weight"] == [32, 64]
    assert "blocks.1.attn.qkv.weight" not in shapes
    assert model.blocks[-1] is last
    with torch.no_grad():
        expected = outputs(torch.from_numpy(X))
    for found, wanted in zip(run(file.path, pixel_values=X), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)


def test_blocks_that_differ_are_traced_one_by_one(tmp_path, make_model):
    model = make_model(depth=5)
    model.blocks[2].norm1.eps = 0.5
    file = export_module(vit_outputs(model), tmp_path / "x.onnx", [IMAGES])
    logits, *_ = run(file.path, pixel_values=X)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(torch.from_numpy(X)).numpy(), atol=1e-5)
