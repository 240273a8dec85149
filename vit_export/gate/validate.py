"""Gate: compare the outputs of an artifact with what torch computes in float64.

Needs numpy only, so that a device can run it with the golden file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vit_export.artifact.golden import BATCHES, MAX_RELATIVE_E32, Golden
from vit_export.artifact.manifest import Manifest, Measurement, Stage
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import FEATURES, LOGITS
from vit_export.errors import ArtifactError, GateError, InputError
from vit_export.gate.distance import Array, Measured, Reference, references
from vit_export.gate.tolerances import Tolerances, tolerances_of
from vit_export.gate.trace import BlockError, golden_feeds, locate, trace
from vit_export.runner import Runner, batch_rows

RUN_ERRORS = (ArtifactError, InputError)  # of an artifact that cannot run


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of comparing an artifact with its float64 reference.

    Attributes:
        stage: The line for the certificate.
        blocks: Error per encoder block; measured when the gate failed.
    """

    stage: Stage
    blocks: tuple[BlockError, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every output at every batch size was within its tolerance."""
        return self.stage.passed is True

    def raise_for_failure(self) -> None:
        """Raise GateError with the reasons unless the gate passed."""
        if not self.passed:
            raise GateError(f"{self.stage.name}: {self.stage.reason}")


def compare(
    runner: Runner,
    golden: Golden,
    *,
    manifest: Manifest | None = None,
    preprocess: Preprocess | None = None,
    stage: str = "artifact",
    batches: Sequence[int] = BATCHES,
) -> Comparison:
    """Run an artifact on the golden inputs and compare it with the float64 reference.

    Batch sizes 1, 2, 3 and 8 (or the fixed one). Rows that are identical, permuted or alone must
    not differ by more than the tolerance.

    Args:
        runner: Runs the artifact.
        golden: The golden file.
        manifest: By default the artifact's own.
        preprocess: How golden images are normalised; by default as the manifest says.
        stage: Name of the line in the certificate.
        batches: Rising batch sizes to run a graph of dynamic batch size at.

    Raises:
        ArtifactError: Golden file and artifact do not belong together.
    """
    manifest = manifest or runner.manifest
    preprocess = preprocess or (manifest.preprocess if manifest else None)
    tolerances = tolerances_of_artifact(runner, manifest)
    whole = _measure(runner, golden, manifest, preprocess, tolerances, batches)
    for other in golden.others:
        part = _measure(runner, other, manifest, preprocess, tolerances, batches)
        whole.measured |= {f"{name} {other.size}": m for name, m in part.measured.items()}
        whole.failures += [f"{other.size} px: {failure}" for failure in part.failures]
        whole.blocks = whole.blocks or part.blocks
    whole.notes += _notes(runner, tolerances, whole)
    return Comparison(stage=_certify(stage, runner, golden, whole), blocks=whole.blocks)


def tolerances_of_artifact(runner: Runner, manifest: Manifest | None) -> Tolerances:
    """Return the limits of an artifact's precision; those of fp32 for a file of another tool.

    Raises:
        ArtifactError: Its precision is unknown.
    """
    precision = manifest.precision if manifest is not None else "fp32"
    return tolerances_of(precision, source=runner.path.name)


@dataclass
class _Measurements:
    """Result at one image size."""

    measured: dict[str, Measured]
    primary: str  # the output that the line of the certificate is about
    failures: list[str]
    notes: list[str]
    blocks: tuple[BlockError, ...] = ()


def _measure(
    runner: Runner,
    golden: Golden,
    manifest: Manifest | None,
    preprocess: Preprocess | None,
    tolerances: Tolerances,
    batches: Sequence[int],
) -> _Measurements:
    feeds = golden_feeds(runner, golden, preprocess)
    known = references(golden, tolerances)
    promised = {spec.name for spec in (manifest.outputs if manifest else runner.outputs)}
    names = [s.name for s in runner.outputs if s.name in known and s.name in promised]
    if not names:
        raise ArtifactError(
            f"{runner.path.name}: the golden file has none of its outputs "
            f"({', '.join(spec.name for spec in runner.outputs)}), only "
            f"{', '.join(golden.outputs)}: it belongs to another model"
        )
    declared = (manifest.inputs if manifest else runner.inputs)[0].shape[0]
    measured = {name: Measured(known[name]) for name in names}
    failures = []
    for name in sorted(promised - set(names)) if manifest else ():
        missing = "the graph has no such output" if name in known else "not in the golden file"
        failures.append(f"{name}: promised by the manifest, but {missing}")
    failures += _run_all(runner, feeds, measured, list(_plan(declared, golden.samples, batches)))
    if manifest and manifest.config and FEATURES not in golden.outputs:
        failures.append("the golden file lacks the features, so the body would not be measured")
    notes = []
    for name in (n for n in gated_always(golden) if n not in measured):
        if not runner.has_tensor(name):
            notes.append(f"{name}: not measured, the graph has no tensor of that name")
            continue
        measured[name] = Measured(known[name])
        runner.release()  # one session at a time: each holds the weights
        exposed = runner.expose([name])
        plan = _every_sample(declared, golden.samples, batches)
        failures += _run_all(exposed, feeds, {name: measured[name]}, plan)
    failures += list(_failures(measured, tolerances))
    primary = LOGITS if LOGITS in measured else names[0]
    result = _Measurements(measured, primary, failures, notes)
    if failures:
        try:
            result.blocks = trace(runner, golden, feeds, tolerances)
            failures += locate(result.blocks)
        except RUN_ERRORS as error:
            failures.append(f"the blocks could not be measured: {error.message}")
    return result


def gated_always(golden: Golden) -> list[str]:
    """Return the tensors that are measured even where they are no output.

    The features, since a zero head would hide a broken body; the last block's output in a model
    that does not name its features.
    """
    if FEATURES in golden.outputs:
        return [FEATURES]
    return [golden.blocks.names[-1]] if golden.blocks is not None else []


def _plan(
    declared: int | str, samples: int, batches: Sequence[int]
) -> Iterator[tuple[int, list[int]]]:
    """Batch sizes, and the golden samples in their rows."""
    most = declared if isinstance(declared, int) else batches[-1]
    for batch in () if isinstance(declared, int) else batches[:-1]:
        if batch == 1:
            yield from ((1, [sample % samples]) for sample in range(3))
        elif batch == 2:
            yield 2, [3 % samples] * 2  # identical rows
        else:
            yield batch, [(2 - i) % samples for i in range(batch)]  # first, those of batch 1
    yield from _every_sample(declared, samples, batches)
    yield most, [(-1 - i) % samples for i in range(most)]  # another order
    if isinstance(declared, int) or 2 not in batches[:-1]:
        yield most, [0] * most  # identical rows


def _every_sample(
    declared: int | str, samples: int, batches: Sequence[int]
) -> list[tuple[int, list[int]]]:
    """Every sample once, in batches of the largest size."""
    size = declared if isinstance(declared, int) else batches[-1]
    return [(size, rows) for rows in batch_rows(samples, size)]


def _run_all(
    runner: Runner,
    feeds: Mapping[str, Array],
    measured: Mapping[str, Measured],
    plan: Sequence[tuple[int, list[int]]],
) -> list[str]:
    """Run every batch of the plan; return what went wrong beyond distance."""
    failures: list[str] = []
    for batch, rows in plan:
        try:
            outputs = runner.run({name: values[rows] for name, values in feeds.items()})
        except RUN_ERRORS as error:
            failures.append(f"batch {batch} fails: {error.message}")
            continue
        for name, result in measured.items():
            if complaint := result.add(batch, rows, outputs[name]):
                failures.append(f"{name} at batch {batch} {complaint}")
    return list(dict.fromkeys(failures))


def _failures(measured: Mapping[str, Measured], tolerances: Tolerances) -> Iterator[str]:
    for name, result in measured.items():
        reference = result.reference
        if not np.isfinite(reference.values).all():
            yield _not_finite(name)
            continue
        if tolerances.baseline == "e32":
            yield from _loose_baseline(name, reference)
        for batch, distance in result.by_batch.items():
            if reference.tolerance is not None and not distance <= reference.tolerance:
                own = f" ({tolerances.torch_name}: {reference.own:.3g})" if reference.own else ""
                yield (
                    f"{name} at batch {batch}: max|y - y64| = {distance:.3g}, allowed "
                    f"{reference.tolerance:.3g}{own}"
                )
            least, angle = reference.min_cosine, result.cosine[batch]
            if least is not None and not angle >= least:
                yield f"{name} at batch {batch}: cosine {angle:.6f}, expected at least {least:g}"
        most = reference.max_scale_error
        if most is not None and not abs(result.scale - 1) <= most:
            yield (
                f"{name}: its values are {result.scale:.4f} times those of the reference, allowed "
                f"{1 - most:g} to {1 + most:g}"
            )
        allowed = reference.row_tolerance
        if allowed is not None and not result.row_max_abs <= allowed:
            yield (
                f"{name}: a row changes by {result.row_max_abs:.3g} with its place or its "
                f"neighbours in the batch, allowed {allowed:.3g}"
            )


def _not_finite(name: str) -> str:
    return f"{name}: torch's own result is not finite, so there is nothing to compare with"


def _loose_baseline(name: str, reference: Reference) -> Iterator[str]:
    if reference.own is None or not np.isfinite(reference.own):
        yield _not_finite(name)
    elif reference.own > MAX_RELATIVE_E32 * reference.largest:
        yield (
            f"{name}: the golden file gives torch float32 an error of {reference.own:.3g}, where "
            f"the largest value is {reference.largest:.3g}: so loose a baseline lets anything pass"
        )


def _notes(runner: Runner, tolerances: Tolerances, result: _Measurements) -> Iterator[str]:
    """Notes for the certificate of a low precision."""
    if tolerances.precision == "fp16" and runner.provider == "cpu" and runner.manifest:
        yield (
            "ONNX Runtime's CPU computes float16 in float32 and rounds less often: what overflows "
            "on a GPU may pass here"
        )
    if result.measured[result.primary].reference.own == float("inf"):
        yield (
            f"{tolerances.torch_name} itself overflows on these images: "
            f"{tolerances.cap:g} of max|y64| is allowed"
        )
    if tolerances.rows_depend:
        rows = max(measured.row_max_abs for measured in result.measured.values())
        yield (
            f"rows of a batch share one activation scale: a row changes by up to {rows:.3g} with "
            "its neighbours"
        )


def _certify(stage: str, runner: Runner, golden: Golden, result: _Measurements) -> Stage:
    rows = [
        Measurement(
            output=name,
            batch=batch,
            max_abs=distance,
            tolerance=measured.reference.tolerance,
            cosine=measured.cosine[batch],
            passed=measured.reference.accepts(distance, measured.cosine[batch], measured.scale),
        )
        for name, measured in result.measured.items()
        for batch, distance in sorted(measured.by_batch.items())
    ]
    main = result.measured[result.primary]
    return Stage(
        name=stage,
        provider=runner.provider,
        samples=golden.samples,
        batches=tuple(sorted(main.by_batch)),
        baseline_max_abs=main.reference.own,
        max_abs=main.max_abs if main.by_batch else None,
        tolerance=main.reference.tolerance,
        cosine=main.min_cosine if main.by_batch else None,
        top1_agreement=_top1_agreement(main) if result.primary == LOGITS else None,
        row_max_abs=main.row_max_abs,
        passed=not result.failures,
        reasons=tuple(result.failures),
        notes=tuple(result.notes),
        measurements=tuple(rows),
    )


def _top1_agreement(result: Measured) -> float | None:
    if not result.rows:
        return None
    agree = [row.argmax() == result.reference.values[s].argmax() for s, row in result.rows.items()]
    return float(np.mean(agree))
