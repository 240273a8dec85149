"""Engines built for real, by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from vit_export.artifact.engine_sidecar import BatchRange, Gpu
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.engine.build import Built, build_engine, compute_capabilities
from vit_export.engine.monitor import interruptible
from vit_export.engine.options import BuildOptions
from vit_export.engine.source import check_source
from vit_export.errors import ArtifactError, EngineError, ProviderError, UsageError
from vit_export.graph.half.convert import to_half
from vit_export.graph.int8.dynamic import to_int8_dynamic
from vit_export.graph.int8.static import to_int8_static
from vit_export.pipeline.export import ExportResult
from vit_export.pipeline.settings import ExportSettings
from vit_export.runtime.tensorrt.backend import Backend, load_backend

L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="13.0")


def fused_attentions(plan: Path) -> int:
    """Kernels of fused attention in a plan; its text is undocumented, so tests alone read it."""
    return len(re.findall(rb"(?<!\w)_gemm_mha_v2(?!\w)", plan.read_bytes()))


def options(**fields: object) -> BuildOptions:
    """For TensorRT-RTX and an L4 unless said otherwise."""
    asked = {"backend": "tensorrt-rtx", "compute_capabilities": ("8.9",), **fields}
    return BuildOptions(**asked)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rtx() -> Backend:
    """TensorRT-RTX itself."""
    return load_backend("tensorrt-rtx")


@pytest.fixture(scope="module")
def half(tiny_export: ExportResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in mixed FP16, without a manifest."""
    path = tmp_path_factory.mktemp("half") / "tiny.fp16.onnx"
    to_half(tiny_export.path, path)
    return path


@pytest.fixture
def build(rtx: Backend, tiny_export: ExportResult, tmp_path: Path) -> Callable[..., Built]:
    """Builds the tiny model."""

    def run(source: Path = tiny_export.path, precision: str = "fp16", **fields: object) -> Built:
        manifest = tiny_export.manifest.replace(precision=precision)
        asked = options(precision=precision, **fields)
        file = OnnxFile.read(source)
        return build_engine(rtx, file, manifest, tmp_path / "x.engine", asked)

    return run


def test_an_fp16_engine_computes_every_product_in_fp16_and_fuses_every_attention(
    build: Callable[..., Built], half: Path, tmp_path: Path
) -> None:
    """One fused kernel per block."""
    built = build(half)
    assert set(built.product_types) == {"HALF"}
    assert fused_attentions(tmp_path / "x.engine") == 3
    assert built.plan_bytes == (tmp_path / "x.engine").stat().st_size


def test_a_bf16_engine_computes_in_bf16(
    build: Callable[..., Built], tiny_export: ExportResult, tmp_path: Path
) -> None:
    """All but the patch embedding, a convolution."""
    source = tmp_path / "tiny.bf16.onnx"
    to_half(tiny_export.path, source, precision="bf16")
    built = build(source, "bf16")
    assert built.product_types["BF16"] > 10
    assert built.product_types.get("FLOAT", 0) == 1
    assert fused_attentions(tmp_path / "x.engine") == 3


def test_an_int8_engine_is_built_of_a_graph_with_fixed_scales(
    rtx: Backend, tiny_export: ExportResult, tmp_path: Path
) -> None:
    """Products whose two operands come from int8 count, and no fewer than were narrowed."""
    source = tmp_path / "tiny.int8.onnx"
    values = {name for node in OnnxFile.read(tiny_export.path).nodes for name in node.inputs}
    conversion = to_int8_static(tiny_export.path, source, thresholds=dict.fromkeys(values, 4.0))
    manifest = tiny_export.manifest.replace(precision="int8-static", conversion=conversion)
    asked = options(precision="int8")
    file = OnnxFile.read(source)
    built = build_engine(rtx, file, manifest, tmp_path / "x.engine", asked)
    assert built.product_types["INT8"] == conversion.narrowed
    assert conversion.narrowed >= 12


def test_a_dynamically_quantized_graph_is_refused(
    tiny_export: ExportResult, tmp_path: Path
) -> None:
    """TensorRT has none of its operators."""
    to_int8_dynamic(tiny_export.path, tmp_path / "dynamic.onnx")
    with pytest.raises(EngineError, match=r"DynamicQuantizeLinear.*--precision int8-static"):
        check_source(OnnxFile.read(tmp_path / "dynamic.onnx"))


def test_an_fp32_engine_computes_in_fp32(build: Callable[..., Built]) -> None:
    """The decomposed graph as it is exported."""
    assert set(build(precision="fp32").product_types) == {"FLOAT"}


