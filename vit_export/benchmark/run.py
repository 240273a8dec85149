"""Time candidates side by side: latency, throughput, memory, size and error.

Each candidate runs in a process of its own, since the thread pools of several runtimes in one
process slow each other down. All are loaded, then timed in rounds, A B A B, so that a machine that
warms up or is busy slows all of them; only one computes at a time. A turn lasts a time and not a
number of runs, so that a disturbance at its start costs no later runs. Medians and quartiles are
over every run of every round. All candidates are in memory together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vit_export.artifact.golden import find_golden
from vit_export.benchmark.candidates import Candidate
from vit_export.errors import ArtifactError, BenchmarkError, UsageError, VitExportError
from vit_export.host.child_process import Worker, WorkerError
from vit_export.progress import Progress, silent

UNSTEADY = 1.5  # largest median of a round / smallest, above which times are not to be trusted


@dataclass(frozen=True, kw_only=True)
class Row:
    """Results of one candidate at one batch size.

    `load_s` is the time from the start of the process to its first result: interpreter, imports,
    weights, and a compiler's work at the smallest batch size, but not an engine's golden check.
    """

    name: str
    provider: str  # what ran it; the requested one where nothing ran
    batch: int  # images in one run
    error: str = ""  # why it did not run
    precision: str = ""  # e.g. "fp32"; empty in a file of another tool
    median_ms: float | None = None  # of one run, from inputs to results in host memory
    iqr_ms: float | None = None  # interquartile range of the same
    images_per_s: float | None = None
    speedup: float | None = None  # median of the first candidate at this batch / this median
    runs: int = 0  # timed, over all rounds
    round_medians_ms: tuple[float, ...] = ()  # a trend in them shows a machine that changed
    load_s: float | None = None
    peak_rss_bytes: int | None = None  # of the process, libraries included, GPU memory not
    file_bytes: int | None = None  # of the artifact, external data included
    max_abs: float | None = None  # max|y - y64| over the golden images, in batches of this size
    tolerance: float | None = None  # of its gate; None where cosine decides
    accepted: bool | None = None  # by its gate at this batch; None where that was not measured
    notes: tuple[str, ...] = ()  # what was not measured, and problems that did not stop the run


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long each candidate is timed at a batch size.

    Raises:
        UsageError: On construction, when a value is outside its range.
    """

    rounds: int = 10  # turns of each candidate
    min_time_s: float = 2.0  # of timed runs over all rounds; a slow run is done once a round
    warmup_s: float = 0.5  # of runs before, which are not counted
    timeout_s: float = 600.0  # to load, to measure, and beyond the time of the ordered runs

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"{self.rounds} rounds: expected at least 1")
        for name, seconds in (("min-time", self.min_time_s), ("warmup", self.warmup_s)):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise UsageError(f"{name} {seconds} s: expected at least 0")
        if not self.timeout_s > 0:
            raise UsageError(f"timeout {self.timeout_s} s: expected more than 0")


def measure(
    candidates: Sequence[Candidate],
    batches: Sequence[int] = (1,),
    *,
    timing: Timing | None = None,
    progress: Progress = silent,
) -> list[Row]:
    """Time every candidate at every batch size, from small to large.

    Args:
        candidates: The others are compared with the first one.
        batches: Images in one run.
        timing: How long to time; by default `Timing()`.
        progress: Called with the current step.

    Returns:
        Rows by batch size, in the order of the candidates; one with `error` did not run.

    Raises:
        UsageError: No candidate can run as requested, e.g. an unknown provider.
    """
    timing = timing or Timing()
    if not candidates:
        raise UsageError("no candidates: expected at least one")
    if not batches or min(batches) < 1:
        raise UsageError(f"batch sizes {list(batches)}: expected some, each at least 1")
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        processes = []
        for i, candidate in enumerate(candidates):
            progress("load", i, len(candidates))
            worker = stack.enter_context(Worker(candidate.module))
            process = _CandidateProcess(candidate, worker, timing.timeout_s)
            process.load(min(batches))
            processes.append(process)
        for batch in sorted(set(batches)):
            _time_all(processes, batch, timing, progress)
            rows += _with_speedups([process.row(batch) for process in processes])
    return rows


def _time_all(
    processes: Sequence[_CandidateProcess], batch: int, timing: Timing, progress: Progress
) -> None:
    for process in processes:
        progress(f"warm up, batch {batch}")
        process.begin(batch, timing.warmup_s)
    for turn in range(timing.rounds):
        progress(f"time, batch {batch}", turn, timing.rounds)
        for process in processes:
            process.time(batch, timing.min_time_s / timing.rounds)
    for process in processes:
        process.batch_fields |= process.answer("memory")


