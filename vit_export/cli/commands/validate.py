"""`vit-export validate`: run the gate again on an artifact."""

from dataclasses import dataclass
from pathlib import Path

import click

from vit_export.cli.console import ProgressBar, emit
from vit_export.cli.option_fields import command, option
from vit_export.cli.options import PreparationOptions, RunOptions


@dataclass(frozen=True, kw_only=True)
class _Options(RunOptions, PreparationOptions):
    golden: str | None = option("Source", "By default NAME.golden.npz beside the artifact.", "FILE")
    weights: str | None = option("Source", "Compute the reference again from it.", "CHECKPOINT")
    layout: str | None = option("Source", "Naming scheme of the checkpoint; recognised by default.")
    trace: bool = option("Output", "Show the error of every block, as a table and a picture.")
    plot: Path | None = option("Output", "The picture; by default NAME.trace.png", "FILE")


@command(_Options)
@click.argument("artifact")
def validate(artifact: str, options: _Options, as_json: bool) -> None:
    """Run the gate again on an artifact.

    It needs numpy and onnxruntime only (with --weights: torch too).
    """
    from vit_export.cli.report.gates import comparison_text
    from vit_export.cli.report.pictures import check_picture, draw_picture
    from vit_export.cli.report.plots import trace_plot
    from vit_export.pipeline.settings import ValidateSettings
    from vit_export.pipeline.validate import validate as run_gate

    picture = options.plot
    if picture is not None:
        check_picture(picture)
    settings = ValidateSettings(
        allow_host_code=options.trust_host_code,
        preprocess=options.preprocess_of(artifact),
        trace=options.trace or picture is not None,
        provider=options.providers(artifact),
        golden=options.golden,
        weights=options.weights,
        layout=options.layout,
        device=options.device,
        runtime_cache=options.runtime_cache,
    )
    with ProgressBar() as progress:
        result = run_gate(artifact, settings=settings, progress=progress)
    failures, text, drawn = [], comparison_text(result), None
    if not result.passed:
        failures.append(f"{artifact} does not compute what its torch model computes")
    if settings.trace:
        path = picture or Path(artifact).with_suffix(".trace.png")
        title = f"{Path(artifact).name} on {result.stage.provider}"
        problem = draw_picture(path, trace_plot, result.blocks, title)
        if not problem:
            drawn, text = path, f"{text}\npicture: {path}"
        elif picture is not None:
            failures.append(problem)
        else:
            click.echo(problem, err=True)
    data = {"artifact": artifact, "passed": result.passed, "hop": result.stage,
            "blocks": result.blocks, "picture": drawn}  # fmt: skip
    emit(as_json, data, text, failures=failures)
