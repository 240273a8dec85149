"""Image classifiers and image encoders of transformers, from a folder or a repository."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vit_export.artifact.labels import parse_labels
from vit_export.artifact.manifest import Weights
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import FEATURES, LOGITS
from vit_export.checkpoint.hub import REPOSITORY, Location, fetch
from vit_export.checkpoint.load import LoadReport
from vit_export.checkpoint.metadata import SCORES, processor_preparation
from vit_export.checkpoint.tensor_files import open_tensors
from vit_export.errors import CheckpointError, ConfigError, ExportError, UsageError
from vit_export.pipeline.libraries.library_model import (
    LibraryModel,
    captured_logs,
    import_library,
    library_error,
)
from vit_export.pipeline.libraries.preparation import (
    HINT,
    Transform,
    chosen_preparation,
)
from vit_export.pipeline.libraries.weights import (
    open_weights,
    raise_for_tensors,
    weights_origin,
    weights_report,
)
from vit_export.pipeline.settings import ExportSettings
from vit_export.reference.outputs import call_error, describe_error
from vit_export.variants import parse_field

CLASSIFIER = re.compile(r"ForImageClassification(WithTeacher)?$")
ENCODER = re.compile(r"(VisionModel(WithProjection)?|(?<!Vision)Model)$")
VISION = ("VisionModelWithProjection", "VisionModel")  # the image half of an image-text model
POOLED = ("image_embeds", "pooler_output")  # fields of an encoder's result, the first that it has
CONVNEXT_CROPS_BELOW = 384  # its image processor crops smaller images only


def load_transformers(
    name: str, *, weights: str | os.PathLike[str] | None, settings: ExportSettings
) -> LibraryModel:
    """Load a model of transformers from a folder or a repository.

    Raises:
        UsageError: It is neither a classifier nor an encoder of images, or settings do not fit it.
        CheckpointError: transformers is missing, the model cannot be downloaded, or tensors are
            missing.
    """
    what = f"the transformers model {name}"
    transformers = import_library("transformers", needed_for=what)
    if unknown := sorted(set(settings.overrides) - {"img_size"}):
        raise UsageError(
            f"{what} takes no {', '.join(unknown)}: its config.json fixes them",
            hint="save the model with another config, and give its folder",
        )
    own_weights = weights is None and not settings.random_init
    folder, place = _locate(name, with_weights=own_weights)
    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            kind, config = _kind(transformers, config, what)
            if settings.random_init:
                model, origin, report, notes = _random(kind, config, settings.seed)
            elif weights is not None:
                model, origin, report, notes = _with_file(kind, config, weights, what)
            else:
                model, origin, report, notes = _with_own(kind, config, folder, place, what)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError) as error:
            raise library_error("transformers", what, error) from error
        model.eval()
        preprocess = _preparation(transformers, folder, config, settings, what)
        classifies = bool(CLASSIFIER.search(kind.__name__))
        compute = _compute(model, preprocess, classifies=classifies)
    return LibraryModel(
        module=model,
        compute=compute,
        name=place.stem,
        preprocess=preprocess,
        weights=origin,
        labels=_labels(config) if classifies else (),
        activation=SCORES.get(getattr(config, "problem_type", None) or "", "softmax"),
        report=report,
        notes=notes,
    )


def _locate(name: str, *, with_weights: bool) -> tuple[Path, Location]:
    """Return the folder of a model, in the hub's cache after a download."""
    folder = Path(name)
    if folder.is_dir():
        full = folder.absolute()
        return folder, Location(path=folder, name=full.name, stem=full.name)
    if name.startswith(".") or not REPOSITORY.fullmatch(f"hf:{name}"):
        raise UsageError(f"--hf {name}: there is no such folder, and it names no repository",
                         hint="expected a folder, or OWNER/NAME of a repository")  # fmt: skip
    place = fetch(f"hf:{name}", variant=None, weights=with_weights)
    return place.path.parent, place


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Show neither the log nor the progress bars of transformers."""
    logging = transformers.utils.logging
    showed = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with captured_logs("transformers"), torch.random.fork_rng(devices=[]):
            yield
    finally:
        if showed:
            logging.enable_progress_bar()


def _kind(transformers: ModuleType, config: Any, what: str) -> tuple[Any, Any]:
    """Return the class that a config names and its config: of the image half of a pair."""
    if config.model_type == "timm_wrapper":
        raise UsageError(
            f"{what} is a model of timm",
            hint="export it with --timm hf-hub:OWNER/NAME or --timm local-dir:FOLDER",
        )
    first = next(iter(config.architectures or ()), "")
    if hasattr(config, "vision_config") and first.endswith("Model"):
        for ending in VISION:
            kind = getattr(transformers, first.removesuffix("Model") + ending, None)
            if kind is not None:
                vision = config.vision_config
                if hasattr(config, "projection_dim"):  # of the pair, whatever the half says
                    vision.projection_dim = config.projection_dim
                return kind, vision
    kind = getattr(transformers, first, None) if first else None
    if kind is None or not (CLASSIFIER.search(first) or ENCODER.search(first)):
        raise UsageError(
            f"{what} is {first or 'of no class that its config.json names'}, expected an image "
            "classifier or an image encoder",
            hint="export a module of your own with --module package.module:factory",
        )
    return kind, config


Filled = tuple[Any, Weights, LoadReport | None, tuple[str, ...]]  # model, origin, report, notes


def _random(kind: Any, config: Any, seed: int) -> Filled:
    torch.manual_seed(seed)
    model = kind(config)
    return model, Weights(source=f"random (seed {seed})", seed=seed), None, ()


def _with_file(kind: Any, config: Any, weights: str | os.PathLike[str], what: str) -> Filled:
    """Load a user's file, whose every tensor must match."""
    file, place = open_weights(weights)
    tensors = {name: file.read(name) for name in file.tensors}
    model, info = kind.from_pretrained(None, config=config, state_dict=tensors, **LOADING)
    _raise_for(info, str(file.path), what, unexpected=info["unexpected_keys"])
    report = weights_report(file, place, library="transformers")
    return model, weights_origin(report), report, ()


