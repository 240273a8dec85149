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
from vit_export.errors import ArtifactError, GateError, UsageError
from vit_export.golden import BATCHES, Golden, golden_path
from vit_export.labels import check_labels
from vit_export.manifest import Manifest, Preprocess, TensorSpec
from vit_export.memory import give_back
from vit_export.onnxfile import OnnxFile
from vit_export.progress import Progress, silent
from vit_export.publication import pack_artifact, publish_artifact, refuse_bad_name
from vit_export.staging import staging
from vit_export.validate import Comparison, validate

if TYPE_CHECKING:
    from torch import nn

    from vit_export.model.checkpoint import LoadReport
    from vit_export.runtime import Runner
    from vit_export.subject import Subject

NOT_IN_A_CHECKPOINT = (  # config fields that its tensors do not show, or that an export changes
    *("img_size", "num_classes", "num_heads", "global_pool", "read_token"),
    *("norm_eps", "act_layer"),
)
TOOLCHAIN = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export made.

    Attributes:
        path: The `.onnx` file.
        golden: The golden file beside it.
        manifest: What the file says about itself, certificate included.
        comparison: The last gate.
        comparisons: Every gate, one per hop.
        files: All files, external data included.
        nodes: Number of nodes, before and after the simplifier.
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
    report: LoadReport | None = None
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of the model, external data included, golden file excluded."""
        return sum(file.stat().st_size for file in self.files if file != self.golden)


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
    from vit_export.subject import Request, prepare

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
        refuse_bad_name(Path(output))
    progress("load the model")
    prepared = prepare(request)
    report = prepared.report
    path = Path(output if output is not None else f"{prepared.stem}.onnx")
    with staging(path) as stage:
        golden = _record(prepared, images, progress)
        if "logits" in golden.outputs:
            check_labels(prepared.labels, golden.outputs["logits"].shape[-1])
        golden_file = stage / golden_path(path).name
        golden.write(golden_file)
        raw, manifest = _to_onnx(prepared, stage, opset, progress)
        prepared.free()  # from here on the weights live on disk
        del prepared, request, subject
        hops = [_gate(raw.path, golden, manifest, "torch -> onnx", progress)]
        hops[-1].raise_for_failure()
        final = raw
        if simplify:
            final = _simplified(raw, stage, progress)
        packed = pack_artifact(
            final,
            stage / path.name,
            manifest,
            outputs=[spec.name for spec in manifest.outputs],
            external_data=external_data,
        )
        if simplify:
            hops.append(_gate(packed.path, golden, manifest, "onnx -> simplified", progress))
            _raise_for_simplifier(hops[-1])
        manifest = manifest.replace(
            outputs=packed.outputs,
            graph_sha256=packed.graph_sha256(),
            certificate=tuple(hop.hop for hop in hops),
        )
        files = publish_artifact(packed, [golden_file], manifest, path)
    return ExportResult(
        path=path,
        golden=golden_path(path),
        manifest=manifest,
        comparison=hops[-1],
        comparisons=tuple(hops),
        files=files,
        nodes=(len(raw.nodes), len(packed.nodes)),
        seconds=time.monotonic() - started,
        report=report,
        notes=_notes(attention, dynamic_size),
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


def _record(subject: Subject, images: Any, progress: Progress) -> Golden:
    """Run the model in float64 and float32 on the golden images."""
    from vit_export.golden import pictures
    from vit_export.model.oracle import record
    from vit_export.runtime.image import normalize
    from vit_export.samples import user_pictures

    preprocess = subject.preprocess

    def at(size: tuple[int, int], users: Any = None) -> Golden:
        shown = pictures(*size, len(preprocess.mean))
        if users is not None:
            shown = user_pictures(Path(users), preprocess, before=shown)
        inputs = {subject.inputs[0].name: normalize(shown, preprocess)}
        return record(subject.model, inputs, images=shown, progress=progress)

    others = tuple(at(size) for size in subject.other_sizes)
    return dataclasses.replace(at(preprocess.size, images), others=others)


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
    path: Path, golden: Golden, manifest: Manifest, hop: str, progress: Progress
) -> Comparison:
    from vit_export.runtime.ort import OrtRunner

    progress(f"measure {hop}")
    give_back()
    runner = OrtRunner(path, provider="cpu")
    found = validate(runner, golden, manifest=manifest, hop=hop)
    runner.release()
    return found


def _raise_for_simplifier(comparison: Comparison) -> None:
    if not comparison.passed:
        raise GateError(
            f"{comparison.hop.hop}: the simplifier changed what the model computes: "
            f"{comparison.hop.reason}; nothing was written; export without it: --no-simplify"
        )


def toolchain() -> dict[str, str]:
    """Versions of everything that has a part in the result."""
    found = {"vit-export": __version__}
    for name in TOOLCHAIN:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def revalidate(
    path: str | os.PathLike[str],
    *,
    golden: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    layout: str | None = None,
    provider: str = "auto",
    preprocess: Preprocess | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Run the gate again on an artifact, wherever it is now.

    Args:
        path: An artifact.
        golden: Golden file; by default the one beside the artifact.
        weights: Checkpoint to compute the truth from again, by torch, instead of a golden file.
        layout: How the checkpoint names its tensors; recognised by default.
        provider: What runs the artifact.
        preprocess: How golden images are normalised, where the artifact does not say.
        progress: Told what is being done.

    Raises:
        ArtifactError: A file is missing or damaged.
        ProviderError: The provider asked for is not active.
    """
    runner, batches = _runner_of(Path(path), provider)
    if weights is not None:
        truth = _truth_from(weights, layout, runner.manifest, Path(path), progress)
    else:
        file = Path(golden) if golden is not None else golden_path(path)
        if golden is None and not file.exists():
            raise ArtifactError(
                f"{path}: there is no golden file {file.name} beside it; say where it is with "
                "--golden FILE, or compute the truth again from the checkpoint with "
                "--weights FILE (needs torch)"
            )
        truth = Golden.read(file)
    progress(f"measure on {runner.provider}")
    return validate(
        runner,
        truth,
        preprocess=preprocess,
        hop=f"validate {Path(path).name}",
        batches=batches,
    )


