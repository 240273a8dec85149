"""Candidates of a benchmark: artifacts on providers, and torch with the same weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError, UsageError, nearest

AGAINST = {"torch": False, "torch-compile": True}  # name -> whether it is compiled
TORCH_PROVIDERS = ("auto", "cpu", "cuda")  # of those that artifacts have


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An artifact or torch, on one provider."""

    name: str  # in the table, unique on its provider
    module: str  # its `main()` runs the candidate in a child process
    provider: str  # the requested one
    order: Mapping[str, Any]  # arguments of the child's `load`
    file_bytes: int | None = None  # of the artifact, external data included; None for torch
    must_match: bool = False  # timed only when it passes the gate: torch has the same weights


def plan(
    artifacts: Sequence[str | os.PathLike[str]],
    *,
    providers: Sequence[str] = ("auto",),
    against: Sequence[str] = (),
    weights: str | os.PathLike[str] | None = None,
    layout: str | None = None,
    threads: int | None = None,
    allow_host_code: bool = False,
) -> list[Candidate]:
    """Return every artifact on every provider, then torch with the weights of the first artifact.

    Args:
        artifacts: Files to run.
        providers: Where to run them; torch runs on those that it has, or on `"auto"`.
        against: `"torch"` (eager), `"torch-compile"`, or both.
        weights: Checkpoint for torch; not needed where weights came from a seed.
        layout: How the checkpoint names its tensors; recognised by default.
        threads: CPU threads of one run; by default each backend's choice. Engines take none.
        allow_host_code: Let version-compatible engines run the code they contain.

    Raises:
        UsageError: An argument is unknown, repeated, missing, or without effect.
        ArtifactError: A file is missing or damaged.
    """
    paths = [Path(artifact) for artifact in artifacts]
    if not paths:
        raise UsageError("no artifact to run: expected at least one file")
    _check_providers(providers)
    _check_unique("artifact", [os.path.realpath(path) for path in paths])
    _check_unique("--against", against)
    for name in against:
        if name not in AGAINST:
            raise UsageError(
                f"--against {name}: unknown{nearest(name, AGAINST)} (known: {', '.join(AGAINST)})"
            )
    if weights is not None and not against:
        raise UsageError("--weights is for torch, which is not a candidate: add --against torch")
    engines = [path for path in paths if path.suffix == ".engine"]
    if threads is not None and not against and engines == paths:
        raise UsageError(
            f"--threads {threads}: engines compute on the GPU", hint="leave --threads out"
        )
    if allow_host_code and not engines:
        raise UsageError("--trust-host-code is for an .engine file, and none is given")
    if layout is not None and weights is None:
        raise UsageError("--layout needs --weights FILE")
    names = [path.name for path in paths]
    candidates = [
        Candidate(
            name=path.name if names.count(path.name) == 1 else str(path),
            module="vit_export.benchmark.worker",
            provider=provider,
            order={
                "path": str(path),
                "provider": provider,
                "threads": None if path in engines else threads,
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
                "provider": provider,
                "threads": threads,
                "weights": None if weights is None else str(weights),
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


def _check_providers(providers: Sequence[str]) -> None:
    if not providers:
        raise UsageError("--provider: expected at least one, e.g. --provider cpu,cuda")
    _check_unique("--provider", providers)
    if "auto" in providers and len(providers) > 1:
        raise UsageError(
            f"--provider {','.join(providers)}: auto chooses one of the others, which would be "
            "timed twice",
            hint="leave auto out, or give it alone",
        )


def _check_unique(what: str, values: Sequence[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UsageError(f"{what} {value} is given twice")
