"""Gate of a converted artifact: converted nodes counted, outputs and classes compared."""

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
class GateResult:
    """Result of the gate.

    Attributes:
        comparison: Of the file itself; its `passed` is `None` where it cannot run here.
        stages: Lines of the certificate; the file itself last.
        accuracy: On real images, where there are some.
        failures: Why the gate failed; empty when it passed.
    """

    comparison: Comparison
    stages: tuple[Stage, ...]
    accuracy: Accuracy | None
    failures: tuple[str, ...]


def run_gate(
    trials: TrialConverter, packed: OnnxFile, conversion: Conversion, progress: Progress
) -> GateResult:
    """Count the converted nodes of a packed artifact, and measure it.

    Half precision is measured twice: with every operation rounded, as a GPU computes it, and as
    the file runs on this CPU. BF16 runs on a GPU only; without one, only the first is measured.

    Raises:
        GateError: The file has more or fewer converted nodes than planned.
    """
    target = trials.target
    name = f"fp32 -> {target.precision}"
    count = target.count(packed)
    if count != conversion.narrowed:  # no search could repair it
        raise GateError(
            f"{name}: {count} nodes with weights are {target.precision} in the file, expected "
            f"{conversion.narrowed}; nothing was written"
        )
    emulated: list[Comparison] = []
    if target.emulated:
        progress(f"measure {name}, rounded after every operation")
        runner = trials.runner(packed.path)
        stage = f"{name}, every operation rounded"
        emulated.append(compare(runner, trials.golden, manifest=trials.manifest, stage=stage))
        runner.release()
    progress(f"measure {name}")
    comparison = _compare_file(trials, packed, name)
    accuracy = _measure_accuracy(trials, packed, progress)
    stages = [*(found.stage for found in emulated), comparison.stage]
    reasons = [reason for stage in stages if stage.passed is False for reason in stage.reasons]
    failures = tuple(dict.fromkeys([*reasons, *_accuracy_failures(trials, accuracy)]))
    last = _with_accuracy(comparison.stage, accuracy).replace(
        passed=False if failures else comparison.stage.passed,
        reasons=failures or comparison.stage.reasons,
    )
    blocks = next((found.blocks for found in (comparison, *emulated) if found.blocks), ())
    return GateResult(
        comparison=Comparison(stage=last, blocks=blocks),
        stages=(*stages[:-1], last),
        accuracy=accuracy,
        failures=failures,
    )


def _compare_file(trials: TrialConverter, packed: OnnxFile, name: str) -> Comparison:
    """Compare the file itself: on the CPU, or on a GPU where the CPU has no kernels for it.

    Where neither can run it, it has neither passed nor failed.
    """
    provider = "cuda" if trials.target.precision == "bf16" else "cpu"
    try:
        runner = OrtRunner(packed.path, provider=provider)
    except ProviderError as error:
        reason = (
            "ONNX Runtime's CPU provider has no bfloat16 kernels, and no GPU ran it here "
            f"({error.message}); it was measured with every operation rounded"
        )
        samples = trials.golden.samples
        return Comparison(
            stage=Stage.unmeasured(name, provider=provider, samples=samples, reason=reason)
        )
    comparison = compare(runner, trials.golden, manifest=trials.manifest, stage=name)
    runner.release()
    return comparison


def _measure_accuracy(
    trials: TrialConverter, packed: OnnxFile, progress: Progress
) -> Accuracy | None:
    images = trials.limits.images
    if images is None:
        return None
    progress(f"compare classes on {len(images)} real images")
    runner = trials.runner(packed.path)
    accuracy = trials.accuracy(runner, images)
    runner.release()
    return accuracy


def _accuracy_failures(trials: TrialConverter, accuracy: Accuracy | None) -> list[str]:
    precision, limits = trials.target.precision, trials.limits
    if accuracy is None or limits.error_ratio(accuracy, precision) <= 1:
        return []
    min_agreement = TOLERANCES[precision].min_agreement or 0.0
    allowed = f"expected agreement on at least {100 * min_agreement:g} %"
    if limits.max_drop is not None:
        allowed += f" and a drop of at most {limits.max_drop:g} points"
    return [f"{accuracy}, {allowed}"]


def _with_accuracy(stage: Stage, accuracy: Accuracy | None) -> Stage:
    if accuracy is None:
        return stage.replace(accuracy=UNMEASURED)
    return stage.replace(
        accuracy=str(accuracy),
        real_images=accuracy.images,
        real_agreement=accuracy.agreement,
        accuracy_drop=accuracy.drop,
    )
