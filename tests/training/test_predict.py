"""A torch model on images in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import ProviderError, UsageError, VitExportError
from vit_export.images.prepare import normalize
from vit_export.model.vit import VisionTransformer, create_model
from vit_export.training.predict import (
    choose_device,
    memory_errors,
    normalized,
    predict_logits,
)
from vit_export.variants import get_variant


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    """Two blocks on 8 x 12 px with means and deviations of their own per channel."""
    return create_model(
        get_variant(
            "deit_ti", img_size=(8, 12), patch_size=4, depth=2, embed_dim=32, num_heads=2,
            num_classes=5,
        )
    )  # fmt: skip


def images(count: int) -> np.ndarray:
    """Noise, the same in every call."""
    return np.random.default_rng(0).integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)


def test_training_normalises_as_the_runtime_does(model: VisionTransformer) -> None:
    """To the bit: a model sees on a device what it was trained on."""
    expected = normalize(images(3), Preprocess.of(model.config))
    assert np.array_equal(normalized(model, images(3)).numpy(), expected)


def test_logits_of_many_images_are_those_of_each(model: VisionTransformer) -> None:
    """In order, at the ends of batches and in an incomplete last one."""
    found = predict_logits(model, images(10), batch_size=4)
    assert found.shape == (10, 5)
    with torch.no_grad():
        for row in (0, 3, 4, 9):
            expected = model(normalized(model, images(10)[row : row + 1]))[0]
            torch.testing.assert_close(found[row], expected)


def test_no_more_images_than_the_batch_size_are_computed_at_once(model: VisionTransformer) -> None:
    """A batch that fits in training must fit in validation."""
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    predict_logits(model, images(10), batch_size=4)
    hook.remove()
    assert sizes == [4, 4, 2]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_an_error_for_lack_of_memory_names_a_smaller_batch(error: RuntimeError) -> None:
    """Both kinds that torch raises; a batch of one image cannot be smaller."""
    device = torch.device("cpu")
    with pytest.raises(VitExportError) as caught, memory_errors(device, 32):
        raise error
    assert "batches of 32 images" in caught.value.message
    assert caught.value.hint == "try --batch-size 16"
    with pytest.raises(VitExportError) as caught, memory_errors(device, 1):
        raise error
    assert caught.value.hint == ""


def test_the_cpu_allocator_still_raises_the_error_that_is_recognised() -> None:
    """An array of 4 exabytes fits nowhere."""
    device = torch.device("cpu")
    with pytest.raises(VitExportError, match="out of memory"), memory_errors(device, 8):
        torch.empty(2**60, dtype=torch.float32)


def test_other_errors_are_not_changed() -> None:
    """They have nothing to do with memory."""
    with pytest.raises(RuntimeError, match="shape"), memory_errors(torch.device("cpu"), 8):
        raise RuntimeError("shape mismatch")


def test_rows_choose_images(model: VisionTransformer) -> None:
    """In the order in which they are asked for."""
    torch.testing.assert_close(
        predict_logits(model, images(9), batch_size=4, rows=np.array([7, 2])),
        predict_logits(model, images(9), batch_size=4)[[7, 2]],
    )


def test_predicting_is_done_in_evaluation_mode(model: VisionTransformer) -> None:
    """Stochastic depth and dropout would make predictions random."""
    model.train()
    predict_logits(model, images(1), batch_size=1)
    assert not model.training


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    """With those that are known."""
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_a_device_that_is_not_there_is_refused() -> None:
    """Training does not move to the CPU in silence."""
    with pytest.raises(ProviderError, match="--device cpu"):
        choose_device(f"cuda:{torch.cuda.device_count()}")


def test_auto_takes_cuda_where_there_is_one() -> None:
    """And the CPU elsewhere."""
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")
