"""The gate of a narrower artifact: its layers counted, its outputs and its classes compared."""

from __future__ import annotations

from dataclasses import dataclass

from vit_export.artifact.manifest import Conversion, Stage
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import GateError, ProviderError
from vit_export.gate.accuracy import Accuracy
from vit_export.gate.tolerances import TOLERANCES
from vit_export.gate.validate import Comparison, compare
from vit_export.progress import Progress
from vit_export.quantization.trials import TrialConverter
from vit_export.runtime.onnxruntime.runner import OrtRunner

UNMEASURED = "unmeasured"


@dataclass(frozen=True, kw_only=True)
class Gated:
    """What the gate found.

    Attributes:
        comparison: Of the file itself; its `passed` is `None` where it cannot run here.
        stages: For the certificate: the file itself last.
        accuracy: On real images, where there were some.
        failures: Why it did not pass; empty when it did.
    """

    comparison: Comparison
    stages: tuple[Stage, ...]
    accuracy: Accuracy | None
    failures: tuple[str, ...]


def gate(
    bench: TrialConverter, packed: OnnxFile, conversion: Conversion, progress: Progress
) -> Gated:
    """Count the narrow nodes of a packed artifact, and measure it.

    Half precision is measured twice: rounded after every operation, as a GPU computes it, and
    as the file runs on this CPU. BF16 runs on a GPU only; without one the first stands alone.

    Raises:
        GateError: Fewer or more nodes are narrow than the plan says.
    """
    target = bench.target
    stage = f"fp32 -> {target.precision}"
    count = target.count(packed)
    if count != conversion.narrowed:  # which no search could repair
        raise GateError(
            f"{stage}: {count} nodes with weights are {target.precision} in the file, the plan has "
            f"{conversion.narrowed}; nothing was written"
        )
    stages: list[Stage] = []
    judged = None
    if target.rounded:
        progress(f"measure {stage}, rounded after every operation")
        runner = bench.runner(packed.path)
        judged = compare(
            runner, bench.golden, manifest=bench.manifest, stage=f"{stage}, every operation rounded"
        )
        runner.release()
        stages.append(judged.stage)
    progress(f"measure {stage}")
    comparison = _of_file(bench, packed, stage)
    accuracy = _accuracy(bench, packed, progress)
    reason = _shortfall(bench, accuracy)
    found = [*stages, comparison.stage]
    failures = [reason for stage in found if stage.passed is False for reason in stage.reasons]
    failures += [reason] if reason else []
    failures = list(dict.fromkeys(failures))
    last = _with_accuracy(comparison.stage, accuracy).replace(
        passed=False if failures else comparison.stage.passed,
        reasons=tuple(failures) or comparison.stage.reasons,
    )
    return Gated(
        comparison=Comparison(
            stage=last, blocks=comparison.blocks or (judged or comparison).blocks
        ),
        stages=(*stages, last),
        accuracy=accuracy,
        failures=tuple(failures),
    )


def _of_file(bench: TrialConverter, packed: OnnxFile, stage: str) -> Comparison:
    """The file itself: on the CPU, or on a GPU where the CPU has no kernels for it.

    Where neither can run it, it has neither passed nor failed.
    """
    provider = "cuda" if bench.target.precision == "bf16" else "cpu"
    try:
        runner = OrtRunner(packed.path, provider=provider)
    except ProviderError as error:
        return Comparison(stage=_not_run(bench, stage, str(error)))
    found = compare(runner, bench.golden, manifest=bench.manifest, stage=stage)
    runner.release()
    return found


def _not_run(bench: TrialConverter, stage: str, error: str) -> Stage:
    return Stage.unmeasured(
        stage,
        provider="cuda",
        samples=bench.golden.samples,
        reason="ONNX Runtime's CPU provider has no bfloat16 kernels, and no GPU ran it here "
        f"({error.partition('; ')[0]}); it was measured with every operation rounded",
    )


def _accuracy(bench: TrialConverter, packed: OnnxFile, progress: Progress) -> Accuracy | None:
    if bench.limits.images is None:
        return None
    progress(f"compare classes on {len(bench.limits.images)} real images")
    runner = bench.runner(packed.path)
    found = bench.accuracy(runner, bench.limits.images)
    runner.release()
    return found


def _shortfall(bench: TrialConverter, accuracy: Accuracy | None) -> str:
    """Why an accuracy is not good enough; empty where it is."""
    if accuracy is None or bench.limits.harm(accuracy, bench.target.precision) <= 1:
        return ""
    floor = TOLERANCES[bench.target.precision].min_agreement or 0.0
    allowed = f"expected agreement on at least {100 * floor:g} %"
    if bench.limits.max_drop is not None:
        allowed += f" and a drop of at most {bench.limits.max_drop:g} points"
    return f"{accuracy}; {allowed}".replace("; ", ", ")


def _with_accuracy(stage: Stage, accuracy: Accuracy | None) -> Stage:
    if accuracy is None:
        return stage.replace(accuracy=UNMEASURED)
    return stage.replace(
        accuracy=str(accuracy),
        real_images=accuracy.images,
        real_agreement=accuracy.agreement,
        accuracy_drop=accuracy.drop,
    )
