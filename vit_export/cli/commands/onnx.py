"""`vit-export onnx`: export a variant, a checkpoint or a user's module to ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.option_groups import GroupedCommand, option, option_group
from vit_export.cli.options import (
    GRAPH,
    OUTPUT,
    PRECISION,
    SEED,
    SOURCE,
    PrecisionOptions,
    PreparationOptions,
    comma_separated,
    external_data_option,
    img_size_option,
    json_option,
    labels_of,
    labels_option,
    layout_option,
    overrides,
    precision_options,
    preparation_options,
    reset_head_option,
    set_option,
)
from vit_export.errors import UsageError
from vit_export.variants import get_variant

if TYPE_CHECKING:
    from vit_export.quantization.settings import QuantizeSettings


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What to export."""

    variant: str | None
    weights: str | None
    layout: str | None
    reset_head: bool
    module: str | None
    seed: int
    num_classes: int | None
    img_size: str | None
    sets: tuple[str, ...]


source_options = option_group(
    "source", SourceOptions,
    option("--variant", group=SOURCE, metavar="NAME",
           help="e.g. b16; `vit-export variants` lists them."),
    option("--weights", group=SOURCE, metavar="FILE",
           help="Checkpoint: a file, a folder, hub, or hf:owner/name."),
    layout_option,
    reset_head_option,
    option("--module", group=SOURCE, metavar="PKG:FACTORY", help="Export any nn.Module instead."),
    option("--seed", group=SOURCE, default=0, show_default=True, type=SEED,
           help="Of random weights."),
    option("--num-classes", group=SOURCE, type=int, help="0 exports features."),
    img_size_option,
    set_option,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """What the ONNX graph looks like."""

    batch: str
    dynamic_size: bool
    opset: int | None
    attention: str
    outputs: str
    no_simplify: bool


graph_options = option_group(
    "graph", GraphOptions,
    option("--batch", group=GRAPH, default="dynamic", show_default=True, metavar="dynamic|N",
           help="Batch size."),
    option("--dynamic-size", group=GRAPH, is_flag=True,
           help="Any height and width that are multiples of the patch size."),
    option("--opset", group=GRAPH, type=int, help="20 by default, 23 with --attention op."),
    option("--attention", group=GRAPH, type=click.Choice(["decomposed", "op"]),
           default="decomposed", help="op makes one Attention node per block."),
    option("--outputs", group=GRAPH, default="logits", show_default=True,
           help="Any of logits,features,tokens."),
    option("--no-simplify", group=GRAPH, is_flag=True, help="Leave the graph as torch exports it."),
)  # fmt: skip


@click.command(cls=GroupedCommand)
@source_options
@preparation_options
@graph_options
@option("--precision", group=PRECISION, default="fp32", show_default=True,
        type=click.Choice(["fp32", "fp16", "bf16", "int8", "int8-static"]))  # fmt: skip
@precision_options
@option("--images", group=PRECISION, metavar="DIR", help="Measure on these images as well.")
@labels_option
@external_data_option
@option("-o", "--output", group=OUTPUT, metavar="PATH", help="By default ./<variant>.onnx")
@json_option
def onnx(
    source: SourceOptions,
    preparation: PreparationOptions,
    graph: GraphOptions,
    precision: str,
    conversion: PrecisionOptions,
    images: str | None,
    labels: str | None,
    external_data: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Export a variant, a checkpoint or a module to a validated ONNX file."""
    _check_source(source)
    quantize = _quantize_settings(precision, conversion, images)
    from vit_export.cli.report.exports import export_text
    from vit_export.pipeline.export import export
    from vit_export.pipeline.settings import ExportSettings

    settings = ExportSettings(
        layout=source.layout,
        reset_head=source.reset_head,
        seed=source.seed,
        overrides=overrides(source.sets, num_classes=source.num_classes, img_size=source.img_size),
        batch=_batch(graph.batch),
        dynamic_size=graph.dynamic_size,
        opset=graph.opset,
        attention=graph.attention,
        outputs=_outputs(graph.outputs),
        labels=labels_of(labels),
        preprocess=preparation.changes(),
        images=images,
        simplify=not graph.no_simplify,
        external_data=external_data,
        quantize=quantize,
    )
    model = _model(source)
    with progress_bar() as progress:
        result = export(model, output, weights=source.weights, settings=settings, progress=progress)
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
    emit(as_json, data, export_text(result))


def _check_source(source: SourceOptions) -> None:
    """Raise UsageError for a source that cannot be, before anything heavy is imported."""
    if source.module and (source.variant or source.weights):
        raise UsageError("--module stands alone: give neither --variant nor --weights with it")
    if source.variant is not None:
        get_variant(source.variant)


def _quantize_settings(
    precision: str, conversion: PrecisionOptions, images: str | None
) -> QuantizeSettings | None:
    if precision == "fp32":
        conversion.check_none_given()
        return None
    compared = images if conversion.max_drop is not None else None
    return conversion.settings(precision, images=compared)


def _model(source: SourceOptions) -> Any:
    """Return what `export` takes as its source: a variant's name, a module, or `None`."""
    if source.module:
        from vit_export.pipeline.user_module import build_module

        return build_module(source.module, seed=source.seed)
    if source.variant and not source.weights:
        click.secho(
            f"WARNING: the weights are RANDOM (seed {source.seed}), so what this model predicts "
            "means nothing.\nhint: give trained weights with --weights FILE",
            fg="yellow",
            bold=True,
            err=True,
        )
    return source.variant


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch {text}: expected 'dynamic' or a number of images")
    return int(text)


def _outputs(text: str) -> tuple[str, ...]:
    names = tuple(comma_separated(text))
    if not names:
        raise UsageError("--outputs: expected at least one of logits, features, tokens")
    return names
