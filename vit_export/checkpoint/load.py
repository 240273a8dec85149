"""Any checkpoint of a Vision Transformer into ours, with an account of every tensor.

Nothing is guessed in silence: a tensor is used, resampled, re-initialised because that was
asked for, or unused, and the report says which. Whatever does not fit is one error.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import save_file

from vit_export.artifact.manifest import METADATA_KEY, Preprocess, Weights
from vit_export.checkpoint.architecture import resolve
from vit_export.checkpoint.assemble import assemble, check_shapes, convert_shapes
from vit_export.checkpoint.hub import fetch
from vit_export.checkpoint.layouts.rules import Binding, Layout, bind, unsupported_parts
from vit_export.checkpoint.layouts.tables import LAYOUTS, recognise
from vit_export.checkpoint.metadata import read_sidecar
from vit_export.checkpoint.tensor_files import INDEX_SUFFIX, TensorFile, open_tensors
from vit_export.errors import CheckpointError, ConfigError, OutputError, UsageError, nearest
from vit_export.model.vit import VisionTransformer
from vit_export.variants import ViTConfig, get_variant

HEAD_PREFIXES = ("head.", "head_dist.")


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of every tensor, and where every config field came from.

    Attributes:
        layout: Name of the layout.
        source: Base name of the file or folder, or the hub's id with its commit.
        sha256: Hash of the weights file; of all of them in order when there are several.
        used: Names in the file that went into the model, converted or not.
        resampled: Names in the file that were resampled to another grid.
        reinitialised: Names in the model that were set to zero because that was asked for.
        unused: Names in the file that the model does not take.
        inferred: Config fields that the tensors' shapes show.
        assumed: What could not be seen, and where it came from, e.g.
            `{"num_heads": "12, from variant vit_base_patch16_224"}`.
    """

    layout: str
    source: str
    sha256: str
    used: tuple[str, ...]
    resampled: tuple[str, ...]
    reinitialised: tuple[str, ...]
    unused: tuple[str, ...]
    inferred: Mapping[str, Any]
    assumed: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with its weights, and all that is known about it.

    Attributes:
        model: In evaluation mode, float32.
        config: Its architecture and image preparation.
        preprocess: How an image becomes `pixel_values`.
        labels: Class names; empty when the checkpoint has none.
        report: What became of every tensor.
        weights: What the manifest records of them.
    """

    model: VisionTransformer
    config: ViTConfig
    preprocess: Preprocess
    labels: tuple[str, ...]
    report: LoadReport
    weights: Weights


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where the weights lie, and what to call them."""

    path: Path
    name: str  # for the manifest: no folders of this machine
    stem: str  # for a model that fits no variant


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
        variant: Which variant it is; read off the file where it is left out.
        overrides: Config fields set by the user. Another `img_size` than the file's resamples
            the position embedding; another `num_classes` needs `reset_head`, 0 leaves the
            head out.
        layout: Name of the layout; recognised from the tensors' names where it is left out.
        reset_head: Start with a linear head of zeros and without a pre-logits layer, as the
            paper does for transfer (arXiv 2010.11929, section 3.1).

    Raises:
        CheckpointError: The file cannot be read, or anything in it does not fit.
        UsageError: An unknown variant, layout or config field.
    """
    wanted = dict(overrides or {})
    known = get_variant(variant) if variant is not None else None
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(
            f"unknown layout {layout!r}{nearest(layout, LAYOUTS)} (layouts: {', '.join(LAYOUTS)})"
        )
    fields = {field.name for field in dataclasses.fields(ViTConfig)}
    ViTConfig(variant="").replace({k: v for k, v in wanted.items() if k not in fields})
    found = _locate(source, known)
    file = open_tensors(found.path)
    chosen, binding = _bind(file, layout)
    shapes = convert_shapes(file, binding)
    sidecar = read_sidecar(file.path.parent, layout=chosen.name)
    own, own_labels = _own_config(file)
    learned = "pos_embed" in shapes.converted and (own is None or own.pos_embed == "learned")
    if learned and wanted.get("pos_embed", "learned") != "learned":
        raise CheckpointError(
            f"{file.path} holds position embeddings, which pos_embed={wanted['pos_embed']} would "
            "throw away; leave that setting out"
        )
    architecture = resolve(
        shapes.converted,
        layout=chosen,
        sidecar=sidecar,
        own=own,
        variant=known,
        overrides=wanted,
        heads=own.num_heads if own else _heads_seen(file, chosen),
        source=str(file.path),
        stem=found.stem,
    )
    config, dropped = _choose_head(
        architecture.config, wanted, reset_head=reset_head, source=str(file.path)
    )
    check_shapes(
        shapes, binding, config=architecture.config, dropped=dropped, source=str(file.path)
    )
    if config.pos_embed == "sincos" and config.grid_hw != architecture.config.grid_hw:
        dropped |= {"pos_embed"}  # a formula: computed for the new grid
    model, account = assemble(
        file,
        [step for step in binding.steps if step.target not in dropped],
        source_config=architecture.config,
        config=config,
        source=str(file.path),
    )
    labels, about_labels = _labels(
        own_labels or sidecar.labels, config, head_kept="head.weight" not in dropped
    )
    unused = tuple(
        name for step in binding.steps if step.target in dropped for name in step.sources
    )
    unused += (*binding.ignored, *file.aside)
    report = LoadReport(
        layout=chosen.name,
        source=found.name,
        sha256=file.sha256(),
        used=tuple(account.used),
        resampled=tuple(account.resampled),
        reinitialised=tuple(account.reinitialised),
        unused=unused,
        inferred=architecture.inferred,
        assumed={**architecture.assumed, **about_labels, **file.notes},
    )
    changes = [*account.changes, *([f"unused: {', '.join(unused)}"] if unused else [])]
    return Loaded(
        model=model,
        config=config,
        preprocess=msgspec.structs.replace(Preprocess.of(config), crop_mode=sidecar.crop_mode),
        labels=labels,
        report=report,
        weights=Weights(
            source=found.name,
            layout=chosen.name,
            sha256=report.sha256,
            changes=tuple(changes),
        ),
    )


def _locate(source: str | os.PathLike[str], variant: ViTConfig | None) -> _Source:
    text = os.fspath(source)
    if text == "hub" or text.startswith("hf:"):
        fetched = fetch(text, variant=variant)
        return _Source(path=fetched.path, name=fetched.name, stem=fetched.stem)
    path = Path(text)
    name = path.resolve().name
    stem = name.removesuffix(INDEX_SUFFIX)
    return _Source(path=path, name=name, stem=stem if path.is_dir() else Path(stem).stem)


def _bind(file: TensorFile, forced: str | None) -> tuple[Layout, Binding]:
    """The layout of a file, with its rules applied; parts that we lack are refused here."""
    names = list(file.tensors)
    if not names:
        raise CheckpointError(f"{file.path} holds no tensors: nothing to load")
    if forced is not None:
        layout, binding = LAYOUTS[forced], bind(LAYOUTS[forced], names)
    else:
        recognised = recognise(names, file.metadata)
        if recognised is None:
            raise CheckpointError(
                f"{file.path} is no Vision Transformer that vit-export knows: its "
                f"{len(names)} tensors are named {', '.join(names[:6])}, ... Known layouts: "
                f"{', '.join(layout.title for layout in LAYOUTS.values())}; any other nn.Module "
                "can be exported with --module pkg:factory"
            )
        layout, binding = recognised
    parts = unsupported_parts(layout, names)
    if parts:
        lines = [
            f"  + {what}: {shown[0]}" + (f" and {len(shown) - 1} more" if shown[1:] else "")
            for what, shown in parts.items()
        ]
        raise CheckpointError(
            f"cannot load {file.path} ({layout.title}): its model has parts that vit-export's "
            "VisionTransformer has not\n"
            + "\n".join(lines)
            + "\n  try: --module pkg:factory, which exports the original module"
        )
    return layout, binding


def _heads_seen(file: TensorFile, layout: Layout) -> int | None:
    """The number of heads where queries are stored a head apart."""
    if not layout.heads_seen_in:
        return None
    for match in layout.finds(layout.heads_seen_in, file.tensors):
        kernel = file.tensors[match.group()]
        return kernel.shape[1] if kernel.ndim == 3 else None
    return None


def _own_config(file: TensorFile) -> tuple[ViTConfig | None, tuple[str, ...]]:
    """Config and labels that `save_checkpoint` put into a file."""
    text = file.metadata.get(METADATA_KEY)
    if text is None:
        return None, ()
    try:
        data = json.loads(text)
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in data["config"].items()
        }
        return ViTConfig(**fields), tuple(data.get("labels", ()))
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"{file.path}: its metadata key {METADATA_KEY!r} holds no config that this "
            f"vit-export understands ({error!r}); upgrade with: pip install -U vit-export"
        ) from error


def _labels(
    labels: tuple[str, ...], config: ViTConfig, *, head_kept: bool
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Labels that fit the head, and a note where they do not."""
    if not labels or not head_kept:
        return (), {}
    if len(labels) != config.num_classes:
        note = f"none: {len(labels)} were given, the head has {config.num_classes} classes"
        return (), {"labels": note}
    return labels, {}


