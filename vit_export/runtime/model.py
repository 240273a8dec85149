"""A loaded artifact: classify images, embed them, or run tensors."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import count, islice
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.labels import Labels, check_labels, class_labels
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import FEATURES, LOGITS, Activation
from vit_export.errors import ArtifactError, GateError, ImageError, InputError, UsageError
from vit_export.images.decode import ImageSource
from vit_export.images.folder import Images, is_one_image
from vit_export.images.read_ahead import read_ahead
from vit_export.runner import Runner
from vit_export.runtime.feed import preparation_for, run_images
from vit_export.runtime.prediction import Prediction, predict

Result = TypeVar("Result")


class Model:
    """An artifact that is ready to run; `load` makes it.

    Use it as a context manager, or call `close`, to free its memory at once.

    Where a method takes images, **one image** is: the path of a file, bytes, a binary file
    object, a Pillow image, or a uint8 array (H, W) or (H, W, C). **Many images** are all else: a
    folder (with all folders below), a glob pattern such as `"photos/*.jpg"`, a uint8 array
    (B, H, W, C), or any iterable of these, generators included. Images are read in batches, so
    that memory does not grow with their number. Threads prepare the next batch while one runs:
    files that a generator names are read up to a batch later, and must stay until then.

    Attributes:
        runner: Runs the artifact.
        manifest: Written by vit-export; `None` in a file of another tool.
        preprocess: How images are prepared; `None` where neither file nor caller gives it.
        labels: Class names; may be empty.
        activation: Turns logits into scores: `"softmax"`, `"sigmoid"` or `"none"`.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        preprocess: Preprocess | None = None,
        labels: Labels | None = None,
    ) -> None:
        self.runner = runner
        self.manifest = manifest = runner.manifest
        self.preprocess = own = manifest.preprocess if manifest else None
        if not isinstance(preprocess, Preprocess | None):
            raise UsageError(
                f"preprocess={preprocess!r}: expected a Preprocess or None",
                hint="from vit_export.runtime import Preprocess; Preprocess(size=..., mean=..., "
                "std=...)",
            )
        if preprocess is not None and preprocess != own:
            if manifest is not None and manifest.embedded:
                raise UsageError(
                    f"{runner.path.name}: its graph prepares images itself, by the values it was "
                    "exported with",
                    hint="leave preprocess out, or export the model with other values",
                )
            self.preprocess = preprocess
        from_manifest = manifest.labels if manifest else ()
        self.labels = from_manifest if labels is None else class_labels(labels)
        output = runner.outputs[0]
        if (
            labels is not None
            and output.name == LOGITS
            and isinstance(classes := output.shape[-1], int)
        ):
            check_labels(self.labels, classes)
        self.activation: Activation = manifest.activation if manifest else "softmax"
        self._lock = threading.Lock()
        self._with_features: Runner | None = None
        self._closed = False

    @property
    def provider(self) -> str:
        """The provider that really runs the model, e.g. `"cpu"`."""
        return self.runner.provider

    @property
    def rejected(self) -> Mapping[str, str]:
        """Providers that were tried before the one that runs the model, with the reason."""
        return getattr(self.runner, "rejected", {})

    @property
    def nodes_on_cpu(self) -> int:
        """Number of nodes, computations on shapes, that run on the CPU beside the provider."""
        return getattr(self.runner, "nodes_on_cpu", 0)

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs))
                           for specs in (self.runner.inputs, self.runner.outputs))  # fmt: skip
        state = "closed" if self._closed else f"on {self.provider!r}"
        return f"<Model {self.runner.path.name} {state}: {inputs} -> {outputs}>"

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights and all memory of the backend; the model cannot be used afterwards."""
        self._closed = True
        with self._lock:
            for runner in filter(None, (self.runner, self._with_features)):
                runner.release()

    def __call__(self, pixel_values: Any) -> dict[str, NDArray[Any]]:
        """Compute every output, e.g. `{"logits": float32 (B, num_classes)}`.

        Args:
            pixel_values: Normalised images, float32 (B, C, H, W): a numpy array, or a tensor
                that supports DLPack; or a dict by input name for a model of several inputs. Where
                the graph prepares images itself: RGB pixels of any size, uint8 (B, H, W, 3).

        Raises:
            InputError: A wrong dtype or shape, or values that were not normalised.
            UsageError: The model was closed.
        """
        self._check_open()
        spec = self.runner.inputs[0]
        feeds = pixel_values if isinstance(pixel_values, Mapping) else {spec.name: pixel_values}
        return self.runner.run(feeds, preprocess=self.preprocess)

    def run(self, pixel_values: Any) -> NDArray[Any]:
        """Compute the first output; see `__call__`."""
        return self(pixel_values)[self.runner.outputs[0].name]

    @overload  # a string is an iterable too, and this signature comes first
    def classify(  # type: ignore[overload-overlap]
        self, images: ImageSource, *, top: int = 5
    ) -> list[Prediction]: ...

    @overload
    def classify(
        self, images: Iterable[ImageSource], *, top: int = 5
    ) -> list[list[Prediction]]: ...

    def classify(
        self, images: Images, *, top: int = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """Classify one image, or many.

        Args:
            images: One image or many; see the class. To a type checker, a string or an array is
                one image: write `[folder]`, `[pattern]` or `list(batch)` for many.
            top: How many classes to return, best first. Of a model with sigmoid scores, all further
                classes with a score of at least 0.5 are returned too.

        Returns:
            For one image, its predictions; for many images, a list of such lists.

        Raises:
            ImageError: An image cannot be read, or there is none.
            DataError: A folder or pattern holds no images.
            GateError: The model computes NaN or infinity for an image.
            ArtifactError: The file has no logits, or no image preparation.
        """
        predictions = self._all(self.classify_each(images, top=top), images)
        return predictions[0] if is_one_image(images) else predictions

    def classify_each(
        self, images: Images, *, top: int = 5
    ) -> Generator[list[Prediction] | ImageError]:
        """Classify images as `classify` does, and go on where one cannot be read.

        Yields:
            The predictions of each image in turn, or the error of one that cannot be read.
        """
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise InputError(f"top={top!r}: expected a whole number, at least 1")
        self._check_classifies()
        with closing(self._each_row(images, self.runner, self.runner.outputs[0].name)) as rows:
            for row in rows:
                if isinstance(row, ImageError):
                    yield row
                else:
                    yield predict(row, activation=self.activation, labels=self.labels, top=top)

    def embed(self, images: Images, *, normalize: bool = False) -> NDArray[np.float32]:
        """Compute the features of images: what the head reads.

        Args:
            images: One image or many; see the class.
            normalize: Scale each row to length 1, so that a dot product is the cosine similarity.

        Returns:
            float32 (B, D); one image gives one row.

        Raises:
            ArtifactError: The artifact has no tensor `features`, or no image preparation.
            ImageError, DataError, GateError: As `classify`.
        """
        rows = self._all(self.embed_each(images, normalize=normalize), images)
        return np.stack(rows)

    def embed_each(
        self, images: Images, *, normalize: bool = False
    ) -> Generator[NDArray[np.float32] | ImageError]:
        """Compute features as `embed` does, and go on where an image cannot be read.

        Yields:
            The features of each image in turn, float32 (D,), or the error of one that cannot be
            read.
        """
        runner = self._runner_with_features()
        with closing(self._each_row(images, runner, FEATURES)) as rows:
            for row in rows:
                if isinstance(row, ImageError):
                    yield row
                    continue
                features = row.astype(np.float32)
                if normalize:
                    length = np.linalg.norm(features)
                    features /= np.maximum(length, np.finfo(np.float32).tiny)
                yield features

    def _each_row(
        self, images: Images, runner: Runner, output: str
    ) -> Generator[NDArray[Any] | ImageError]:
        """Prepare and run images in batches; yield the output's row of each, or its error."""
        if (preprocess := self.preprocess) is None:
            raise ArtifactError(
                f"{runner.path.name}: has no image preparation (no vit-export manifest)",
                hint="give --mean, --std, --crop-pct and --interpolation, or load(..., "
                "preprocess=Preprocess(size=..., mean=..., std=...)), or export the model with "
                "vit-export",
            )
        preprocess.check_known(runner.path.name)
        prepare, size = preparation_for(runner)
        with closing(read_ahead(images, preprocess, size, prepare)) as prepared:
            for first in count(step=size):
                if not (batch := list(islice(prepared, size))):
                    return
                rows: Iterator[NDArray[Any]] = iter(())
                if readable := [item for _, item in batch if not isinstance(item, ImageError)]:
                    self._check_open()
                    rows = iter(run_images(runner, readable, preprocess, output))
                for index, (name, item) in enumerate(batch, first):
                    if isinstance(item, ImageError):
                        yield item
                    elif np.isfinite(row := next(rows)).all():
                        yield row
                    else:
                        raise GateError(
                            f"{runner.path.name} on {self.provider!r} computes NaN or infinity "
                            f"for image {index}{name}",
                            hint="measure it on this provider: vit-export validate "
                            f"{runner.path} --provider {self.provider}",
                        )

    @staticmethod
    def _all(results: Generator[Result | ImageError], images: Images) -> list[Result]:
        """Return all results, or raise the first error with the number of its image."""
        collected: list[Result] = []
        with closing(results):
            for result in results:
                if isinstance(result, ImageError):
                    if is_one_image(images):
                        raise result
                    raise ImageError(f"image {len(collected)}: {result.message}", hint=result.hint)
                collected.append(result)
        if not collected:
            raise ImageError("no images were given, expected at least one")
        return collected

    def _runner_with_features(self) -> Runner:
        """Return a runner with the output `features`: the model's own, or a second session."""
        self._check_open()
        with self._lock:
            if self._with_features is None:
                if not self.runner.has_tensor(FEATURES):
                    raise ArtifactError(
                        f"{self.runner.path.name}: has no tensor {FEATURES!r} (its outputs: "
                        f"{', '.join(spec.name for spec in self.runner.outputs)})",
                        hint="export the .onnx file with --outputs logits,features; an engine "
                        "gives only the outputs of the file that it was built from",
                    )
                self._with_features = self.runner.expose([FEATURES])
            return self._with_features

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"{self.runner.path.name}: the model is closed", hint="load it again")

    def _check_classifies(self) -> None:
        output = self.runner.outputs[0]
        if len(output.shape) != 2 or (output.name != LOGITS and self.manifest is not None):
            raise ArtifactError(
                f"{self.runner.path.name}: its first output ({output}) is not logits (batch, "
                "classes)",
                hint="export it with --outputs logits, or call the model for its outputs",
            )
        if isinstance(classes := output.shape[1], int):
            check_labels(self.labels, classes)
