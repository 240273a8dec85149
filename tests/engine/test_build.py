"""Real engines of TensorRT-RTX, which builds without a GPU."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from fake_cuda import FakeCuda

from vit_export.artifact.engine_sidecar import BatchRange, Gpu
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.engine.build import BuiltPlan, build_plan, interruptible
from vit_export.engine.network import check_source
from vit_export.engine.settings import EngineSettings, targets_of
from vit_export.errors import ArtifactError, EngineError, ProviderError, UsageError
from vit_export.graph.export import export_module
from vit_export.graph.half.convert import to_half
from vit_export.graph.int8.dynamic import to_int8_dynamic
from vit_export.graph.int8.static import to_int8_static
from vit_export.model.vit import VisionTransformer
from vit_export.pipeline.export import ExportResult
from vit_export.reference.outputs import vit_outputs
from vit_export.runtime.tensorrt.backend import Backend, load_backend

L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="13.0")


def fused_attentions(plan: Path) -> int:
    """Count the kernels of fused attention in a plan, whose text is undocumented."""
    return len(re.findall(rb"(?<!\w)_gemm_mha_v2(?!\w)", plan.read_bytes()))


def settings(**fields: object) -> EngineSettings:
    """Settings for TensorRT-RTX and an L4, with fields changed."""
    values = {"backend": "tensorrt-rtx", "compute_capabilities": ("8.9",), **fields}
    return EngineSettings(**values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rtx() -> Backend:
    """The real TensorRT-RTX."""
    return load_backend("tensorrt-rtx")


@pytest.fixture(scope="module")
def half(tiny_export: ExportResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in mixed FP16, without a manifest."""
    path = tmp_path_factory.mktemp("half") / "tiny.fp16.onnx"
    to_half(tiny_export.path, path)
    return path


@pytest.fixture
def build(rtx: Backend, tiny_export: ExportResult, tmp_path: Path) -> Callable[..., BuiltPlan]:
    """Builds the tiny model."""

    def run(
        source: Path = tiny_export.path, precision: str = "fp16", **fields: object
    ) -> BuiltPlan:
        manifest = tiny_export.manifest.replace(precision=precision)
        file, plan = OnnxFile.read(source), tmp_path / "x.engine"
        return build_plan(rtx, file, manifest, plan, settings(precision=precision, **fields))

    return run


def test_an_fp16_engine_computes_every_product_in_fp16_and_fuses_every_attention(
    build: Callable[..., BuiltPlan], half: Path, tmp_path: Path
) -> None:
    built = build(half)
    assert set(built.product_types) == {"HALF"}
    assert fused_attentions(tmp_path / "x.engine") == 3


def test_a_bf16_engine_computes_in_bf16(
    build: Callable[..., BuiltPlan], tiny_export: ExportResult, tmp_path: Path
) -> None:
    """Except the patch embedding, a convolution."""
    source = tmp_path / "tiny.bf16.onnx"
    to_half(tiny_export.path, source, precision="bf16")
    built = build(source, "bf16")
    assert built.product_types["BF16"] > 10
    assert built.product_types.get("FLOAT", 0) == 1
    assert fused_attentions(tmp_path / "x.engine") == 3


def test_an_int8_engine_is_built_of_a_graph_with_fixed_scales(
    rtx: Backend, tiny_export: ExportResult, tmp_path: Path
) -> None:
    """As many products as the conversion narrowed have two int8 operands."""
    source = tmp_path / "tiny.int8.onnx"
    values = {name for node in OnnxFile.read(tiny_export.path).nodes for name in node.inputs}
    conversion = to_int8_static(tiny_export.path, source, thresholds=dict.fromkeys(values, 4.0))
    manifest = tiny_export.manifest.replace(precision="int8-static", conversion=conversion)
    file, plan = OnnxFile.read(source), tmp_path / "x.engine"
    built = build_plan(rtx, file, manifest, plan, settings(precision="int8"))
    assert built.product_types["INT8"] == conversion.narrowed
    assert conversion.narrowed >= 12


def test_a_dynamically_quantized_graph_is_refused(
    tiny_export: ExportResult, tmp_path: Path
) -> None:
    """TensorRT has no operator for it."""
    to_int8_dynamic(tiny_export.path, tmp_path / "dynamic.onnx")
    with pytest.raises(EngineError, match=r"DynamicQuantizeLinear.*\n.*--precision int8-static"):
        check_source(OnnxFile.read(tmp_path / "dynamic.onnx"))


def test_an_fp32_engine_computes_in_fp32(build: Callable[..., BuiltPlan]) -> None:
    assert set(build(precision="fp32").product_types) == {"FLOAT"}


