"""The last encoder block for the tokens that the head reads.

The head of a model that reads its class token leaves all other tokens unread. Of them the last
block only needs keys and values: queries, projection and MLP are computed for the leading tokens up
to the last one that is read. The values of these tokens stay the same.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vit_export.model.vit import Attention, Block
from vit_export.variants import ViTConfig


def count_read_tokens(config: ViTConfig) -> int | None:
    """Return R, the number of leading tokens that the head reads; None where it needs them all."""
    if config.global_pool != "token" or config.rope != "none":  # angles are those of all tokens
        return None
    read = 2 if config.distilled else config.read_token + 1
    return read if read < config.num_tokens else None


class ReadAttention(Attention):
    """Attention with queries for the first R tokens only; it shares the weights of another."""

    def __init__(self, attention: Attention, read: int) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.attend, self.read = attention.num_heads, attention.attend, read
        for name, part in attention.named_children():
            if name != "qkv":
                self.add_module(name, part)
        dim = attention.qkv.in_features
        self.q = _rows(attention.qkv, 0, dim)
        self.kv = _rows(attention.qkv, dim, 3 * dim)

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """Return queries (B, h, R, d), keys and values (B, h, N, d)."""
        parts = self.q(x[:, : self.read]), *self.kv(x).chunk(2, dim=-1)  # (B, R or N, D)
        return [part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts]


class LastBlock(Block):
    """Block that gives the first R tokens only; it shares the weights of another."""

    def __init__(self, block: Block, read: int) -> None:
        nn.Module.__init__(self)
        for name, part in block.named_children():
            self.add_module(name, part)
        self.attn = ReadAttention(block.attn, read)
        self.read = read
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, : self.read] + self.attention_branch(x)  # (B, N, D) -> (B, R, D)
        return x + self.mlp_branch(x)


def _rows(linear: nn.Linear, start: int, stop: int) -> nn.Linear:
    """Return a linear layer of some outputs of another, with parameters of its own.

    A slice in the graph would leave a computed matrix, which no conversion takes for a weight.
    """
    part = nn.Linear(linear.in_features, stop - start, bias=linear.bias is not None, device="meta")
    part.weight = nn.Parameter(linear.weight.detach()[start:stop])
    if linear.bias is not None:
        part.bias = nn.Parameter(linear.bias.detach()[start:stop])
    return part
