"""Engines of common architectures for four kinds of GPU."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest

from vit_export.artifact.engine_sidecar import BatchRange
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.engine.build import BuiltPlan, build_plan
from vit_export.engine.settings import EngineSettings
from vit_export.errors import EngineError
from vit_export.graph.export import export_module
from vit_export.graph.half.convert import to_half
from vit_export.graph.int8.static import to_int8_static
from vit_export.graph.simplify import simplify
from vit_export.model.last_block import count_read_tokens
from vit_export.pipeline.settings import ExportSettings
from vit_export.pipeline.source import load_source
from vit_export.runtime.tensorrt.backend import load_backend
from vit_export.variants import get_variant

TARGETS = ("8.0", "8.6", "8.9", "12.0")
FEW_BLOCKS = ("s16", "deit_b", "b32", "l16", "h14")  # their blocks are all alike: four are enough


def overrides(variant: str) -> dict[str, int]:
    return {"depth": 4} if variant in FEW_BLOCKS else {}


def fp32_graph(variant: str, folder: Path) -> tuple[Path, Manifest]:
    """Export with random weights and without a gate."""
    loaded = load_source(variant, settings=ExportSettings(overrides=overrides(variant)))
    loaded.model.names, loaded.model.taps = loaded.outputs, ()
    exported = export_module(loaded.model, folder / "exported.onnx", loaded.inputs)
    loaded.free()
    path = folder / "fp32.onnx"
    simplify(exported.path, path)
    manifest = Manifest(
        variant=loaded.variant,
        weights=loaded.weights,
        opset=20,
        inputs=loaded.inputs,
        outputs=exported.outputs,
    )
    return path, manifest


def build(source: Path, manifest: Manifest, precision: str, plan: Path) -> BuiltPlan:
    """Build for all targets at once, with a dynamic batch size; check what the size shows."""
    settings = EngineSettings(
        backend="tensorrt-rtx",
        precision=precision,
        compute_capabilities=TARGETS,
        batches=(BatchRange(1, 8, 32),),
    )
    manifest = manifest.replace(precision=precision)
    rtx, file = load_backend("tensorrt-rtx"), OnnxFile.read(source)
    built = build_plan(rtx, file, manifest, plan, settings)
    assert built.size_fits, built.size_note
    assert built.warnings == ()
    return built


def fused_attentions(plan: Path) -> int:
    """Count the kernels of fused attention in a plan, whose text is undocumented."""
    return len(re.findall(rb"(?<!\w)_gemm_mha_v2(?!\w)", plan.read_bytes()))


@pytest.mark.slow  # a minute together
@pytest.mark.parametrize("variant", ["mnist", "b16", *FEW_BLOCKS])
def test_an_fp16_engine_has_one_fused_attention_per_block(variant: str, tmp_path: Path) -> None:
    """An fp32 graph builds none.

    The one query of a last block that only the class token leaves is not always fused: it was with
    heads of size 32 (mnist) and was not with heads of size 64 and 80.
    """
    fp32, manifest = fp32_graph(variant, tmp_path)
    with pytest.raises(EngineError, match=r"--precision fp16, but .* \d+ FLOAT"):
        build(fp32, manifest, "fp16", tmp_path / "x.engine")
    half, plan = tmp_path / "fp16.onnx", tmp_path / "x.engine"
    to_half(fp32, half)
    fp32.with_name("exported.onnx.data").unlink()
    gc.collect()
    built = build(half, manifest, "fp16", plan)
    assert set(built.product_types) == {"HALF"}
    assert built.compute_capabilities == TARGETS
    config = get_variant(variant, **overrides(variant))
    unfused = count_read_tokens(config) == 1 and config.embed_dim // config.num_heads > 32
    assert fused_attentions(plan) == config.depth - unfused


@pytest.mark.slow  # a minute and a half together
@pytest.mark.parametrize("variant", ["mnist", "s16", "b16"])
def test_bf16_and_int8_engines_are_accepted(variant: str, tmp_path: Path) -> None:
    """In bf16 the patch embedding stays in fp32, in int8 that and the attentions."""
    fp32, manifest = fp32_graph(variant, tmp_path)
    half, int8, plan = tmp_path / "bf16.onnx", tmp_path / "int8.onnx", tmp_path / "x.engine"
    narrow = manifest.replace(conversion=to_half(fp32, half, precision="bf16"))
    types = build(half, narrow, "bf16", plan).product_types
    assert types == {"FLOAT": 1, "BF16": types["BF16"]}
    values = {name for node in OnnxFile.read(fp32).nodes for name in node.inputs}
    conversion = to_int8_static(fp32, int8, thresholds=dict.fromkeys(values, 4.0))
    types = build(int8, manifest.replace(conversion=conversion), "int8", plan).product_types
    assert types["INT8"] == conversion.narrowed
    assert types["FLOAT"] == 2 * get_variant(variant, **overrides(variant)).depth + 1


@pytest.mark.slow  # a quarter of a minute
def test_an_fp32_engine_holds_fp32_weights(tmp_path: Path) -> None:
    """In a smaller model the kernels outweigh the weights."""
    fp32, manifest = fp32_graph("b16", tmp_path)
    plan = tmp_path / "x.engine"
    built = build(fp32, manifest, "fp32", plan)
    assert set(built.product_types) == {"FLOAT"}
    assert plan.stat().st_size > 4 * get_variant("b16").num_params
