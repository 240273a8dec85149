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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vit_export.artifact.golden import find_golden
from vit_export.benchmark.candidates import Candidate
from vit_export.errors import UsageError, VitExportError
from vit_export.host.child_process import Answer, Worker
from vit_export.progress import Progress, silent

UNSTEADY = 1.5  # largest median of a round / smallest, above which times are not to be trusted


@dataclass(frozen=True, kw_only=True)
class Row:
    """Results of one candidate at one batch size."""

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
    # From the start of the process to its first result: interpreter, imports, weights, and a
    # compiler's work at the smallest batch size, but not an engine's golden check.
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
    timing: Timing,
    progress: Progress = silent,
) -> list[Row]:
    """Time every candidate at every batch size, from small to large.

    Returns:
        Rows by batch size, in the order of the candidates; one with `error` did not run.

    Raises:
        UsageError: No candidate can run as requested, e.g. an unknown provider.
    """
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
            for process in processes:
                progress(f"warm up, batch {batch}")
                process.begin(batch, timing.warmup_s)
            for turn in range(timing.rounds):
                progress(f"time, batch {batch}", turn, timing.rounds)
                for process in processes:
                    process.time(batch, timing.min_time_s / timing.rounds)
            rows += _with_speedups([process.end(batch) for process in processes])
    return rows


@dataclass
class _CandidateProcess:
    """A candidate in its process, with its results so far."""

    candidate: Candidate
    worker: Worker
    timeout_s: float
    error: str = ""  # why it cannot run at any batch size
    fields: dict[str, Any] = field(default_factory=dict)  # of all of its rows
    batch_error: str = ""  # why it cannot run at this batch size
    batch_fields: dict[str, Any] = field(default_factory=dict)  # of its row at this batch size
    rounds: list[list[float]] = field(default_factory=list)  # seconds of every run

    def _ask(self, order: str, *, duration_s: float = 0.0, **arguments: Any) -> Answer:
        """Give the worker an order, and `timeout_s` more than its duration to answer.

        Raises:
            VitExportError: The candidate failed, now or before.
        """
        if self.batch_error:
            raise VitExportError(self.batch_error)
        return self.worker.ask(order, timeout_s=self.timeout_s + duration_s, **arguments)

    @contextlib.contextmanager
    def _excluded_by_errors(self) -> Iterator[None]:
        """Exclude the candidate from this batch size, or from all where its process has ended."""
        try:
            yield
        except UsageError:
            raise
        except VitExportError as error:
            self.batch_error = _one_line(error)
            if not self.worker.alive:
                self.error = self.batch_error

    def load(self, batch: int) -> None:
        """Load the candidate and run it once."""
        started = time.monotonic()
        with self._excluded_by_errors():
            self.fields |= self._ask("load", batch=batch, **self.candidate.order)
            self.fields["load_s"] = time.monotonic() - started
        self.error = self.batch_error

    def begin(self, batch: int, warmup_s: float) -> None:
        """Warm up at a batch size, and measure the distance from the float64 reference."""
        self.rounds, self.batch_error, self.batch_fields = [], self.error, {}
        with self._excluded_by_errors():
            self._ask("warm", batch=batch, seconds=warmup_s, duration_s=warmup_s)
            self.batch_fields = self._distance(batch)

    def _distance(self, batch: int) -> dict[str, Any]:
        """Measure the distance from the float64 reference; return fields of the row.

        Raises:
            VitExportError: The outputs are not finite, or differ from those they must match.
        """
        candidate = self.candidate
        try:
            golden = find_golden(candidate.order["path"])
            result = self._ask("distance", golden=str(golden), batch=batch)
        except VitExportError as error:
            reason = _one_line(error)
            if candidate.must_match:
                raise VitExportError(
                    f"cannot check that its weights are the artifact's: {reason}"
                ) from error
            return {"notes": (f"distance not measured: {reason}",)}
        if result["max_abs"] is None:
            raise VitExportError("gives NaN or infinite values on the golden images")
        if result["accepted"]:
            return result
        limit = "" if result["tolerance"] is None else f", allowed {result['tolerance']:.3g}"
        distance = f"max|y - y64| = {result['max_abs']:.3g}{limit}"
        if candidate.must_match:
            raise VitExportError(f"its weights are not the artifact's: {distance}")
        note = f"outside its gate at batch {batch}: {distance}; see: vit-export validate"
        return {**result, "notes": (note,)}

    def time(self, batch: int, seconds: float) -> None:
        """Time one turn."""
        with self._excluded_by_errors():
            answer = self._ask("time", batch=batch, seconds=seconds, duration_s=seconds)
            self.rounds.append(answer["seconds"])

    def end(self, batch: int) -> Row:
        """Measure the memory, and return the results at this batch size."""
        with self._excluded_by_errors():
            self.batch_fields |= self._ask("memory")
        common = {
            "name": self.candidate.name,
            "batch": batch,
            "provider": self.candidate.provider,
            "file_bytes": self.candidate.file_bytes,
            **self.fields,
        }
        if self.batch_error:
            return Row(error=self.batch_error, **common)
        seconds = [second for turn in self.rounds for second in turn]
        median_s = statistics.median(seconds)
        notes = (*self.batch_fields.pop("notes", ()), *_unsteady(self.rounds, batch))
        return Row(
            median_ms=1e3 * median_s,
            iqr_ms=1e3 * _iqr(seconds),
            images_per_s=batch / median_s,
            runs=len(seconds),
            round_medians_ms=tuple(1e3 * statistics.median(turn) for turn in self.rounds),
            notes=notes,
            **common,
            **self.batch_fields,
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
        dataclasses.replace(row, speedup=first and row.median_ms and first / row.median_ms)
        for row in rows
    ]
