"""Candidates side by side: latency, throughput, memory, size and distance from the truth.

Each candidate runs in a process of its own, since thread pools of several runtimes in one
process spoil each other. All are loaded, then timed in rounds, A B A B, so that a machine that
warms up or is used by others slows all of them; one computes at a time. A turn lasts a time and
not a number of runs, so that a disturbance at the start costs no runs later. Medians and quartiles
are over every run of every round. All candidates are in memory together.
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

from vit_export.benchmark.candidates import Candidate
from vit_export.errors import BenchmarkError, UsageError
from vit_export.host.child_process import Worker, WorkerError
from vit_export.progress import Progress, silent

TIMEOUT_S = 600.0  # a large model's kernels are compiled in less
UNSTEADY = 1.5  # largest median of a round / smallest: something beside the candidate changed


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate at one batch size.

    Attributes:
        name: The candidate's name.
        provider: What really ran it; what was asked for where nothing ran.
        batch: Images in one run.
        error: Why it did not run; empty when it did.
        precision: e.g. `"fp32"`; empty in a file of another tool.
        median_ms: Of one run, from inputs in host memory to results in host memory.
        iqr_ms: Interquartile range of the same, the spread.
        images_per_s: `batch` / median.
        speedup: Median of the first candidate at this batch size / this median; `None` where
            that one did not run.
        runs: How many runs were timed, over all rounds.
        round_medians_ms: Median of each round: a trend in it is a machine that changed.
        load_s: From the start of the process to its first result: interpreter, imports,
            weights, and a compiler's work at the smallest batch size.
        peak_rss_bytes: Largest resident memory of the process after this batch size, libraries
            included; a GPU's memory is not in it.
        file_bytes: Size of the artifact, external data included.
        max_abs: `max|y - y64|` over the golden images, in batches of this size.
        tolerance: Largest distance that its gate allows; `None` where cosine decides.
        accepted: Whether it is within its gate at this batch size; `None` where that was not
            measured.
        notes: What was not measured, and what is wrong though it ran.
    """

    name: str
    provider: str
    batch: int
    error: str = ""
    precision: str = ""
    median_ms: float | None = None
    iqr_ms: float | None = None
    images_per_s: float | None = None
    speedup: float | None = None
    runs: int = 0
    round_medians_ms: tuple[float, ...] = ()
    load_s: float | None = None
    peak_rss_bytes: int | None = None
    file_bytes: int | None = None
    max_abs: float | None = None
    tolerance: float | None = None
    accepted: bool | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Contestant:
    """A candidate while it runs."""

    candidate: Candidate
    child: Worker
    timeout_s: float
    facts: dict[str, Any] = field(default_factory=dict)  # fields of every row of it
    error: str = ""  # why it is out
    batch_facts: dict[str, Any] = field(default_factory=dict)  # of its row at this batch size
    batch_error: str = ""  # why it is out at this batch size
    rounds: list[list[float]] = field(default_factory=list)  # seconds of every run

    @property
    def runs_now(self) -> bool:
        return not self.error and not self.batch_error

    def ask(self, order: str, *, lasts_s: float = 0.0, **arguments: Any) -> dict[str, Any]:
        """Give the child an order, and up to `timeout_s` more than it lasts as it was meant."""
        try:
            return self.child.ask(order, timeout_s=self.timeout_s + lasts_s, **arguments)
        except WorkerError as error:
            raise BenchmarkError(error.message, hint=error.hint) from error


def measure(
    candidates: Sequence[Candidate],
    batches: Sequence[int] = (1,),
    *,
    rounds: int = 10,
    min_time_s: float = 2.0,
    warmup_s: float = 0.5,
    timeout_s: float = TIMEOUT_S,
    progress: Progress = silent,
) -> list[Row]:
    """Time every candidate at every batch size, from small to large.

    Args:
        candidates: The first one is what the others are compared with.
        batches: Images in one run.
        rounds: How many turns each candidate gets at a batch size.
        min_time_s: Seconds of timed runs for a candidate at a batch size, over all rounds; a
            run that takes longer is still done once a round.
        warmup_s: Seconds of runs that are not counted, for a candidate at a batch size.
        timeout_s: Seconds without an answer after which a candidate is given up: to load it, to
            measure its distance, and beyond the time of the runs that were ordered.
        progress: Told where the work is.

    Returns:
        Rows by batch size, in the order of the candidates; one with `error` did not run.

    Raises:
        UsageError: No candidate can be what was asked for, e.g. an unknown provider.
    """
    _check_bad_plan(candidates, batches, rounds)
    _check_bad_times(min_time_s, warmup_s, timeout_s)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        contestants = []
        for i, candidate in enumerate(candidates):
            progress("load", i, len(candidates))
            child = stack.enter_context(Worker(candidate.module))
            contestant = _Contestant(candidate, child, timeout_s)
            _load(contestant, min(batches))
            contestants.append(contestant)
        for batch in sorted(set(batches)):
            _time_all(contestants, batch, rounds, min_time_s, warmup_s, progress)
            rows += _compared([_row(contestant, batch) for contestant in contestants])
    return rows


def _check_bad_plan(candidates: Sequence[Candidate], batches: Sequence[int], rounds: int) -> None:
    if not candidates:
        raise UsageError("no candidates: expected at least one")
    if not batches or min(batches) < 1:
        raise UsageError(f"batch sizes {list(batches)}: expected some, each at least 1")
    if rounds < 1:
        raise UsageError(f"{rounds} rounds: expected at least 1")


