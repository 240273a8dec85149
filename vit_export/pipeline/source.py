"""Load what is to be exported (a variant, a checkpoint or a module), and record its reference."""

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vit_export.artifact.golden import Golden, pictures
from vit_export.artifact.labels import check_labels
from vit_export.artifact.manifest import TensorSpec, TokenMerging, Weights
from vit_export.artifact.preprocess import Preprocess, check_preprocess_fields
from vit_export.artifact.vocabulary import LOGITS, PIXEL_VALUES, Activation
from vit_export.checkpoint.load import LoadReport, load_checkpoint
from vit_export.errors import (
    ExportError,
    GateError,
    UsageError,
    check_known,
    nearest,
    with_article,
)
from vit_export.images.folder import user_pictures
from vit_export.images.prepare import normalize
from vit_export.model.dynamic_size import AnySizeVisionTransformer
from vit_export.model.token_merging import merge_tokens, token_counts
from vit_export.model.vit import VisionTransformer, create_model
from vit_export.pipeline.libraries.timm import load_timm
from vit_export.pipeline.libraries.transformers import load_transformers
from vit_export.pipeline.settings import ExportSettings
from vit_export.pipeline.zero_shot import encoder_settings, with_text_head
from vit_export.progress import Progress
from vit_export.reference.example import example_input
from vit_export.reference.near_ties import without_near_ties
from vit_export.reference.oracle import record
from vit_export.reference.outputs import Outputs, describe_error, module_outputs, vit_outputs
from vit_export.variants import PREPARATION, ViTConfig, get_variant, parse_field

LIBRARIES = {"timm:": load_timm, "hf:": load_transformers}  # by how a source begins
LEAST_GOLDEN = 3  # images that form every batch of the gate
BATCH_DIM, HEIGHT, WIDTH = "batch_size", "height", "width"


@dataclass(frozen=True, kw_only=True)
class LoadedSource:
    """A model that is ready to be recorded and exported."""

    model: Outputs  # in evaluation mode, with named outputs
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]  # names of the outputs to keep in the artifact
    variant: str  # name of the model, also of the default output file
    config: Mapping[str, Any]  # fields of its ViTConfig; empty for a user's module
    weights: Weights
    preprocess: Preprocess
    labels: tuple[str, ...]
    activation: Activation | None  # None for a module, whose outputs show it
    activation_from: str = "checkpoint's config"  # where that was found
    other_sizes: tuple[tuple[int, int], ...] = ()  # (height, width); measured too
    report: LoadReport | None = None  # where there was a checkpoint
    full_model: VisionTransformer | None = None  # where `model` merges tokens
    token_merging: TokenMerging | None = None
    notes: tuple[str, ...] = ()  # for the user
    owned: bool = False  # the model was built here, so that its weights can be freed

    def free(self) -> None:
        """Free the weights, which rewrite rules of torch's exporter keep with their last graph."""
        if self.owned:
            full = () if self.full_model is None else self.full_model.parameters()
            for parameter in (*self.model.parameters(), *full):
                parameter.data = torch.empty(0)

    @property
    def example_sizes(self) -> dict[str, int]:
        """Sizes to trace dynamic dimensions with: all different, none special."""
        if not self.other_sizes:
            return {}
        return dict(zip((HEIGHT, WIDTH), self.other_sizes[0], strict=True))


