"""The order of the stages: torch, ONNX, simplified; each measured, and only then named.

Stages do not know each other; they meet here. Their packages are imported in the functions
that need them, so that a device without torch can validate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_export import __version__
from vit_export.artifact.golden import Golden, golden_path
from vit_export.artifact.labels import check_labels
from vit_export.artifact.manifest import Manifest, TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import stamp
from vit_export.artifact.publish import (
    check_golden_not_shared,
    check_output_name,
    pack_artifact,
    publish_artifact,
    staging,
)
from vit_export.errors import GateError, UsageError
from vit_export.gate.validate import Comparison, compare_with_golden
from vit_export.host.memory import trim_memory
from vit_export.progress import Progress, silent

if TYPE_CHECKING:
    from torch import nn

    from vit_export.checkpoint.load import LoadReport
    from vit_export.pipeline.quantize import QuantizeResult, QuantizeSettings
    from vit_export.pipeline.source import Subject

TOOLCHAIN = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export made.

    Attributes:
        path: The `.onnx` file.
        golden: The golden file beside it.
        manifest: What the file says about itself, certificate included.
        comparison: The last gate.
        comparisons: Every gate, one per stage.
        files: All files, external data included.
        nodes: Number of nodes, before and after the simplifier.
        converted: How it was made narrower, where that was asked for.
        report: What became of every tensor of the checkpoint, where there was one.
        notes: Where the artifact cannot run.
        seconds: How long it took.
    """

    path: Path
    golden: Path
    manifest: Manifest
    comparison: Comparison
    comparisons: tuple[Comparison, ...]
    files: tuple[Path, ...]
    nodes: tuple[int, int]
    seconds: float
    converted: QuantizeResult | None = None
    report: LoadReport | None = None
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of the model, external data included, golden file excluded."""
        return sum(f.stat().st_size for f in self.files if f.suffix in (".onnx", ".data"))


def export(
    subject: str | nn.Module | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    layout: str | None = None,
    reset_head: bool = False,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    batch: int | None = None,
    dynamic_size: bool = False,
    opset: int | None = None,
    attention: str = "decomposed",
    outputs: Sequence[str] = ("logits",),
    labels: Sequence[str] = (),
    preprocess: Mapping[str, Any] | None = None,
    images: str | os.PathLike[str] | None = None,
    simplify: bool = True,
    external_data: bool = False,
    narrow: QuantizeSettings | None = None,
    progress: Progress = silent,
) -> ExportResult:
    """Export a model to ONNX, simplify it, and measure both steps against torch in float64.

    Args:
        subject: A variant's name, or any module that takes images (B, C, H, W); `None` to tell
            the variant from the weights.
        output: File to write; by default `./<variant>.onnx`.
        weights: Checkpoint of a variant: a file, a folder, `"hub"` or `"hf:owner/name"`.
        layout: How the checkpoint names its tensors; recognised by default.
        reset_head: Give a checkpoint of another number of classes a new, zero head.
        seed: Of random weights, where no checkpoint is given.
        overrides: Config fields to change, e.g. `{"img_size": 384}`.
        batch: A fixed batch size; dynamic by default.
        dynamic_size: Whether height and width are dynamic (multiples of the patch), with the
            position embedding resampled in the graph.
        opset: ONNX operator set; 20 by default, 23 with `attention="op"`.
        attention: `"decomposed"`, or `"op"` for one Attention node per block.
        outputs: Any of `"logits"`, `"features"`, `"tokens"`.
        labels: Class names.
        preprocess: Any of mean, std, crop_pct and interpolation, where they differ from the
            variant's.
        images: Folder of pictures to measure on as well.
        simplify: Whether to simplify.
        external_data: Whether to store the weights beside the file; above 2 GiB they always are.
        narrow: A narrower precision to convert it to, which is measured too; the fp32 artifact
            is then not kept.
        progress: Told what is being done.

    Returns:
        What was made.

    Raises:
        UsageError: The request cannot be met.
        CheckpointError: The weights do not fit.
        ExportError: torch cannot express the model as ONNX.
        SimplifyError: The simplifier failed.
        GateError: What was made does not compute what torch computes; nothing was written.
        OutputError: The output cannot be written.
    """
    from vit_export.pipeline.record import record_golden
    from vit_export.pipeline.source import Request, prepare

    started = time.monotonic()
    request = Request(
        subject=subject,
        weights=weights,
        layout=layout,
        reset_head=reset_head,
        seed=seed,
        overrides=dict(overrides or {}),
        batch=batch,
        dynamic_size=dynamic_size,
        attention=attention,
        outputs=tuple(outputs),
        labels=tuple(labels),
        preprocess=dict(preprocess or {}),
    )
    opset = _opset(opset, attention)
    if output is not None:
        check_output_name(Path(output))
    progress("load the model")
    prepared = prepare(request)
    report = prepared.report
    precision = f".{narrow.precision}" if narrow is not None else ""
    path = Path(output if output is not None else f"{prepared.stem}{precision}.onnx")
    with staging(path) as stage:
        golden = record_golden(prepared, images, progress)
        if "logits" in golden.outputs:
            check_labels(prepared.labels, golden.outputs["logits"].shape[-1])
        golden_file = stage / golden_path(path).name
        golden.write(golden_file)
        check_golden_not_shared(path, golden_file)
        scratch = stage / "scratch"  # whose names cannot meet the result's
        scratch.mkdir()
        raw, manifest = _to_onnx(prepared, scratch, opset, progress)
        prepared.free()  # from here on the weights live on disk
        del prepared, request, subject
        stages = [_gate(raw.path, golden, manifest, "torch -> onnx", progress)]
        stages[-1].raise_for_failure()
        final = raw
        if simplify:
            final = _simplified(raw, scratch, progress)
        packed = pack_artifact(
            final,
            stage / path.name,
            manifest,
            outputs=[spec.name for spec in manifest.outputs],
            external_data=external_data,
        )
        if simplify:
            stages.append(_gate(packed.path, golden, manifest, "onnx -> simplified", progress))
            _raise_for_simplifier(stages[-1])
        manifest = manifest.replace(
            outputs=packed.outputs,
            graph_sha256=packed.graph_sha256(),
            certificate=tuple(found.stage for found in stages),
        )
        converted = None
        if narrow is None:
            files = publish_artifact(packed, [golden_file], manifest, path)
        else:
            stamp(packed.path, manifest.metadata())
            if images is not None and narrow.images is None and _has_classes(manifest):
                narrow = dataclasses.replace(narrow, images=images)
            converted = _narrowed(packed, path, narrow, external_data, progress)
            files, manifest = converted.files, converted.manifest
            stages.append(converted.comparison)
    return ExportResult(
        path=path,
        golden=golden_path(path),
        manifest=manifest,
        comparison=stages[-1],
        comparisons=tuple(stages),
        files=files,
        nodes=(len(raw.nodes), len(packed.nodes)),
        converted=converted,
        seconds=time.monotonic() - started,
        report=report,
        notes=_notes(attention, dynamic_size),
    )


def _has_classes(manifest: Manifest) -> bool:
    from vit_export.gate.accuracy import gives_classes

    return any(spec.name == "logits" and gives_classes(spec) for spec in manifest.outputs)


def _narrowed(
    packed: OnnxFile,
    path: Path,
    settings: QuantizeSettings,
    external_data: bool,
    progress: Progress,
) -> QuantizeResult:
    """Convert the measured fp32 artifact of a staging folder into the one that was asked for."""
    from vit_export.pipeline.quantize import quantize

    return quantize(
        packed.path, path, settings=settings, external_data=external_data, progress=progress
    )


def _notes(attention: str, dynamic_size: bool) -> tuple[str, ...]:
    """Which targets cannot run an artifact of these options."""
    notes = []
    if attention == "op":
        notes.append(
            "the Attention node needs a runtime that knows opset 23: TensorRT from 10.14 on and, "
            "unmeasured, ONNX Runtime's CUDA provider from 1.27 on; --attention decomposed runs "
            "everywhere"
        )
    if dynamic_size:
        notes.append(
            "height and width are dynamic: TensorRT cannot parse the antialiased Resize, CoreML "
            "and QNN want fixed shapes, and on CUDA its cubic form is unmeasured; for these "
            "export one file per size with --img-size"
        )
    return tuple(notes)


def _opset(opset: int | None, attention: str) -> int:
    from vit_export.graph.export import ATTENTION_OPSET, DEFAULT_OPSET

    least = ATTENTION_OPSET if attention == "op" else DEFAULT_OPSET
    if opset is None:
        return least
    if attention == "op" and opset < least:
        raise UsageError(f"--attention op needs --opset {least} or newer, not {opset}")
    if not 18 <= opset <= 25:
        raise UsageError(f"opset {opset}: torch exports 18 to 25")
    return opset


def _to_onnx(
    subject: Subject, stage: Path, opset: int, progress: Progress
) -> tuple[OnnxFile, Manifest]:
    from vit_export.graph.export import export_module

    progress("torch -> onnx")
    exported = export_module(
        subject.model,
        stage / "exported.onnx",
        subject.inputs,
        opset=opset,
        example_sizes=subject.example_sizes,
    )
    manifest = Manifest(
        variant=subject.variant,
        config=subject.config,
        weights=subject.weights,
        opset=opset,
        inputs=exported.inputs,
        outputs=tuple(s for s in exported.outputs if s.name in subject.outputs),
        preprocess=subject.preprocess,
        labels=subject.labels,
        blocks=exported.taps,
        toolchain=toolchain(),
    )
    return OnnxFile.read(exported.path), manifest


def _simplified(raw: OnnxFile, stage: Path, progress: Progress) -> OnnxFile:
    from vit_export.graph.simplify import simplify

    progress("simplify")
    return OnnxFile.read(simplify(raw.path, stage / "simplified.onnx").path)


def _gate(
    path: Path, golden: Golden, manifest: Manifest, stage: str, progress: Progress
) -> Comparison:
    from vit_export.runtime.onnxruntime.runner import OrtRunner

    progress(f"measure {stage}")
    trim_memory()
    runner = OrtRunner(path, provider="cpu")
    found = compare_with_golden(runner, golden, manifest=manifest, stage=stage)
    runner.release()
    return found


def _raise_for_simplifier(comparison: Comparison) -> None:
    if not comparison.passed:
        raise GateError(
            f"{comparison.stage.name}: the simplifier changed what the model computes: "
            f"{comparison.stage.reason}; nothing was written; export without it: --no-simplify"
        )


def toolchain() -> dict[str, str]:
    """Versions of everything that has a part in the result."""
    found = {"vit-export": __version__}
    for name in TOOLCHAIN:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


__all__ = ["ExportResult", "TensorSpec", "export", "toolchain"]
