"""torch.onnx.export and nothing else.

python -m peers.torch_export VARIANT WEIGHTS OUTPUT
"""

from __future__ import annotations

import sys

import torch

from peers.timm_model import timm_model


def main() -> None:
    """Do what the module says."""
    variant, weights, output = sys.argv[1:]
    model = timm_model(variant, weights)
    images = torch.zeros(2, *model.default_cfg["input_size"])
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model, (images,), output, dynamo=True, external_data=False, dynamic_shapes=({0: batch},),
        input_names=["pixel_values"], output_names=["logits"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