def load_source(
    source: str | nn.Module | None,
    *,
    weights: str | os.PathLike[str] | None = None,
    settings: ExportSettings = ExportSettings(),
) -> LoadedSource:
    """Build or load the model to export; arguments and errors are those of `export`."""
    if settings.text_embeddings is not None:
        encoder = load_source(source, weights=weights, settings=encoder_settings(settings))
        return with_text_head(encoder, settings.text_embeddings, settings)
    if weights is None and (settings.reset_head or settings.layout is not None):
        option = "--reset-head" if settings.reset_head else "--layout"
        raise UsageError(f"{option} needs --weights FILE")
    if isinstance(source, nn.Module) and not isinstance(source, VisionTransformer):
        return _load_module(source, weights, settings)
    if settings.random_init and weights is not None:
        raise UsageError("--random-init and --weights are two sources of the weights")
    if isinstance(source, str) and source.startswith(tuple(LIBRARIES)):
        return _load_library(source, weights, settings)
    labels, report = tuple(settings.labels), None
    activation: Activation = "softmax"
    if isinstance(source, VisionTransformer):
        if settings.overrides or weights is not None:
            raise UsageError("a model that is built already takes neither weights nor overrides")
        model = source.eval()
        preprocess = Preprocess.of(source.config).replace(settings.preprocess)
        origin = Weights(source="given module")
    elif weights is not None:
        loaded = load_checkpoint(
            weights,
            variant=source,
            overrides=_config_changes(settings),
            layout=settings.layout,
            reset_head=settings.reset_head,
        )
        model, preprocess = loaded.model, loaded.preprocess
        origin = loaded.weights.replace(reset_head=settings.reset_head)
        labels, report = labels or loaded.labels, loaded.report
        activation = loaded.activation
    elif source is not None:
        model = create_model(get_variant(source, **_config_changes(settings)), seed=settings.seed)
        preprocess = Preprocess.of(model.config)
        origin = Weights(source=f"random (seed {settings.seed})", seed=settings.seed)
    else:
        raise UsageError(
            "there is nothing to export",
            hint="give --variant NAME, --weights FILE or --module PKG:NAME",
        )
    config = model.config
    if config.num_classes == 0 and LOGITS in settings.outputs and len(settings.outputs) > 1:
        raise UsageError("--outputs names logits, but a model without classes has none")
    check_labels(labels, config.num_classes)
    image_hw: tuple[int | str, int | str] = config.image_hw
    other_sizes: tuple[tuple[int, int], ...] = ()
    if settings.dynamic_size:
        model = AnySizeVisionTransformer.of(model)
        image_hw, other_sizes = (HEIGHT, WIDTH), _other_sizes(config)
    shape = (settings.batch or BATCH_DIM, config.in_chans, *image_hw)
    full_model = model.set_attention(settings.attention)
    merging = None
    if (per_block := settings.merge_tokens) is not None:
        if config.num_classes < 2:
            raise UsageError(
                f"--merge-tokens compares classes with those of the full model, and this one has "
                f"{config.num_classes or 'none'}: expected at least 2"
            )
        model = merge_tokens(full_model, per_block)
        merging = TokenMerging(per_block=per_block, tokens=tuple(token_counts(config, per_block)))
    outputs = vit_outputs(model, settings.outputs)
    kept = tuple(name for name in outputs.names if name in settings.outputs)
    return LoadedSource(
        model=outputs,
        inputs=(TensorSpec(PIXEL_VALUES, "float32", shape),),
        outputs=kept or outputs.names[:1],  # a model without a head has no logits
        variant=config.variant,
        config={k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()},
        weights=origin,
        preprocess=preprocess,
        labels=labels,
        activation=activation,
        other_sizes=other_sizes,
        report=report,
        full_model=None if merging is None else full_model,
        token_merging=merging,
        owned=not isinstance(source, nn.Module),
    )


def _config_changes(settings: ExportSettings) -> dict[str, Any]:
    """Return every change of the config: the image preparation is a part of it."""
    check_preprocess_fields(settings.preprocess)
    for name in settings.overrides.keys() & settings.preprocess.keys():
        raise UsageError(
            f"{name} is given twice: in overrides (--set) and in preprocess (--{name})"
        )
    return {**settings.overrides, **settings.preprocess}


def _other_sizes(config: ViTConfig) -> tuple[tuple[int, int], ...]:
    """Sizes that differ from the trained one: a taller, a wider and a smaller grid."""
    (height, width), patch = config.image_hw, config.patch_size
    sizes = ((height + 2 * patch, width + patch), (height, width + 4 * patch))
    return (*sizes, (max(patch, height - 3 * patch), max(patch, width - 2 * patch)))


