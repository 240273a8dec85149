"""Run the gate on an artifact, on any machine and provider."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vit_export.artifact.engine_sidecar import is_engine
from vit_export.artifact.golden import BATCHES, Golden, find_golden
from vit_export.artifact.manifest import Manifest, Stage
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.vocabulary import LOGITS, PIXEL_VALUES, SCORE_OUTPUTS
from vit_export.errors import ArtifactError, UsageError
from vit_export.gate.preparation import measure_preparation
from vit_export.gate.validate import Comparison, compare
from vit_export.pipeline.settings import ExportSettings, ValidateSettings
from vit_export.progress import Progress, silent
from vit_export.runner import Runner
from vit_export.runtime import load


def validate(
    artifact: str | os.PathLike[str],
    *,
    settings: ValidateSettings = ValidateSettings(),
    progress: Progress = silent,
) -> Comparison:
    """Run the gate on an artifact; needs numpy and onnxruntime only.

    Example:
        ```python
        import vit_export

        settings = vit_export.ValidateSettings(provider="cuda")
        vit_export.validate("b16.onnx", settings=settings).raise_for_failure()
        ```

    Args:
        artifact: An `.onnx` file or an engine.
        settings: What to compare with, and on what to run.
        progress: Called with the current step and its progress.

    Raises:
        ArtifactError: A file is missing or damaged.
        ProviderError: The provider asked for is not active.
        UsageError: The provider is unknown, or an option is for engines only.
    """
    path = Path(artifact)
    provider = settings.provider
    of_engine = is_engine(path)
    runner: Runner
    batches: Sequence[int] = BATCHES
    rejected: Mapping[str, str] = {}
    if of_engine:
        from vit_export.runtime.engine_check import open_engine  # needs cuda-bindings

        engine = open_engine(
            path,
            provider=provider,
            device=settings.device,
            trusted=True,
            allow_host_code=settings.allow_host_code,
            runtime_cache=settings.runtime_cache,
        )
        runner, batches = engine, engine.sidecar.gate_batches
    elif settings.allow_host_code or settings.runtime_cache is not None:
        option = "--trust-host-code" if settings.allow_host_code else "--runtime-cache"
        raise UsageError(f"{path}: {option} is for engines", hint="leave it out")
    else:
        model = load(path, provider=provider, device=settings.device)
        runner, rejected = model.runner, model.rejected
    if settings.weights is not None:
        golden = _recorded_from(settings, runner.manifest, path, progress)
    else:
        hint = "give --golden FILE, or the checkpoint with --weights FILE (needs torch)"
        golden = Golden.read(find_golden(path, settings.golden, hint=hint))
    progress(f"measure on {runner.provider}")
    comparison = compare(
        runner,
        golden,
        preprocess=settings.preprocess,
        stage=f"validate {path.name}",
        batches=batches,
        trace=settings.trace,
    )
    comparison = dataclasses.replace(comparison, rejected=rejected)
    if runner.manifest is not None and runner.manifest.embedded:
        progress(f"measure the image preparation on {runner.provider}")
        line = _preparation(path, runner.manifest, runner.provider, settings.device)
        stage = comparison.stage.replace(
            passed=comparison.stage.passed and line.passed,
            reasons=(*comparison.stage.reasons, *line.reasons),
            notes=(*comparison.stage.notes, *line.notes),
            measurements=(*line.measurements, *comparison.stage.measurements),
        )
        comparison = dataclasses.replace(comparison, stage=stage)
    if of_engine or runner.manifest is None or not runner.manifest.graph_sha256:
        return comparison
    stage = comparison.stage
    try:
        OnnxFile.read(path).check_certified()
    except ArtifactError as error:
        if stage.passed:
            stage = stage.replace(notes=(*stage.notes, error.message))
        else:
            stage = stage.replace(reasons=(error.message, *stage.reasons))
    return dataclasses.replace(comparison, stage=stage)


def _preparation(path: Path, manifest: Manifest, provider: str, device: int | None) -> Stage:
    """Measure how the graph of an artifact prepares images."""
    from vit_export.runtime.onnxruntime.runner import OrtRunner  # needs onnxruntime

    if manifest.preprocess is None:
        raise ArtifactError(f"{path}: its manifest does not say how images are prepared")
    part = OrtRunner(path, provider=provider, device=device, expose=[PIXEL_VALUES], alone=True)
    line = measure_preparation(
        part, manifest.preprocess, resize=manifest.resize, stage="image preparation"
    )
    part.release()
    return line


def _recorded_from(
    settings: ValidateSettings, manifest: Manifest | None, path: Path, progress: Progress
) -> Golden:
    """Compute the float64 reference again from the checkpoint that the settings name."""
    if manifest is None:
        raise ArtifactError(
            f"{path}: has no vit-export manifest, so the architecture of the checkpoint is unknown",
            hint="give --golden FILE",
        )
    config = manifest.vit_config(path.name)
    if config.num_classes == 0 and LOGITS in [spec.name for spec in manifest.outputs]:
        raise UsageError(
            f"{path}: its head is of text embeddings, which no checkpoint holds",
            hint="measure it with its golden file: leave --weights out",
        )
    from vit_export.pipeline.source import load_source, record_golden  # needs torch

    merging = manifest.token_merging
    loaded = load_source(
        None,
        weights=settings.weights,
        settings=ExportSettings(
            layout=settings.layout,
            reset_head=manifest.weights.reset_head,
            overrides=config.not_in_a_checkpoint,
            dynamic_size=not manifest.embedded
            and any(isinstance(size, str) for size in manifest.inputs[0].shape[2:]),
            outputs=tuple(s.name for s in manifest.outputs if s.name not in SCORE_OUTPUTS),
            merge_tokens=None if merging is None else merging.per_block,
        ),
    )
    if manifest.preprocess is not None:  # the user may have changed it at the export
        loaded = dataclasses.replace(loaded, preprocess=manifest.preprocess)
    return record_golden(loaded, None, progress)
