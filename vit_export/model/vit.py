"""The Vision Transformer of "An Image Is Worth 16x16 Words" (arXiv 2010.11929).

Shape letters: B batch, C channels, H W pixels, P patch, N tokens, D embed_dim, h heads, d head
width (D = h * d). Equation numbers are the paper's, parameter names timm's.

The class token is not concatenated: zero rows are padded in front of the patches, and the token
is added together with its position. `0 + (x_class + E_pos)` is `x_class + E_pos` to the bit, and
the ONNX graph has no Shape, Expand or Concat node for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_export.model.rope import RotaryEmbedding
from vit_export.variants import ViTConfig

Attend = Callable[..., Tensor]  # (q, k, v, attn_mask=None), as of F.scaled_dot_product_attention


def attend_decomposed(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attention of q, k and v (B, h, N, d) as two products and a softmax (Eq. 5 to 7).

    It holds N x N weights in memory. q is scaled before the product, so that q k^T stays small
    in half precision. The mask is added to q k^T.
    """
    q = q * q.shape[-1] ** -0.5
    scores = q @ k.transpose(-2, -1)  # (B, h, N, N)
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(dim=-1) @ v


ATTENTION: dict[str, Attend] = {
    "decomposed": attend_decomposed,
    "op": F.scaled_dot_product_attention,  # one ONNX node from opset 23 on; no N x N in memory
}


class PatchEmbed(nn.Module):
    """Projection of patches: a convolution with stride P."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(
            config.in_chans, config.embed_dim, kernel_size=size, stride=size, bias=config.patch_bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # (B, C, H, W) -> (B, D, H/P, W/P)


class Attention(nn.Module):
    """Multi-head self-attention (Eq. 8) with one matrix for queries, keys and values."""

    def __init__(self, config: ViTConfig, rope: nn.Module) -> None:
        super().__init__()
        dim, self.num_heads = config.embed_dim, config.num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.rope = rope
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(config.drop_rate)
        self.attend: Attend = F.scaled_dot_product_attention

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x)  # each (B, h, N, d)
        x = self.attend(self.rope(q), self.rope(k), v)
        x = x.transpose(1, 2).flatten(2)  # (B, N, D)
        return self.proj_drop(self.proj(x))

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """Return queries, keys and values, each (B, h, N, d)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, h, d)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)


class QuickGelu(nn.Module):
    """Approximation of GELU in OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATION: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGelu,
}


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_dim)
        self.act = ACTIVATION[config.act_layer]()
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1(x)))  # (B, N, D) -> (B, N, mlp_ratio * D)
        return self.drop(self.fc2(x))  # (B, N, D)


class SwiGlu(nn.Module):
    """MLP with a gate (arXiv 2002.05202): the first half of `fc1` gates the second."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, 2 * config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        gate, x = self.fc1(x).chunk(2, dim=-1)  # (B, N, D) -> 2 x (B, N, mlp_ratio * D)
        return self.drop(self.fc2(self.drop(F.silu(gate) * x)))  # (B, N, D)


MLP = {"mlp": Mlp, "swiglu": SwiGlu}


