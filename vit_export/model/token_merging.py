"""Token merging: each block merges the patch tokens that are most alike.

"Token Merging: Your ViT But Faster" (Bolya et al., arXiv 2210.09461), written from section 3 of the
paper. Between attention and MLP, bipartite soft matching takes the patch tokens in turn into the
sets A and B, finds for each of A the most similar of B, and merges the R pairs that are most alike
into the one of B, as an average weighted by their sizes. The similarity of two tokens is the cosine
between their keys, averaged over the heads. A token counts in attention as often as patches were
merged into it. Prefix tokens are never merged.

The number of tokens in each block depends on R alone, so the graph has static shapes. Tokens are
moved by products with matrices of zeros and ones, without scatter, gather or Shape nodes.

The last block merges nothing: nothing reads its patches.
"""

from __future__ import annotations

import copy
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_export.errors import UsageError, with_article
from vit_export.model.last_block import LastBlock, count_read_tokens
from vit_export.model.vit import Attend, Block, VisionTransformer
from vit_export.variants import ViTConfig

ATTENTION_PARTS = ("qkv", "proj", "proj_drop")  # layers that work on merged tokens too
Stream: TypeAlias = tuple[Tensor, Tensor | None]  # tokens (B, N, D); sizes (B, N, 1), None: all 1


def token_counts(config: ViTConfig, per_block: int) -> list[int]:
    """Return N, the number of tokens that each block takes: the last one takes the fewest.

    UsageError where a block would have to merge half of its patch tokens or more.
    """
    patches = config.num_tokens - config.num_prefix_tokens
    most = (patches - 1) // config.depth if config.depth > 1 else 0
    if not 1 <= per_block <= most:
        blocks = f"{config.depth} block{'s' if config.depth > 1 else ''}"
        limit = f"a number from 1 to {most}, so that each block keeps more than half of them"
        raise UsageError(
            f"--merge-tokens {per_block}: the model has {patches} patch tokens and {blocks}, "
            f"expected {limit if most else 'more of them, since the last block merges none'}"
        )
    return [config.num_tokens - i * per_block for i in range(config.depth)]


class ProportionalAttention:
    """Attention that counts a token as often as its size says (section 3, "Tracking Token Size").

    Adding log(size) to the logits of a key is the same as repeating the token.
    """

    def __init__(self, attend: Attend) -> None:
        self.attend = attend
        self.sizes: Tensor | None = None  # (B, N, 1), of the next call
        self.keys = torch.empty(0)  # (B, N, d), of the last call, averaged over the heads

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.keys = k.mean(dim=1)
        if self.sizes is None:
            return self.attend(q, k, v)
        bias = self.sizes.log().transpose(1, 2).unsqueeze(1)  # (B, 1, 1, N)
        return self.attend(q, k, v, attn_mask=bias)


