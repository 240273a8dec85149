"""The gate again on an artifact, wherever it is now."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_export.artifact.golden import BATCHES, Golden, find_golden
from vit_export.artifact.manifest import Manifest, Preprocess
from vit_export.errors import ArtifactError, UsageError
from vit_export.gate.trace import golden_feeds, trace
from vit_export.gate.validate import Comparison, compare_with_golden, tolerances_of_artifact
from vit_export.progress import Progress, silent
from vit_export.runner import Runner
from vit_export.runtime import load
from vit_export.variants import NOT_IN_A_CHECKPOINT


def revalidate(
    path: str | os.PathLike[str],
    *,
    golden: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    layout: str | None = None,
    provider: str = "auto",
    allow_host_code: bool = False,
    preprocess: Preprocess | None = None,
    traced: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Run the gate again on an artifact, wherever it is now.

    Args:
        path: An artifact.
        golden: Golden file; by default the one beside the artifact.
        weights: Checkpoint to compute the truth from again, by torch, instead of a golden file.
        layout: How the checkpoint names its tensors; recognised by default.
        provider: What runs the artifact.
        allow_host_code: Whether a version compatible engine may run the code that its plan brings.
        preprocess: How golden images are normalised, where the artifact does not say.
        traced: Whether to measure every block even where the gate passes.
        progress: Told what is being done.

    Raises:
        ArtifactError: A file is missing or damaged.
        ProviderError: The provider asked for is not active.
        UsageError: A layout without a checkpoint, or a golden file beside one.
    """
    if layout is not None and weights is None:
        raise UsageError("--layout speaks of a checkpoint: give one with --weights FILE")
    if golden is not None and weights is not None:
        raise UsageError("--golden and --weights are two sources of the truth: give one")
    runner, batches = _runner_of(Path(path), provider, allow_host_code)
    if weights is not None:
        truth = _truth_from(weights, layout, runner.manifest, Path(path), progress)
    else:
        truth = Golden.read(find_golden(path, golden))
    progress(f"measure on {runner.provider}")
    name = f"validate {Path(path).name}"
    found = compare_with_golden(runner, truth, preprocess=preprocess, stage=name, batches=batches)
    if not traced or found.blocks:
        return found
    progress(f"trace on {runner.provider}")
    manifest = runner.manifest
    preprocess = preprocess or (manifest.preprocess if manifest else None)
    feeds = golden_feeds(runner, truth, preprocess)
    blocks = trace(runner, truth, feeds, tolerances_of_artifact(runner, manifest))
    return dataclasses.replace(found, blocks=blocks)


def _runner_of(path: Path, provider: str, allow_host_code: bool) -> tuple[Runner, Sequence[int]]:
    """What runs an artifact, and the batch sizes to measure it at."""
    if path.suffix != ".engine":
        return load(path, provider=provider, allow_host_code=allow_host_code).runner, BATCHES
    from vit_export.runtime.engine_check import batches_of, open_engine  # needs cuda-bindings

    engine = open_engine(path, provider=provider, check=False, allow_host_code=allow_host_code)
    return engine, batches_of(engine.sidecar)


def _truth_from(
    weights: Any, layout: str | None, manifest: Manifest | None, path: Path, progress: Progress
) -> Golden:
    if manifest is None:
        raise ArtifactError(
            f"{path}: has no vit-export manifest, so the architecture of its checkpoint is unknown",
            hint="give --golden FILE",
        )
    config = manifest.vit_config(path.name)
    from vit_export.pipeline.record import record_golden  # these need torch
    from vit_export.pipeline.source import Request, prepare

    request = Request(
        subject=None,
        weights=weights,
        layout=layout,
        reset_head=manifest.weights.reset_head,
        overrides={name: getattr(config, name) for name in NOT_IN_A_CHECKPOINT},
        dynamic_size=any(isinstance(size, str) for size in manifest.inputs[0].shape[2:]),
        outputs=tuple(spec.name for spec in manifest.outputs),
    )
    prepared = prepare(request)
    if manifest.preprocess is not None:  # which the user may have set at the export
        prepared = dataclasses.replace(prepared, preprocess=manifest.preprocess)
    return record_golden(prepared, None, progress)
