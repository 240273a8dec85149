"""Checks of how an engine runs: kernels kept in a file, a failed capture, memory under threads."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu_checks.needs import BACKEND_NEEDS
from gpu_checks.outcome import expect
from gpu_checks.tensorrt import engine_path

THREADS, RUNS = 16, 8
LEAK_BYTES = 32 << 20  # by which a second round of the same threads may grow


def runtime_cache(folder: Path) -> dict[str, Any]:
    """Check that TensorRT-RTX writes its kernels to a file, and reads them at the next load."""
    BACKEND_NEEDS["tensorrt-rtx"]()
    import time

    import numpy as np

    from vit_export.runtime import load_engine

    path, cache = engine_path(folder, "tensorrt-rtx", "edge", "fp32"), folder / "edge.kernels"
    cache.unlink(missing_ok=True)
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    results, seconds = [], []
    for _ in range(2):
        with load_engine(path, runtime_cache=cache, trusted=True) as vit:
            start = time.perf_counter()
            results.append(vit.run(x))
            seconds.append(time.perf_counter() - start)
        expect(cache.is_file() and cache.stat().st_size > 0, "no kernels were written")
    expect(bool(np.array_equal(*results)), "kernels of the file compute something else")
    expect(
        seconds[1] < seconds[0],
        f"the first run took {seconds[1]:.3f} s with the kernels, {seconds[0]:.3f} s without",
    )
    return {"compiled_s": seconds[0], "cached_s": seconds[1], "size_bytes": cache.stat().st_size}


class Spoiled:
    """A context that breaks the capture of its second run: it waits for the whole device."""

    def __init__(self, context: Any) -> None:
        self._context, self._runs = context, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def execute_async_v3(self, stream: int) -> bool:
        self._runs += 1
        if self._runs == 2:
            from cuda.core import Device

            Device().sync()
        return bool(self._context.execute_async_v3(stream))


def failed_capture(folder: Path) -> dict[str, Any]:
    """Check that an engine warns once and runs on, without CUDA graphs, where a capture fails."""
    BACKEND_NEEDS["tensorrt"]()
    import numpy as np

    from vit_export.errors import ProviderWarning
    from vit_export.runtime.tensorrt.runner import TrtRunner
    from vit_export.runtime.tensorrt.session import Session

    runner = TrtRunner(engine_path(folder, "tensorrt", "edge", "fp32"))
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    feeds = {runner.inputs[0].name: x}
    expected = runner.run(feeds)["logits"]
    new_context = Session._new_context
    Session._new_context = lambda self: Spoiled(new_context(self))  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [runner.run(feeds)["logits"] for _ in range(4)]
    said = [str(each.message) for each in caught if each.category is ProviderWarning]
    expect(len(said) == 1, f"{len(said)} warnings for one capture that failed: {said}")
    expect("without CUDA graphs" in said[0], f"the warning does not say it: {said[0]}")
    same = all(np.allclose(each, expected, rtol=0, atol=1e-5) for each in results)
    expect(same, "runs after a failed capture compute something else")
    return {"warning": said[0]}


def memory_under_threads(folder: Path, backend: str) -> dict[str, Any]:
    """Check that many threads share a few contexts, get their own results, and leak no memory."""
    BACKEND_NEEDS[backend]()
    import numpy as np

    from vit_export.runtime.tensorrt.runner import MAX_RUNS, TrtRunner

    runner = TrtRunner(engine_path(folder, backend, "edge", "fp32"))
    inputs = np.random.default_rng(0).standard_normal((THREADS, 1, 3, 32, 32)).astype(np.float32)
    name = runner.inputs[0].name
    expected = [runner.run({name: x})["logits"] for x in inputs]

    def work(number: int) -> bool:
        found = (runner.run({name: inputs[number]})["logits"] for _ in range(RUNS))
        return all(np.allclose(each, expected[number], rtol=0, atol=1e-5) for each in found)

    used = [used_bytes()]
    for _ in range(2):
        with ThreadPoolExecutor(THREADS) as pool:
            expect(all(pool.map(work, range(THREADS))), "a thread got other results than alone")
        used.append(used_bytes())
    contexts = len(runner._idle)
    expect(contexts <= MAX_RUNS, f"{contexts} contexts were made, expected at most {MAX_RUNS}")
    grown = used[2] - used[1]
    expect(grown <= LEAK_BYTES, f"the second round of {THREADS} threads took {grown:,} bytes more")
    first = used[1] - used[0]
    return {"contexts": contexts, "first_round_bytes": first, "second_round_bytes": grown}


def used_bytes() -> int:
    """Return how much memory of the current GPU is in use."""
    from cuda.bindings import runtime

    error, free, total = runtime.cudaMemGetInfo()
    expect(int(error) == 0, f"cudaMemGetInfo gave {error}")
    return int(total - free)
