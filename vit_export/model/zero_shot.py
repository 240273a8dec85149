"""Head of a zero-shot classifier: cosine similarity of an image with texts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_export.artifact.text_embeddings import TextEmbeddings


class ZeroShotHead(nn.Module):
    """Logits (B, K) of features (B, D): `scale * cosine(features, text) + bias`.

    The scale is a part of the weight (K, D), whose rows are the texts' vectors.
    """

    def __init__(self, embeddings: TextEmbeddings) -> None:
        super().__init__()
        weight = torch.from_numpy(embeddings.scale * embeddings.vectors).float()
        self.weight = nn.Parameter(weight)
        bias = None
        if embeddings.bias is not None:
            bias = nn.Parameter(torch.full((len(weight),), embeddings.bias))
        self.bias = bias

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features, dim=-1), self.weight, self.bias)
