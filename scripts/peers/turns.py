"""The side of a candidate: it loads once, then answers the orders of `process.Worker`.

Runs in the environment of any peer: numpy and the standard library only.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Any], Any]  # pixel_values (B, 3, H, W) to logits (B, K), or a folder to its labels


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024


def answer(load: Callable[..., Run]) -> None:
    """Answer orders, a line of JSON each; what libraries print goes to standard error."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    candidate = Candidate(load)
    for line in sys.stdin:
        order = json.loads(line)
        reply = getattr(candidate, order.pop("order"))(**order)
        print(json.dumps(reply), file=replies, flush=True)


class Candidate:
    """One peer; each method answers an order."""

    def __init__(self, load: Callable[..., Run]) -> None:
        self._load = load
        self._run: Run
        self._inputs: Any = None

    def load(self, **arguments: Any) -> dict[str, Any]:
        """Load the model."""
        self._run = self._load(**arguments)
        return {}

    def take(self, inputs: str, batch: int | None) -> dict[str, Any]:
        """Take a folder, or the pixel values of a file, repeated up to a batch size; run once.

        Answers the best class of every photograph of a folder.
        """
        self._inputs = inputs
        if batch is not None:
            pixels = np.load(inputs)["pixel_values"]
            self._inputs = np.ascontiguousarray(np.resize(pixels, (batch, *pixels.shape[1:])))
        found = self._run(self._inputs)
        if batch is not None:
            return {}
        return {"classes": [int(re.sub(r"\D", "", str(best))) for best in found]}

    def error(self, reference: str) -> dict[str, Any]:
        """Compare with float64: an image at a time, so that no image changes another's scale."""
        file = np.load(reference)
        outputs = [np.asarray(self._run(x[None]), np.float64) for x in file["pixel_values"]]
        actual, expected = np.concatenate(outputs), file["logits"]
        agreement = np.mean(actual.argmax(1) == expected.argmax(1))
        return {"max_abs": float(np.abs(actual - expected).max()), "top1": float(agreement)}

    def time(self, seconds: float) -> dict[str, Any]:
        """Time runs for some seconds, at least one."""
        self._run(self._inputs)  # another candidate has filled the caches
        return self._timed(seconds)

    def time_folder(self) -> dict[str, Any]:
        """Time one run over the folder."""
        return self._timed(0.0)

    def _timed(self, seconds: float) -> dict[str, Any]:
        end, processor = time.perf_counter() + seconds, time.process_time()
        times: list[float] = []
        while not times or time.perf_counter() < end:
            started = time.perf_counter()
            self._run(self._inputs)
            times.append(time.perf_counter() - started)
        processor = (time.process_time() - processor) / len(times)
        return {"seconds": times, "cpu_seconds": processor, "peak_bytes": peak_bytes()}