def _check_bad_times(min_time_s: float, warmup_s: float, timeout_s: float) -> None:
    for name, seconds in (("min-time", min_time_s), ("warmup", warmup_s)):
        if not (math.isfinite(seconds) and seconds >= 0):
            raise UsageError(f"{name} {seconds} s: expected at least 0")
    if not timeout_s > 0:
        raise UsageError(f"timeout {timeout_s} s: expected more than 0")


def _load(contestant: _Contestant, batch: int) -> None:
    started = time.monotonic()
    try:
        contestant.facts |= contestant.ask("load", batch=batch, **contestant.candidate.order)
        contestant.facts["load_s"] = time.monotonic() - started
    except BenchmarkError as error:
        contestant.error = str(error)


def _measure_distance(contestant: _Contestant, batch: int) -> dict[str, Any]:
    """How far from golden a candidate is at a batch size, and what is to be said about it.

    Raises:
        BenchmarkError: The outputs are not finite, or have to match and do not.
    """
    candidate = contestant.candidate
    try:
        if not candidate.golden.exists():
            raise BenchmarkError(f"there is no golden file {candidate.golden.name} beside it")
        found = contestant.ask("distance", golden=str(candidate.golden), batch=batch)
    except BenchmarkError as error:
        if candidate.must_match:
            raise BenchmarkError(f"nothing shows that its weights are the same: {error}") from error
        return {"notes": (f"distance not measured: {error}",)}
    if found["max_abs"] is None:
        raise BenchmarkError("gives NaN or infinite values on the golden images")
    if found["accepted"]:
        return found
    allowed = "" if found["tolerance"] is None else f", allowed {found['tolerance']:.3g}"
    distance = f"max|y - y64| = {found['max_abs']:.3g}{allowed}"
    if candidate.must_match:
        raise BenchmarkError(f"its weights are not the artifact's: {distance}")
    note = f"outside its gate at batch {batch}: {distance}; see: vit-export validate"
    return {**found, "notes": (note,)}


def _time_all(
    contestants: Sequence[_Contestant],
    batch: int,
    rounds: int,
    min_time_s: float,
    warmup_s: float,
    progress: Progress,
) -> None:
    for contestant in contestants:
        contestant.rounds, contestant.batch_error, contestant.batch_facts = [], "", {}
        progress(f"warm up, batch {batch}")
        _ask(contestant, "warm", batch=batch, seconds=warmup_s, lasts_s=warmup_s)
        if contestant.runs_now:
            _judge(contestant, batch)
    for turn in range(rounds):
        progress(f"time, batch {batch}", turn, rounds)
        for contestant in contestants:
            share_s = min_time_s / rounds
            answer = _ask(contestant, "time", batch=batch, seconds=share_s, lasts_s=share_s)
            if answer:
                contestant.rounds.append(answer["seconds"])
    for contestant in contestants:
        contestant.batch_facts |= _ask(contestant, "memory")


def _judge(contestant: _Contestant, batch: int) -> None:
    """Measure the distance at a batch size; one that cannot be compared is out there."""
    try:
        contestant.batch_facts = _measure_distance(contestant, batch)
    except BenchmarkError as error:
        _exclude(contestant, error)


def _ask(contestant: _Contestant, order: str, **arguments: Any) -> dict[str, Any]:
    """An answer of a candidate that is still in the race; otherwise nothing."""
    if not contestant.runs_now:
        return {}
    try:
        return contestant.ask(order, **arguments)
    except BenchmarkError as error:
        _exclude(contestant, error)
        return {}


def _exclude(contestant: _Contestant, error: BenchmarkError) -> None:
    """Take a candidate out at this batch size, or for good when its process has ended."""
    contestant.batch_error = str(error)
    if not contestant.child.alive:
        contestant.error = contestant.batch_error


def _row(contestant: _Contestant, batch: int) -> Row:
    candidate = contestant.candidate
    facts = {"provider": candidate.provider, **contestant.facts}
    error = contestant.error or contestant.batch_error
    if error:
        return Row(name=candidate.name, batch=batch, error=error,
                   file_bytes=candidate.file_bytes, **facts)  # fmt: skip
    seconds = [second for turn in contestant.rounds for second in turn]
    median_s = statistics.median(seconds)
    facts |= contestant.batch_facts
    notes = (*facts.pop("notes", ()), *_unsteady(contestant.rounds, batch))
    return Row(
        name=candidate.name,
        batch=batch,
        median_ms=1e3 * median_s,
        iqr_ms=1e3 * _iqr(seconds),
        images_per_s=batch / median_s,
        runs=len(seconds),
        round_medians_ms=tuple(1e3 * statistics.median(turn) for turn in contestant.rounds),
        file_bytes=candidate.file_bytes,
        notes=notes,
        **facts,
    )


def _unsteady(rounds: Sequence[Sequence[float]], batch: int) -> tuple[str, ...]:
    """Say so where the times tell of something else than the candidate."""
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
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first


def _compared(rows: Sequence[Row]) -> list[Row]:
    """The same rows with their ratio to the first."""
    first = rows[0].median_ms
    return [
        dataclasses.replace(row, speedup=first / row.median_ms)
        if first is not None and row.median_ms is not None
        else row
        for row in rows
    ]
