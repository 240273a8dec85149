"""A model on the golden images: the truth that every artifact of it is measured by."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vit_export.artifact.golden import Golden, pictures
from vit_export.images.folder import user_pictures
from vit_export.images.prepare import normalize
from vit_export.pipeline.source import Subject
from vit_export.progress import Progress
from vit_export.reference.oracle import record


def record_golden(subject: Subject, images: Any, progress: Progress) -> Golden:
    """Run the model in float64 and float32 on the golden images."""
    preprocess = subject.preprocess

    def at(size: tuple[int, int], users: Any = None) -> Golden:
        shown = pictures(*size, len(preprocess.mean))
        if users is not None:
            shown = user_pictures(Path(users), preprocess, before=shown)
        inputs = {subject.inputs[0].name: normalize(shown, preprocess)}
        return record(subject.model, inputs, images=shown, progress=progress)

    others = tuple(at(size) for size in subject.other_sizes)
    return dataclasses.replace(at(preprocess.size, images), others=others)
