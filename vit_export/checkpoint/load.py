"""Load any checkpoint of a Vision Transformer, with a report of every tensor.

Each tensor is used, resampled, re-initialised on request, or unused, and the report says which.
Everything that does not fit is listed in one error.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import structs

from vit_export.artifact.manifest import Weights
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import Activation
from vit_export.checkpoint.architecture import WANTED, resolve
from vit_export.checkpoint.assemble import blank_model, changed, check_shapes, convert_shapes, fill
from vit_export.checkpoint.hub import Location, fetch
from vit_export.checkpoint.layouts import LAYOUTS, recognise
from vit_export.checkpoint.layouts.meta_dino import META_DINOV3, PERIODS, rope_fields
from vit_export.checkpoint.layouts.rules import Binding, Layout, bind
from vit_export.checkpoint.metadata import MODULE_HINT, Metadata, read_metadata
from vit_export.checkpoint.network import without_prefix
from vit_export.checkpoint.own import read_config
from vit_export.checkpoint.published import published_preparation
from vit_export.checkpoint.tensor_files import INDEX_SUFFIX, TensorFile, open_tensors
from vit_export.errors import CheckpointError, check_known
from vit_export.model.vit import VisionTransformer
from vit_export.variants import ViTConfig, get_variant

HEADS = tuple(f"{head}.{p}" for head in ("head", "head_dist") for p in ("weight", "bias"))
BEFORE_HEAD = ("pre_logits.fc.weight", "pre_logits.fc.bias", "projection.weight")
LAYERS_BEFORE_HEAD = ("representation_size", "projection_dim")  # their widths; 0: none


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


def load_checkpoint(
    source: str | os.PathLike[str],
    *,
    variant: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    layout: str | None = None,
    reset_head: bool = False,
) -> Loaded:
    """Load weights of any known layout.

    `source` is a file, a folder, `hub` (the variant's repository) or `hf:owner/name[@revision]`.
    `overrides` are config fields set by the user. Another `img_size` than the file's resamples the
    position embedding. `num_classes` 0 removes the head; another number needs `reset_head`, for a
    zero-initialised head without a pre-logits layer, as for transfer in the paper (arXiv
    2010.11929, section 3.1). Variant and layout are recognised by default.
    """
    overrides = overrides or {}
    known = get_variant(variant) if variant is not None else None
    if layout is not None:
        check_known("layout", layout, LAYOUTS)
    plain = ViTConfig(variant="")
    plain.replace({k: v for k, v in overrides.items() if k not in vars(plain)})  # unknown fields
    location = locate(source, known)
    file = without_prefix(open_tensors(location.path))
    path = str(file.path)
    chosen, binding = _bind(file, layout)
    beside = read_metadata(file.path.parent, layout=chosen.name)
    own, metadata = read_config(file) or (None, beside)
    binding = _with_projection(binding, file, known, metadata)
    sha256 = file.sha256()
    fields = {**metadata.fields, **published_preparation(sha256)}
    if PERIODS in file.tensors:
        fields[PERIODS] = rope_fields(file.read(PERIODS))
    elif chosen is META_DINOV3:
        raise CheckpointError(f"{PERIODS} is not in the checkpoint, and places patches in DINOv3")
    metadata = dataclasses.replace(metadata, fields=fields)
    converted, failed = convert_shapes(file, binding)
    qkv = [file.tensors[s.sources[0]] for s in binding.steps if s.target.endswith("qkv.weight")]
    heads = next((t.shape[1] for t in qkv if t.ndim == 3), None)  # (D, h, d), as in JAX
    if "pos_embed" in converted:
        _check_positions(own, overrides, source=path)
    found = resolve(
        converted,
        layout=chosen,
        names=file.tensors,
        metadata=metadata,
        own=own,
        variant=known,
        overrides=overrides,
        num_heads=heads,
        source=path,
        stem=location.stem,
    )
    trained, assumed = found.config, {**found.assumed}
    config, dropped = _choose_head(trained, overrides, reset_head, path)
    check_shapes(converted, failed, binding, config=trained, dropped=dropped, source=path)
    old_grid, grid = trained.grid_hw, config.grid_hw
    if config.pos_embed == "sincos" and old_grid != grid:
        dropped = {*dropped, "pos_embed"}  # a formula: computed for the new grid
    steps = [step for step in binding.steps if step.target not in dropped]
    left_out = [name for s in binding.steps if s.target in dropped for name in s.sources]
    unused = (*left_out, *binding.ignored, *file.aside)
    sources = {step.target: step.sources for step in steps}
    resampled = sources.get("pos_embed", ()) if old_grid != grid else ()
    model = blank_model(config)
    zero = [n for n, tensor in model.state_dict().items() if tensor.is_meta and n not in sources]
    labels = metadata.labels if "head.weight" in sources else ()
    if len(labels) not in (0, config.num_classes):
        classes = config.num_classes
        assumed["labels"] = f"none: {len(labels)} were given, the head has {classes} classes"
        labels = ()
    preprocess = structs.replace(Preprocess.of(config), known=found.preparation_known)
    fill(model, file, steps, old_grid)
    report = LoadReport(
        layout=chosen.name,
        source=location.name,
        sha256=sha256,
        used=tuple(name for step in steps for name in step.sources if name not in resampled),
        resampled=resampled,
        reinitialised=tuple(zero),
        unused=unused,
        inferred=found.shown,
        assumed={**assumed, **file.notes},
    )
    return Loaded(
        model=model,
        config=config,
        preprocess=preprocess,
        activation=metadata.activation,
        labels=labels,
        report=report,
        weights=Weights(
            source=report.source,
            layout=report.layout,
            sha256=report.sha256,
            license=beside.license,
            changes=(*_changes(report, old_grid, grid), *changed(file, steps)),
        ),
    )


def _changes(report: LoadReport, old_grid: tuple[int, int], grid: tuple[int, int]) -> Iterator[str]:
    """What differs from the file, besides converted tensors, for the manifest."""
    if report.resampled:
        grids = " -> ".join(f"{rows}x{columns}" for rows, columns in (old_grid, grid))
        yield f"pos_embed resampled: {grids} patches, bicubic with antialias"
    if report.reinitialised:
        yield f"re-initialised to zero: {', '.join(report.reinitialised)}"
    if report.unused:
        yield f"unused: {', '.join(report.unused)}"


def locate(source: str | os.PathLike[str], variant: ViTConfig | None) -> Location:
    """Return where weights lie, after downloading those of a hub."""
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
        raise CheckpointError(
            f"{file.path} is not recognised as a Vision Transformer: its {len(names)} tensors "
            f"are named {', '.join(names[:6])}, ... Known layouts: {', '.join(LAYOUTS)}",
            hint=MODULE_HINT,
        )
    lines = []
    for pattern, part in layout.unsupported.items():
        if shown := [name for name in names if re.search(pattern, name)]:
            more = f" and {len(shown) - 1} more" if shown[1:] else ""
            lines.append(f"  + {part}: {shown[0]}{more}")
    for cue in layout.says(names):
        if cue.unsupported:
            first = next(layout.matches(cue.having[-1], names)).group()
            lines.append(f"  + {cue.unsupported}: {first}")
    if lines:
        raise CheckpointError(
            f"cannot load {file.path} ({layout.name}): its model has parts that vit-export's "
            "VisionTransformer lacks\n" + "\n".join(lines),
            hint=MODULE_HINT,
        )
    return layout, bind(layout, names)


def _with_projection(
    binding: Binding, file: TensorFile, variant: ViTConfig | None, metadata: Metadata
) -> Binding:
    """Take a head for CLIP's projection where variant or config.json say so.

    timm keeps the projection, which has no bias, as a head whose bias is zero.
    """
    width = variant.projection_dim if variant is not None else metadata.projection_dim
    by_target = {step.target: step for step in binding.steps}
    weight, bias = by_target.get("head.weight"), by_target.get("head.bias")
    if not width or weight is None or file.tensors[weight.sources[0]].shape[0] != width:
        return binding
    if bias is not None and file.read(bias.sources[0]).any():
        return binding  # a classifier that happens to be as wide
    moved = dataclasses.replace(weight, target="projection.weight")
    others = tuple(step for step in binding.steps if step not in (weight, bias))
    return dataclasses.replace(
        binding,
        steps=(*others, moved),
        ignored=(*binding.ignored, *(bias.sources if bias is not None else ())),
    )


def _check_positions(own: ViTConfig | None, overrides: Mapping[str, Any], *, source: str) -> None:
    """Raise CheckpointError where the position embedding would be lost."""
    wanted = overrides.get("pos_embed", "learned")
    if wanted != "learned" and (own is None or own.pos_embed == "learned"):
        raise CheckpointError(
            f"{source} holds position embeddings, and pos_embed={wanted} would drop them",
            hint="leave that setting out",
        )


def _choose_head(
    config: ViTConfig, overrides: Mapping[str, Any], reset_head: bool, source: str
) -> tuple[ViTConfig, set[str]]:
    """The config wanted, and the names in the model that are not taken from the file."""
    target = config.replace({name: overrides[name] for name in WANTED if name in overrides})
    there, wanted = config.num_classes, target.num_classes
    if reset_head and wanted:
        return target.replace(dict.fromkeys(LAYERS_BEFORE_HEAD, 0)), {*HEADS, *BEFORE_HEAD}
    if reset_head:
        raise CheckpointError(
            f"cannot reset the head of {source}: it has no head, so the number of classes is "
            "unknown",
            hint="give --num-classes N",
        )
    if wanted in (0, there):
        return target, set() if wanted else set(HEADS)
    head = f"a head for {there} classes" if there else "no head"
    keep = f"--num-classes {there} keeps the head, " if there else ""
    raise CheckpointError(
        f"{source} has {head}, and {wanted} classes were requested",
        hint=f"--reset-head starts with a zero-initialised head, {keep}--num-classes 0 exports "
        "features",
    )
