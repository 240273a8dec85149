"""The door `validate`: where the float64 reference comes from."""

from __future__ import annotations

import pytest

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.checkpoint.own import save_checkpoint
from vit_export.errors import ArtifactError, UsageError
from vit_export.pipeline.export import export
from vit_export.pipeline.settings import ExportSettings, ValidateSettings
from vit_export.pipeline.validate import validate


def test_a_missing_golden_file_is_named_with_two_ways_out(tiny_export, tmp_path):
    """Its path, or the checkpoint."""
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(tiny_export.path.read_bytes())
    with pytest.raises(ArtifactError, match=r"--golden FILE.*--weights FILE"):
        validate(alone)
    assert validate(alone, settings=ValidateSettings(golden=tiny_export.golden)).passed


def test_settings_that_contradict_each_other_are_refused():
    """On construction."""
    with pytest.raises(UsageError, match="--layout needs --weights"):
        ValidateSettings(layout="timm")
    with pytest.raises(UsageError, match="two sources of the reference"):
        ValidateSettings(golden="g.npz", weights="w.safetensors")


@pytest.mark.parametrize("change", [
    {"preprocess": {"mean": "0.2,0.2,0.2"}},
    pytest.param({"overrides": {"act_layer": "gelu_tanh"}}, marks=pytest.mark.slow),
    pytest.param({"overrides": {"img_size": 48}}, marks=pytest.mark.slow),
    pytest.param({"overrides": {"num_classes": 4}, "reset_head": True}, marks=pytest.mark.slow),
    pytest.param({"dynamic_size": True}, marks=pytest.mark.slow),
])  # fmt: skip
def test_the_reference_is_computed_again_from_the_checkpoint(change, make_model, tmp_path):
    """As the export changed it: preparation, activation function, size, head; another one fails."""
    weights, other = tmp_path / "weights.safetensors", tmp_path / "other.safetensors"
    save_checkpoint(make_model(depth=1), weights)
    save_checkpoint(make_model(seed=5, depth=1), other)
    settings = ExportSettings(**change)
    artifact = export(None, tmp_path / "m.onnx", weights=weights, settings=settings).path
    result = validate(artifact, settings=ValidateSettings(weights=weights, provider="cpu"))
    assert result.passed, result.stage.reason
    assert not validate(artifact, settings=ValidateSettings(weights=other, provider="cpu")).passed


@pytest.mark.parametrize(("change", "passes"), [(1, True), (2**30, False)])
def test_a_file_that_was_changed_after_its_gate_is_named(tiny_export, tmp_path, change, passes):
    """A flipped bit that stays within the tolerance is a note, one that does not is the reason."""
    damaged = tmp_path / "damaged.onnx"
    content = bytearray(tiny_export.path.read_bytes())
    weight = next(t for t in OnnxFile.read(tiny_export.path).initializers if "fc1" in t.name)
    bits = int.from_bytes(content[weight.offset : weight.offset + 4], "little") ^ change
    content[weight.offset : weight.offset + 4] = bits.to_bytes(4, "little")
    damaged.write_bytes(content)
    stage = validate(damaged, settings=ValidateSettings(golden=tiny_export.golden)).stage
    assert stage.passed is passes
    assert "changed after they were measured" in " ".join(stage.notes if passes else stage.reasons)
