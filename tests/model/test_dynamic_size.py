"""Positions resampled in the graph, gated at several sizes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import numpy_helper

from vit_export.artifact.golden import Golden
from vit_export.errors import InputError, UsageError
from vit_export.gate.validate import compare
from vit_export.model.dynamic_size import AnySizeVisionTransformer
from vit_export.pipeline.settings import ExportSettings, ValidateSettings
from vit_export.pipeline.validate import validate
from vit_export.runtime import load
from vit_export.runtime.onnxruntime.runner import OrtRunner


def test_at_its_own_size_it_computes_what_the_plain_model_does(make_model):
    """Resampling to the same grid is the identity, to the bit."""
    model = make_model()
    same = AnySizeVisionTransformer.of(model).set_attention("decomposed")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(same(x), model(x))


@pytest.mark.parametrize("size", [(48, 32), (24, 64), (8, 8)])
def test_at_other_sizes_it_computes_what_timm_does(make_model, size):
    """Timm's own `dynamic_img_size`, with the same weights, in float64."""
    model = make_model().double()
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=10,
        dynamic_img_size=True,
    )  # fmt: skip
    theirs.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        ours = AnySizeVisionTransformer.of(model)(x)
        expected = theirs.double().eval()(x)
    # timm resamples in float32
    assert (ours - expected).abs().max() < 1e-6 * expected.abs().max()


def test_a_model_without_positions_is_refused(make_model):
    """There is nothing to resample."""
    with pytest.raises(UsageError, match="no position embedding to resample"):
        AnySizeVisionTransformer.of(make_model(pos_embed="none"))


DYNAMIC = ExportSettings(dynamic_size=True)


@pytest.mark.parametrize("fields", [
    {}, pytest.param({"distilled": True, "img_size": (32, 48)}, marks=pytest.mark.slow),
])  # fmt: skip
def test_an_export_of_dynamic_size_is_checked_at_several_sizes(exported, fields):
    """Square or not, with one prefix token or two."""
    result = exported(settings=DYNAMIC, **fields)
    height, width = result.manifest.preprocess.size
    assert result.manifest.inputs[0].shape == ("batch_size", 3, "height", "width")
    golden = Golden.read(result.golden)
    assert [other.size for other in golden.others] == [
        f"{height + 16}x{width + 8}", f"{height}x{width + 32}", f"{height - 24}x{width - 16}"
    ]  # fmt: skip
    measured = {m.output for m in result.comparison.stage.measurements}
    assert {f"logits {other.size}" for other in golden.others} <= measured
    assert any("TensorRT" in note for note in result.notes)
    assert validate(result.path, settings=ValidateSettings(provider="cpu")).passed


def test_a_wrong_resampling_in_the_graph_fails_the_check(exported, tmp_path):
    """Another kind of bicubic interpolation than torch's."""
    result, path = exported(settings=DYNAMIC), tmp_path / "damaged.onnx"
    model = onnx.load(result.path)
    (resize,) = (node for node in model.graph.node if node.op_type == "Resize")
    next(a for a in resize.attribute if a.name == "cubic_coeff_a").f = -0.75  # ONNX's default
    onnx.save(model, path)
    golden = Golden.read(result.golden)
    comparison = compare(OrtRunner(path, provider="cpu"), golden)
    assert not comparison.passed
    assert f"{golden.others[0].size} px" in comparison.stage.reason


def test_an_image_that_is_no_multiple_of_the_patch_is_refused(exported):
    """The convolution would silently cut the rest off."""
    vit = load(exported(settings=DYNAMIC).path)
    assert vit.run(np.zeros((1, 3, 40, 24), np.float32)).shape == (1, 10)
    with pytest.raises(InputError, match="height 41 px is no multiple"):
        vit.run(np.zeros((1, 3, 41, 24), np.float32))


def test_the_positions_in_the_file_are_those_of_the_trained_grid(exported, make_model):
    """They are resampled in the graph, not at the export."""
    graph = onnx.load(exported(settings=DYNAMIC).path).graph
    arrays = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    grid = make_model().pos_embed[0, 1:].detach().numpy()
    assert any(
        a.size == grid.size and np.array_equal(np.sort(a.ravel()), np.sort(grid.ravel()))
        for a in arrays
    )
