"""OpenVINO on the CPU, computing in fp32 what is not INT8."""

from __future__ import annotations

import openvino

from peers.turns import Run, answer


def load(path: str, threads: int) -> Run:
    """Return the first output as a function of the first input."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda pixel_values: request.infer([pixel_values])[0]


if __name__ == "__main__":
    answer(load)
