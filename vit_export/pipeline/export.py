"""Export a model to ONNX: load, record, export, simplify, gate, publish."""

import gc
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from vit_export.artifact.golden import Golden, golden_path
from vit_export.artifact.labels import check_labels
from vit_export.artifact.manifest import Manifest, Stage
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import stamp
from vit_export.artifact.publish import (
    check_golden_not_shared,
    check_output_name,
    publish_artifact,
    staging,
)
from vit_export.artifact.vocabulary import LOGITS, OPSETS
from vit_export.checkpoint.load import LoadReport
from vit_export.errors import GateError
from vit_export.gate.accuracy import has_classes
from vit_export.gate.validate import Comparison, compare, gated_always
from vit_export.host.fork import forked
from vit_export.host.memory import trim_memory
from vit_export.pipeline.agreement import FullModelLogits, check_merging
from vit_export.pipeline.result import ArtifactResult
from vit_export.pipeline.settings import ExportSettings
from vit_export.pipeline.source import (
    LoadedSource,
    choose_activation,
    load_source,
    record_golden,
)
from vit_export.progress import Progress, silent
from vit_export.runtime.onnxruntime.runner import OrtRunner


@dataclass(frozen=True, kw_only=True)
class ExportResult(ArtifactResult):
    """Result of an export.

    Attributes:
        nodes: Number of graph nodes before and after the simplifier.
        report: What became of every tensor of the checkpoint, where there was one.
        notes: Targets that cannot run the artifact, and an activation that was detected.
    """

    nodes: tuple[int, int]
    report: LoadReport | None = None
    notes: tuple[str, ...] = ()


def export(
    source: str | nn.Module | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    settings: ExportSettings = ExportSettings(),
    progress: Progress = silent,
) -> ExportResult:
    """Export a model to ONNX and measure every stage against torch in float64.

    Example:
        ```python
        import vit_export

        vit_export.export("b16", "b16.onnx", weights="vit_b16.safetensors")
        settings = vit_export.ExportSettings(overrides={"img_size": 384}, batch=1)
        vit_export.export(my_module, "mine.onnx", settings=settings)
        ```

    Args:
        source: Name of a variant, or any module that takes images (B, C, H, W); `"timm:NAME"` or
            `"hf:REPOSITORY-OR-FOLDER"` for a model of these libraries; `None` to recognise the
            variant from the weights.
        output: File to write; by default `./<variant>.onnx`.
        weights: Checkpoint of a variant: a file, a folder, `"hub"` or `"hf:owner/name"`. Without
            one the weights of a variant are random, and those of a library's model pretrained.
        settings: How to export.
        progress: Called with the current step and its progress.

    Raises:
        UsageError: The settings contradict each other, or do not fit the source.
        CheckpointError: The weights do not fit.
        ExportError: torch cannot express the model as ONNX.
        SimplifyError: The simplifier failed.
        GateError: The artifact does not compute what torch computes; nothing was written.
        OutputError: The output cannot be written.
    """
    started = time.monotonic()
    check_merging(settings)
    if output is not None:
        check_output_name(Path(output))
    progress("load the model")
    loaded = load_source(source, weights=weights, settings=settings)
    if settings.embed_preprocess:
        from vit_export.graph.embed import check_embeddable  # needs onnx-ir

        check_embeddable(loaded.inputs, loaded.outputs, loaded.preprocess, settings.resize)
    opset = settings.opset or OPSETS[settings.attention]
    report, library_notes, narrow = loaded.report, loaded.notes, settings.quantize
    precision = f".{narrow.precision}" if narrow is not None else ""
    path = Path(output if output is not None else f"{loaded.variant}{precision}.onnx")
    with staging(path) as folder:
        build = partial(_build, loaded, opset, folder / path.name, settings)
        with forked(build, allowed=not torch.cuda.is_initialized()) as built:
            golden = record_golden(loaded, settings.images, progress)
            if LOGITS in golden.outputs:
                check_labels(loaded.labels, golden.outputs[LOGITS].shape[-1])
            activation, activation_notes = choose_activation(loaded, golden, settings.activation)
            full = None
            if settings.images is not None and loaded.full_model is not None:
                full = FullModelLogits.compute(loaded, settings.images, progress)
            golden_file = folder / golden_path(path).name
            golden.write(golden_file)
            check_golden_not_shared(path, golden_file)
            progress("torch -> onnx")
            raw, packed, manifest = built()
        loaded.free()  # from here on the weights are on disk
        del loaded, source, build, built
        gc.collect()  # takes a second with torch loaded, and frees reference cycles
        trim_memory()
        manifest = manifest.replace(activation=activation)
        measured: list[Stage] = []  # of the certificate, besides the gates
        if full is not None:
            measured.append(full.compare(packed, manifest, golden.samples, progress))
        if settings.embed_preprocess:
            from vit_export.pipeline.embed import pack_embedded

            packed, manifest, line = pack_embedded(
                packed,
                packed.path,
                manifest,
                resize=settings.resize,
                scratch=raw.path.parent,
                stage=_last_stage(settings),
                external_data=settings.external_data,
                progress=progress,
            )
            measured.append(line)
        *before, comparison = _gate(raw, packed, golden, manifest, settings, progress)
        manifest = manifest.replace(
            graph_sha256=packed.graph_sha256(),
            certificate=(*(c.stage for c in before), *measured, comparison.stage),
        )
        if narrow is None:
            files = publish_artifact(packed, [golden_file], manifest, path)
        else:
            from vit_export.pipeline.quantize import quantize

            stamp(packed.path, manifest.metadata())
            if settings.images is not None and narrow.images is None and has_classes(manifest):
                narrow = replace(narrow, images=settings.images)
            beside = settings.external_data
            converted = quantize(
                packed.path, path, settings=narrow, external_data=beside, progress=progress
            )
            files, manifest, comparison = converted.files, converted.manifest, converted.comparison
    return ExportResult(
        path=path,
        golden=golden_path(path),
        manifest=manifest,
        comparison=comparison,
        files=files,
        nodes=(len(raw.nodes), len(packed.nodes)),
        seconds=time.monotonic() - started,
        report=report,
        notes=(*_notes(settings), *library_notes, *activation_notes),
    )


