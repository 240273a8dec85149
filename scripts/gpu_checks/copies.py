"""Copies between host and device that ONNX Runtime puts into a graph."""

from __future__ import annotations

from pathlib import Path

from gpu_checks.outcome import expect


def optimised(artifact: Path, provider: str, destination: Path) -> Path:
    """Write the graph that ONNX Runtime runs for an artifact, copies included.

    Raises:
        FailedError: Another provider would run it.
    """
    import onnxruntime as ort

    from vit_export.artifact.onnx_reader import OnnxFile
    from vit_export.runtime.onnxruntime.options import DEFAULTS, PROVIDERS

    settings = {}
    if chosen := DEFAULTS.get(provider):
        settings = chosen.provider_options(OnnxFile.read(artifact), ort.__version__)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(destination)
    options.log_severity_level = 3  # no warning that the dump is for this machine only
    name = PROVIDERS[provider].ort_name
    session = ort.InferenceSession(str(artifact), options, providers=[(name, settings)])
    active = session.get_providers()[0]
    expect(active == name, f"the dumped graph is that of {active}, expected {name}")
    return destination


def copies_in(graph: Path) -> int:
    """Return how many nodes of a dumped graph copy between host and device."""
    from vit_export.artifact.onnx_reader import OnnxFile

    counts = OnnxFile.read(graph).op_counts
    return sum(count for kind, count in counts.items() if kind.startswith("Memcpy"))
