"""Copies between host and device that ONNX Runtime puts into a graph."""

from __future__ import annotations

from pathlib import Path

from gpu_checks.outcome import expect


def optimised(artifact: Path, provider: str, destination: Path) -> Path:
    """The graph that ONNX Runtime really runs an artifact as.

    Which provider gets a node is settled, and recorded, before the copies are put in; the graph
    is dumped after that.

    Raises:
        FailedError: Something else than the provider would run it.
    """
    import onnxruntime as ort

    from vit_export.artifact.onnx_reader import OnnxFile
    from vit_export.runtime.onnxruntime.options import DEFAULTS
    from vit_export.runtime.onnxruntime.providers import PROVIDERS

    settings = {}
    if chosen := DEFAULTS.get(provider):
        settings = chosen.provider_options(OnnxFile.read(artifact), ort.__version__)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(destination)
    options.log_severity_level = 3  # a dump for one kind of machine only is what is wanted
    wanted = PROVIDERS[provider]
    session = ort.InferenceSession(str(artifact), options, providers=[(wanted, settings)])
    active = session.get_providers()[0]
    expect(active == wanted, f"the graph that was dumped is that of {active}")
    return destination


def copies_in(graph: Path) -> int:
    """Nodes of a dumped graph that copy between host and device."""
    from vit_export.artifact.onnx_reader import OnnxFile

    counts = OnnxFile.read(graph).op_counts
    return sum(count for kind, count in counts.items() if kind.startswith("Memcpy"))
