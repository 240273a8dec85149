"""Checks of ONNX Runtime's CUDA provider."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_checks.artifacts import EDGE, ROOT, exported, validated
from gpu_checks.outcome import NotRunError, expect, need

DEVICE = "cuda"
LOAD = """
import json, sys
from vit_export.errors import ProviderError
from vit_export.runtime import load
try:
    print(json.dumps({"provider": load(sys.argv[1], provider=sys.argv[2]).provider}))
except ProviderError as error:
    print(json.dumps({"error": str(error)}))
"""


def need_cuda_wheel() -> None:
    """Raise NotRunError unless the installed ONNX Runtime was compiled with CUDA."""
    need("numpy", "onnxruntime")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise NotRunError("not installed: onnxruntime-gpu (the wheel for the CPU is)")


def doctor(folder: Path) -> dict[str, Any]:
    """Nothing is broken on this machine, as far as `vit-export doctor` can tell."""
    need("numpy", "click", "onnxruntime")
    from vit_export.doctor import examine

    found = examine()
    faults = "; ".join(f"{fault.what} (mend: {fault.remedy})" for fault in found.faults)
    expect(not faults, faults)
    return {"can": ", ".join(ability.name for ability in found.abilities if ability.possible)}


def parity(folder: Path, variant: str, precision: str) -> dict[str, Any]:
    """The gate on CUDA: float64 truth, batches 1, 2, 3 and 8, rows permuted and alone."""
    need_cuda_wheel()
    return validated(exported(folder, variant, precision), "cuda")


def refusal(folder: Path, provider: str) -> dict[str, Any]:
    """Where CUDA shows no GPU, a provider is refused instead of replaced by the CPU."""
    need_cuda_wheel()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", LOAD, str(EDGE), provider],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    expect(child.returncode == 0, f"the process ended: {child.stderr.strip()[-200:]}")
    answer = json.loads(child.stdout.splitlines()[-1])
    expect("error" in answer, f"it ran on {answer.get('provider')!r} without a GPU")
    return {"refused with": answer["error"]}


def io_binding(folder: Path) -> dict[str, Any]:
    """A tensor of torch on the GPU is read where it lies, and the result stays on the GPU."""
    need_cuda_wheel()
    need("torch")
    import numpy as np
    import onnxruntime as ort
    import torch

    if not torch.cuda.is_available():
        raise NotRunError("the installed torch has no CUDA")
    from vit_export.runtime import load

    runner = load(exported(folder, "edge"), provider="cuda").runner
    x = torch.randn(4, 3, 32, 32, device=DEVICE)
    value = ort.OrtValue.from_dlpack(x)
    expect(value.data_ptr() == x.data_ptr(), "the input was copied on its way to ONNX Runtime")
    result = runner.run_on_device({"pixel_values": x})["logits"]
    expect(result.device_name() == DEVICE, f"the output lies on {result.device_name()}")
    back = torch.from_dlpack(result)
    expect(back.data_ptr() == result.data_ptr(), "the output was copied on its way to torch")
    kinds = {
        node.op_type
        for part in runner._session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    }
    copies = sorted(kind for kind in kinds if kind.startswith("Memcpy"))
    expect(not copies, f"the graph copies between devices: {', '.join(copies)}")
    host = runner.run({"pixel_values": x.cpu().numpy()})["logits"]
    difference = float(np.abs(back.cpu().numpy() - host).max())
    expect(difference <= 1e-5, f"device and host tensors give other results: {difference:.3g}")
    return {"copies": 0, "max_abs": difference}


def cuda_graph(folder: Path, variant: str) -> dict[str, Any]:
    """Replayed graphs compute what plain runs do, at several batch sizes in turn."""
    need_cuda_wheel()
    import numpy as np

    from vit_export.runtime import load
    from vit_export.runtime.provider_options import CudaOptions

    path = exported(folder, variant)
    plain = load(path, provider="cuda").runner
    recorded = load(path, options=CudaOptions(cuda_graph=True)).runner
    spec = plain.inputs[0]
    generator = np.random.default_rng(0)
    worst, times = 0.0, {"plain": [], "graph": []}
    for size in (1, 2, 8, 1, 2, 8, *[1] * 50):
        x = {spec.name: generator.standard_normal((size, *spec.shape[1:])).astype(np.float32)}
        results = {}
        for name, runner in (("plain", plain), ("graph", recorded)):
            start = time.perf_counter()
            results[name] = runner.run(x)["logits"]
            times[name].append(1000 * (time.perf_counter() - start))
        scale = float(np.abs(results["plain"]).max())
        worst = max(worst, float(np.abs(results["plain"] - results["graph"]).max()) / scale)
    expect(worst <= 1e-5, f"a replayed graph computes something else: {worst:.3g} of the largest")
    medians = {f"{name}_ms": float(np.median(values[6:])) for name, values in times.items()}
    return {"relative_max_abs": worst, **medians}
