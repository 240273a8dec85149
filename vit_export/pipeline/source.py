"""What is to be exported: a variant, a checkpoint or anybody's module, made ready for torch."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from vit_export.artifact.labels import check_labels
from vit_export.artifact.manifest import PIXEL_VALUES, Preprocess, TensorSpec, Weights
from vit_export.checkpoint.load import LoadReport, load_checkpoint
from vit_export.errors import UsageError, nearest
from vit_export.graph.export import example_input
from vit_export.model.dynamic_size import AnySizeVisionTransformer
from vit_export.model.vit import ATTENTION, VisionTransformer, create_model
from vit_export.reference.outputs import Outputs, module_outputs, vit_outputs
from vit_export.variants import ViTConfig, get_variant, parse_field

FAILURES_OF_FOREIGN_CODE = (  # what code that is not ours may raise; a bug of ours is none of these
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError),
    *(OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)
BATCH_DIM, HEIGHT, WIDTH = "batch_size", "height", "width"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; fields as the arguments of `pipeline.export`."""

    subject: str | nn.Module | None
    weights: str | os.PathLike[str] | None = None
    layout: str | None = None
    reset_head: bool = False
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    dynamic_size: bool = False
    attention: str = "decomposed"
    outputs: Sequence[str] = ("logits",)
    labels: Sequence[str] = ()
    preprocess: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, ready to be recorded and exported.

    Attributes:
        model: The module, in evaluation mode, with named outputs.
        inputs: What it takes.
        outputs: Names of the outputs to keep in the artifact.
        stem: Of the default file name.
        config: Fields of its `ViTConfig`; empty for a module that is not ours.
    """

    model: Outputs
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    variant: str
    stem: str
    config: Mapping[str, Any]
    weights: Weights
    preprocess: Preprocess
    labels: tuple[str, ...]
    other_sizes: tuple[tuple[int, int], ...] = ()  # to gate a model of dynamic size at
    report: LoadReport | None = None  # what became of a checkpoint's tensors
    owned: bool = False  # built here, so nobody else needs it after the export

    def free(self) -> None:
        """Free the weights of a model that was built here.

        Dropping it is not enough: rewrite rules of the exporter keep their last graph, and
        that its weights.
        """
        if self.owned:
            for parameter in self.model.parameters():
                parameter.data = torch.empty(0)

    @property
    def example_sizes(self) -> dict[str, int]:
        """Sizes to trace dynamic dimensions with: no two alike, none special."""
        if not self.other_sizes:
            return {}
        height, width = self.other_sizes[0]
        return {HEIGHT: height, WIDTH: width}


def prepare(request: Request) -> Subject:
    """Build or load what a request names.

    Raises:
        UsageError: The request cannot be met.
        CheckpointError: The weights do not fit.
    """
    if request.batch is not None and request.batch < 1:
        raise UsageError(f"batch size {request.batch}: must be at least 1")
    if request.attention not in ATTENTION:
        raise UsageError(
            f"unknown attention form {request.attention!r}{nearest(request.attention, ATTENTION)}"
        )
    if isinstance(request.subject, nn.Module) and not isinstance(
        request.subject, VisionTransformer
    ):
        return _foreign(request, request.subject)
    return _ours(request)


def _ours(request: Request) -> Subject:
    if request.weights is None:
        _check_for_weights_only(request)
    stem, labels, report = "", tuple(request.labels), None
    name = request.subject if isinstance(request.subject, str) else None
    if isinstance(request.subject, VisionTransformer):
        if request.overrides or request.weights is not None:
            raise UsageError("a model that is built already takes neither weights nor overrides")
        model = request.subject.eval()
        weights = Weights(source="given module")
        preprocess = Preprocess.of(model.config)
    elif request.weights is not None:
        loaded = load_checkpoint(
            request.weights,
            variant=name,
            overrides=request.overrides,
            layout=request.layout,
            reset_head=request.reset_head,
        )
        model, preprocess = loaded.model, loaded.preprocess
        weights = msgspec.structs.replace(loaded.weights, reset_head=request.reset_head)
        labels, report = labels or loaded.labels, loaded.report
        stem = "" if model.config.variant else _stem(request.weights)
    elif name is None:
        raise UsageError("say what to export: --variant NAME, --weights FILE or --module PKG:NAME")
    else:
        config = get_variant(name, **request.overrides)
        model = create_model(config, seed=request.seed)
        weights = Weights.drawn(request.seed)
        preprocess = Preprocess.of(config)
    config = model.config
    if config.num_classes == 0 and "logits" in request.outputs and len(request.outputs) > 1:
        raise UsageError("--outputs names logits, but a model without classes has none")
    check_labels(labels, config.num_classes)
    model.set_attention(request.attention)
    image_hw: tuple[int | str, int | str] = config.image_hw
    other_sizes: tuple[tuple[int, int], ...] = ()
    if request.dynamic_size:
        model = AnySizeVisionTransformer.of(model).set_attention(request.attention)
        image_hw, other_sizes = (HEIGHT, WIDTH), _other_sizes(config)
    outputs = vit_outputs(model, request.outputs)
    return Subject(
        model=outputs,
        inputs=(_images(request.batch, config.in_chans, image_hw),),
        outputs=_kept(outputs, request.outputs),
        variant=config.variant,
        stem=stem or config.variant,
        config=_plain(config),
        weights=weights,
        preprocess=preprocess.replace(request.preprocess),
        labels=labels,
        other_sizes=other_sizes,
        report=report,
        owned=not isinstance(request.subject, nn.Module),
    )


def _other_sizes(config: ViTConfig) -> tuple[tuple[int, int], ...]:
    """Sizes that differ from the trained one: a taller, a wider and a smaller grid."""
    (height, width), patch = config.image_hw, config.patch_size
    sizes = ((height + 2 * patch, width + patch), (height, width + 4 * patch))
    return (*sizes, (max(patch, height - 3 * patch), max(patch, width - 2 * patch)))


def _check_for_weights_only(request: Request) -> None:
    if request.reset_head or request.layout is not None:
        option = "--reset-head" if request.reset_head else "--layout"
        raise UsageError(f"{option} speaks of a checkpoint: give one with --weights FILE")


def _kept(outputs: Outputs, wanted: Sequence[str]) -> tuple[str, ...]:
    """The outputs asked for; a model without a head gives its features instead of logits."""
    kept = tuple(name for name in outputs.names if name in wanted)
    return kept or outputs.names[:1]


def _foreign(request: Request, module: nn.Module) -> Subject:
    if request.dynamic_size:
        raise UsageError("--dynamic-size is for our own variants, whose positions it resamples")
    if request.weights is not None:
        raise UsageError("--weights loads our own variants; load a module's weights in its factory")
    _check_for_weights_only(request)
    if request.attention != "decomposed":
        raise UsageError(
            "--attention is for our own variants; in a module of yours call "
            "F.scaled_dot_product_attention and export with --opset 23"
        )
    if tuple(request.outputs) != ("logits",):
        raise UsageError("--outputs is for our own variants; a module gives what it returns")
    cfg = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    config = dict(request.overrides)
    unknown = set(config) - {"img_size", "in_chans"}
    if unknown:
        raise UsageError(
            f"a module has no field {', '.join(sorted(unknown))}: only img_size and in_chans can "
            "be set, which say what images it takes"
        )
    channels, height, width = cfg.get("input_size", (3, 224, 224))
    channels = parse_field("in_chans", config.get("in_chans", channels), 3)
    size = parse_field("img_size", config.get("img_size", (height, width)), 224)
    image_hw = (size, size) if isinstance(size, int) else size
    known = {key: cfg[key] for key in ("crop_pct", "interpolation", "mean", "std") if cfg.get(key)}
    preprocess = Preprocess.for_images(channels, image_hw).replace(known | dict(request.preprocess))
    module = module.eval()
    inputs = (_images(request.batch, channels, image_hw),)
    outputs = module_outputs(module, [example_input(spec) for spec in inputs])
    outputs.fixed_batch = request.batch  # which may be the only one that it takes
    name = type(module).__name__
    return Subject(
        model=outputs,
        inputs=inputs,
        outputs=outputs.names,
        variant=name,
        stem=name,
        config={},
        weights=Weights(source=f"module {type(module).__module__}.{type(module).__qualname__}"),
        preprocess=preprocess,
        labels=tuple(request.labels),
    )


def _images(batch: int | None, channels: int, image_hw: tuple[int | str, int | str]) -> TensorSpec:
    return TensorSpec(PIXEL_VALUES, "float32", (batch or BATCH_DIM, channels, *image_hw))


def _plain(config: ViTConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def _stem(weights: str | os.PathLike[str]) -> str:
    return Path(str(weights).removeprefix("hf:").split("@")[0]).stem


def import_module(spec: str, *, seed: int = 0) -> nn.Module:
    """Build a module from `package.module:factory`.

    Args:
        spec: Names a callable without arguments that returns a module, or a module.
        seed: For factories that draw random weights.

    Raises:
        UsageError: It cannot be imported or called, or gives something else.
    """
    name, colon, attribute = spec.partition(":")
    if not (name and colon and attribute):
        raise UsageError(f"--module {spec}: expected package.module:factory")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        found = importlib.import_module(name)
    except FAILURES_OF_FOREIGN_CODE as error:
        raise UsageError(
            f"--module {spec}: cannot import {name}: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(found, attribute):
        raise UsageError(
            f"--module {spec}: {name} has no {attribute!r}{nearest(attribute, vars(found))}"
        )
    made = getattr(found, attribute)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise UsageError(f"--module {spec}: is a {type(made).__name__}, expected a factory")
        torch.manual_seed(seed)
        try:
            made = made()
        except FAILURES_OF_FOREIGN_CODE as error:
            raise UsageError(
                f"--module {spec}: the factory failed: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"--module {spec}: gave a {type(made).__name__}, expected an nn.Module")
    return made