def _runner_of(path: Path, provider: str) -> tuple[Runner, Sequence[int]]:
    """What runs an artifact, and the batch sizes to measure it at."""
    if path.suffix == ".engine":
        from vit_export.enginecheck import batches_of, open_engine

        engine = open_engine(path, provider=provider, check=False)
        return engine, batches_of(engine.sidecar)
    from vit_export.runtime import load

    return load(path, provider=provider).runner, BATCHES


def _truth_from(
    weights: Any, layout: str | None, manifest: Manifest | None, path: Path, progress: Progress
) -> Golden:
    if manifest is None or not manifest.config:
        raise ArtifactError(
            f"{path}: does not say which architecture it is (no vit-export manifest with a "
            "config), so a checkpoint cannot be loaded for it; give --golden FILE"
        )
    from vit_export.subject import Request, prepare

    request = Request(
        subject=None,
        weights=weights,
        layout=layout,
        reset_head=manifest.weights.reset_head,
        overrides={name: manifest.config[name] for name in NOT_IN_A_CHECKPOINT},
        dynamic_size=any(isinstance(size, str) for size in manifest.inputs[0].shape[2:]),
        outputs=tuple(spec.name for spec in manifest.outputs),
    )
    prepared = prepare(request)
    if manifest.preprocess is not None:  # which the user may have set at the export
        prepared = dataclasses.replace(prepared, preprocess=manifest.preprocess)
    return _record(prepared, None, progress)


__all__ = ["ExportResult", "TensorSpec", "export", "revalidate", "toolchain"]
