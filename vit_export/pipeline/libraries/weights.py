"""Load a user's weights into a model of another library: every tensor must match."""

import os
from collections.abc import Collection, Mapping
from types import MappingProxyType

from torch import Tensor

from vit_export.artifact.manifest import Weights
from vit_export.checkpoint.hub import Location
from vit_export.checkpoint.load import LoadReport, locate
from vit_export.checkpoint.tensor_files import TensorFile, open_tensors
from vit_export.errors import CheckpointError

SHOWN = 8  # names in an error


def open_weights(source: str | os.PathLike[str]) -> tuple[TensorFile, Location]:
    """Open a file, a folder or `hf:owner/name`, and say where it lies."""
    if os.fspath(source) == "hub":
        raise CheckpointError(
            "--weights hub is for named variants",
            hint="without --weights, the library downloads its own pretrained weights",
        )
    location = locate(source, None)
    return open_tensors(location.path), location


def check_every_tensor(
    source: str, file: Mapping[str, Tensor], model: Mapping[str, Tensor], *, of: str
) -> None:
    """Raise CheckpointError that names the tensors of a file that are not those of a model."""
    shapes = {
        name: f"{_kind(file[name])} in the file, {_kind(model[name])} in the model"
        for name in file.keys() & model.keys()
        if file[name].shape != model[name].shape
        or file[name].is_floating_point() != model[name].is_floating_point()
    }
    raise_for_tensors(
        source,
        of=of,
        missing=model.keys() - file.keys(),
        unexpected=file.keys() - model.keys(),
        mismatched=shapes,
    )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def raise_for_tensors(
    source: str,
    *,
    of: str,
    missing: Collection[str],
    unexpected: Collection[str] = (),
    mismatched: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise CheckpointError that names the tensors which do not match, if there are any."""
    kinds = (
        ("missing", [f"  - {name}" for name in sorted(missing)]),
        ("not in the model", [f"  + {name}" for name in sorted(unexpected)]),
        ("of another kind", [f"  ! {name}: {text}" for name, text in sorted(mismatched.items())]),
    )
    lines: list[str] = []
    for kind, names in kinds:
        more = [f"    and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
        lines += [f"{len(names)} {kind}:", *names[:SHOWN], *more] if names else []
    if lines:
        raise CheckpointError(
            f"cannot load {source}: its tensors are not those of {of}\n" + "\n".join(lines)
        )


def weights_report(file: TensorFile, location: Location, *, library: str) -> LoadReport:
    """Return the report on a file whose every tensor was used."""
    return LoadReport(
        layout=library,
        source=location.name,
        sha256=file.sha256(),
        used=tuple(file.tensors),
        resampled=(),
        reinitialised=(),
        unused=file.aside,
        inferred={},
        assumed=file.notes,
    )


def weights_origin(report: LoadReport) -> Weights:
    """Return a report's line in the manifest."""
    unused = f"unused: {', '.join(report.unused)}"
    return Weights(
        source=report.source,
        layout=report.layout,
        sha256=report.sha256,
        changes=(unused,) if report.unused else (),
    )