def _check_no_variant(*further: tuple[str, bool, str], settings: ExportSettings) -> None:
    """Raise UsageError for settings that only a named variant can follow."""
    for option, given, hint in (
        ("--merge-tokens", settings.merge_tokens is not None,
         "export a variant with --variant or --weights"),
        ("--dynamic-size", settings.dynamic_size, "give one size with --img-size"),
        ("--attention", settings.attention != "decomposed",
         "where the module calls F.scaled_dot_product_attention, export it with --opset 23"),
        *further,
    ):  # fmt: skip
        if given:
            raise UsageError(f"{option} is for named variants, not for a module", hint=hint)


def _load_library(
    source: str, weights: str | os.PathLike[str] | None, settings: ExportSettings
) -> LoadedSource:
    """Load a model of timm or transformers, with everything that its library says about it."""
    library, _, name = source.partition(":")
    _check_no_variant(
        ("--layout", settings.layout is not None, "the library names the tensors"),
        ("--reset-head", settings.reset_head, "train the new head before the export"),
        settings=settings,
    )
    found = LIBRARIES[f"{library}:"](name, weights=weights, settings=settings)
    preprocess = found.preprocess
    shape = (settings.batch or BATCH_DIM, len(preprocess.mean), *preprocess.size)
    images = TensorSpec(PIXEL_VALUES, "float32", shape)
    outputs = module_outputs(found.module, [example_input(images)], found.compute)
    outputs.fixed_batch = settings.batch
    wanted = settings.outputs if tuple(settings.outputs) != (LOGITS,) else outputs.names[:1]
    for output in wanted:
        check_known("output", output, outputs.names)
    return LoadedSource(
        model=outputs,
        inputs=(images,),
        outputs=tuple(wanted),
        variant=found.name,
        config={},
        weights=found.weights,
        preprocess=preprocess,
        labels=tuple(settings.labels) or found.labels,
        activation=found.activation,
        report=found.report,
        notes=found.notes,
        owned=True,
    )


def _load_module(
    module: nn.Module, weights: str | os.PathLike[str] | None, settings: ExportSettings
) -> LoadedSource:
    """Load a module; UsageError for settings that only a named variant can follow."""
    _check_no_variant(
        ("--weights", weights is not None, "load the weights of a module in its factory"),
        ("--outputs", tuple(settings.outputs) != (LOGITS,),
         "a module is exported with the outputs it returns"),
        settings=settings,
    )  # fmt: skip
    if unknown := set(settings.overrides) - {"img_size", "in_chans"}:
        raise UsageError(
            f"a module has no field {', '.join(sorted(unknown))}: only img_size and in_chans can "
            "be set, the size and channels of the images it takes"
        )
    # what a module made by timm says of the images that it takes
    described = (getattr(module, name, None) for name in ("pretrained_cfg", "default_cfg"))
    configs = (config for config in described if isinstance(config, Mapping))
    timm = next((config for config in configs if len(config.get("input_size") or ()) == 3), {})
    channels, height, width = timm.get("input_size", (3, 224, 224))
    channels = parse_field("in_chans", settings.overrides.get("in_chans", channels), 3)
    size = parse_field("img_size", settings.overrides.get("img_size", (height, width)), 224)
    image_hw = (size, size) if isinstance(size, int) else size
    preprocess = Preprocess.for_images(channels, image_hw)
    known = {name: timm[name] for name in PREPARATION if timm.get(name)}
    shape = (settings.batch or BATCH_DIM, channels, *image_hw)
    images = TensorSpec(PIXEL_VALUES, "float32", shape)
    outputs = module_outputs(module.eval(), [example_input(images)])
    outputs.fixed_batch = settings.batch
    kind = type(module)
    return LoadedSource(
        model=outputs,
        inputs=(images,),
        outputs=outputs.names,
        variant=kind.__name__,
        config={},
        weights=Weights(source=f"module {kind.__module__}.{kind.__qualname__}"),
        preprocess=preprocess.replace(known | dict(settings.preprocess)),
        labels=tuple(settings.labels),
        activation=None,
    )