def _build(
    loaded: LoadedSource, opset: int, path: Path, settings: ExportSettings
) -> tuple[OnnxFile, OnnxFile, Manifest]:
    """Build: in a child process, so that nothing else waits a second for its imports."""
    from vit_export.pipeline.build import build

    return build(loaded, opset, path, settings)


def _gate(
    raw: OnnxFile,
    packed: OnnxFile,
    golden: Golden,
    manifest: Manifest,
    settings: ExportSettings,
    progress: Progress,
) -> list[Comparison]:
    """Measure the exported graph and the packed file, which is the one that is published."""

    def gate(file: OnnxFile, stage: str, *, one_batch: bool = False) -> Comparison:
        progress(f"measure {stage}")
        inner = [name for name in gated_always(golden) if name in file.values]
        runner = OrtRunner(file.path, provider="cpu", expose=inner)
        comparison = compare(runner, golden, manifest=manifest, stage=stage, one_batch=one_batch)
        runner.release()
        return comparison

    comparisons, stage = [], _last_stage(settings)
    if settings.simplify:
        comparisons.append(gate(raw, "torch -> onnx", one_batch=True))
        comparisons[0].raise_for_failure()
    last = gate(packed, stage)
    if settings.simplify and not last.passed:
        gate(raw, "torch -> onnx").raise_for_failure()  # at every batch: it may be the exporter
        raise GateError(
            f"{stage}: the simplifier changed what the model computes: {last.stage.reason}; "
            "nothing was written",
            hint="export without the simplifier: --no-simplify",
        )
    last.raise_for_failure()
    return [*comparisons, last]


def _last_stage(settings: ExportSettings) -> str:
    return "onnx -> simplified" if settings.simplify else "torch -> onnx"


def _notes(settings: ExportSettings) -> tuple[str, ...]:
    """Targets that cannot run an artifact of these settings."""
    notes = []
    if settings.attention == "op":
        notes.append(
            "the Attention node needs a runtime that supports opset 23: TensorRT 10.14 or later; "
            "ONNX Runtime's CUDA provider 1.27 or later (not measured). --attention decomposed "
            "runs everywhere"
        )
    if settings.dynamic_size:
        notes.append(
            "height and width are dynamic: TensorRT cannot parse the antialiased Resize node, "
            "CoreML and QNN need fixed shapes, and its cubic form on CUDA is not measured. For "
            "these targets export one file per size with --img-size"
        )
    return tuple(notes)
