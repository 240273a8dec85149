"""Child process that loads, checks and times one candidate of a benchmark.

A run is timed from inputs in host memory to results in host memory: `run` copies results back from
a GPU, so its time is more than that of a launch. Inputs are checked as in any other call of `run`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.golden import Golden
from vit_export.errors import ArtifactError
from vit_export.gate.distance import Measured, references
from vit_export.gate.tolerances import tolerances_of
from vit_export.gate.trace import golden_feeds
from vit_export.host.child_process import Answer, Order, answer_orders
from vit_export.runner import Runnable, batch_rows, fixed_batch
from vit_export.runtime import load, load_engine

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

STATUS = Path("/proc/self/status")  # Linux only
MIN_WARM_RUNS = 3
Feeds = dict[str, NDArray[Any]]


def main() -> None:
    """Answer the orders of a benchmark about an artifact."""
    serve(load_artifact)


def load_artifact(order: Order) -> Runnable:
    """Load the artifact that an order describes."""
    path, provider = order["path"], order["provider"]
    if Path(path).suffix != ".engine":
        return load(path, provider=provider, threads=order["threads"]).runner
    # trusted: the golden check is no part of loading an engine again, and `distance` is measured
    model = load_engine(
        path, provider=provider, trusted=True, allow_host_code=order["allow_host_code"]
    )
    return model.runner


def serve(load_candidate: Callable[[Order], Runnable]) -> None:
    """Answer the orders of `benchmark.run` about one candidate."""
    stopwatch = Stopwatch(load_candidate)
    answer_orders(
        {
            "load": stopwatch.load,
            "distance": stopwatch.distance,
            "warm": stopwatch.warm,
            "time": stopwatch.time,
            "memory": lambda _: {"peak_rss_bytes": peak_rss_bytes()},
        }
    )


class Stopwatch:
    """Times one candidate; each method answers an order."""

    def __init__(self, load_candidate: Callable[[Order], Runnable]) -> None:
        self._load_candidate = load_candidate
        self._runner: Runnable
        self._feeds: dict[int, Feeds] = {}

    def load(self, order: Order) -> Answer:
        """Load the candidate and run it once, at the ordered batch size or the one it fixes."""
        self._runner = self._load_candidate(order)
        self._run(fixed_batch(self._runner.inputs[0]) or order["batch"])
        return {"provider": self._runner.provider, "precision": self._precision()}

    def _precision(self) -> str:
        """Return the candidate's precision; empty for a file of another tool."""
        manifest = self._runner.manifest
        return getattr(self._runner, "precision", manifest.precision if manifest else "")

    def warm(self, order: Order) -> Answer:
        """Run until caches, clocks and thread pools have settled."""
        self._times(order, min_runs=MIN_WARM_RUNS)
        return {}

    def time(self, order: Order) -> Answer:
        """Time some runs, after an uncounted one: another candidate has filled the caches."""
        self._run(order["batch"])
        return {"seconds": self._times(order, min_runs=1)}

    def _times(self, order: Order, *, min_runs: int) -> list[float]:
        """Run for the ordered time; return the seconds of each run."""
        end = time.perf_counter() + order["seconds"]
        times: list[float] = []
        while len(times) < min_runs or time.perf_counter() < end:
            times.append(self._run(order["batch"]))
        return times

    def _run(self, batch: int) -> float:
        """Run once with random inputs; return the seconds."""
        if batch not in self._feeds:
            self._feeds = {batch: random_feeds(self._runner, batch)}
        started = time.perf_counter()
        self._runner.run(self._feeds[batch])
        return time.perf_counter() - started

    def distance(self, order: Order) -> Answer:
        """Measure the distance from the float64 reference over all golden samples.

        The first output that the golden file holds is compared. Samples are run in batches of the
        ordered size: in dynamic INT8 the rows of a batch depend on each other.

        Returns:
            `max_abs` (`None` where it is not finite), the `tolerance` of its precision (`None`
            where cosine decides), and whether it is `accepted`.
        """
        runner, golden = self._runner, Golden.read(order["golden"])
        preprocess = runner.manifest.preprocess if runner.manifest else None
        tolerances = tolerances_of(self._precision() or "fp32", source=runner.path.name)
        known = references(golden, tolerances)
        feeds = golden_feeds(runner, golden, preprocess)
        measured: dict[str, Measured] = {}
        for rows in batch_rows(golden.samples, order["batch"]):
            outputs = runner.run({key: values[rows] for key, values in feeds.items()})
            name = next((n for n in outputs if n in golden.outputs), "")
            if not name:
                raise ArtifactError(
                    f"the golden file has none of its outputs ({', '.join(outputs)}), only "
                    f"{', '.join(golden.outputs)}: it belongs to another model"
                )
            result = measured.setdefault(name, Measured(known[name]))
            problem = result.add(rows, outputs[name])
            if problem and not result.by_batch:
                raise ArtifactError(
                    f"its {name} {problem}: the golden file belongs to another model"
                )
            if problem:
                return {"max_abs": None, "tolerance": known[name].tolerance, "accepted": False}
        (result,) = measured.values()
        tolerance = result.reference.tolerance
        return {"max_abs": result.max_abs, "tolerance": tolerance, "accepted": result.accepted}


def random_feeds(runner: Runnable, batch: int) -> Feeds:
    """Return random inputs of the dtypes and shapes that a model takes.

    Raises:
        ArtifactError: The model fixes another batch size, or has a dynamic dimension of unknown
            size.
    """
    generator = np.random.default_rng(0)
    preprocess = runner.manifest.preprocess if runner.manifest else None
    sizes = dict(zip(("height", "width"), preprocess.size, strict=True)) if preprocess else {}
    feeds = {}
    for spec in runner.inputs:
        first, *rest = spec.shape
        if isinstance(first, int) and first != batch:
            raise ArtifactError(
                f"takes batches of {first} only, not of {batch}",
                hint=f"time it with --batch {first}, or export it without --batch",
            )
        if unknown := [dim for dim in rest if isinstance(dim, str) and dim not in sizes]:
            raise ArtifactError(f"cannot be timed: the size of {unknown[0]!r} in {spec} is unknown")
        shape = [batch, *(sizes[dim] if isinstance(dim, str) else dim for dim in rest)]
        dtype = np.dtype(spec.dtype)
        draw = generator.standard_normal(shape)
        feeds[spec.name] = (draw > 0 if dtype.kind in "iub" else draw).astype(dtype)
    return feeds


def peak_rss_bytes() -> int | None:
    """Return the largest resident memory of this process so far, in bytes.

    It includes the interpreter and libraries; `None` where the system does not report it. On Linux
    it is VmHWM: `ru_maxrss` of a child starts at its parent's memory (measured: 310 MB for a
    process of 9 MB).
    """
    status = STATUS.read_text() if STATUS.exists() else ""
    if match := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
        return int(match[1]) * 1024
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kB
