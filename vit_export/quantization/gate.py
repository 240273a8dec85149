"""Gate of a converted artifact: converted nodes counted, outputs and classes compared."""

from vit_export.artifact.golden import Golden
from vit_export.artifact.manifest import Conversion, Manifest, Stage
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.vocabulary import HALF_PRECISIONS
from vit_export.errors import GateError, ProviderError
from vit_export.gate.validate import Comparison, compare
from vit_export.graph.layers import converted_nodes
from vit_export.progress import Progress
from vit_export.quantization.trials import TrialConverter
from vit_export.runtime.onnxruntime.runner import OrtRunner


def run_gate(
    trials: TrialConverter, packed: OnnxFile, conversion: Conversion, progress: Progress
) -> list[Comparison]:
    """Count the converted nodes of a packed artifact, and measure it; the file itself comes last.

    Half precision is measured twice: with every operation rounded, as a GPU computes it, and as
    the file runs on this CPU. BF16 runs on a GPU only; without one, only the first is measured.
    """
    precision, limits = trials.manifest.precision, trials.limits
    name = f"fp32 -> {precision}"
    count = converted_nodes(packed)
    if count != conversion.narrowed:  # no search could repair it
        raise GateError(
            f"{name}: {count} nodes with weights are {precision} in the file, expected "
            f"{conversion.narrowed}; nothing was written"
        )
    comparisons: list[Comparison] = []
    if precision in HALF_PRECISIONS:
        progress(f"measure {name}, rounded after every operation")
        runner = trials.runner(packed.path)
        comparisons.append(
            _compare(runner, trials.golden, trials.manifest, f"{name}, every operation rounded")
        )
    progress(f"measure {name}")
    comparisons.append(compare_file(packed, trials.golden, trials.manifest, name))
    stages = [comparison.stage for comparison in comparisons]
    failures = [reason for s in stages if s.passed is False for reason in s.reasons]
    last = stages[-1].replace(accuracy="unmeasured")
    if limits.images is not None:
        progress(f"compare classes on {len(limits.images)} real images")
        runner = trials.runner(packed.path)
        accuracy = trials.accuracy(runner, limits.images)
        runner.release()
        if limits.error_ratio(accuracy) > 1:
            failures.append(f"{accuracy}, {limits}")
        last = last.replace(
            accuracy=str(accuracy),
            real_images=accuracy.images,
            real_agreement=accuracy.agreement,
            accuracy_drop=accuracy.drop,
        )
    if failures:
        last = last.replace(passed=False, reasons=tuple(dict.fromkeys(failures)))
    blocks = next((c.blocks for c in reversed(comparisons) if c.blocks), ())
    return [*comparisons[:-1], Comparison(stage=last, blocks=blocks)]


def compare_file(packed: OnnxFile, golden: Golden, manifest: Manifest, name: str) -> Comparison:
    """Compare the file itself: on the CPU, or on a GPU where the CPU has no kernels for it.

    Where neither can run it, it has neither passed nor failed.
    """
    provider = "cuda" if manifest.precision == "bf16" else "cpu"
    try:
        return _compare(OrtRunner(packed.path, provider=provider), golden, manifest, name)
    except ProviderError as error:
        reason = (
            "ONNX Runtime's CPU provider has no bfloat16 kernels, and no GPU ran it here "
            f"({error.message}); it was measured with every operation rounded"
        )
        samples, reasons = golden.samples, (reason,)
        stage = Stage(name=name, provider=provider, samples=samples, passed=None, reasons=reasons)
        return Comparison(stage=stage)


def _compare(runner: OrtRunner, golden: Golden, manifest: Manifest, stage: str) -> Comparison:
    comparison = compare(runner, golden, manifest=manifest, stage=stage)
    runner.release()
    return comparison
