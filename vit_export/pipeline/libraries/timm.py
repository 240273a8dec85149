"""Any image model of timm, with the preparation and the labels that timm knows for it."""

import inspect
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vit_export.artifact.manifest import Weights
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import FEATURES, LOGITS
from vit_export.checkpoint.load import LoadReport
from vit_export.errors import CheckpointError, ExportError, UsageError, VitExportError, nearest
from vit_export.pipeline.libraries.library_model import (
    LibraryModel,
    captured_logs,
    import_library,
)
from vit_export.pipeline.libraries.preparation import Transform, chosen_preparation
from vit_export.pipeline.libraries.weights import (
    check_every_tensor,
    open_weights,
    weights_origin,
    weights_report,
)
from vit_export.pipeline.settings import ExportSettings
from vit_export.reference.outputs import call_error, describe_error
from vit_export.variants import parse_field

FIELDS = ("img_size", "in_chans", "num_classes")
SOURCES = ("hf-hub:", "local-dir:")  # timm's own prefixes of names


def load_timm(
    name: str, *, weights: str | os.PathLike[str] | None, settings: ExportSettings
) -> LibraryModel:
    """Build a model of timm by name, with pretrained, random or the user's own weights.

    Raises:
        UsageError: timm has no such model, or settings do not fit it.
        CheckpointError: timm is missing, or the weights cannot be downloaded or do not fit.
    """
    what = f"the timm model {name}"
    timm = import_library("timm", needed_for=what)
    _check_name(timm, name)
    wanted = _fields(settings.overrides, what)
    pretrained = weights is None and not settings.random_init
    if pretrained and not name.startswith(SOURCES) and not _has_weights(timm, name):
        raise UsageError(
            f"timm has no pretrained weights for {name}",
            hint="give --weights FILE, or --random-init for random weights",
        )
    model = _create(timm, name, wanted, settings.seed, pretrained=pretrained)
    config, report = dict(model.pretrained_cfg), None
    classes = wanted.get("num_classes")
    if weights is not None:
        report = _fill(model, weights, classes, what)
        origin = weights_origin(report)
    elif pretrained:
        _check_pretrained(config, wanted, what)
        origin = Weights(source=_origin(config), layout="timm")
    else:
        if classes:
            model.reset_classifier(classes)
        origin = Weights(source=f"random (seed {settings.seed})", seed=settings.seed)
    if classes == 0:
        model.reset_classifier(0)
    model.eval()
    channels, size = _input(config, wanted)
    preprocess = chosen_preparation(
        size,
        channels,
        settings.preprocess,
        library=lambda: _preparation(timm, config, size),
        what=f"images of {what}",
    )
    return LibraryModel(
        module=model,
        compute=_compute(model, channels, size),
        name=name.rstrip("/").rpartition("/")[2].rpartition(":")[2],
        preprocess=preprocess,
        weights=origin,
        labels=_labels(timm, model.num_classes, config, pretrained=pretrained),
        report=report,
    )


def _check_name(timm: ModuleType, name: str) -> None:
    """Raise UsageError with the nearest names where timm has no model of a name."""
    if name.startswith(SOURCES):
        return
    base, _, tag = name.partition(".")
    if "/" in name or os.path.sep in name:
        raise UsageError(
            f"timm has no model {name!r}: it looks like a repository or a folder",
            hint=f"--timm hf-hub:{name} or --timm local-dir:{name}",
        )
    if not timm.is_model(base):
        raise UsageError(f"timm has no model {base!r}{nearest(base, timm.list_models())}")
    tags = [full.partition(".")[2] for full in timm.list_models(f"{base}.*", include_tags=True)]
    if tag and tag not in tags:
        known = ", ".join(tags) or "none"
        raise UsageError(f"timm's {base} has no weights {tag!r}{nearest(tag, tags)} ({known})")


def _has_weights(timm: ModuleType, name: str) -> bool:
    config = timm.get_pretrained_cfg(name)
    return config is not None and bool(config.has_weights)


