"""`vit-export onnx`: a variant, a checkpoint or anybody's module to ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.options import (
    SEED,
    json_option,
    labels_of,
    labels_option,
    layout_option,
    overrides,
    path_of,
    precision_options,
    precision_settings,
    preprocess_given,
    preprocess_options,
)
from vit_export.errors import UsageError

if TYPE_CHECKING:
    from vit_export.pipeline.settings import ExportSettings


@click.command()
@click.option("--variant", metavar="NAME", help="e.g. b16; `vit-export variants` lists them.")
@click.option("--weights", metavar="FILE", help="Checkpoint: a file, a folder, hub, hf:owner/name.")
@layout_option
@click.option("--reset-head", is_flag=True, help="A new, zero head for another --num-classes.")
@click.option("--module", metavar="PKG:FACTORY", help="Export any nn.Module instead.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of random weights.")
@click.option("--num-classes", type=int, help="0 exports features.")
@click.option("--img-size", metavar="PX", help="e.g. 384, or 224x160 (height x width).")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any other config field.")
@labels_option
@preprocess_options
@click.option("--batch", default="dynamic", show_default=True, metavar="dynamic|N")
@click.option("--dynamic-size", is_flag=True, help="Any height and width, multiples of the patch.")
@click.option("--opset", type=int, help="20 by default, 23 with --attention op.")
@click.option("--attention", type=click.Choice(["decomposed", "op"]), default="decomposed")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "int8-static"]),
    default="fp32",
    show_default=True,
)
@precision_options
@click.option("--outputs", default="logits", show_default=True, help="logits,features,tokens")
@click.option("--images", metavar="DIR", help="Measure on these pictures as well.")
@click.option("--no-simplify", is_flag=True, help="Leave the graph as torch exports it.")
@click.option("--external-data", is_flag=True, help="Weights beside the file; above 2 GiB always.")
@click.option("-o", "--output", metavar="PATH", help="By default ./<variant>.onnx")
@json_option
def onnx(as_json: bool, **options: Any) -> None:
    """Variant or checkpoint to a validated, simplified ONNX file."""
    from vit_export.pipeline.export import export

    if options["module"] and (options["variant"] or options["weights"]):
        raise UsageError("--module stands alone: give neither --variant nor --weights with it")
    source: Any = options["variant"]
    if options["variant"] is not None:
        from vit_export.variants import get_variant

        get_variant(options["variant"])  # a typo is answered before anything heavy is loaded
    if options["module"]:
        from vit_export.pipeline.user_module import build_module

        source = build_module(options["module"], seed=options["seed"])
    elif not options["weights"]:
        _shout_random(options["seed"])
    settings = _settings(options)
    with progress_bar() as progress:
        result = export(
            source, options["output"], weights=options["weights"], settings=settings,
            progress=progress,
        )  # fmt: skip
    from vit_export.cli.report import exported

    data = {
        "path": result.path,
        "golden": result.golden,
        "files": result.files,
        "size_bytes": result.size_bytes,
        "seconds": result.seconds,
        "nodes": result.nodes,
        "passed": result.comparison.stage.passed,
        "manifest": result.manifest,
        "report": result.report,
        "notes": result.notes,
    }
    text = exported(result)
    if result.converted is not None:
        from vit_export.cli.report.conversions import quantized

        text = f"{text}\n\n{quantized(result.converted)}"
    emit(as_json, data, text)


def _settings(options: dict[str, Any]) -> ExportSettings:
    from vit_export.pipeline.settings import ExportSettings

    return ExportSettings(
        layout=options["layout"],
        reset_head=options["reset_head"],
        seed=options["seed"],
        overrides=overrides(options, "num_classes", "img_size"),
        batch=_batch(options["batch"]),
        dynamic_size=options["dynamic_size"],
        opset=options["opset"],
        attention=options["attention"],
        outputs=_names(options["outputs"]),
        labels=labels_of(options["labels"]),
        preprocess=preprocess_given(options),
        images=options["images"],
        simplify=not options["no_simplify"],
        external_data=options["external_data"],
        quantize=_narrower(options),
    )


def _narrower(options: dict[str, Any]) -> Any:
    """Settings of the conversion that was asked for; `None` for fp32."""
    settings = precision_settings(options)
    if options["precision"] == "fp32":
        for name in settings:
            option = {"half_io": "fp16-io", "recipe": "fp16-recipe", "method": "calibration-method"}
            shown = option.get(name, name.replace("_", "-"))
            raise UsageError(f"--{shown} is for a narrower --precision than fp32")
        return None
    from vit_export.quantization.settings import QuantizeSettings

    real = path_of(options["images"]) if settings.get("max_drop") is not None else None
    return QuantizeSettings(precision=options["precision"], images=real, **settings)


def _shout_random(seed: int) -> None:
    click.secho(
        f"WARNING: the weights are RANDOM (seed {seed}): what this model predicts means nothing. "
        "Give trained ones with --weights FILE.",
        fg="yellow",
        bold=True,
        err=True,
    )


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch {text}: expected 'dynamic' or a number of images")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError("--outputs: expected at least one of logits, features, tokens")
    return names