class Matching(nn.Module):
    """Bipartite soft matching of patch tokens (section 3, "Bipartite Soft Matching").

    The first token belongs to A, the second to B, and so on.
    """

    def __init__(self, num_prefix: int, tokens: int, pairs: int) -> None:
        super().__init__()
        self.num_prefix, self.tokens, self.pairs = num_prefix, tokens, pairs

    def extra_repr(self) -> str:
        return f"{self.pairs} pairs of {self.tokens} tokens"  # blocks are traced alike by it

    def similarity(self, keys: Tensor) -> Tensor:
        """Return the cosine of the keys (B, N, d) of each token of A with each of B, (B, a, b)."""
        patches = keys[:, self.num_prefix :]
        patches = patches * (patches.square().sum(dim=-1, keepdim=True) + 1e-12).rsqrt()
        return patches[:, 0::2] @ patches[:, 1::2].transpose(1, 2)

    def forward(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the pairs to merge.

        Returns two matrices of zeros and ones: `kept` (B, a - R, a) picks the tokens of A that
        stay, in their order; `merged` (B, b, a) adds the others to their partners in B.
        """
        scores = self.similarity(keys)
        best, partner = scores.max(dim=2)  # (B, a)
        numbers = [torch.arange(size) for size in scores.shape[1:]]
        chosen = (best.topk(self.pairs).indices.unsqueeze(2) == numbers[0]).to(keys.dtype)
        leaves = chosen.sum(dim=1, keepdim=True)  # (B, 1, a)
        merged = (partner.unsqueeze(1) == numbers[1].unsqueeze(1)).to(keys.dtype) * leaves
        stays = 1 - leaves
        place = stays.cumsum(dim=2) * stays  # 1, 2, ... for the tokens that stay, else 0
        kept = (place == numbers[0][: -self.pairs].unsqueeze(1) + 1).to(keys.dtype)
        return kept, merged


def merge(stream: Stream, kept: Tensor, merged: Tensor, num_prefix: int) -> Stream:
    """Merge tokens into averages weighted by their sizes; A comes before B in the result."""
    x, sizes = stream
    # a last channel holds the sizes, so that each product sums tokens and sizes at once
    weighted = F.pad(x, (0, 1), value=1.0) if sizes is None else torch.cat((x * sizes, sizes), 2)
    prefix, patches = weighted[:, :num_prefix], weighted[:, num_prefix:]
    a, b = patches[:, 0::2], patches[:, 1::2]
    weighted = torch.cat((prefix, kept @ a, b + merged @ a), dim=1)
    sizes = weighted[:, :, -1:]
    return weighted[:, :, :-1] / sizes, sizes


class MergingBlock(Block):
    """Block that merges tokens between attention and MLP; it shares the weights of another.

    The first one takes tokens (B, N, D), the others tokens and their sizes.
    """

    def __init__(self, block: Block, matching: Matching) -> None:
        nn.Module.__init__(self)
        for name, part in block.named_children():
            self.add_module(name, part)
        self.attn = copy.copy(block.attn)
        self.attn.attend = self.proportional = ProportionalAttention(block.attn.attend)
        self.matching = matching
        self.train(block.training)

    def forward(self, stream: Tensor | Stream) -> Stream:  # type: ignore[override]  # with sizes
        x, sizes = (stream, None) if isinstance(stream, Tensor) else stream
        self.proportional.sizes = sizes
        x = x + self.attention_branch(x)
        kept, merged = self.matching(self.proportional.keys)
        x, sizes = merge((x, sizes), kept, merged, self.matching.num_prefix)
        return x + self.mlp_branch(x), sizes


class LastMergingBlock(LastBlock):
    """Block for the tokens that the head reads, whose keys and values have sizes."""

    def __init__(self, block: Block, read: int) -> None:
        super().__init__(block, read)
        self.attn.attend = self.proportional = ProportionalAttention(block.attn.attend)

    def forward(self, stream: Tensor | Stream) -> Tensor:
        x, self.proportional.sizes = (stream, None) if isinstance(stream, Tensor) else stream
        return super().forward(x)


def merge_tokens(model: VisionTransformer, per_block: int) -> VisionTransformer:
    """Make a model that merges R pairs of patch tokens in each block, `per_block`.

    It shares the weights of `model` and its form of attention, and gives the tokens that the head
    reads only. UsageError where its tokens cannot be merged, or not so many.
    """
    check_mergeable(model)
    config = model.config
    read = cast(int, count_read_tokens(config))
    counts, prefix = token_counts(config, per_block), config.num_prefix_tokens
    with torch.device("meta"):
        merging = VisionTransformer(config)
    merging.load_state_dict(model.state_dict(), assign=True)
    blocks = cast(list[Block], list(model.blocks))
    for i, tokens in enumerate(counts[:-1]):
        merging.blocks[i] = MergingBlock(blocks[i], Matching(prefix, tokens, per_block))
    merging.blocks[-1] = LastMergingBlock(blocks[-1], read)
    return merging.eval()


def check_mergeable(model: VisionTransformer) -> None:
    """Raise UsageError where the tokens of a model cannot be merged, with the reason."""
    for block in model.blocks:
        if type(block) is not Block:
            raise UsageError(
                f"--merge-tokens: a block is {with_article(type(block).__name__)}, and only plain "
                "encoder blocks can merge tokens"
            )
        for name, part in block.attn.named_children():
            if name not in ATTENTION_PARTS and not isinstance(part, nn.Identity):
                raise UsageError(
                    f"--merge-tokens: the attention of this model has "
                    f"{with_article(type(part).__name__)} ({name!r}), which needs one position for "
                    "each token, and a merged token has several",
                    hint="it is for models whose positions are added before the first block",
                )
    config, read = model.config, count_read_tokens(model.config)
    if read is None or read > config.num_prefix_tokens:
        what = f"{config.global_pool!r}" if read is None else f"token {config.read_token}"
        raise UsageError(
            f"--merge-tokens: the head reads patches (global_pool={what}), which are merged",
            hint="it is for models that read their class token",
        )
