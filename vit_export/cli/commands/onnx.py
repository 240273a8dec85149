"""`vit-export onnx`: export a variant, a checkpoint or a user's module to ONNX."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from vit_export.artifact.vocabulary import (
    ACTIVATIONS,
    LOGITS,
    OPSETS,
    PRECISIONS,
    RESIZE_FORMS,
    Activation,
)
from vit_export.cli.console import ProgressBar, attributes, emit
from vit_export.cli.option_fields import command, option
from vit_export.cli.options import (
    CheckpointOptions,
    LabelsOption,
    PrecisionOptions,
    PreparationOptions,
    comma_separated,
)
from vit_export.errors import UsageError
from vit_export.variants import get_variant


@dataclass(frozen=True, kw_only=True)
class _Options(LabelsOption, PrecisionOptions, PreparationOptions, CheckpointOptions):
    module: str | None = option("Source", "Export any nn.Module instead.", "PKG:FACTORY")
    timm: str | None = option("Source", "Any image model of timm, with its weights.", "NAME")
    hf: str | None = option(
        "Source", "Any image classifier or encoder of transformers.", "REPO-OR-FOLDER"
    )
    random_init: bool = option("Source", "Random weights instead of a library's pretrained ones.")
    seed: int = option("Source", "Seed of random weights.", default=0)
    num_classes: int | None = option("Source", "0 exports features.")
    text_embeddings: Path | None = option(
        "Source",
        "Classify by your own words: names and vectors of the model's text tower (.npz).",
        "FILE",
    )
    batch: str = option("Graph", "Batch size.", "dynamic|N", default="dynamic")
    dynamic_size: bool = option(
        "Graph", "Accept any height and width that are multiples of the patch size."
    )
    opset: int | None = option("Graph", "20 by default, 23 with --attention op.")
    attention: str = option(
        "Graph", "op: an Attention node a block", default="decomposed", choices=list(OPSETS)
    )
    outputs: str = option("Graph", "Any of logits,features,tokens.", default=LOGITS)
    merge_tokens: int | None = option(
        "Graph", "Merge R pairs of patch tokens in each block; needs --images.", "R"
    )
    no_simplify: bool = option("Graph", "Leave the graph as torch exports it.")
    activation: Activation | None = option(
        "Graph", "How logits become scores; detected by default.", choices=ACTIVATIONS
    )
    precision: str = option("Precision", default="fp32", choices=PRECISIONS)
    preprocess: str = option(
        "Graph",
        "embedded: the graph prepares uint8 images of any size itself.",
        default="none",
        choices=["none", "embedded"],
    )
    resize: str | None = option(
        "Graph",
        "How an embedded graph resizes: op (default), or matmul for runtimes whose Resize has no "
        "antialiasing.",
        choices=RESIZE_FORMS,
    )
    images: Path | None = option("Precision", "Up to 16 images to add to the golden file.", "PATH")
    external_data: bool = option("Output", "Store weights beside the file; above 2 GiB always.")
    output: Path | None = option("Output", "By default ./<variant>.onnx", "PATH")

    def __post_init__(self) -> None:
        if self.module and (self.variant or self.weights):
            raise UsageError("--module stands alone: give neither --variant nor --weights with it")
        doors = ("variant", "module", "timm", "hf")
        if len(several := [f"--{name}" for name in doors if getattr(self, name)]) > 1:
            raise UsageError(f"{' and '.join(several)} are several sources: give one of them")
        if self.resize is not None and self.preprocess == "none":
            raise UsageError(f"--resize {self.resize} needs --preprocess embedded")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: expected a number from 0 to {2**63 - 1}")
        if self.variant is not None:
            get_variant(self.variant)

    def source(self) -> Any:
        """Return what `export` takes as its source: a variant's name, a module, or `None`."""
        if self.module:
            from vit_export.pipeline.source import build_module

            return build_module(self.module, seed=self.seed)
        library = f"timm:{self.timm}" if self.timm else f"hf:{self.hf}" if self.hf else None
        if self.random_init if library else self.variant and not self.weights:
            click.secho(
                f"WARNING: the weights are RANDOM (seed {self.seed}), so what this model predicts "
                "means nothing.\nhint: give trained weights with --weights FILE",
                fg="yellow",
                bold=True,
                err=True,
            )
        return library or self.variant


@command(_Options)
def onnx(options: _Options, as_json: bool) -> None:
    """Export a variant, a checkpoint or a module to ONNX.

    The file is written if it passes its gate.
    """
    # torch reads it when it is imported: its threads sleep while they wait for each other, and
    # leave the cores to the child process that writes the graph
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vit_export.cli.report.results import export_text
    from vit_export.pipeline.export import export
    from vit_export.pipeline.settings import ExportSettings

    quantize, outputs = None, tuple(comma_separated(options.outputs))
    if not outputs:
        raise UsageError("--outputs: expected at least one of logits, features, tokens")
    if options.precision == "fp32":
        options.check_stays_fp32()
    else:
        compared = options.images if options.max_drop is not None else None
        quantize = options.quantize_settings(images=compared)
    settings = ExportSettings(
        overrides=options.overrides(num_classes=options.num_classes),
        batch=_batch(options.batch),
        outputs=outputs,
        labels=options.class_names(),
        text_embeddings=options.text_embeddings,
        preprocess=options.preparation(),
        merge_tokens=options.merge_tokens,
        simplify=not options.no_simplify,
        quantize=quantize,
        layout=options.layout,
        reset_head=options.reset_head,
        seed=options.seed,
        random_init=options.random_init,
        dynamic_size=options.dynamic_size,
        opset=options.opset,
        attention=options.attention,
        activation=options.activation,
        embed_preprocess=options.preprocess == "embedded",
        resize=options.resize or RESIZE_FORMS[0],
        images=options.images,
        external_data=options.external_data,
    )
    source = options.source()
    with ProgressBar() as progress:
        result = export(
            source, options.output, weights=options.weights, settings=settings, progress=progress
        )
    names = "path golden files size_bytes seconds nodes manifest report notes"
    data = attributes(result, names) | {"passed": result.comparison.stage.passed}
    emit(as_json, data, export_text(result))


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch {text}: expected 'dynamic' or a number of images")
    return int(text)