def test_float32_attention_nodes_are_decomposed(
    build: Callable[..., BuiltPlan],
    make_model: Callable[..., VisionTransformer],
    tiny_export: ExportResult,
    tmp_path: Path,
) -> None:
    """TensorRT has no fused kernel for them; an int8 graph has them too."""
    model = vit_outputs(make_model(depth=1).set_attention("op"))
    model.names, model.taps = ("logits",), ()
    file = export_module(model, tmp_path / "op.onnx", tiny_export.manifest.inputs, opset=23)
    assert "Attention" in file.op_counts
    assert set(build(file.path, "fp32").product_types) == {"FLOAT"}
    values = {name for node in file.nodes for name in node.inputs}
    quantized = tmp_path / "op.int8.onnx"
    to_int8_static(file.path, quantized, thresholds=dict.fromkeys(values, 4.0))
    assert build(quantized, "int8").product_types["INT8"] >= 4


def test_an_fp32_graph_builds_no_fp16_engine(
    build: Callable[..., BuiltPlan], tmp_path: Path
) -> None:
    """Whatever its manifest says."""
    with pytest.raises(EngineError, match=r"--precision fp16, but .* \d+ FLOAT"):
        build(precision="fp16")
    assert not (tmp_path / "x.engine").exists()


def test_an_fp16_graph_builds_no_fp32_engine(build: Callable[..., BuiltPlan], half: Path) -> None:
    with pytest.raises(EngineError, match=r"--precision fp32, but .* HALF"):
        build(half, "fp32")


def test_one_fp32_layer_that_the_manifest_does_not_list_is_refused(
    build: Callable[..., BuiltPlan], tiny_export: ExportResult, tmp_path: Path
) -> None:
    source = tmp_path / "kept.onnx"
    to_half(tiny_export.path, source, keep=["blocks.1.mlp.fc1"])
    with pytest.raises(EngineError, match="1 would compute in float32"):
        build(source)


def test_every_profile_has_kernels_of_its_own(
    build: Callable[..., BuiltPlan], half: Path, tmp_path: Path
) -> None:
    built = build(half, batches=(BatchRange(1, 1, 1), BatchRange(2, 8, 32)))
    shapes = [profile["pixel_values"].opt for profile in built.profiles]
    assert shapes == [(1, 3, 32, 32), (8, 3, 32, 32)]
    # three blocks each, but at batch 1 the one query of the last block is not fused
    assert fused_attentions(tmp_path / "x.engine") == 5


def test_one_engine_runs_on_four_kinds_of_gpu(build: Callable[..., BuiltPlan], half: Path) -> None:
    """Ampere, Ada and Blackwell."""
    targets = ("8.0", "8.6", "8.9", "12.0")
    assert build(half, compute_capabilities=targets).compute_capabilities == targets


def test_two_builds_give_identical_bytes(
    build: Callable[..., BuiltPlan], half: Path, tmp_path: Path
) -> None:
    """TensorRT-RTX times nothing while it builds."""
    build(half)
    first = (tmp_path / "x.engine").read_bytes()
    build(half)
    assert (tmp_path / "x.engine").read_bytes() == first


def test_a_graph_that_onnx_runtime_optimised_is_refused(
    tiny_export: ExportResult, tmp_path: Path
) -> None:
    """It contains fused operators of Microsoft."""
    session_options = ort.SessionOptions()
    session_options.optimized_model_filepath = str(tmp_path / "ort.onnx")
    session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(tiny_export.path), session_options)
    with pytest.raises(
        ArtifactError, match=r"optimised by ONNX Runtime: it contains .*FusedMatMul"
    ):
        check_source(OnnxFile.read(tmp_path / "ort.onnx"))


def test_a_node_that_tensorrt_cannot_parse_is_named(
    build: Callable[..., BuiltPlan], tmp_path: Path, tiny_export: ExportResult
) -> None:
    model = onnx.load(tiny_export.path)
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    norm.op_type, norm.domain = "Invented", "example.com"
    model.opset_import.append(onnx.helper.make_opsetid("example.com", 1))
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(EngineError, match=r"cannot parse odd.onnx: Invented"):
        build(tmp_path / "odd.onnx", "fp32")


def test_inputs_must_be_those_of_the_manifest(
    rtx: Backend, tiny_export: ExportResult, tmp_path: Path
) -> None:
    (spec,) = tiny_export.manifest.inputs
    other = tiny_export.manifest.replace(
        inputs=(type(spec)("images", spec.dtype, spec.shape),), precision="fp32"
    )
    file, plan = OnnxFile.read(tiny_export.path), tmp_path / "x.engine"
    with pytest.raises(EngineError, match="TensorRT reads the inputs pixel_values"):
        build_plan(rtx, file, other, plan, settings(precision="fp32"))


