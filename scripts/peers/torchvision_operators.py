"""Make torchvision importable beside a torch for CPUs: import this before what imports it.

Its wheels are built for CUDA. Beside another torch they raise an error unless these operators,
which a Vision Transformer does not use, are known.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
for _operator in ("nms", "qnms"):
    LIBRARY.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
