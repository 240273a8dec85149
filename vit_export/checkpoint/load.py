"""Load any checkpoint of a Vision Transformer, with a report of every tensor.

Each tensor is used, resampled, re-initialised on request, or unused, and the report says which.
Everything that does not fit is listed in one error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vit_export.artifact.manifest import Weights
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import Activation
from vit_export.checkpoint.architecture import Architecture, resolve
from vit_export.checkpoint.assemble import Shapes, assemble, check_shapes, convert_shapes
from vit_export.checkpoint.hub import Location, fetch
from vit_export.checkpoint.layouts.recognise import LAYOUTS, recognise
from vit_export.checkpoint.layouts.rules import Binding, Layout, Step, bind, unsupported_parts
from vit_export.checkpoint.metadata import MODULE_HINT, Metadata, read_metadata
from vit_export.checkpoint.own import read_config
from vit_export.checkpoint.tensor_files import INDEX_SUFFIX, TensorFile, open_tensors
from vit_export.errors import CheckpointError, UsageError, nearest
from vit_export.model.vit import VisionTransformer
from vit_export.variants import ViTConfig, get_variant

HEADS = tuple(f"{head}.{p}" for head in ("head", "head_dist") for p in ("weight", "bias"))
PRE_LOGITS = ("pre_logits.fc.weight", "pre_logits.fc.bias")


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of every tensor, and where every config field came from."""

    layout: str
    source: str  # base name of the file or folder, or the hub's id with its commit
    sha256: str  # of the weights file; of several files together, in their order
    used: tuple[str, ...]  # names in the file that the model uses, converted or not
    resampled: tuple[str, ...]  # names in the file that were resampled to another grid
    reinitialised: tuple[str, ...]  # names in the model that were set to zero, as requested
    unused: tuple[str, ...]  # names in the file that the model does not use
    inferred: Mapping[str, Any]  # config fields that the tensors' shapes show
    # fields that are not in the file: {"num_heads": "12, from variant vit_base_patch16_224"}
    assumed: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with its weights and everything that is known about it."""

    model: VisionTransformer  # in evaluation mode, float32
    config: ViTConfig
    preprocess: Preprocess  # turns an image into `pixel_values`
    activation: Activation  # turns logits into scores
    labels: tuple[str, ...]  # class names; empty where the checkpoint has none
    report: LoadReport
    weights: Weights  # for the manifest


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the tensors of a file become a model, found without reading their data."""

    layout: str
    metadata: Metadata
    architecture: Architecture  # of the model that the file was saved from
    config: ViTConfig  # of the model wanted: the same, or with another image size or head
    steps: tuple[Step, ...]  # tensors to load
    unused: tuple[str, ...]  # names in the file that are not loaded


def load_checkpoint(
    source: str | os.PathLike[str],
    *,
    variant: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    layout: str | None = None,
    reset_head: bool = False,
) -> Loaded:
    """Load weights of any known layout.

    Args:
        source: A file, a folder, `hub` (the variant's repository) or `hf:owner/name[@revision]`.
        variant: Variant of the model; inferred by default.
        overrides: Config fields set by the user. With another `img_size` than the file's the
            position embedding is resampled; another `num_classes` needs `reset_head`, and 0
            removes the head.
        layout: Name of the layout; recognised from the tensors' names by default.
        reset_head: Replace the head with a zero-initialised one without a pre-logits layer, as
            for transfer in the paper (arXiv 2010.11929, section 3.1).

    Raises:
        CheckpointError: The file cannot be read, or does not fit.
        UsageError: An unknown variant, layout or config field.
    """
    overrides = overrides or {}
    known = get_variant(variant) if variant is not None else None
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(
            f"unknown layout {layout!r}{nearest(layout, LAYOUTS)} (layouts: {', '.join(LAYOUTS)})"
        )
    plain = ViTConfig(variant="")
    plain.replace({k: v for k, v in overrides.items() if k not in vars(plain)})  # unknown fields
    located = _locate(source, known)
    file = open_tensors(located.path)
    plan = plan_load(
        file,
        overrides=overrides,
        layout=layout,
        variant=known,
        reset_head=reset_head,
        stem=located.stem,
    )
    model, account = assemble(
        file, plan.steps, source_config=plan.architecture.config, config=plan.config
    )
    labels, about_labels = _labels(plan)
    report = LoadReport(
        layout=plan.layout,
        source=located.name,
        sha256=file.sha256(),
        used=tuple(account.used),
        resampled=tuple(account.resampled),
        reinitialised=tuple(account.reinitialised),
        unused=plan.unused,
        inferred=plan.architecture.inferred,
        assumed={**plan.architecture.assumed, **about_labels, **file.notes},
    )
    unused = [f"unused: {', '.join(plan.unused)}"] if plan.unused else []
    preprocess = Preprocess.of(plan.config)
    return Loaded(
        model=model,
        config=plan.config,
        preprocess=msgspec.structs.replace(preprocess, crop_mode=plan.metadata.crop_mode),
        activation=plan.metadata.activation,
        labels=labels,
        report=report,
        weights=Weights(
            source=located.name,
            layout=plan.layout,
            sha256=report.sha256,
            changes=(*account.changes, *unused),
        ),
    )


def _locate(source: str | os.PathLike[str], variant: ViTConfig | None) -> Location:
    text = os.fspath(source)
    if text == "hub" or text.startswith("hf:"):
        return fetch(text, variant=variant)
    path = Path(text)
    return Location(path=path, name=Path(os.path.abspath(path)).name, stem=checkpoint_stem(path))