class LayerScale(nn.Module):
    """One factor for each channel of a branch (CaiT, arXiv 2103.17239)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((config.embed_dim,), config.init_values))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): skip a branch for some images while training."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0.0:
            return x
        keep_prob = 1.0 - self.drop_prob
        keep = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(keep_prob)
        return x * keep / keep_prob


class Block(nn.Module):
    """Pre-norm encoder block (Eq. 2 and 3)."""

    def __init__(self, config: ViTConfig, *, drop_path: float, rope: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.attn = Attention(config, rope)
        self.ls1 = LayerScale(config) if config.init_values else nn.Identity()
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mlp = MLP[config.mlp_layer](config)
        self.ls2 = LayerScale(config) if config.init_values else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention_branch(x)  # (B, N, D)
        return x + self.mlp_branch(x)

    def attention_branch(self, x: Tensor) -> Tensor:
        """Compute what attention adds to the residual stream (Eq. 2)."""
        return self.drop_path(self.ls1(self.attn(self.norm1(x))))

    def mlp_branch(self, x: Tensor) -> Tensor:
        """Compute what the MLP adds to the residual stream (Eq. 3)."""
        return self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class AttentionPool(nn.Module):
    """Pooling by attention (MAP head, arXiv 2106.04560): a learned query reads all patches."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, self.num_heads = config.embed_dim, config.num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(self.latent).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (1, h, 1, d)
        kv = self.kv(x).unflatten(-1, (2, self.num_heads, -1))  # (B, N, 2, h, d)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, h, N, d)
        x = self.proj(attend_decomposed(q, k, v).flatten(1))  # (B, D)
        return x + self.mlp(self.norm(x))