def _fields(overrides: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the fields to change as timm takes them."""
    if unknown := sorted(set(overrides) - set(FIELDS)):
        raise UsageError(
            f"{what} has no field {', '.join(unknown)} to change: only {', '.join(FIELDS)}"
        )
    kinds = {"img_size": 224, "in_chans": 3, "num_classes": 1000}
    fields = {name: parse_field(name, value, kinds[name]) for name, value in overrides.items()}
    if min((fields.get("num_classes", 0), fields.get("in_chans", 1) - 1)) < 0:
        raise UsageError(f"{what}: num_classes must be at least 0 and in_chans at least 1")
    return fields


def _create(
    timm: ModuleType, name: str, wanted: Mapping[str, Any], seed: int, *, pretrained: bool
) -> Any:
    """Call timm's own `create_model`; CheckpointError where the weights cannot be had."""
    changes = {field: wanted[field] for field in ("img_size", "in_chans") if field in wanted}
    if pretrained:
        changes.pop("in_chans", None)  # timm would add up the filters of the colours
    try:
        with (
            torch.random.fork_rng(devices=[]),
            captured_logs("huggingface_hub"),
            captured_logs("timm") as log,
        ):
            torch.manual_seed(seed)
            model = timm.create_model(name, pretrained=pretrained, **changes)
    except TypeError as error:
        if "img_size" not in changes or "img_size" not in str(error):
            raise
        others = {field: value for field, value in wanted.items() if field != "img_size"}
        return _create(timm, name, others, seed, pretrained=pretrained)  # a network of any size
    except (OSError, RuntimeError, ValueError, LookupError, AssertionError) as error:
        raise _creation_error(name, describe_error(error), pretrained=pretrained) from error
    if absent := [line for line in log if line.startswith(("Missing keys", "Unable to"))]:
        raise CheckpointError(f"timm's {name} does not fit its pretrained weights: {absent[0]}")
    return model


def _creation_error(name: str, reason: str, *, pretrained: bool) -> VitExportError:
    if not pretrained:
        return ExportError(f"timm cannot build {name}: {reason}")
    return CheckpointError(
        f"timm cannot build {name} with its pretrained weights: {reason}",
        hint="where there is no network, give a file with --weights FILE; --random-init exports "
        "random weights",
    )


def _check_pretrained(config: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Raise UsageError where pretrained weights would have to be invented in part."""
    classes, channels = config.get("num_classes"), config["input_size"][0]
    if wanted.get("num_classes") not in (None, 0, classes):
        raise UsageError(
            f"the pretrained weights of {what} have {classes} classes, and "
            f"{wanted['num_classes']} were asked for: that head would be random",
            hint="give your fine-tune with --weights FILE; --num-classes 0 exports features",
        )
    if wanted.get("in_chans", channels) != channels:
        raise UsageError(
            f"the pretrained weights of {what} read {channels} channels, and "
            f"{wanted['in_chans']} were asked for",
            hint="give your fine-tune with --weights FILE",
        )


def _fill(
    model: Any, weights: str | os.PathLike[str], classes: int | None, what: str
) -> LoadReport:
    """Load a user's file, whose every tensor must match; its head shows the number of classes."""
    file, location = open_weights(weights)
    classifier = model.pretrained_cfg.get("classifier")
    first = classifier if isinstance(classifier, str) else (classifier or ("",))[0]
    head = file.tensors.get(f"{first}.weight")
    there = classes or (head.shape[0] if head is not None else 0)
    if first and there != model.num_classes:
        model.reset_classifier(there)
    check_every_tensor(str(file.path), file.tensors, model.state_dict(), of=what)
    model.load_state_dict({name: file.read(name) for name in file.tensors})
    return weights_report(file, location, library="timm")


def _origin(config: Mapping[str, Any]) -> str:
    """Name the pretrained weights in a config: a repository of the hub, a folder or an address."""
    place = next(filter(None, map(config.get, ("hf_hub_id", "file", "url"))), "")
    return str(place).rpartition("/")[2] if not config.get("hf_hub_id") else str(place)


def _input(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[int, tuple[int, int]]:
    """Return channels and size (H, W) of the images that a model takes."""
    channels, *own = config.get("input_size") or (3, 224, 224)
    size = wanted.get("img_size", tuple(own))
    return wanted.get("in_chans", channels), (size, size) if isinstance(size, int) else size


def _preparation(
    timm: ModuleType, config: Mapping[str, Any], size: tuple[int, int]
) -> tuple[Preprocess, Transform]:
    """Return the preparation in a config, and timm's own transform of it."""
    channels = len(config["mean"])
    data = timm.data.resolve_data_config(
        {"input_size": (channels, *size)}, pretrained_cfg=dict(config)
    )
    plain = Preprocess.for_images(channels, size)
    preprocess = Preprocess(
        size=size,
        crop_pct=data["crop_pct"],
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        color=plain.color,
        crop_mode=data["crop_mode"],
    )

    def transform(picture: Image.Image) -> NDArray[np.float32]:
        pixels: Tensor = timm.data.create_transform(**data)(picture)
        return pixels.numpy()

    return preprocess, transform


def _labels(
    timm: ModuleType, classes: int, config: Mapping[str, Any], *, pretrained: bool
) -> tuple[str, ...]:
    """Return the class names in a config, or those of ImageNet for timm's own pretrained weights.

    None where their number is not that of the classes.
    """
    names = list(config.get("label_names") or ())
    described = config.get("label_descriptions") or {}
    if not names and pretrained and str(config.get("hf_hub_id")).startswith("timm/"):
        subset = timm.data.infer_imagenet_subset({"num_classes": classes})
        names = timm.data.ImageNetInfo(subset).label_descriptions() if subset else []
    return tuple(described.get(name, name) for name in names) if len(names) == classes else ()


def _compute(
    model: Any, channels: int, size: tuple[int, int]
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return what computes the outputs: features too where the head can be called apart.

    That is so where the two halves give, to the bit, what the whole model gives.
    """
    if not model.num_classes:
        return lambda images: {FEATURES: model(images)}

    def whole(images: Tensor) -> dict[str, Tensor]:
        return {LOGITS: model(images)}

    def halves(images: Tensor) -> dict[str, Tensor]:
        tokens = model.forward_features(images)
        features = model.forward_head(tokens, pre_logits=True)
        return {LOGITS: model.forward_head(tokens), FEATURES: features}

    head = getattr(model, "forward_head", None)
    if head is None or "pre_logits" not in inspect.signature(head).parameters:
        return whole
    images = torch.randn((2, channels, *size), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            expected, found = model(images), halves(images)
    except (Exception, SystemExit) as error:  # whatever the model raises
        raise call_error(model, [images], error) from error
    same = torch.equal(found[LOGITS], expected) and found[FEATURES].ndim == 2
    return halves if same else whole
