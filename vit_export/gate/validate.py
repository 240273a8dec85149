"""Gate: compare the outputs of an artifact with what torch computes in float64.

Needs numpy only, so that a device can run it with the golden file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vit_export.artifact.golden import BATCHES, MAX_RELATIVE_E32, Golden
from vit_export.artifact.manifest import Manifest, Measurement, Stage
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import FEATURES, LOGITS, SCORE_OUTPUTS, Activation
from vit_export.errors import ArtifactError, GateError, InputError
from vit_export.gate.distance import Array, Measured, references
from vit_export.gate.scores import score_failures
from vit_export.gate.tolerances import Tolerances, tolerances_of
from vit_export.gate.trace import BlockError, golden_feeds, locate, measure_blocks
from vit_export.runner import Runner, batch_rows

RUN_ERRORS = (ArtifactError, InputError)  # of an artifact that cannot run


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of comparing an artifact with its float64 reference."""

    stage: Stage  # the line for the certificate
    blocks: tuple[BlockError, ...] = ()  # of a failed gate, or where a trace was asked for
    rejected: Mapping[str, str] = field(default_factory=dict)  # as `Model.rejected`

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
    one_batch: bool = False,
    trace: bool = False,
) -> Comparison:
    """Run an artifact on the golden inputs and compare it with the float64 reference.

    Rows that are identical, permuted or alone must not differ by more than the tolerance. Manifest
    and image preparation are the artifact's own by default. `stage` is the name of the line in the
    certificate; `batches` rise, and are run where the batch size is dynamic, with `one_batch` only
    the first of them and once; `trace` measures the encoder blocks even when the gate passes.

    Raises:
        ArtifactError: Golden file and artifact do not belong together.
    """
    manifest = manifest or runner.manifest
    preprocess = preprocess or (manifest.preprocess if manifest else None)
    precision = manifest.precision if manifest else "fp32"
    tolerances = tolerances_of(precision, source=runner.path.name)
    measured: dict[str, Measured] = {}
    failures: list[str] = []
    notes: list[str] = []
    blocks: tuple[BlockError, ...] = ()
    for part in (golden, *golden.others):
        feeds = golden_feeds(runner, part, preprocess)
        results, reasons, remarks = _measure(
            runner, part, feeds, manifest, tolerances, batches, one_batch
        )
        if reasons:
            try:
                traced = measure_blocks(runner, part, feeds, tolerances)
                reasons += locate(traced)
                blocks = blocks or traced
            except RUN_ERRORS as error:
                reasons.append(f"the blocks could not be measured: {error.message}")
        if part is golden:
            measured, failures, notes = results, reasons, remarks
        else:
            measured |= {f"{name} {part.size}": result for name, result in results.items()}
            failures += [f"{part.size} px: {reason}" for reason in reasons]
    if trace and not blocks:
        feeds = golden_feeds(runner, golden, preprocess)
        blocks = measure_blocks(runner, golden, feeds, tolerances)
    notes += _notes(runner, tolerances, measured)
    line = _certify(stage, runner, golden, measured)
    line = line.replace(passed=not failures, reasons=tuple(failures), notes=tuple(notes))
    return Comparison(stage=line, blocks=blocks)


def _measure(
    runner: Runner,
    golden: Golden,
    feeds: Mapping[str, Array],
    manifest: Manifest | None,
    tolerances: Tolerances,
    batches: Sequence[int],
    one_batch: bool,
) -> tuple[dict[str, Measured], list[str], list[str]]:
    """Measure every output at one image size; return failures and notes as well."""
    known = references(golden, tolerances)
    promised = {spec.name for spec in (manifest or runner).outputs}
    activation = manifest.activation if manifest and manifest.embedded else None
    if activation is not None:  # these have no reference but the logits
        promised -= {*SCORE_OUTPUTS}
    names = [s.name for s in runner.outputs if s.name in known and s.name in promised]
    if not names:
        raise ArtifactError(
            f"{runner.path.name}: the golden file has none of its outputs "
            f"({', '.join(spec.name for spec in runner.outputs)}), only "
            f"{', '.join(golden.outputs)}: it belongs to another model"
        )
    fixed = (manifest or runner).inputs[0].fixed_batch
    batches = (fixed,) if fixed is not None else batches
    measured = {name: Measured(known[name]) for name in names}
    failures, notes = [], []
    for name in sorted(promised - set(names)) if manifest else ():
        missing = "the graph has no such output" if name in known else "not in the golden file"
        failures.append(f"{name}: promised by the manifest, but {missing}")
    if manifest and manifest.config and FEATURES not in golden.outputs:
        failures.append("the golden file lacks the features, so the body would not be measured")
    inner = [name for name in gated_always(golden) if name not in measured]
    if absent := [name for name in inner if not runner.has_tensor(name)]:
        notes.append(f"{absent[0]}: not measured, the graph has no tensor of that name")
    inside = {name: Measured(known[name]) for name in inner if name not in absent}
    together, plan = measured | inside, _plan(golden.samples, batches)
    if one_batch:
        plan = iter(batch_rows(golden.samples, batches[0])[:1])
    elif runner.provider != "cpu":  # there a further output can change which nodes are fused
        failures += _run_all(runner, feeds, measured, plan, activation)
        together, plan = inside, iter(batch_rows(golden.samples, batches[-1]))
    if not set(inside) <= {spec.name for spec in runner.outputs}:
        runner.release()  # one session at a time: each holds the weights
        runner = runner.expose(list(inside))
    if together:
        failures += _run_all(runner, feeds, together, plan, activation)
    measured |= inside
    failures += _failures(measured, tolerances)
    return measured, failures, notes


