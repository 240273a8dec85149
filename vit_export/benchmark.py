"""Candidates side by side: latency, throughput, memory, size and distance from the truth.

Each candidate runs in a process of its own, since thread pools of several runtimes in one
process spoil each other. All are loaded, then timed in rounds, A B A B, so that a machine that
warms up or is used by others slows all of them; one computes at a time. Medians and quartiles
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

from vit_export.candidates import Candidate
from vit_export.child import Child
from vit_export.errors import BenchmarkError, UsageError
from vit_export.progress import Progress, silent


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
        max_abs: `max|y - y64|` over the golden images.
        tolerance: Largest distance that its gate allows; `None` where cosine decides.
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
    notes: tuple[str, ...] = ()


@dataclass
class _Contestant:
    """A candidate while it runs."""

    candidate: Candidate
    child: Child
    facts: dict[str, Any] = field(default_factory=dict)  # fields of every row of it
    error: str = ""  # why it is out
    batch_error: str = ""  # why it is out at this batch size
    run_s: float = 0.0
    rounds: list[list[float]] = field(default_factory=list)  # seconds of every run

    @property
    def runs_now(self) -> bool:
        return not self.error and not self.batch_error


def measure(
    candidates: Sequence[Candidate],
    batches: Sequence[int] = (1,),
    *,
    rounds: int = 10,
    min_time_s: float = 2.0,
    warmup_s: float = 0.5,
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
        progress: Told where the work is.

    Returns:
        Rows by batch size, in the order of the candidates; one with `error` did not run.

    Raises:
        UsageError: No candidate can be what was asked for, e.g. an unknown provider.
    """
    _refuse_bad_plan(batches, rounds, min_time_s, warmup_s)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        contestants = []
        for i, candidate in enumerate(candidates):
            progress("load", i, len(candidates))
            contestant = _Contestant(candidate, stack.enter_context(Child(candidate.module)))
            _load(contestant, min(batches))
            contestants.append(contestant)
        for batch in sorted(set(batches)):
            _time_all(contestants, batch, rounds, min_time_s, warmup_s, progress)
            rows += _compared([_row(contestant, batch) for contestant in contestants])
    return rows


def _refuse_bad_plan(
    batches: Sequence[int], rounds: int, min_time_s: float, warmup_s: float
) -> None:
    if not batches or min(batches) < 1:
        raise UsageError(f"batch sizes {list(batches)}: expected some, each at least 1")
    if rounds < 1:
        raise UsageError(f"{rounds} rounds: expected at least 1")
    for name, seconds in (("min-time", min_time_s), ("warmup", warmup_s)):
        if not (math.isfinite(seconds) and seconds >= 0):
            raise UsageError(f"{name} {seconds} s: expected at least 0")


def _load(contestant: _Contestant, batch: int) -> None:
    candidate, facts = contestant.candidate, contestant.facts
    started = time.monotonic()
    try:
        facts |= contestant.child.ask("load", batch=batch, **candidate.order)
        facts["load_s"] = time.monotonic() - started
        facts["notes"] = _measure_distance(contestant, batch)
    except BenchmarkError as error:
        contestant.error = str(error)


def _measure_distance(contestant: _Contestant, batch: int) -> tuple[str, ...]:
    """Fill in the distance from golden; say what is to be said about it.

    Raises:
        BenchmarkError: The outputs are not finite, or have to match and do not.
    """
    candidate, facts = contestant.candidate, contestant.facts
    try:
        if not candidate.golden.exists():
            raise BenchmarkError(f"there is no golden file {candidate.golden.name} beside it")
        found = contestant.child.ask("distance", golden=str(candidate.golden), batch=batch)
    except BenchmarkError as error:
        if candidate.must_match:
            raise BenchmarkError(f"nothing shows that its weights are the same: {error}") from error
        return (f"distance not measured: {error}",)
    facts["max_abs"], facts["tolerance"] = found["max_abs"], found["tolerance"]
    if found["max_abs"] is None:
        raise BenchmarkError("gives NaN or infinite values on the golden images")
    if found["accepted"]:
        return ()
    allowed = "" if found["tolerance"] is None else f", allowed {found['tolerance']:.3g}"
    distance = f"max|y - y64| = {found['max_abs']:.3g}{allowed}"
    if candidate.must_match:
        raise BenchmarkError(f"its weights are not the artifact's: {distance}")
    return (f"outside its gate: {distance}; see: vit-export validate",)


def _time_all(
    contestants: Sequence[_Contestant],
    batch: int,
    rounds: int,
    min_time_s: float,
    warmup_s: float,
    progress: Progress,
) -> None:
    for contestant in contestants:
        contestant.rounds, contestant.batch_error = [], ""
        progress(f"warm up, batch {batch}")
        answer = _ask(contestant, "warm", batch=batch, seconds=warmup_s)
        contestant.run_s = answer.get("run_s", 0.0)
    for turn in range(rounds):
        progress(f"time, batch {batch}", turn, rounds)
        for contestant in contestants:
            runs = max(1, math.ceil(min_time_s / rounds / max(contestant.run_s, 1e-6)))
            answer = _ask(contestant, "time", batch=batch, runs=runs)
            if answer:
                contestant.rounds.append(answer["seconds"])
    for contestant in contestants:
        contestant.facts |= _ask(contestant, "memory")


def _ask(contestant: _Contestant, order: str, **arguments: Any) -> dict[str, Any]:
    """An answer of a candidate that is still in the race; otherwise nothing."""
    if not contestant.runs_now:
        return {}
    try:
        return contestant.child.ask(order, **arguments)
    except BenchmarkError as error:
        contestant.batch_error = str(error)
        if not contestant.child.alive:
            contestant.error = contestant.batch_error
        return {}


def _row(contestant: _Contestant, batch: int) -> Row:
    candidate = contestant.candidate
    facts = {"provider": candidate.provider, **contestant.facts}
    error = contestant.error or contestant.batch_error
    if error:
        facts.pop("peak_rss_bytes", None)
        return Row(name=candidate.name, batch=batch, error=error,
                   file_bytes=candidate.file_bytes, **facts)  # fmt: skip
    seconds = [second for turn in contestant.rounds for second in turn]
    median_s = statistics.median(seconds)
    return Row(
        name=candidate.name,
        batch=batch,
        median_ms=1e3 * median_s,
        iqr_ms=1e3 * _iqr(seconds),
        images_per_s=batch / median_s,
        runs=len(seconds),
        round_medians_ms=tuple(1e3 * statistics.median(turn) for turn in contestant.rounds),
        file_bytes=candidate.file_bytes,
        **facts,
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