def test_float32_attention_nodes_are_taken_apart(
    build: Callable[..., Built], make_model: Callable[..., object], tmp_path: Path
) -> None:
    """TensorRT has no fused kernel for them, and would refuse to build; in int8 they stay so."""
    from vit_export.pipeline.export import export

    exported = export(make_model(), tmp_path / "op.onnx", settings=ExportSettings(attention="op"))  # type: ignore[arg-type]
    file = OnnxFile.read(exported.path)
    assert "Attention" in file.op_counts
    assert set(build(file.path, "fp32").product_types) == {"FLOAT"}
    values = {name for node in file.nodes for name in node.inputs}
    quantized = tmp_path / "op.int8.onnx"
    to_int8_static(file.path, quantized, thresholds=dict.fromkeys(values, 4.0))
    assert build(quantized, "int8").product_types["INT8"] >= 12


def test_an_fp32_graph_is_refused_where_fp16_is_asked(
    build: Callable[..., Built], tmp_path: Path
) -> None:
    """Whatever its manifest says: the failure that must be impossible."""
    with pytest.raises(EngineError, match=r"fp16 was asked for, but .* \d+ FLOAT"):
        build(precision="fp16")
    assert not (tmp_path / "x.engine").exists()


def test_an_fp16_graph_is_refused_where_fp32_is_asked(
    build: Callable[..., Built], half: Path
) -> None:
    """The other way round."""
    with pytest.raises(EngineError, match=r"fp32 was asked for, but .* HALF"):
        build(half, "fp32")


def test_one_layer_that_fell_back_to_fp32_is_noticed(
    build: Callable[..., Built], tiny_export: ExportResult, tmp_path: Path
) -> None:
    """The manifest does not say that it was kept."""
    source = tmp_path / "kept.onnx"
    to_half(tiny_export.path, source, keep=["blocks.1.mlp.fc1"])
    with pytest.raises(EngineError, match="1 of the network's products would compute in float32"):
        build(source)


def test_every_profile_brings_kernels_of_its_own(
    build: Callable[..., Built], half: Path, tmp_path: Path
) -> None:
    """Two ranges of batch sizes."""
    built = build(half, batches=(BatchRange(1, 1, 1), BatchRange(2, 8, 32)))
    shapes = [profile["pixel_values"].opt for profile in built.profiles]
    assert shapes == [(1, 3, 32, 32), (8, 3, 32, 32)]
    assert fused_attentions(tmp_path / "x.engine") == 6


def test_one_engine_serves_four_kinds_of_gpu(build: Callable[..., Built], half: Path) -> None:
    """Ampere, Ada and Blackwell."""
    targets = ("8.0", "8.6", "8.9", "12.0")
    assert build(half, compute_capabilities=targets).compute_capabilities == targets


def test_a_build_is_the_same_to_the_byte(
    build: Callable[..., Built], half: Path, tmp_path: Path
) -> None:
    """TensorRT-RTX times nothing while it builds."""
    build(half)
    first = (tmp_path / "x.engine").read_bytes()
    build(half)
    assert (tmp_path / "x.engine").read_bytes() == first


def test_a_graph_that_onnx_runtime_optimised_is_refused(
    tiny_export: ExportResult, tmp_path: Path
) -> None:
    """Its fused operators are Microsoft's."""
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "ort.onnx")
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(tiny_export.path), settings)
    with pytest.raises(ArtifactError, match=r"optimised by ONNX Runtime: it holds .*FusedMatMul"):
        check_source(OnnxFile.read(tmp_path / "ort.onnx"))


def test_a_graph_that_tensorrt_does_not_understand_names_the_node(
    build: Callable[..., Built], tmp_path: Path, tiny_export: ExportResult
) -> None:
    """An operator that it lacks."""
    model = onnx.load(tiny_export.path)
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    norm.op_type, norm.domain = "Invented", "example.com"
    model.opset_import.append(onnx.helper.make_opsetid("example.com", 1))
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(EngineError, match=r"does not understand odd.onnx: Invented"):
        build(tmp_path / "odd.onnx", "fp32")


def test_an_input_that_the_manifest_does_not_name_is_refused(
    rtx: Backend, tiny_export: ExportResult, tmp_path: Path
) -> None:
    """Names, dtypes and shapes are those of the manifest."""
    (spec,) = tiny_export.manifest.inputs
    other = tiny_export.manifest.replace(
        inputs=(type(spec)("images", spec.dtype, spec.shape),), precision="fp32"
    )
    asked = options(precision="fp32")
    with pytest.raises(EngineError, match="TensorRT sees the inputs pixel_values"):
        build_engine(rtx, OnnxFile.read(tiny_export.path), other, tmp_path / "x.engine", asked)


