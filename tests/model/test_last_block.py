"""The last block without unread tokens computes the same numbers for those that are read."""

from __future__ import annotations

import pytest
import torch

from vit_export.model.last_block import LastBlock, count_read_tokens
from vit_export.variants import VARIANTS


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        ({}, 1),
        ({"distilled": True}, 2),
        ({"read_token": 3}, 4),
        ({"read_token": 16}, None),  # the last of 17
        ({"global_pool": "avg"}, None),
    ],
)
def test_the_tokens_that_the_head_reads_are_counted(tiny_config, fields, read):
    """The class token alone, as a rule."""
    assert count_read_tokens(tiny_config.replace(fields)) == read


@pytest.mark.parametrize("form", ["decomposed", "op"])
@pytest.mark.parametrize("fields", [{}, {"distilled": True}, {"read_token": 3, "qkv_bias": False}])
def test_logits_are_the_same_and_other_tokens_are_not_computed(make_model, fields, form):
    model = make_model(**fields).set_attention(form).double()
    read = count_read_tokens(model.config)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected, tokens = model(x), model.forward_tokens(x)
        model.blocks[-1] = LastBlock(model.blocks[-1], read)
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(
            model.forward_tokens(x), tokens[:, :read], rtol=1e-12, atol=1e-13
        )
    assert not model.blocks[-1].training


def test_weights_are_shared_and_the_block_stays_as_it_was(make_model):
    """No copy of a layer is made, and every parameter has its part."""
    block = make_model().blocks[-1]
    before = {name: parameter.clone() for name, parameter in block.named_parameters()}
    last = LastBlock(block, 1)
    block.attn.qkv.weight.data += 1
    assert torch.equal(last.attn.q.weight, block.attn.qkv.weight[:32])
    assert torch.equal(last.attn.kv.weight, block.attn.qkv.weight[32:])
    assert torch.equal(torch.cat((last.attn.q.bias, last.attn.kv.bias)), block.attn.qkv.bias)
    others = {name: p for name, p in last.named_parameters() if ".q." not in name}
    for name in others.keys() & before.keys():
        assert last.get_parameter(name) is block.get_parameter(name)
    assert set(before) == set(dict(block.named_parameters()))
    assert sum(p.numel() for p in last.parameters()) == sum(p.numel() for p in block.parameters())


def products(tokens: int, dim: int, read: int | None = None) -> int:
    """Multiplications of one block."""
    of = tokens if read is None else read
    return dim * dim * (2 * tokens + of) + 2 * tokens * of * dim + of * dim * dim * 9


def test_the_last_block_of_a_base_model_needs_a_tenth_of_the_products():
    """Which saves 7 % of those of the blocks."""
    config = VARIANTS["vit_base_patch16_224"]
    whole = products(config.num_tokens, config.embed_dim)
    last = products(config.num_tokens, config.embed_dim, count_read_tokens(config))
    assert (whole - last) / (config.depth * whole) == pytest.approx(0.07, abs=0.002)