def gated_always(golden: Golden) -> list[str]:
    """Return the tensors that are measured even where they are no output."""
    if FEATURES in golden.outputs:
        return [FEATURES]  # a zero head would hide a broken body
    return [golden.blocks.names[-1]] if golden.blocks is not None else []


def _plan(samples: int, batches: Sequence[int]) -> Iterator[list[int]]:
    """Yield the golden samples in the rows of each batch to run.

    Every sample is run, and one at least at two places with other neighbours. With four samples
    and the batches 1, 2 and 3 these are 0, 1 1 and 2 3 0.
    """
    *smaller, most = batches
    seen = set[int]()
    for batch in smaller:
        rows = [1 % samples] * 2  # identical rows
        if batch != 2:
            rows = [(batch - 1 - i) % samples for i in range(batch)]
        seen.update(rows)
        yield rows
    unseen = [sample for sample in range(samples) if sample not in seen]
    order = [*unseen, *sorted(seen)]
    for start in range(0, len(unseen) + bool(seen), most):
        yield [order[i % samples] for i in range(start, start + most)]
    if not smaller:
        yield [(-1 - i) % samples for i in range(most)]  # another order
    if 2 not in smaller:
        yield [0] * most  # identical rows


def _run_all(
    runner: Runner,
    feeds: Mapping[str, Array],
    measured: Mapping[str, Measured],
    plan: Iterable[list[int]],
    activation: Activation | None,
) -> list[str]:
    """Run every batch of the plan; return what went wrong beyond distance.

    `activation` is that of a graph which computes scores itself.
    """
    failures: list[str] = []
    for rows in plan:
        try:
            outputs = runner.run({name: values[rows] for name, values in feeds.items()})
        except RUN_ERRORS as error:
            failures.append(f"batch {len(rows)} fails: {error.message}")
            continue
        for name, result in measured.items():
            if complaint := result.add(rows, outputs[name]):
                failures.append(f"{name} at batch {len(rows)} {complaint}")
        if activation is not None:
            failures += score_failures(outputs, activation)
    return list(dict.fromkeys(failures))


def _failures(measured: Mapping[str, Measured], tolerances: Tolerances) -> Iterator[str]:
    for name, result in measured.items():
        reference = result.reference
        own = np.inf if reference.own is None else reference.own
        if not np.isfinite(reference.values).all():
            yield f"{name}: torch's own result is not finite, so there is nothing to compare with"
            continue
        if tolerances.baseline == "e32" and not own <= MAX_RELATIVE_E32 * reference.largest:
            yield (
                f"{name}: the golden file gives torch float32 an error of {own:.3g}, where the "
                f"largest value is {reference.largest:.3g}: so loose a baseline lets anything pass"
            )
        for batch, distance in result.by_batch.items():
            if reference.tolerance is not None and not distance <= reference.tolerance:
                compared = f" ({tolerances.torch_name}: {own:.3g})" if reference.own else ""
                yield (
                    f"{name} at batch {batch}: max|y - y64| = {distance:.3g}, allowed "
                    f"{reference.tolerance:.3g}{compared}"
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


def _notes(
    runner: Runner, tolerances: Tolerances, measured: Mapping[str, Measured]
) -> Iterator[str]:
    """Notes for the certificate of a low precision."""
    known = [result.reference for result in measured.values()]
    if tolerances.precision == "fp16" and runner.provider == "cpu" and runner.manifest:
        yield (
            "ONNX Runtime's CPU computes float16 in float32 and rounds less often: what overflows "
            "on a GPU may pass here"
        )
    if any(reference.own == float("inf") for reference in known):
        yield (
            f"{tolerances.torch_name} itself overflows on these images: "
            f"{tolerances.cap:g} of max|y64| is allowed"
        )
    if all(reference.row_tolerance is None for reference in known):
        rows = max(result.row_max_abs for result in measured.values())
        yield (
            f"rows of a batch share one activation scale: a row changes by up to {rows:.3g} with "
            "its neighbours"
        )


def _certify(name: str, runner: Runner, golden: Golden, measured: Mapping[str, Measured]) -> Stage:
    """Return the line of the certificate without its verdict; most figures are of the logits."""
    primary = LOGITS if LOGITS in measured else next(iter(measured))
    main = measured[primary]
    expected = main.reference.values
    agree = [row.argmax() == expected[sample].argmax() for sample, row in main.rows.items()]
    return Stage(
        name=name,
        provider=runner.provider,
        samples=len(main.rows) or golden.samples,
        batches=tuple(sorted(main.by_batch)),
        baseline_max_abs=main.reference.own,
        max_abs=main.max_abs if main.by_batch else None,
        tolerance=main.reference.tolerance,
        cosine=main.min_cosine if main.by_batch else None,
        top1_agreement=float(np.mean(agree)) if agree and primary == LOGITS else None,
        row_max_abs=main.row_max_abs if main.has_equal_rows else None,
        passed=None,
        measurements=tuple(
            Measurement(
                output=output,
                batch=batch,
                max_abs=distance,
                tolerance=result.reference.tolerance,
                cosine=result.cosine[batch],
                passed=result.reference.accepts(distance, result.cosine[batch], result.scale),
            )
            for output, result in measured.items()
            for batch, distance in sorted(result.by_batch.items())
        ),
    )
