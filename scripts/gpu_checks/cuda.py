"""Checks of ONNX Runtime's CUDA provider, and checks that every provider has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_checks.artifacts import EDGE, ROOT, exported, validated
from gpu_checks.copies import copies_in, optimised
from gpu_checks.needs import PROVIDER_NEEDS, need, need_kernels_for
from gpu_checks.outcome import FailedError, NotRunError, expect

DEVICE = "cuda"
LATE_SIZE, LATE_PRODUCTS = 8192, 20  # matrices whose products take some tenths of a second
GRAPH_SIZES = (1, 2, 8)  # of the batches that are recorded
NO_KERNEL = "ONNX Runtime placed"  # part of the error for a provider that lacks operators
LOAD = """
import json, sys
from vit_export.errors import ProviderError
from vit_export.runtime import load
try:
    print(json.dumps({"provider": load(sys.argv[1], provider=sys.argv[2]).provider}))
except ProviderError as error:
    print(json.dumps({"error": str(error)}))
"""


def doctor(folder: Path) -> dict[str, Any]:
    """Check that `vit-export doctor` finds no fault."""
    need("numpy", "click", "onnxruntime")
    from vit_export.host.doctor.abilities import examine

    found = examine()
    faults = "; ".join(f"{fault.what} (fix: {fault.remedy})" for fault in found.faults)
    expect(not faults, faults)
    return {"can": ", ".join(ability.name for ability in found.abilities if ability.possible)}


def parity(folder: Path, provider: str, variant: str, precision: str) -> dict[str, Any]:
    """Run the gate on a provider: float64 reference, batches 1, 2 and 3, row test."""
    PROVIDER_NEEDS[provider]()
    need_kernels_for(precision)
    return validated(exported(folder, variant, precision), provider)


def integer_parity(folder: Path, provider: str, variant: str, precision: str) -> dict[str, Any]:
    """Run the gate on a provider that may lack integer operators; the check is then not run."""
    try:
        return parity(folder, provider, variant, precision)
    except FailedError as error:
        if NO_KERNEL not in str(error):
            raise
        raise NotRunError(str(error)) from None


def refusal(folder: Path, provider: str) -> dict[str, Any]:
    """Check that without a visible GPU a provider is an error, and not replaced by the CPU."""
    PROVIDER_NEEDS[provider]()
    with_gpu = _loaded(provider)
    expect(
        with_gpu.get("provider") == provider,
        f"it does not load with a visible GPU, so an error without one proves nothing: {with_gpu}",
    )
    without_gpu = _loaded(provider, CUDA_VISIBLE_DEVICES="-1")
    expect("error" in without_gpu, f"it ran on {without_gpu.get('provider')!r} without a GPU")
    return {"refused with": without_gpu["error"]}


def _loaded(provider: str, **environment: str) -> dict[str, str]:
    """Load the edge artifact in a process of its own; return its provider or its error."""
    child = subprocess.run(
        [sys.executable, "-c", LOAD, str(EDGE), provider],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    expect(child.returncode == 0, f"the process ended: {child.stderr.strip()[-200:]}")
    answer: dict[str, str] = json.loads(child.stdout.splitlines()[-1])
    return answer


def io_binding(folder: Path) -> dict[str, Any]:
    """Check that a torch tensor on the GPU is read without a copy, and the result stays there."""
    PROVIDER_NEEDS["cuda"]()
    need("torch")
    import numpy as np
    import onnxruntime as ort
    import torch

    if not torch.cuda.is_available():
        raise NotRunError("the installed torch has no CUDA")
    from vit_export.runtime import load

    runner = load(EDGE, provider="cuda").runner
    x = torch.randn(4, 3, 32, 32, device=DEVICE)
    value = ort.OrtValue.from_dlpack(x)
    expect(value.data_ptr() == x.data_ptr(), "the input was copied on its way to ONNX Runtime")
    result = runner.run_on_device({"pixel_values": x})["logits"]
    expect(result.device_name() == DEVICE, f"the output lies on {result.device_name()}")
    back = torch.from_dlpack(result)
    expect(back.data_ptr() == result.data_ptr(), "the output was copied on its way to torch")
    copies = copies_in(optimised(EDGE, DEVICE, folder / "edge.optimised.onnx"))
    expect(copies == 0, f"the graph copies between host and device {copies} times")
    host = runner.run({"pixel_values": x.cpu().numpy()})["logits"]
    difference = float(np.abs(back.cpu().numpy() - host).max())
    expect(difference <= 1e-5, f"device and host tensors give other results: {difference:.3g}")
    return {"copies": copies, "max_abs": difference}


def late_tensor(folder: Path, provider: str) -> dict[str, Any]:
    """Check that a run waits for a tensor that another stream is still writing."""
    PROVIDER_NEEDS[provider]()
    need("torch")
    import numpy as np
    import torch

    if not torch.cuda.is_available():
        raise NotRunError("the installed torch has no CUDA")
    from vit_export.runtime import load

    runner = load(EDGE, provider=provider).runner
    x = torch.randn(4, 3, 32, 32, device=DEVICE)
    expected = runner.run({"pixel_values": x.cpu().numpy()})["logits"]
    busy, late = torch.randn(LATE_SIZE, LATE_SIZE, device=DEVICE), torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(LATE_PRODUCTS):
            busy = busy @ busy
        late.copy_(x)
        still_writing = not torch.cuda.current_stream().query()
        found = runner.run({"pixel_values": late})["logits"]
    expect(still_writing, "the tensor was written before the run, so the run proves nothing")
    difference = float(np.abs(found - expected).max())
    expect(difference <= 1e-5, f"the run did not wait for its input: {difference:.3g}")
    return {"max_abs": difference}


def cuda_graph(folder: Path, variant: str) -> dict[str, Any]:
    """Check that CUDA graphs are recorded and replayed, with the results of plain runs."""
    PROVIDER_NEEDS["cuda"]()
    import numpy as np

    from vit_export.runtime import load
    from vit_export.runtime.onnxruntime.options import CudaOptions

    path = exported(folder, variant)
    plain = load(path, provider="cuda").runner
    recorded = load(path, options=CudaOptions(cuda_graph=True)).runner
    spec = plain.inputs[0]
    generator = np.random.default_rng(0)
    worst, times = 0.0, {"plain": [], "graph": []}
    for size in (*GRAPH_SIZES, *GRAPH_SIZES, *[1] * 50):
        x = {spec.name: generator.standard_normal((size, *spec.shape[1:])).astype(np.float32)}
        results = {}
        for name, runner in (("plain", plain), ("graph", recorded)):
            start = time.perf_counter()
            results[name] = runner.run(x)["logits"]
            times[name].append(1000 * (time.perf_counter() - start))
        scale = float(np.abs(results["plain"]).max())
        worst = max(worst, float(np.abs(results["plain"] - results["graph"]).max()) / scale)
    expect(worst <= 1e-5, f"a replayed graph computes something else: {worst:.3g} of the largest")
    replayed = _replayed(recorded)
    expect(
        replayed == len(GRAPH_SIZES),
        f"{replayed} graphs are replayed, and {len(GRAPH_SIZES)} batch sizes were recorded",
    )
    medians = {
        f"{name}_ms": float(np.median(values[2 * len(GRAPH_SIZES) :]))
        for name, values in times.items()
    }
    return {"relative_max_abs": worst, "graphs": replayed, **medians}


def _replayed(runner: Any) -> int:
    """Return how many batch sizes are really replayed.

    A replay writes to the recorded addresses. A run with a graph's number that binds other buffers
    therefore leaves these unchanged; a plain run would write to them.
    """
    import numpy as np
    import onnxruntime as ort

    from vit_export.runtime.onnxruntime.cuda_graph import _run_options

    count = 0
    for graph in runner._recorded._recorded.values():
        binding = runner._session.io_binding()
        for name, value in graph.inputs.items():
            binding.bind_ortvalue_input(name, value)
        own = {
            name: ort.OrtValue.ortvalue_from_numpy(
                np.full(value.shape(), np.nan, value.numpy().dtype), *runner._device
            )
            for name, value in graph.outputs.items()
        }
        for name, value in own.items():
            binding.bind_ortvalue_output(name, value)
        # by the thread that has recorded the graph: another would record one of its own
        runner._recorded._thread.submit(
            runner._session.run_with_iobinding, binding, _run_options(graph.graph)
        ).result()
        count += all(np.isnan(value.numpy()).all() for value in own.values())
    return count
