"""`vit-export package`: make a folder that is ready to use at a target."""

from dataclasses import dataclass
from pathlib import Path

import click

from vit_export.cli.console import attributes, emit
from vit_export.cli.option_fields import command, option
from vit_export.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class _Options:
    target: str | None = option("Target", "cpp: a CMake project that runs the model.", "NAME")
    output: Path | None = option(
        "Output", "A new or empty folder; by default ./NAME-TARGET", "FOLDER"
    )
    cmake_dir: bool = option(
        "Output", "Print the folder of the C++ library's CMake project, and do nothing else."
    )


@command(_Options)
@click.argument("artifact", required=False)
def package(artifact: str | None, options: _Options, as_json: bool) -> None:
    """Make a folder that is ready to use at a target.

    It needs no torch; onnx-ir writes the graph of the image preparation.
    """
    from vit_export.pipeline.package import TARGETS
    from vit_export.pipeline.package import package as write_package

    if options.cmake_dir:
        from vit_export.deploy.package_cpp import CMAKE_FOLDER

        if artifact is not None or options.target is not None or options.output is not None:
            raise UsageError("--cmake-dir prints a folder, and takes no other argument")
        emit(as_json, {"cmake_dir": CMAKE_FOLDER}, str(CMAKE_FOLDER))
        return
    if artifact is None:
        raise UsageError("no artifact was given", hint="vit-export package b16.onnx --target cpp")
    if options.target is None:
        raise UsageError("--target is missing", hint=f"--target {' or '.join(TARGETS)}")
    result = write_package(artifact, options.output, target=options.target)
    emit(
        as_json,
        attributes(result, "folder target files size_bytes"),
        f"written: {result.folder} ({len(result.files)} files, {result.size_bytes / 1e6:.1f} MB)\n"
        f"next: read {result.folder / 'README.md'}",
    )