def _with_own(kind: Any, config: Any, folder: Path, place: Location, what: str) -> Filled:
    """Load the weights that lie beside the config."""
    model, info = kind.from_pretrained(folder, config=config, **LOADING)
    _raise_for(info, place.name, what, unexpected=())
    unused = sorted(info["unexpected_keys"])
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if unused:
        more = f" and {len(unused) - 1} more" if unused[1:] else ""
        text = f"{kind.__name__} does not use {unused[0]}{more}"
        changes, notes = (f"unused: {', '.join(unused)}",), (text,)
    origin = Weights(
        source=place.name,
        layout="transformers",
        sha256=open_tensors(folder).sha256(),
        changes=changes,
    )
    return model, origin, None, notes


LOADING: Mapping[str, Any] = {
    "dtype": torch.float32,
    "output_loading_info": True,
    "ignore_mismatched_sizes": True,  # they are named together with the missing ones
}


def _raise_for(info: Mapping[str, Any], source: str, what: str, *, unexpected: Any) -> None:
    """Raise CheckpointError for tensors that transformers did not load."""
    shapes = {name: f"{tuple(file)} in the file, {tuple(model)} in the model"
              for name, file, model in info["mismatched_keys"]}  # fmt: skip
    missing = set(info["missing_keys"]) - set(shapes)
    raise_for_tensors(source, of=what, missing=missing, unexpected=unexpected, mismatched=shapes)


def _preparation(
    transformers: ModuleType, folder: Path, config: Any, settings: ExportSettings, what: str
) -> Preprocess:
    """Return the preparation of the image processor beside the config, with the user's changes."""
    wanted = settings.overrides.get("img_size") or getattr(config, "image_size", None) or 224
    size = parse_field("img_size", wanted, 224)
    size = (size, size) if isinstance(size, int) else size
    channels = getattr(config, "num_channels", 3)

    def library() -> tuple[Preprocess, Transform]:
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(
                folder, backend="pil", trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise UsageError(
                f"how to prepare images for {what} is unknown: {describe_error(error)}", hint=HINT
            ) from error
        except (ImportError, RuntimeError) as error:
            raise library_error("transformers", what, error) from error
        preprocess, transform = _read_processor(processor, folder, channels)
        if "img_size" in settings.overrides and preprocess.size != size:
            raise UsageError(
                f"the image processor of {what} makes images of (H, W) = {preprocess.size}, and "
                f"{size} was asked for",
                hint=f"leave --img-size out, or {HINT}",
            )
        return preprocess, transform

    return chosen_preparation(
        size, channels, settings.preprocess, library=library, what=f"images of {what}"
    )


def _read_processor(processor: Any, folder: Path, channels: int) -> tuple[Preprocess, Transform]:
    """Return the preparation that an image processor's fields describe, and the processor."""

    def transform(picture: Image.Image) -> NDArray[np.float32]:
        pixels: NDArray[np.float32] = processor(picture, return_tensors="np")["pixel_values"][0]
        return pixels

    fields: dict[str, Any] = processor.to_dict()
    if "resample" in fields:
        fields["resample"] = int(fields["resample"])
    edge = (fields.get("size") or {}).get("shortest_edge")
    if edge and "crop_pct" in fields:  # of ConvNeXt
        if edge < CONVNEXT_CROPS_BELOW:
            fields["size"] = {"shortest_edge": int(edge / fields["crop_pct"])}
            fields |= {"do_center_crop": True, "crop_size": {"height": edge, "width": edge}}
        else:
            fields["size"] = {"height": edge, "width": edge}
    try:
        changes = processor_preparation(fields, folder=folder, channels=channels)
    except CheckpointError as error:
        raise ConfigError(error.message) from error
    height, width = transform(Image.new("RGB", (80, 64))).shape[-2:]
    return Preprocess.for_images(channels, (height, width)).replace(changes), transform


def _labels(config: Any) -> tuple[str, ...]:
    """Return the class names in a config; none where they are LABEL_0, LABEL_1, ..."""
    try:
        labels = parse_labels({"id2label": {str(k): v for k, v in config.id2label.items()}})
    except ValueError:
        return ()
    return () if all(name == f"LABEL_{n}" for n, name in enumerate(labels)) else labels


def _compute(
    model: Any, preprocess: Preprocess, *, classifies: bool
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return what computes logits, or the features of an encoder."""
    if classifies:
        return lambda images: {LOGITS: model(pixel_values=images, return_dict=True).logits}
    images = torch.zeros((2, len(preprocess.mean), *preprocess.size))
    try:
        with torch.no_grad():
            result = model(pixel_values=images, return_dict=True)
    except (Exception, SystemExit) as error:  # whatever the model raises
        raise call_error(model, [images], error) from error
    field = next((name for name in POOLED if result.get(name) is not None), None)
    if field is None:
        raise ExportError(
            f"{type(model).__name__} returns {', '.join(result)}, expected {' or '.join(POOLED)}",
            hint="wrap it in a module of your own, and export it with --module",
        )

    def features(images: Tensor) -> dict[str, Tensor]:
        pooled: Tensor = model(pixel_values=images, return_dict=True)[field]
        return {FEATURES: pooled.flatten(1)}

    return features