def _choose_head(
    config: ViTConfig, overrides: Mapping[str, Any], *, reset_head: bool, source: str
) -> tuple[ViTConfig, set[str]]:
    """The config wanted, and the names of ours that it does not take from the file."""
    changes = {k: overrides[k] for k in ("img_size", "num_classes") if k in overrides}
    target = config.replace(changes)
    there, wanted = config.num_classes, target.num_classes
    heads = [f"{head}{p}" for head in HEAD_PREFIXES for p in ("weight", "bias")]
    if reset_head and wanted:
        pre_logits = [f"pre_logits.fc.{p}" for p in ("weight", "bias")]
        return target.replace({"representation_size": 0}), {*heads, *pre_logits}
    if reset_head:
        raise CheckpointError(
            f"cannot reset the head of {source}: it has none, so nothing says how many classes "
            "the new one has; give --num-classes N"
        )
    if wanted == 0:
        return target, set(heads)
    if there == wanted:
        return target, set()
    found = f"a head for {there} classes" if there else "no head"
    keep = f", --num-classes {there} to keep the head" if there else ""
    raise CheckpointError(
        f"{source} has {found}, and {wanted} classes were asked for\n"
        f"  try: --reset-head to start from a head of zeros{keep}, or --num-classes 0 to export "
        "features"
    )


def save_checkpoint(
    model: VisionTransformer, path: str | os.PathLike[str], *, labels: tuple[str, ...] = ()
) -> None:
    """Write a model in our own layout: safetensors with config and labels inside.

    The file appears under its name when it is complete.

    Args:
        model: What to save.
        path: Name of the file, e.g. `best.safetensors`.
        labels: Class names.

    Raises:
        OutputError: It cannot be written.
    """
    path = Path(path)
    about = {"config": dataclasses.asdict(model.config), "labels": list(labels)}
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(state, temporary, metadata={METADATA_KEY: json.dumps(about)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write the checkpoint {path}: {error}") from error
