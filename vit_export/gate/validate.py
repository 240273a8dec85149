"""The gate: what an artifact computes, against what torch computes in float64.

numpy only, so that a device can re-run it from the golden file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vit_export.artifact.golden import BATCHES, MAX_RELATIVE_E32, Golden
from vit_export.artifact.manifest import FEATURES, Manifest, Measurement, Preprocess, Stage
from vit_export.errors import ArtifactError, GateError, InputError
from vit_export.gate.distance import Array, Measured, Reference, references
from vit_export.gate.tolerances import Criterion, criterion_of
from vit_export.gate.trace import BlockError, golden_feeds, locate, trace
from vit_export.runner import Runner


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a gate found.

    Attributes:
        stage: The line for the certificate.
        blocks: Error per encoder block; looked at when the gate failed.
    """

    stage: Stage
    blocks: tuple[BlockError, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every output at every batch size was within its tolerance."""
        return self.stage.passed is True

    def raise_for_failure(self) -> None:
        """Raise GateError with the reason unless the gate passed."""
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
    """Run an artifact on the golden inputs and compare it with the oracle.

    Batch sizes 1, 2, 3 and 8 (or the fixed one); among them rows that are identical, permuted
    and alone, which must not differ by more than the tolerance.

    Args:
        runner: What runs the artifact.
        golden: What torch computes.
        manifest: What the artifact declares; by default what it carries.
        preprocess: How golden images are normalised; by default as the manifest says.
        stage: Name of the line in the certificate.
        batches: Rising batch sizes to run a graph of dynamic batch size at.

    Raises:
        ArtifactError: Golden file and artifact do not belong together.
    """
    manifest = manifest or runner.manifest
    preprocess = preprocess or (manifest.preprocess if manifest else None)
    criterion = criterion_for(runner, manifest)
    whole = _measure(runner, golden, manifest, preprocess, criterion, batches)
    for other in golden.others:
        part = _measure(runner, other, manifest, preprocess, criterion, batches)
        whole.measured |= {f"{name} {other.size}": m for name, m in part.measured.items()}
        whole.failures += [f"{other.size} px: {failure}" for failure in part.failures]
        whole.blocks = whole.blocks or part.blocks
    whole.notes += _notes(runner, criterion, whole)
    return Comparison(stage=_certify(stage, runner, golden, whole), blocks=whole.blocks)


def criterion_for(runner: Runner, manifest: Manifest | None) -> Criterion:
    """What an artifact has to keep to; fp32's where it does not say its precision.

    Raises:
        ArtifactError: Its precision is unknown.
    """
    precision = manifest.precision if manifest is not None else "fp32"
    return criterion_of(precision, source=runner.path.name)


@dataclass
class _Measurements:
    """What was found at one image size."""

    measured: dict[str, Measured]
    primary: str  # the output that the certificate's line is about
    failures: list[str]
    notes: list[str]
    blocks: tuple[BlockError, ...] = ()


def _measure(
    runner: Runner,
    golden: Golden,
    manifest: Manifest | None,
    preprocess: Preprocess | None,
    criterion: Criterion,
    batches: Sequence[int],
) -> _Measurements:
    feeds = golden_feeds(runner, golden, preprocess)
    known = references(golden, criterion)
    promised = {spec.name for spec in (manifest.outputs if manifest else runner.outputs)}
    names = [s.name for s in runner.outputs if s.name in known and s.name in promised]
    if not names:
        raise ArtifactError(
            f"{runner.path.name}: the golden file knows none of its outputs "
            f"({', '.join(spec.name for spec in runner.outputs)}; it knows "
            f"{', '.join(golden.outputs)}); it belongs to another model"
        )
    declared = (manifest.inputs if manifest else runner.inputs)[0].shape[0]
    measured = {name: Measured(known[name]) for name in names}
    failures = [
        f"{name}: promised by the manifest, but {what}"
        for name in sorted(promised - set(names) if manifest else ())
        for what in ["the golden file does not know it" if name not in known else "no graph output"]
    ]
    failures += _run_all(runner, feeds, measured, list(_plan(declared, golden.samples, batches)))
    if manifest and manifest.config and FEATURES not in golden.outputs:
        failures.append("the golden file lacks the features, without which a body is unmeasured")
    notes = []
    for name in (n for n in gated_always(golden) if n not in measured):
        if not runner.has_tensor(name):
            notes.append(f"{name}: not measured, the graph has no tensor of that name")
            continue
        measured[name] = Measured(known[name])
        inner = {name: measured[name]}
        runner.release()  # one session at a time: each holds the weights
        plan = list(_largest_only(declared, golden.samples, batches))
        failures += _run_all(runner.expose([name]), feeds, inner, plan)
    failures += list(_failures(measured, criterion))
    primary = "logits" if "logits" in measured else names[0]
    found = _Measurements(measured, primary, failures, notes)
    if failures:
        found.blocks = trace(runner, golden, feeds, criterion)
        failures += locate(found.blocks)
    return found


def gated_always(golden: Golden) -> list[str]:
    """What is gated even where it is no output, since a zero head would hide a broken body.

    The features; the last block's output in a model that does not name its features.
    """
    if FEATURES in golden.outputs:
        return [FEATURES]
    return [golden.blocks.names[-1]] if golden.blocks is not None else []


def _plan(
    declared: int | str, samples: int, batches: Sequence[int]
) -> Iterator[tuple[int, list[int]]]:
    """Batch sizes and the golden samples in their rows."""
    most = declared if isinstance(declared, int) else batches[-1]
    for batch in () if isinstance(declared, int) else batches[:-1]:
        if batch == 1:
            yield from ((1, [sample % samples]) for sample in range(3))
        elif batch == 2:
            yield 2, [3 % samples] * 2  # identical rows
        else:
            yield batch, [(2 - i) % samples for i in range(batch)]  # first, those of batch 1
    yield from _largest_only(declared, samples, batches)
    yield most, [(-1 - i) % samples for i in range(most)]  # another order
    if isinstance(declared, int) or 2 not in batches[:-1]:
        yield most, [0] * most  # identical rows


def _largest_only(
    declared: int | str, samples: int, batches: Sequence[int]
) -> Iterator[tuple[int, list[int]]]:
    """Every sample once, in batches of the largest size."""
    size = declared if isinstance(declared, int) else batches[-1]
    for start in range(0, samples, size):
        yield size, [i % samples for i in range(start, start + size)]


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
        except (ArtifactError, InputError) as error:
            failures.append(f"batch {batch} fails: {error}")
            continue
        for name, result in measured.items():
            if complaint := result.add(batch, rows, outputs[name]):
                failures.append(f"{name} at batch {batch} {complaint}")
    return list(dict.fromkeys(failures))


def _failures(measured: Mapping[str, Measured], criterion: Criterion) -> Iterator[str]:
    for name, result in measured.items():
        reference = result.reference
        if not np.isfinite(reference.values).all():
            yield f"{name}: torch's own result is not finite, so there is nothing to compare with"
            continue
        if criterion.baseline == "e32":
            yield from _loose(name, reference)
        for batch, distance in result.by_batch.items():
            if reference.tolerance is not None and not distance <= reference.tolerance:
                own = f" ({criterion.torch_name}: {reference.own:.3g})" if reference.own else ""
                yield (
                    f"{name} at batch {batch}: max|y - y64| = {distance:.3g}, allowed "
                    f"{reference.tolerance:.3g}{own}"
                )
            if reference.min_cosine is not None and not result.cosine[batch] >= (
                reference.min_cosine
            ):
                yield (
                    f"{name} at batch {batch}: cosine {result.cosine[batch]:.6f}, expected at "
                    f"least {reference.min_cosine:g}"
                )
        allowed = reference.row_tolerance
        if allowed is not None and not result.row_max_abs <= allowed:
            yield (
                f"{name}: a row changes by {result.row_max_abs:.3g} with its place or its "
                f"neighbours in the batch, allowed {allowed:.3g}"
            )


def _loose(name: str, reference: Reference) -> Iterator[str]:
    if reference.own is None or not np.isfinite(reference.own):
        yield f"{name}: torch's own result is not finite, so there is nothing to compare with"
    elif reference.own > MAX_RELATIVE_E32 * reference.largest:
        yield (
            f"{name}: the golden file says that torch float32 is off by {reference.own:.3g}, "
            f"of {reference.largest:.3g} at most: so loose a baseline lets anything pass"
        )


def _notes(runner: Runner, criterion: Criterion, found: _Measurements) -> Iterator[str]:
    """What the reader of a low-precision certificate has to know."""
    if criterion.precision == "fp16" and runner.provider == "cpu" and runner.manifest:
        yield (
            "ONNX Runtime's CPU computes float16 in float32 and rounds less often: what overflows "
            "on a GPU may pass here"
        )
    main = found.measured[found.primary].reference
    if main.own == float("inf"):
        yield (
            f"{criterion.torch_name} itself overflows on these images: "
            f"{criterion.cap:g} of max|y64| is allowed"
        )
    if criterion.rows_depend:
        rows = max(result.row_max_abs for result in found.measured.values())
        yield (
            f"rows of a batch share one activation scale: a row changes by up to {rows:.3g} with "
            "its neighbours"
        )


def _certify(stage: str, runner: Runner, golden: Golden, found: _Measurements) -> Stage:
    rows = [
        Measurement(
            output=name,
            batch=batch,
            max_abs=distance,
            tolerance=result.reference.tolerance,
            cosine=result.cosine[batch],
            passed=result.reference.accepts(distance, result.cosine[batch]),
        )
        for name, result in found.measured.items()
        for batch, distance in sorted(result.by_batch.items())
    ]
    main = found.measured[found.primary]
    return Stage(
        name=stage,
        provider=runner.provider,
        samples=golden.samples,
        batches=tuple(sorted(main.by_batch)),
        baseline_max_abs=main.reference.own,
        max_abs=max(main.by_batch.values(), default=None),
        tolerance=main.reference.tolerance,
        cosine=min(main.cosine.values(), default=None),
        top1_agreement=_top1_agreement(main) if found.primary == "logits" else None,
        row_max_abs=main.row_max_abs,
        passed=not found.failures,
        reason="; ".join(found.failures),
        notes=tuple(found.notes),
        measurements=tuple(rows),
    )


def _top1_agreement(result: Measured) -> float | None:
    if not result.rows:
        return None
    agree = [row.argmax() == result.reference.values[s].argmax() for s, row in result.rows.items()]
    return float(np.mean(agree))