def test_too_little_workspace_is_named(build: Callable[..., Built], half: Path) -> None:
    """With the option that gave it."""
    with pytest.raises(EngineError, match="--workspace-mib 1 is too little"):
        build(half, workspace_mib=1, batches=(BatchRange(1, 512, 512),))


def test_batches_that_tensorrt_cannot_serve_are_an_error(
    build: Callable[..., Built], half: Path
) -> None:
    """It only warns, and gives a plan whose profile is not self-consistent."""
    with pytest.raises(EngineError, match="ask for smaller batches"):
        build(half, batches=(BatchRange(1, 8, 1 << 29),))


def test_a_stripped_or_refittable_engine_says_that_it_needs_the_gpu(
    build: Callable[..., Built], half: Path
) -> None:
    """TensorRT-RTX compiles refittable kernels on the device."""
    for asked in ({"strip": True}, {"refit": True}):
        with pytest.raises(EngineError, match="compiled on the GPU, and there is none here"):
            build(half, **asked)


def test_weight_streaming_is_built(build: Callable[..., Built], half: Path) -> None:
    """Weights that may stay in host memory."""
    assert build(half, weight_streaming=True).plan_bytes > 0


def test_progress_rises_to_the_end(rtx: Backend, tiny_export: ExportResult, tmp_path: Path) -> None:
    """A bar that goes back is worse than none."""
    seen: list[int] = []

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        if total:
            assert stage == "build the engine"
            assert total == 100
            seen.append(done)

    asked = options(precision="fp32")
    file, plan = OnnxFile.read(tiny_export.path), tmp_path / "x.engine"
    build_engine(rtx, file, tiny_export.manifest, plan, asked, progress=progress)
    assert seen == sorted(seen)
    assert seen[-1] == 100


def test_an_interrupt_stops_the_build(
    rtx: Backend, tiny_export: ExportResult, tmp_path: Path
) -> None:
    """It reaches the thread that waits, which tells TensorRT, and waits until it has stopped."""

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        if total and threading.current_thread() is threading.main_thread():
            raise AssertionError("TensorRT works in the thread that has to hear Ctrl-C")
        if total and not interrupted.is_set():
            interrupted.set()
            signal_main_thread()

    def signal_main_thread() -> None:
        import signal

        signal.raise_signal(signal.SIGINT)

    interrupted = threading.Event()
    asked = options(precision="fp32")
    file, plan = OnnxFile.read(tiny_export.path), tmp_path / "x.engine"
    with pytest.raises(KeyboardInterrupt):
        build_engine(rtx, file, tiny_export.manifest, plan, asked, progress=progress)
    assert interrupted.is_set()
    assert not (tmp_path / "x.engine").exists()
    assert [t.name for t in threading.enumerate() if t.name.startswith("build")] == []


def test_an_interrupt_at_the_start_leaves_no_build_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would work on with what the caller frees."""
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


def test_what_a_build_raises_reaches_the_caller() -> None:
    """From the thread where it was raised."""

    def fail() -> None:
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        interruptible(fail, threading.Event())


def test_without_a_gpu_somebody_has_to_say_which(rtx: Backend) -> None:
    """Guessing one would build an engine that nothing runs."""
    with pytest.raises(UsageError, match=r"--compute-capability 8.9 \(known: 7.5, 8.0"):
        compute_capabilities(rtx, (), None)
    assert compute_capabilities(rtx, (), L4) == ("8.9",)


def test_a_gpu_that_rtx_does_not_compile_for_is_refused(rtx: Backend) -> None:
    """An H100 has compute capability 9.0."""
    with pytest.raises(UsageError, match="--backend tensorrt"):
        compute_capabilities(rtx, ("9.0",), None)


def test_tensorrt_itself_builds_on_a_gpu_only() -> None:
    """Messages at once, not when its builder does not start."""
    trt = Backend(name="tensorrt", trt=None, version="11.4.0.106", logger=None)
    with pytest.raises(EngineError, match=r"there is none here .*--backend tensorrt-rtx"):
        compute_capabilities(trt, (), None)
    assert compute_capabilities(trt, (), L4) == ("8.9",)


def test_a_backend_that_is_not_installed_says_what_installs_it() -> None:
    """TensorRT itself has no wheel that works without a GPU."""
    with pytest.raises(ProviderError, match=r"pip install 'vit-export\[tensorrt\]'"):
        load_backend("tensorrt")