class PreLogits(nn.Module):
    """Representation layer of the ImageNet-21k models: linear and tanh."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.pooled_width, config.representation_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


class VisionTransformer(nn.Module):
    """A Vision Transformer: plain, distilled (DeiT, arXiv 2012.12877), or of a later family.

    Parts that a config does not have are `nn.Identity` or `None`.
    """

    pos_embed: Tensor | None  # E_pos, learned or fixed: (1, N, D), or patches only

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.distilled else None
        registers = config.reg_tokens
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        if config.pos_embed == "learned":
            rows, columns = config.grid_hw
            positions = config.num_prefix_positions + rows * columns
            self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim))
        elif config.pos_embed == "sincos":
            self.register_buffer("pos_embed", sincos_pos_embed(config))
        else:
            self.pos_embed = None
        self.pos_drop = nn.Dropout(config.drop_rate)
        self.norm_pre = _norm(config) if config.pre_norm else nn.Identity()
        rope = RotaryEmbedding(config) if config.rope != "none" else nn.Identity()
        rates = torch.linspace(0, config.drop_path_rate, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, drop_path=rate, rope=rope) for rate in rates)
        before, after = not config.fc_norm, config.fc_norm
        self.norm = _norm(config) if config.final_norm and before else nn.Identity()
        self.attn_pool = AttentionPool(config) if config.global_pool == "map" else None
        self.fc_norm = _norm(config) if config.final_norm and after else nn.Identity()
        self.pre_logits = PreLogits(config) if config.representation_size else nn.Identity()
        self.projection = _projection(config) if config.projection_dim else nn.Identity()
        self.head = _head(config)
        self.head_dist = _head(config) if config.distilled else None
        self.init_weights()

    def init_weights(self) -> None:
        """Draw weights and embeddings from a truncated normal (std 0.02); biases are zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        latent = self.attn_pool.latent if self.attn_pool is not None else None
        tokens = (self.cls_token, self.dist_token, self.reg_token, latent)
        for embedding in (*tokens, self.pos_embed):
            if isinstance(embedding, nn.Parameter):
                nn.init.trunc_normal_(embedding, std=0.02)

    def set_attention(self, form: str) -> VisionTransformer:
        """Compute attention as `"decomposed"` operators, or by the fused `"op"` (the default)."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = ATTENTION[form]
        return self

    def positions(self, grid_hw: Sequence[int]) -> Tensor | None:
        """Return E_pos for a grid of patches; subclasses may resample it."""
        return self.pos_embed

    def prefix_and_positions(self, grid_hw: Sequence[int]) -> Tensor | float:
        """Return the prefix tokens plus E_pos (1, N, D), to be added to the padded patches."""
        tokens = (self.cls_token, self.dist_token, self.reg_token)
        prefixes: list[Tensor] = [token for token in tokens if token is not None]
        positions = self.positions(grid_hw)
        if not prefixes:
            return 0.0 if positions is None else positions
        prefix = torch.cat(prefixes, dim=1) if prefixes[1:] else prefixes[0]
        if positions is None:
            return F.pad(prefix, (0, 0, 0, grid_hw[0] * grid_hw[1]))
        if self.config.no_embed_class:
            return torch.cat((prefix, positions), dim=1)
        num_prefix = prefix.shape[1]
        return torch.cat((prefix + positions[:, :num_prefix], positions[:, num_prefix:]), dim=1)

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Encode images (B, C, H, W) into normalised tokens (B, N, D) (Eq. 1 to 4)."""
        x = self.patch_embed(x)  # (B, C, H, W) -> (B, D, H/P, W/P)
        added = self.prefix_and_positions(x.shape[-2:])  # (1, N, D)
        x = x.flatten(2).transpose(1, 2)  # (B, H/P * W/P, D)
        x = F.pad(x, (0, 0, self.config.num_prefix_tokens, 0))  # (B, N, D)
        x = self.norm_pre(self.pos_drop(x + added))  # Eq. 1
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # Eq. 4

    def pool(self, tokens: Tensor) -> Tensor:
        """Reduce tokens (B, N, D) to one row of numbers (B, D); twice as many for "token_mean"."""
        read, num_prefix = self.config.read_token, self.config.num_prefix_tokens
        patches = tokens[:, num_prefix:]
        if self.attn_pool is not None:
            return self.attn_pool(patches)
        if self.config.global_pool == "avg":
            return patches.mean(dim=1)
        # sliced: an index is a Gather, which mobile backends lack
        token = tokens[:, read : read + 1].flatten(1)
        if self.config.global_pool == "token":
            return token
        return torch.cat((token, patches.mean(dim=1)), dim=1)

    def forward_heads(self, tokens: Tensor) -> dict[str, Tensor]:
        """Compute features (B, num_features) and logits (B, num_classes) of tokens (B, N, D)."""
        if self.head_dist is None:
            features = self.projection(self.pre_logits(self.fc_norm(self.pool(tokens))))
            if self.config.normalize:
                features = F.normalize(features, dim=-1)
            return {"logits": self.head(features), "features": features}
        cls, dist = tokens[:, 0:1].flatten(1), tokens[:, 1:2].flatten(1)
        logits = (self.head(cls) + self.head_dist(dist)) / 2
        return {"logits": logits, "features": (cls + dist) / 2}

    def forward_all(self, x: Tensor) -> dict[str, Tensor]:
        """Return `logits`, `features` and `tokens` of images (B, C, H, W)."""
        tokens = self.forward_tokens(x)
        return {**self.forward_heads(tokens), "tokens": tokens}

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images; without a head, features (B, num_features)."""
        return self.forward_all(x)["logits"]


def _norm(config: ViTConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.embed_dim, eps=config.norm_eps)


def _projection(config: ViTConfig) -> nn.Linear:
    width = config.representation_size or config.pooled_width
    return nn.Linear(width, config.projection_dim, bias=False)


def _head(config: ViTConfig) -> nn.Module:
    classes = config.num_classes
    return nn.Linear(config.num_features, classes) if classes else nn.Identity()


def sincos_pos_embed(config: ViTConfig) -> Tensor:
    """Fixed 2-D sine-cosine positions (1, N, D), zero for prefix tokens that have a position.

    As in MoCo v3 (arXiv 2104.02057, section 5) and MAE: the first half of the width encodes the
    column, the second the row; each half has first the sines, then the cosines.
    """
    rows, columns = config.grid_hw
    quarter = config.embed_dim // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)  # of each patch
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    angles = [axis[:, None] * frequencies for axis in (column, row)]
    patches = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
    return F.pad(patches, (0, 0, config.num_prefix_positions, 0)).float().unsqueeze(0)


def create_model(config: ViTConfig, *, seed: int = 0) -> VisionTransformer:
    """Build a model in evaluation mode with random weights that only depend on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(config).eval()
