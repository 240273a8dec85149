"""Child process that loads, checks and times one candidate of a benchmark.

A run is timed from inputs in host memory to results in host memory: `run` copies results back from
a GPU, so its time is more than that of a launch. Inputs are checked as in any other call of `run`.
"""

import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.engine_sidecar import is_engine
from vit_export.artifact.golden import Golden
from vit_export.artifact.vocabulary import IMAGE_HW
from vit_export.errors import ArtifactError
from vit_export.gate.distance import Measured, references
from vit_export.gate.tolerances import tolerances_of
from vit_export.gate.trace import golden_feeds
from vit_export.host.child_process import Answer, answer_orders
from vit_export.runner import Runnable, batch_rows
from vit_export.runtime import load, load_engine

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

PHOTOGRAPH_HW = (480, 640)  # px, for a graph that prepares images of any size
STATUS = Path("/proc/self/status")  # Linux only
Feeds = dict[str, NDArray[Any]]


def main() -> None:
    """Answer the orders of a benchmark about an artifact."""
    serve(load_artifact)


def load_artifact(
    path: str, provider: str, threads: int | None, device: int | None, allow_host_code: bool
) -> Runnable:
    """Load an .onnx file or an engine."""
    if not is_engine(path):
        return load(path, provider=provider, device=device, threads=threads).runner
    return load_engine(
        path,
        provider=provider,
        device=device,
        trusted=True,  # the golden check is no part of loading again, and `distance` is measured
        allow_host_code=allow_host_code,
    ).runner


def serve(load_candidate: Callable[..., Runnable]) -> None:
    """Answer the orders of `benchmark.run` about one candidate."""
    watch = Stopwatch(load_candidate)
    answer_orders({"load": watch.load, "distance": watch.distance, "time": watch.time})


class Stopwatch:
    """Times one candidate; each method answers an order."""

    def __init__(self, load_candidate: Callable[..., Runnable]) -> None:
        self._load_candidate = load_candidate
        self._runner: Runnable
        self._precision = ""  # that of a file of another tool
        self._feeds: dict[int, Feeds] = {}

    def load(self, batch: int, **candidate: Any) -> Answer:
        """Load the candidate and run it once, at a batch size or at the one that it fixes."""
        self._runner = self._load_candidate(**candidate)
        self._run(self._runner.inputs[0].fixed_batch or batch)
        if self._runner.manifest is not None:
            self._precision = self._runner.manifest.precision
        rejected = getattr(self._runner, "rejected", {})
        notes = [f"not {name}: {reason}" for name, reason in rejected.items()]
        if self._runner.manifest is not None and self._runner.manifest.embedded:
            height, width = PHOTOGRAPH_HW
            notes.append(f"each run also prepares images of {width} x {height}")
        return {"provider": self._runner.provider, "precision": self._precision, "notes": notes}

    def time(self, batch: int, seconds: float, min_runs: int = 1) -> Answer:
        """Time the runs of some seconds; return the seconds of each, and the memory so far.

        An uncounted run comes first, since another candidate has filled the caches.
        """
        self._run(batch)
        end = time.perf_counter() + seconds
        times: list[float] = []
        while len(times) < min_runs or time.perf_counter() < end:
            times.append(self._run(batch))
        return {"seconds": times, "peak_rss_bytes": peak_rss_bytes()}

    def _run(self, batch: int) -> float:
        """Run once with random inputs; return the seconds."""
        if batch not in self._feeds:
            self._feeds = {batch: random_feeds(self._runner, batch)}
        started = time.perf_counter()
        self._runner.run(self._feeds[batch])
        return time.perf_counter() - started

    def distance(self, golden: str, batch: int) -> Answer:
        """Measure the distance from the float64 reference over all samples of a golden file.

        The first output that the file holds is compared. Samples are run in batches of the given
        size: in dynamic INT8 the rows of a batch depend on each other. `max_abs` is `None` where it
        is not finite, and `tolerance` where cosine decides.
        """
        runner, reference = self._runner, Golden.read(golden)
        preprocess = runner.manifest.preprocess if runner.manifest else None
        known = references(
            reference, tolerances_of(self._precision or "fp32", source=runner.path.name)
        )
        feeds = golden_feeds(runner, reference, preprocess)
        measured: dict[str, Measured] = {}
        for rows in batch_rows(reference.samples, batch):
            outputs = runner.run({key: values[rows] for key, values in feeds.items()})
            name = next((name for name in outputs if name in reference.outputs), "")
            if not name:
                raise ArtifactError(
                    f"the golden file has none of its outputs ({', '.join(outputs)}), only "
                    f"{', '.join(reference.outputs)}: it belongs to another model"
                )
            result = measured.setdefault(name, Measured(known[name]))
            problem = result.add(rows, outputs[name])
            if problem and not result.by_batch:
                raise ArtifactError(
                    f"its {name} {problem}: the golden file belongs to another model"
                )
        (result,) = measured.values()
        return {
            "max_abs": result.max_abs if math.isfinite(result.max_abs) else None,
            "tolerance": result.reference.tolerance,
            "accepted": result.accepted,
        }


def random_feeds(runner: Runnable, batch: int) -> Feeds:
    """Return random inputs of the dtypes and shapes that a model takes."""
    generator = np.random.default_rng(0)
    preprocess = runner.manifest.preprocess if runner.manifest else None
    sizes = dict(zip(("height", "width"), preprocess.size, strict=True)) if preprocess else {}
    sizes |= dict(zip(IMAGE_HW, PHOTOGRAPH_HW, strict=True))
    feeds = {}
    for spec in runner.inputs:
        first, rest = spec.fixed_batch, spec.shape[1:]
        if spec.shape and first not in (None, batch):
            raise ArtifactError(
                f"takes batches of {first} only, not of {batch}",
                hint=f"time it with --batch {first}, or export it without --batch",
            )
        if unknown := [dim for dim in rest if isinstance(dim, str) and dim not in sizes]:
            raise ArtifactError(f"cannot be timed: the size of {unknown[0]!r} in {spec} is unknown")
        shape = [batch, *(sizes[dim] if isinstance(dim, str) else dim for dim in rest)]
        shape = shape[: len(spec.shape)]  # none of a single number
        dtype = np.dtype(spec.dtype)
        draw = generator.standard_normal(shape)
        feeds[spec.name] = (draw > 0 if dtype.kind in "iub" else draw).astype(dtype)
    return feeds


def peak_rss_bytes() -> int | None:
    """Return the largest resident memory of this process so far; `None` where it is unknown.

    On Linux it is VmHWM: `ru_maxrss` of a child starts at its parent's memory (measured: 310 MB
    for a process of 9 MB).
    """
    status = STATUS.read_text() if STATUS.exists() else ""
    if match := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
        return int(match[1]) * 1024
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kB
