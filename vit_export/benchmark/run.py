"""Time candidates side by side: latency, throughput, memory, size and error.

Each candidate runs in a process of its own, since the thread pools of several runtimes in one
process slow each other down. All are loaded, then timed in rounds, A B A B, so that a machine that
warms up or is busy slows all of them; only one computes at a time. A turn lasts a time and not a
number of runs, so that a disturbance at its start costs no later runs. Medians and quartiles are
over every run of every round. All candidates are in memory together.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vit_export.artifact.golden import find_golden
from vit_export.benchmark.candidates import Candidate
from vit_export.errors import UsageError, VitExportError
from vit_export.host.child_process import Answer, Worker
from vit_export.progress import Progress, silent

MIN_WARM_RUNS = 3
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
    """How long each candidate is timed at a batch size."""

    rounds: int  # turns of each candidate
    min_time_s: float  # of timed runs over all rounds; a slow run is done once a round
    warmup_s: float  # of runs before, which are not counted
    timeout_s: float  # to load, to measure, and beyond the time of the ordered runs

    def __post_init__(self) -> None:
        for name, value, least in (
            ("rounds", self.rounds, 1),
            ("min-time", self.min_time_s, 0),
            ("warmup", self.warmup_s, 0),
            ("timeout", self.timeout_s, 1),
        ):
            if not (math.isfinite(value) and value >= least):
                raise UsageError(f"--{name} {value}: expected a number from {least} on")


def measure(
    candidates: Sequence[Candidate],
    batches: Sequence[int] = (1,),
    *,
    timing: Timing,
    progress: Progress = silent,
) -> list[Row]:
    """Time every candidate at every batch size; return rows by size, in the candidates' order.

    A row with `error` did not run.

    Raises:
        UsageError: No candidate can run as requested, e.g. an unknown provider.
    """
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        processes = []
        for i, candidate in enumerate(candidates):
            progress("load", i, len(candidates))
            worker = stack.enter_context(Worker(candidate.module))
            processes.append(_CandidateProcess(candidate, worker, timing.timeout_s))
            processes[-1].load(min(batches))
        for batch in sorted(set(batches)):
            for process in processes:
                progress(f"warm up, batch {batch}")
                process.begin(batch, timing.warmup_s)
            for turn in range(timing.rounds):
                progress(f"time, batch {batch}", turn, timing.rounds)
                for process in processes:
                    process.time(batch, timing.min_time_s / timing.rounds)
            results = [process.end(batch) for process in processes]
            first_ms = results[0].median_ms
            for row in results:
                speedup = first_ms / row.median_ms if first_ms and row.median_ms else None
                rows.append(replace(row, speedup=speedup))
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

    def _ask(self, order: str, **arguments: Any) -> Answer:
        """Give the worker an order and time to answer it, unless an earlier one has failed."""
        if self.batch_error:
            return {}
        timeout_s = self.timeout_s + arguments.get("seconds", 0)
        try:
            return self.worker.ask(order, timeout_s=timeout_s, **arguments)
        except UsageError:
            raise
        except VitExportError as error:
            self.batch_error = _one_line(error)
            if self.worker.poll() is not None:
                self.error = self.batch_error
            return {}

    def load(self, batch: int) -> None:
        """Load the candidate and run it once."""
        started = time.monotonic()
        candidate = self.candidate
        self.fields = self._ask("load", batch=batch, provider=candidate.provider, **candidate.order)
        self.error = self.batch_error
        if not self.error:
            self.fields["load_s"] = time.monotonic() - started

    def begin(self, batch: int, warmup_s: float) -> None:
        """Warm up at a batch size, and measure the distance from the float64 reference."""
        self.batch_error, self.rounds = self.error, []
        self._ask("time", batch=batch, seconds=warmup_s, min_runs=MIN_WARM_RUNS)
        self.batch_fields = {} if self.batch_error else self._distance(batch)

    def _distance(self, batch: int) -> dict[str, Any]:
        """Return fields of the row; exclude NaN, and torch with other weights than the artifact."""
        candidate = self.candidate
        try:
            golden = str(find_golden(candidate.order["path"]))
            result = self.worker.ask(
                "distance", timeout_s=self.timeout_s, golden=golden, batch=batch
            )
        except VitExportError as error:
            reason = _one_line(error)
            if candidate.must_match:
                self.batch_error = f"cannot check that its weights are the artifact's: {reason}"
            return {"notes": (f"distance not measured: {reason}",)}
        if result["max_abs"] is None:
            self.batch_error = "gives NaN or infinite values on the golden images"
            return {}
        if result["accepted"]:
            return result
        limit = "" if result["tolerance"] is None else f", allowed {result['tolerance']:.3g}"
        distance = f"max|y - y64| = {result['max_abs']:.3g}{limit}"
        if candidate.must_match:
            self.batch_error = f"its weights are not the artifact's: {distance}"
        note = f"outside its gate at batch {batch}: {distance}; see: vit-export validate"
        return {**result, "notes": (note,)}

    def time(self, batch: int, seconds: float) -> None:
        """Time one turn."""
        if answer := self._ask("time", batch=batch, seconds=seconds):
            self.rounds.append(answer.pop("seconds"))
            self.batch_fields |= answer

    def end(self, batch: int) -> Row:
        """Return the results at this batch size."""
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
        first, median, third = np.percentile(seconds, (25, 50, 75)).tolist()
        medians_ms = [1e3 * float(np.median(turn)) for turn in self.rounds]
        smallest, largest, spread = min(medians_ms), max(medians_ms), (third - first) / median
        notes = (*common.pop("notes", ()), *self.batch_fields.pop("notes", ()))
        signs = []
        if largest > UNSTEADY * smallest:
            signs.append(f"medians of the rounds lie between {smallest:.3g} and {largest:.3g} ms")
        if spread > 1:
            signs.append(f"the IQR is {spread:.0%} of the median")
        if signs:
            notes += (f"unsteady at batch {batch}: {', '.join(signs)}",)
        return Row(
            median_ms=1e3 * median,
            iqr_ms=1e3 * (third - first),
            images_per_s=batch / median,
            runs=len(seconds),
            round_medians_ms=tuple(medians_ms),
            notes=notes,
            **common,
            **self.batch_fields,
        )


def _one_line(error: VitExportError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message
