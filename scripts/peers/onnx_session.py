"""An ONNX file in a bare session of ONNX Runtime."""

from __future__ import annotations

import onnxruntime

from peers.turns import Run, answer


def session(path: str, threads: int) -> onnxruntime.InferenceSession:
    """Return a session on the CPU with a number of threads, and defaults otherwise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def load(path: str, threads: int) -> Run:
    """Return the first output as a function of the first input."""
    opened = session(path, threads)
    name = opened.get_inputs()[0].name
    return lambda pixel_values: opened.run(None, {name: pixel_values})[0]


if __name__ == "__main__":
    answer(load)