def checkpoint_stem(path: str | os.PathLike[str]) -> str:
    """Return the name of a checkpoint's folder, or of its file without the suffix.

    A link counts by its own name: in the hub's cache it points to a file named by its hash.
    """
    path = Path(os.path.abspath(path))
    name = path.name.removesuffix(INDEX_SUFFIX)
    return name if path.is_dir() else Path(name).stem


def _bind(file: TensorFile, forced: str | None) -> tuple[Layout, Binding]:
    """The layout of a file, forced or recognised, applied to its names."""
    names = list(file.tensors)
    if not names:
        raise CheckpointError(f"{file.path} holds no tensors")
    layout = LAYOUTS[forced] if forced else recognise(names, file.metadata)
    if layout is None:
        titles = ", ".join(layout.title for layout in LAYOUTS.values())
        raise CheckpointError(
            f"{file.path} is not recognised as a Vision Transformer: its {len(names)} tensors "
            f"are named {', '.join(names[:6])}, ... Known layouts: {titles}",
            hint=MODULE_HINT,
        )
    if parts := unsupported_parts(layout, names):
        lines = [
            f"  + {part}: {shown[0]}" + (f" and {len(shown) - 1} more" if shown[1:] else "")
            for part, shown in parts.items()
        ]
        raise CheckpointError(
            f"cannot load {file.path} ({layout.title}): its model has parts that vit-export's "
            "VisionTransformer lacks\n" + "\n".join(lines),
            hint=MODULE_HINT,
        )
    return layout, bind(layout, names)


def plan_load(
    file: TensorFile,
    *,
    overrides: Mapping[str, Any],
    layout: str | None = None,
    variant: ViTConfig | None = None,
    reset_head: bool = False,
    stem: str = "model",
) -> Plan:
    """Find out how to load a file, and check all shapes, without reading tensor data.

    Arguments and errors are those of `load_checkpoint`; `stem` names a model that is no variant.
    """
    source = str(file.path)
    chosen, binding = _bind(file, layout)
    shapes = convert_shapes(file, binding)
    beside = read_metadata(file.path.parent, layout=chosen.name)
    own, metadata = read_config(file) or (None, beside)
    _check_positions(shapes, own, overrides, source=source)
    architecture = resolve(
        shapes.converted,
        layout=chosen,
        metadata=metadata,
        own=own,
        variant=variant,
        overrides=overrides,
        num_heads=_heads_from_shapes(file, chosen),
        source=source,
        stem=stem,
    )
    config, dropped = _choose_head(architecture.config, overrides, reset_head, source)
    check_shapes(shapes, binding, config=architecture.config, dropped=dropped, source=source)
    if config.pos_embed == "sincos" and config.grid_hw != architecture.config.grid_hw:
        dropped = {*dropped, "pos_embed"}  # a formula: computed for the new grid
    return Plan(
        layout=chosen.name,
        metadata=metadata,
        architecture=architecture,
        config=config,
        steps=tuple(step for step in binding.steps if step.target not in dropped),
        unused=(
            *(name for step in binding.steps if step.target in dropped for name in step.sources),
            *binding.ignored,
            *file.aside,
        ),
    )


def _check_positions(
    shapes: Shapes, own: ViTConfig | None, overrides: Mapping[str, Any], *, source: str
) -> None:
    """Raise CheckpointError where the position embedding would be lost or cannot be understood."""
    if "pos_embed" not in shapes.converted:
        return
    if "cls_token" not in shapes.converted and "cls_token" not in shapes.failed:
        raise CheckpointError(
            f"cannot load {source}: it has no class token, and vit-export's VisionTransformer "
            "needs one",
            hint=MODULE_HINT,
        )
    learned = own is None or own.pos_embed == "learned"
    if learned and overrides.get("pos_embed", "learned") != "learned":
        raise CheckpointError(
            f"{source} holds position embeddings, and pos_embed={overrides['pos_embed']} would "
            "drop them",
            hint="leave that setting out",
        )


def _heads_from_shapes(file: TensorFile, layout: Layout) -> int | None:
    """The number of heads in libraries that keep an axis for them."""
    for match in layout.matches(layout.heads_axis_of, file.tensors):
        kernel = file.tensors[match.group()]
        return kernel.shape[1] if kernel.ndim == 3 else None
    return None


def _labels(plan: Plan) -> tuple[tuple[str, ...], dict[str, str]]:
    """The labels where they fit the head, and a note for the report where they do not."""
    labels, classes = plan.metadata.labels, plan.config.num_classes
    if not labels or not any(step.target == "head.weight" for step in plan.steps):
        return (), {}
    if len(labels) == classes:
        return labels, {}
    return (), {"labels": f"none: {len(labels)} were given, the head has {classes} classes"}


def _choose_head(
    config: ViTConfig, overrides: Mapping[str, Any], reset_head: bool, source: str
) -> tuple[ViTConfig, set[str]]:
    """The config wanted, and the names in our model that are not taken from the file."""
    changes = {k: overrides[k] for k in ("img_size", "num_classes") if k in overrides}
    target = config.replace(changes)
    there, wanted = config.num_classes, target.num_classes
    if reset_head and wanted:
        return target.replace({"representation_size": 0}), {*HEADS, *PRE_LOGITS}
    if reset_head:
        raise CheckpointError(
            f"cannot reset the head of {source}: it has no head, so the number of classes is "
            "unknown",
            hint="give --num-classes N",
        )
    if wanted == 0:
        return target, set(HEADS)
    if there == wanted:
        return target, set()
    head = f"a head for {there} classes" if there else "no head"
    keep = f"--num-classes {there} keeps the head, " if there else ""
    raise CheckpointError(
        f"{source} has {head}, and {wanted} classes were requested",
        hint=f"--reset-head starts with a zero-initialised head, {keep}--num-classes 0 exports "
        "features",
    )
