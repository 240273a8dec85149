"""Candidates of a benchmark: artifacts on providers, and torch with the same weights."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_export.artifact.engine_sidecar import is_engine
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError, UsageError, check_known

AGAINST = {"torch": False, "torch-compile": True}  # name -> whether it is compiled
TORCH_PROVIDERS = ("auto", "cpu", "cuda")  # of those that artifacts have


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An artifact or torch, on one provider."""

    name: str  # in the table, unique on its provider
    module: str  # its `main()` runs the candidate in a child process
    provider: str  # the requested one
    order: Mapping[str, Any]  # further arguments of the child's `load`
    file_bytes: int | None = None  # of the artifact, external data included; None for torch
    must_match: bool = False  # timed only when it passes the gate: torch has the same weights


def plan(
    artifacts: Sequence[str | os.PathLike[str]],
    *,
    providers: Sequence[str] = ("auto",),
    against: Sequence[str] = (),
    weights: str | None = None,
    layout: str | None = None,
    threads: int | None = None,
    device: int | None = None,
    allow_host_code: bool = False,
) -> list[Candidate]:
    """Return every artifact on every provider, then torch with the weights of the first artifact.

    Torch runs on those providers that it has, or on `"auto"`. Engines take no `threads`, and the
    CPU takes no `device`.
    """
    paths = [Path(artifact) for artifact in artifacts]
    engines = [path for path in paths if is_engine(path)]
    for what, values in (
        ("artifact", [os.path.realpath(path) for path in paths]),
        ("--provider", providers),
        ("--against", against),
    ):
        for value in values:
            if values.count(value) > 1:
                raise UsageError(f"{what} {value} is given twice")
    for name in against:
        check_known("--against", name, AGAINST)
    auto_twice = "auto" in providers and len(providers) > 1
    on_gpu = not against and engines == paths
    for applies, message, hint in (
        (not providers, "--provider: expected at least one", "e.g. --provider cpu,cuda"),
        (auto_twice, "--provider auto chooses one of the others, which would be timed twice",
         "leave auto out, or give it alone"),
        (weights is not None and not against, "--weights is for torch", "add --against torch"),
        (layout is not None and weights is None, "--layout needs --weights FILE", ""),
        (threads is not None and on_gpu, f"--threads {threads}: engines compute on the GPU",
         "leave --threads out"),
        (device is not None and [*providers] == ["cpu"], f"--device {device}: the CPU is no GPU",
         "leave --device out, or use the provider of a GPU"),
        (allow_host_code and not engines, "--trust-host-code is for engines", ""),
    ):  # fmt: skip
        if applies:
            raise UsageError(message, hint=hint)
    names = [path.name for path in paths]
    candidates = [
        Candidate(
            name=path.name if names.count(path.name) == 1 else str(path),
            module="vit_export.benchmark.worker",
            provider=provider,
            order={
                "path": str(path),
                "threads": None if path in engines else threads,
                "device": None if provider == "cpu" else device,
                "allow_host_code": allow_host_code and path in engines,
            },
            file_bytes=_file_bytes(path),
        )
        for path in paths
        for provider in providers
    ]
    return candidates + [
        Candidate(
            name=name,
            module="vit_export.benchmark.torch_worker",
            provider=provider,
            order={
                "path": str(paths[0]),
                "threads": threads,
                "device": None if provider == "cpu" else device,
                "weights": weights,
                "layout": layout,
                "compiled": AGAINST[name],
            },
            must_match=True,
        )
        for name in against
        for provider in [p for p in providers if p in TORCH_PROVIDERS] or ["auto"]
    ]


def _file_bytes(path: Path) -> int:
    if path.suffix == ".onnx":
        file = OnnxFile.read(path)
        file.check_external_data()
        return file.total_bytes
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    return path.stat().st_size