def build_module(spec: str, *, seed: int = 0) -> nn.Module:
    """Build a user's module from `package.module:factory`; the package may lie in this folder.

    The factory takes no arguments, and torch's random numbers are seeded; a module in its place is
    taken as it is.
    """
    package, _, name = spec.partition(":")
    if not (package and name):
        raise UsageError(f"--module {spec}: expected package.module:factory")
    folder, before = os.getcwd(), list(sys.path)
    sys.path.insert(0, folder)  # as `python -m` does
    problem = f"cannot import {package}"
    try:
        imported = importlib.import_module(package)
        made = getattr(imported, name, None)
        problem = "the factory failed"
        if callable(made) and not isinstance(made, nn.Module):
            torch.manual_seed(seed)
            made = made()
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        kind = UsageError if isinstance(error, ImportError) else ExportError
        raise kind(f"--module {spec}: {problem}: {describe_error(error)}") from error
    finally:
        # The module's forward can still import files of this folder, but later imports of
        # libraries do not find a file such as `json.py` in it.
        sys.path[:] = before if folder in before else [*before, folder]
    if not hasattr(imported, name):
        close = nearest(name, vars(imported))
        raise UsageError(f"--module {spec}: {package} has no {name!r}{close}")
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"--module {spec}: gives {with_article(type(made).__name__)}, expected an nn.Module "
            "or a function that returns one"
        )
    return made


def record_golden(
    loaded: LoadedSource, images: str | os.PathLike[str] | None, progress: Progress
) -> Golden:
    """Record the reference on synthetic golden images, and on those of a folder if there is one."""
    preprocess = loaded.preprocess

    def at(size: tuple[int, int], folder: str | os.PathLike[str] | None = None) -> Golden:
        shown = pictures(*size, len(preprocess.mean))
        if folder is not None:
            shown = np.concatenate([shown, user_pictures(folder, preprocess)])
        if loaded.token_merging is not None:
            shown = _without_near_ties(loaded, shown)
        inputs = {loaded.inputs[0].name: normalize(shown, preprocess)}
        return record(loaded.model, inputs, images=shown, progress=progress)

    others = tuple(at(size) for size in loaded.other_sizes)
    return replace(at(preprocess.size, images), others=others)


def _without_near_ties(loaded: LoadedSource, shown: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the golden images on which rounding cannot change which tokens are merged."""
    stable = without_near_ties(loaded.model, normalize(shown, loaded.preprocess))
    if stable.sum() < LEAST_GOLDEN:
        raise GateError(
            f"on {len(shown) - stable.sum()} of {len(shown)} golden images rounding to float32 can "
            f"change which tokens are merged, so the export cannot be measured on them, and "
            f"{LEAST_GOLDEN} others are needed",
            hint="give more images with --images, or merge another number of tokens",
        )
    return shown[stable]


def choose_activation(
    loaded: LoadedSource, golden: Golden, wanted: Activation | None
) -> tuple[Activation, tuple[str, ...]]:
    """Return how logits become scores, and a note where that is neither usual nor asked for.

    The float64 outputs show whether a user's module ends in a softmax, whose rows add up to 1, or
    in a sigmoid, whose values lie between 0 and 1.
    """
    chosen = wanted or loaded.activation
    if chosen is not None:
        if wanted or chosen == "softmax":
            return chosen, ()
        return chosen, (
            f"the activation of the scores is {chosen}, as the {loaded.activation_from} says; "
            "--activation softmax changes it",
        )
    logits = golden.outputs.get(LOGITS)
    if logits is None or logits.ndim != 2:
        return "softmax", ()
    if logits.min() >= 0 and abs(logits.sum(axis=1) - 1).max() < 1e-6:
        last = "softmax (each row adds up to 1)"
    elif logits.min() > 0 and logits.max() < 1:
        last = "sigmoid (each value lies between 0 and 1)"
    else:
        return "softmax", ()
    return "none", (
        f"the module seems to end in a {last}, so predict shows its outputs unchanged; "
        "--activation softmax applies a softmax to them",
    )