@dataclass
class _CandidateProcess:
    """A candidate in its process, with its results so far."""

    candidate: Candidate
    worker: Worker
    timeout_s: float
    error: str = ""  # why it cannot run
    fields: dict[str, Any] = field(default_factory=dict)  # of all of its rows
    batch_error: str = ""  # why it cannot run at this batch size
    batch_fields: dict[str, Any] = field(default_factory=dict)  # of its row at this batch size
    rounds: list[list[float]] = field(default_factory=list)  # seconds of every run

    def ask(self, order: str, *, duration_s: float = 0.0, **arguments: Any) -> dict[str, Any]:
        """Give the worker an order, and `timeout_s` more than its duration to answer.

        Raises:
            BenchmarkError: The worker failed, died, or gave no answer in time.
        """
        try:
            return self.worker.ask(order, timeout_s=self.timeout_s + duration_s, **arguments)
        except WorkerError as error:
            raise BenchmarkError(error.message, hint=error.hint) from error

    def answer(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Return an answer; an empty one where the candidate cannot run, now or before."""
        if self.error or self.batch_error:
            return {}
        try:
            return self.ask(order, **arguments)
        except BenchmarkError as error:
            self._exclude(error)
            return {}

    def _exclude(self, error: BenchmarkError) -> None:
        """Leave the candidate out at this batch size, and at all where its process has ended."""
        self.batch_error = _one_line(error)
        if not self.worker.alive:
            self.error = self.batch_error

    def load(self, batch: int) -> None:
        """Load the candidate and run it once."""
        started = time.monotonic()
        try:
            self.fields |= self.ask("load", batch=batch, **self.candidate.order)
            self.fields["load_s"] = time.monotonic() - started
        except BenchmarkError as error:
            self.error = _one_line(error)

    def begin(self, batch: int, warmup_s: float) -> None:
        """Warm up at a batch size, and measure the distance from the float64 reference."""
        self.rounds, self.batch_error, self.batch_fields = [], "", {}
        self.answer("warm", batch=batch, seconds=warmup_s, duration_s=warmup_s)
        if not (self.error or self.batch_error):
            try:
                self.batch_fields = self._distance(batch)
            except BenchmarkError as error:
                self._exclude(error)

    def _distance(self, batch: int) -> dict[str, Any]:
        """Measure the distance from the float64 reference; return fields of the row.

        Raises:
            BenchmarkError: The outputs are not finite, or differ from those they must match.
        """
        candidate = self.candidate
        try:
            golden = find_golden(candidate.order["path"])
            result = self.ask("distance", golden=str(golden), batch=batch)
        except (ArtifactError, BenchmarkError) as error:
            if candidate.must_match:
                raise BenchmarkError(
                    f"cannot check that its weights are the artifact's: {_one_line(error)}"
                ) from error
            return {"notes": (f"distance not measured: {_one_line(error)}",)}
        if result["max_abs"] is None:
            raise BenchmarkError("gives NaN or infinite values on the golden images")
        if result["accepted"]:
            return result
        limit = "" if result["tolerance"] is None else f", allowed {result['tolerance']:.3g}"
        distance = f"max|y - y64| = {result['max_abs']:.3g}{limit}"
        if candidate.must_match:
            raise BenchmarkError(f"its weights are not the artifact's: {distance}")
        note = f"outside its gate at batch {batch}: {distance}; see: vit-export validate"
        return {**result, "notes": (note,)}

    def time(self, batch: int, seconds: float) -> None:
        """Time one turn."""
        answer = self.answer("time", batch=batch, seconds=seconds, duration_s=seconds)
        if answer:
            self.rounds.append(answer["seconds"])

    def row(self, batch: int) -> Row:
        """Return the results at the batch size that was timed last."""
        common = {
            "name": self.candidate.name,
            "batch": batch,
            "provider": self.candidate.provider,
            "file_bytes": self.candidate.file_bytes,
            **self.fields,
        }
        error = self.error or self.batch_error
        if error:
            return Row(error=error, **common)
        seconds = [second for turn in self.rounds for second in turn]
        median_s = statistics.median(seconds)
        fields = dict(self.batch_fields)
        notes = (*fields.pop("notes", ()), *_unsteady(self.rounds, batch))
        return Row(
            median_ms=1e3 * median_s,
            iqr_ms=1e3 * _iqr(seconds),
            images_per_s=batch / median_s,
            runs=len(seconds),
            round_medians_ms=tuple(1e3 * statistics.median(turn) for turn in self.rounds),
            notes=notes,
            **common,
            **fields,
        )


def _one_line(error: VitExportError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def _unsteady(rounds: Sequence[Sequence[float]], batch: int) -> tuple[str, ...]:
    """Return a note where the timings are too unsteady to trust."""
    medians = [statistics.median(turn) for turn in rounds]
    seconds = [second for turn in rounds for second in turn]
    spread, median_s = _iqr(seconds), statistics.median(seconds)
    if max(medians) <= UNSTEADY * min(medians) and spread <= median_s:
        return ()
    return (
        f"unsteady at batch {batch}: medians of the rounds lie between {1e3 * min(medians):.3g} "
        f"and {1e3 * max(medians):.3g} ms, the IQR is {spread / median_s:.0%} of the median",
    )


def _iqr(values: Sequence[float]) -> float:
    """Return the interquartile range; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first


def _with_speedups(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with their speedup over the first."""
    first = rows[0].median_ms
    return [
        dataclasses.replace(row, speedup=first / row.median_ms)
        if first is not None and row.median_ms is not None
        else row
        for row in rows
    ]