def test_too_little_workspace_is_named_with_its_option(
    build: Callable[..., BuiltPlan], half: Path
) -> None:
    with pytest.raises(EngineError, match="--workspace-mib 1 is too little"):
        build(half, workspace_mib=1, batches=(BatchRange(1, 512, 512),))


def test_a_profile_that_tensorrt_only_warns_about_is_an_error(
    build: Callable[..., BuiltPlan], half: Path
) -> None:
    with pytest.raises(EngineError, match="use smaller batches"):
        build(half, batches=(BatchRange(1, 8, 1 << 29),))


def test_a_stripped_or_refittable_engine_needs_the_gpu(
    build: Callable[..., BuiltPlan], half: Path
) -> None:
    """TensorRT-RTX compiles refittable kernels on the device."""
    for fields in ({"strip": True}, {"refit": True}):
        with pytest.raises(EngineError, match="compiled on the GPU, and there is none here"):
            build(half, **fields)


def test_weight_streaming_is_built(build: Callable[..., BuiltPlan], half: Path) -> None:
    assert build(half, weight_streaming=True).size_fits


def test_progress_rises_to_the_end(rtx: Backend, tiny_export: ExportResult, tmp_path: Path) -> None:
    reported: list[int] = []

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        if total:
            assert stage == "build the engine"
            assert total == 100
            reported.append(done)

    fp32 = settings(precision="fp32")
    file, plan = OnnxFile.read(tiny_export.path), tmp_path / "x.engine"
    build_plan(rtx, file, tiny_export.manifest, plan, fp32, progress=progress)
    assert reported == sorted(reported)
    assert reported[-1] == 100


def test_an_interrupt_stops_the_build(
    rtx: Backend, tiny_export: ExportResult, tmp_path: Path
) -> None:
    """It interrupts the waiting thread, which waits until TensorRT has stopped."""

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        if total and threading.current_thread() is threading.main_thread():
            raise AssertionError("TensorRT runs in the thread that must receive Ctrl-C")
        if total and not interrupted.is_set():
            interrupted.set()
            signal.raise_signal(signal.SIGINT)

    interrupted = threading.Event()
    fp32 = settings(precision="fp32")
    file, plan = OnnxFile.read(tiny_export.path), tmp_path / "x.engine"
    with pytest.raises(KeyboardInterrupt):
        build_plan(rtx, file, tiny_export.manifest, plan, fp32, progress=progress)
    assert interrupted.is_set()
    assert not (tmp_path / "x.engine").exists()
    assert [t.name for t in threading.enumerate() if t.name.startswith("build")] == []


def test_an_interrupt_at_the_start_leaves_no_build_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would use objects that the caller frees."""
    begun, cancelled, start = threading.Event(), threading.Event(), threading.Thread.start

    def build() -> None:
        begun.set()
        cancelled.wait(1)

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if begun.wait(0.2):
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        interruptible(build, cancelled)
    assert [t.name for t in threading.enumerate() if t.name.startswith("build")] == []


def test_an_error_of_a_build_is_raised_in_the_waiting_thread() -> None:

    def fail() -> None:
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        interruptible(fail, threading.Event())


def test_the_thread_of_a_build_uses_the_gpu_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA gives a new thread GPU 0; the GPUs are fakes."""
    cuda = FakeCuda()
    cuda.replace_cuda_core(monkeypatch)
    assert interruptible(lambda: cuda.current, threading.Event()) == 0
    assert interruptible(lambda: cuda.current, threading.Event(), device=1) == 1
    assert cuda.context is None


def test_without_a_gpu_the_target_must_be_named(rtx: Backend) -> None:
    unnamed = settings(compute_capabilities=())
    with pytest.raises(UsageError, match=r"--compute-capability 8.9 \(known: 7.5, 8.0"):
        targets_of(rtx, unnamed, None)
    assert targets_of(rtx, unnamed, L4) == ("8.9",)


def test_a_gpu_that_rtx_does_not_compile_for_is_refused(rtx: Backend) -> None:
    """An H100 has compute capability 9.0."""
    with pytest.raises(UsageError, match="--backend tensorrt"):
        targets_of(rtx, settings(compute_capabilities=("9.0",)), None)


def test_tensorrt_itself_builds_only_on_the_gpu_that_runs_the_engine() -> None:
    trt = Backend(name="tensorrt", trt=None, version="11.4.0.106", logger=None)
    with pytest.raises(EngineError, match=r"there is none here .*\n.*--backend tensorrt-rtx"):
        targets_of(trt, EngineSettings(), None)
    assert targets_of(trt, EngineSettings(), L4) == ("8.9",)


def test_a_missing_backend_is_named_with_its_install_command() -> None:
    with pytest.raises(ProviderError, match=r"pip install 'vit-export\[tensorrt\]'"):
        load_backend("tensorrt")
