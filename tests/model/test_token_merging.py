"""Merged tokens are those of loops written from the paper, one token after the other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vit_export.errors import UsageError
from vit_export.model.last_block import LastBlock
from vit_export.model.token_merging import Matching, merge, merge_tokens, token_counts
from vit_export.variants import VARIANTS


def merged_by_loops(x, sizes, keys, prefix, pairs):
    """One image: tokens, sizes as whole numbers, keys of one head each, all lists of tensors."""
    a, b = range(prefix, len(x), 2), range(prefix + 1, len(x), 2)
    similarity = {
        (i, j): float(keys[i] @ keys[j] / (keys[i].norm() * keys[j].norm())) for i in a for j in b
    }
    partner = {i: max(b, key=lambda j, i=i: similarity[i, j]) for i in a}
    leaving = sorted(a, key=lambda i: -similarity[i, partner[i]])[:pairs]
    tokens, counts = list(x[:prefix]), list(sizes[:prefix])
    for i in a:
        if i not in leaving:
            tokens.append(x[i])
            counts.append(sizes[i])
    for j in b:
        group = [j, *(i for i in leaving if partner[i] == j)]
        counts.append(sum(sizes[i] for i in group))
        tokens.append(sum(sizes[i] * x[i] for i in group) / counts[-1])
    return tokens, counts


def logits_by_loops(model, image, pairs):
    """Logits of one image: a token of size 3 stands three times among the keys and values."""
    config = model.config
    grid = config.grid_hw
    patches = model.patch_embed(image[None]).flatten(2).transpose(1, 2)
    x = nn.functional.pad(patches, (0, 0, config.num_prefix_tokens, 0))
    x = list((x + model.prefix_and_positions(grid))[0])
    sizes = [1] * len(x)
    for number, block in enumerate(model.blocks):
        q, k, v = (part[0] for part in block.attn.project(block.norm1(torch.stack(x)[None])))
        times = torch.tensor(sizes)
        k_all, v_all = (part.repeat_interleave(times, dim=1) for part in (k, v))
        weights = (q @ k_all.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        added = block.ls1(block.attn.proj((weights @ v_all).transpose(0, 1).flatten(1)))
        x = [token + more for token, more in zip(x, added, strict=True)]
        if number + 1 < config.depth:
            keys = k.mean(dim=0)
            x, sizes = merged_by_loops(x, sizes, keys, config.num_prefix_tokens, pairs)
        x = [token + block.ls2(block.mlp(block.norm2(token))) for token in x]
    return model.forward_heads(model.norm(torch.stack(x)[None]))["logits"][0]


@pytest.mark.parametrize("form", ["decomposed", "op"])
@pytest.mark.parametrize(
    ("pairs", "fields"),
    [
        (1, {}),
        (5, {}),
        (3, {"distilled": True}),
        (4, {"reg_tokens": 2, "init_values": 0.3}),
        (2, {"img_size": (24, 40), "qkv_bias": False, "pos_embed": "none"}),
        (1, {"img_size": (8, 24), "depth": 2}),  # three patches: B has one
        (3, {"depth": 4, "pos_embed": "sincos", "num_heads": 1, "representation_size": 8}),
    ],
)
def test_logits_are_those_of_the_loops(make_model, pairs, fields, form):
    model = make_model(**fields).set_attention(form).double()
    images = torch.randn(3, 3, *model.config.image_hw, dtype=torch.float64)
    with torch.no_grad():
        found = merge_tokens(model, pairs)(images)
        expected = torch.stack([logits_by_loops(model, image, pairs) for image in images])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    assert not torch.allclose(found, model(images), atol=1e-4)


def test_the_most_similar_pair_becomes_its_weighted_mean():
    """Token 3 of A is most like token 2 of B; it is three times as large."""
    keys = torch.tensor([[[9.0, 9], [1, 0], [0, 1], [0.1, 1], [1, -1]]])
    x = torch.arange(5.0).reshape(1, 5, 1)
    sizes = torch.tensor([1.0, 1, 1, 3, 1]).reshape(1, 5, 1)
    kept, merged = Matching(1, 5, 1)(keys)
    assert kept.tolist() == [[[1, 0]]]
    assert merged.tolist() == [[[0, 1], [0, 0]]]
    found, counts = merge((x, sizes), kept, merged, 1)
    assert found.flatten().tolist() == pytest.approx([0, 1, (2 + 3 * 3) / 4, 4])
    assert counts.flatten().tolist() == [1, 1, 4, 1]


def test_several_tokens_may_merge_into_one():
    """Sizes add up to the number of patches, whatever merges."""
    keys = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [-1, 5], [1, 0.15], [-1, 4]])[None]
    kept, merged = Matching(0, 6, 2)(keys)
    assert merged[0].tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert kept[0].tolist() == [[1, 0, 0]]
    _, sizes = merge((torch.zeros(1, 6, 2), None), kept, merged, 0)
    assert sizes.flatten().tolist() == [1, 3, 1, 1]


def test_the_given_model_stays_as_it_was_and_weights_are_shared(make_model):
    model = make_model()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        merging = merge_tokens(model, 2)
        merging(images)
        torch.testing.assert_close(model(images), before, rtol=0, atol=0)
    ours, theirs = merging.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight
    assert ours.data_ptr() == theirs.data_ptr()
    assert merging.head.weight.data_ptr() == model.head.weight.data_ptr()
    assert not any(module.training for module in merging.modules())


def test_every_block_but_the_last_takes_fewer_tokens():
    counts = token_counts(VARIANTS["vit_base_patch16_224"], 16)
    assert counts == [197 - 16 * i for i in range(12)]


@pytest.mark.parametrize("pairs", [0, -1, 6, 16, 10**6])
def test_a_number_of_pairs_that_does_not_fit_every_block_is_refused(tiny_config, pairs):
    """16 patches and three blocks: two merge, and each keeps more than half."""
    with pytest.raises(UsageError, match=r"16 patch tokens and 3 blocks, expected .* 1 to 5, so"):
        token_counts(tiny_config, pairs)
    assert token_counts(tiny_config, 5) == [17, 12, 7]


@pytest.mark.parametrize("fields", [{"depth": 1}, {"img_size": 8}])
def test_a_model_that_has_nothing_to_merge_is_refused(tiny_config, fields):
    with pytest.raises(UsageError, match="the last block merges none"):
        token_counts(tiny_config.replace(fields), 1)


@pytest.mark.parametrize("fields", [{"global_pool": "avg"}, {"read_token": 3}])
def test_a_head_that_reads_patches_is_refused(make_model, fields):
    with pytest.raises(UsageError, match="the head reads patches"):
        merge_tokens(make_model(**fields), 2)


def test_other_parts_of_the_attention_are_refused_by_name(make_model):
    """Such as positions that are added to queries and keys: a merged token has several."""
    model = make_model(rope="float32", pos_embed="none")
    with pytest.raises(UsageError, match=r"of this model has a RotaryEmbedding \('rope'\)"):
        merge_tokens(model, 2)
    model = make_model()
    model.blocks[1].attn.q_norm = nn.LayerNorm(16)
    with pytest.raises(UsageError, match=r"of this model has a LayerNorm \('q_norm'\)"):
        merge_tokens(model, 2)


def test_a_block_of_another_kind_is_refused_by_name(make_model):
    model = make_model()
    model.blocks[-1] = LastBlock(model.blocks[-1], 1)
    with pytest.raises(UsageError, match="a block is a LastBlock"):
        merge_tokens(model, 2)
