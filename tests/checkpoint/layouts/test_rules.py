"""Every layout compared with its library, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from layout_models import (
    SIZES,
    SQUARE,
    Notebook,
    Size,
    google_arrays,
    google_logits,
    hf_family,
    hf_model,
    meta_dinov2,
    meta_dinov3,
    openclip,
    saved,
    timm_vit,
)
from torch import Tensor, nn

from vit_export.checkpoint.layouts import LAYOUTS, recognise
from vit_export.checkpoint.layouts.meta_dino import PERIODS
from vit_export.checkpoint.layouts.rules import bind
from vit_export.checkpoint.load import Loaded, load_checkpoint
from vit_export.errors import CheckpointError, ConfigError

EXACT = 1e-12  # relative, in float64
Compare = Callable[..., float]
Randomised = Callable[..., nn.Module]


EACH = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s.width}x{s.depth}")
EACH_SQUARE = pytest.mark.parametrize("size", SQUARE, ids=lambda s: f"{s.width}x{s.depth}")


def loaded(path: Path, size: Size, **overrides: Any) -> Loaded:
    """Load with settings that tensors do not show: the heads, and a size that is not square."""
    settings: dict[str, Any] = {"num_heads": size.heads, **overrides}
    if size.height != size.columns:
        settings["img_size"] = size.image
    return load_checkpoint(path, overrides=settings)


# timm


@EACH
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_a_timm_model_computes_the_same(
    size: Size, qkv_bias: bool, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """With and without biases of queries, keys and values."""
    original = randomised(timm_vit(size, qkv_bias=qkv_bias))
    found = loaded(saved(original.state_dict(), tmp_path), size)
    assert found.report.layout == "timm"
    assert found.config.qkv_bias is qkv_bias
    assert found.config.mlp_dim == size.hidden
    assert compare(found.model, original) < EXACT


@EACH
def test_a_distilled_timm_model_computes_the_same(
    size: Size, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """DeiT: two tokens, two heads, the mean of both."""
    original = randomised(
        timm.models.deit.VisionTransformerDistilled(
            img_size=size.image,
            patch_size=size.patch,
            in_chans=size.channels,
            num_classes=size.classes,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            mlp_ratio=size.hidden / size.width,
        )
    )
    found = loaded(saved(original.state_dict(), tmp_path), size)
    assert found.config.distilled
    assert compare(found.model, original) < EXACT


@EACH
def test_an_averaging_timm_model_without_fc_norm_computes_the_same(
    size: Size, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """Average pooling after the norm does not show in the names: the user sets it."""
    original = randomised(timm_vit(size, global_pool="avg", fc_norm=False))
    found = loaded(saved(original.state_dict(), tmp_path), size, global_pool="avg")
    assert compare(found.model, original) < EXACT


@pytest.mark.parametrize("form", ["attn.{}.{}", "attn.{}_proj.{}"])
def test_separate_queries_keys_and_values_are_joined(
    form: str, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """A timm model whose joined matrix was split."""
    size = SQUARE[0]
    original = randomised(timm_vit(size))
    state = dict(original.state_dict())
    for name in [name for name in state if ".attn.qkv." in name]:
        block, end = name.split("attn.qkv.")
        for part, tensor in zip("qkv", state.pop(name).chunk(3), strict=True):
            state[block + form.format(part, end)] = tensor
    found = loaded(saved(state, tmp_path), size)
    assert compare(found.model, original) < EXACT
    assert any("q, k and v joined" in change for change in found.weights.changes)


def test_biases_without_the_keys_leave_the_keys_bias_at_zero(
    tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """`q_bias` and `v_bias`, as in BEiT's code."""
    size = SQUARE[0]
    original = randomised(timm_vit(size))
    state = dict(original.state_dict())
    for name in [name for name in state if name.endswith(".attn.qkv.bias")]:
        original.get_parameter(name).data[size.width : 2 * size.width] = 0
        query, _, value = state.pop(name).chunk(3)
        state[name.replace("qkv.bias", "q_bias")] = query
        state[name.replace("qkv.bias", "v_bias")] = value
    found = loaded(saved(state, tmp_path), size)
    assert compare(found.model, original) < EXACT
    assert any("the key's bias is zero" in change for change in found.weights.changes)


def test_the_first_release_of_timm_has_pre_logits(tmp_path: Path, randomised: Randomised) -> None:
    """jx_vit_*_in21k: `pre_logits.fc`, a linear layer and tanh between features and head."""
    size = SQUARE[0]
    original = randomised(timm_vit(size))
    state = dict(original.state_dict())
    layer = randomised(nn.Linear(size.width, 20), seed=3)
    head = randomised(nn.Linear(20, size.classes), seed=4)
    state |= {f"pre_logits.fc.{p}": t for p, t in layer.state_dict().items()}
    state |= {f"head.{p}": t for p, t in head.state_dict().items()}
    found = loaded(saved(state, tmp_path), size)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    original.double().reset_classifier(0)
    expected = head.double()(torch.tanh(layer.double()(original(x))))
    assert found.config.representation_size == 20
    assert (found.model.double()(x) - expected).abs().max() < EXACT * expected.abs().max()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"qk_norm": True}, "norms of queries and keys: blocks.0.attn.k_norm"),
        ({"scale_mlp_norm": True}, "a norm inside the MLP: blocks.0.mlp.norm"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_parts_that_the_model_lacks_are_refused_by_name(
    options: dict[str, Any], what: str, tmp_path: Path
) -> None:
    """A model that loads without them computes something else."""
    state = timm_vit(SQUARE[0], **options).state_dict()
    with pytest.raises(CheckpointError, match="has parts that vit-export") as error:
        loaded(saved(state, tmp_path), SQUARE[0])
    assert what in str(error.value)


# Hugging Face


HF_CLASSIFIERS = [
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
]


@EACH
@pytest.mark.parametrize("name", HF_CLASSIFIERS)
def test_a_hugging_face_folder_computes_the_same(
    name: str, size: Size, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """A folder of `save_pretrained` needs no settings."""
    original = randomised(hf_model(name, size))
    original.save_pretrained(tmp_path)
    found = load_checkpoint(tmp_path)
    assert found.report.layout == "huggingface"
    assert found.config.num_heads == size.heads
    assert found.config.norm_eps == 1e-12
    assert found.config.image_hw == size.image
    assert found.report.assumed["num_heads"] == f"{size.heads}, from config.json"
    assert compare(found.model, original, lambda output: output.logits) < EXACT


@pytest.mark.slow
@EACH_SQUARE
@pytest.mark.parametrize("name", HF_CLASSIFIERS)
def test_the_names_of_transformers_5_in_memory_are_read_too(
    name: str, size: Size, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """A state dict saved with torch or safetensors, without any config."""
    original = randomised(hf_model(name, size))
    assert any(".layers.0.attention.q_proj" in key for key in original.state_dict())
    found = loaded(saved(original.state_dict(), tmp_path), size)
    assert "1e-12" in found.report.assumed["norm_eps"]
    assert compare(found.model, original, lambda output: output.logits) < EXACT


@EACH
def test_the_pooler_of_a_hugging_face_backbone_becomes_pre_logits(
    size: Size, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """ViTModel: no head, so the pooled features are the output."""
    original = randomised(hf_model("ViTModel", size))
    original.save_pretrained(tmp_path)
    found = load_checkpoint(tmp_path)
    assert found.config.num_classes == 0
    assert found.config.representation_size == size.width
    assert compare(found.model, original, lambda output: output.pooler_output) < EXACT


def test_the_features_of_deit_are_those_of_the_token_that_the_original_reads(
    tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """DeiTModel's pooler does not read the distillation token."""
    original = randomised(hf_model("DeiTModel", SQUARE[0]))
    original.save_pretrained(tmp_path)
    found = load_checkpoint(tmp_path)
    assert (found.config.distilled, found.config.reg_tokens) == (False, 1)
    assert compare(found.model, original, lambda output: output.pooler_output) < EXACT


@pytest.mark.parametrize(("theirs", "ours"), [("gelu_new", "gelu_tanh"), ("gelu", "gelu")])
def test_the_activation_comes_from_the_config(
    theirs: str, ours: str, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """Exact and approximated GELU differ in the fourth digit."""
    options = {"hidden_act": theirs, "qkv_bias": False, "layer_norm_eps": 0.01}
    original = randomised(hf_model("ViTForImageClassification", SQUARE[0], **options))
    original.save_pretrained(tmp_path)
    found = load_checkpoint(tmp_path)
    assert found.config.act_layer == ours
    assert found.config.norm_eps == 0.01
    assert not found.config.qkv_bias
    assert compare(found.model, original, lambda output: output.logits) < EXACT


# torchvision


@EACH_SQUARE
@pytest.mark.parametrize("pre_logits", [None, 20])
def test_a_torchvision_model_computes_the_same(
    size: Size, pre_logits: int | None, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """With and without the representation layer."""
    original = torchvision.models.VisionTransformer(
        image_size=size.height,
        patch_size=size.patch,
        num_layers=size.depth,
        num_heads=size.heads,
        hidden_dim=size.width,
        mlp_dim=size.hidden,
        num_classes=size.classes,
        representation_size=pre_logits,
    )
    randomised(original)
    found = loaded(saved(original.state_dict(), tmp_path), size)
    assert found.report.layout == "torchvision"
    assert not found.preprocess.known
    assert compare(found.model, original) < EXACT


# Google JAX


@EACH
@pytest.mark.parametrize(
    ("prefix", "pre_logits"), [("", 0), ("", 20), ("params/", 20), ("opt/target/", 0)]
)
@pytest.mark.parametrize("big_vision", [False, True])
def test_a_google_npz_computes_the_same(
    size: Size, prefix: str, pre_logits: int, big_vision: bool, tmp_path: Path
) -> None:
    """The shapes show the number of heads."""
    arrays = google_arrays(size, big_vision=big_vision, pre_logits=pre_logits)
    path = tmp_path / "ViT.npz"
    np.savez(path, **{prefix + name: array for name, array in arrays.items()})
    settings = {"img_size": size.image} if size.height != size.columns else {}
    found = load_checkpoint(path, overrides=settings)
    x = torch.randn(2, size.channels, *size.image, dtype=torch.float64)
    expected = google_logits(arrays, x, size, big_vision=big_vision)
    error = (found.model.double()(x) - expected).abs().max() / expected.abs().max()
    assert found.report.layout == ("big_vision" if big_vision else "google_jax")
    assert found.report.inferred["num_heads"] == size.heads
    assert found.config.representation_size == pre_logits
    assert error < EXACT


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("pool", ["tok", "map"])
def test_a_file_of_big_vision_with_a_text_tower_computes_the_same(
    pool: str, scanned: bool, tmp_path: Path
) -> None:
    """SigLIP: attention pooling and no class token; blocks also stacked along an axis."""
    size, path = SQUARE[0], tmp_path / "siglip.npz"
    arrays = google_arrays(size, big_vision=True, pool=pool)
    names = {name: f"params/img/{name}" for name in arrays}
    stored = {names[name]: array for name, array in arrays.items()}
    if scanned:
        first = [name for name in names.values() if "encoderblock_0/" in name]
        for name in first:
            blocks = [stored.pop(name.replace("_0/", f"_{n}/", 1)) for n in range(size.depth)]
            stored[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(blocks)
    text = {"params/txt/head/bias": np.zeros(3, np.float32), "params/t": np.ones(1, np.float32)}
    np.savez(path, **stored, **text)
    found = load_checkpoint(path)
    x = torch.randn(2, 3, *size.image, dtype=torch.float64)
    expected = google_logits(arrays, x, size, big_vision=True)
    assert found.config.global_pool == ("map" if pool == "map" else "token")
    assert {*text} <= {*found.report.unused}
    assert (found.preprocess.known, found.preprocess.mean) == (True, (0.5, 0.5, 0.5))
    error = (found.model.double()(x) - expected).abs().max() / expected.abs().max()
    assert error < EXACT


# nn.TransformerEncoder


@EACH
def test_a_notebook_model_computes_the_same(
    size: Size, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """The class token at the end, and the first patch read."""
    original = randomised(Notebook(size))
    found = loaded(saved(original.state_dict(), tmp_path), size)
    assert found.report.layout == "transformer_encoder"
    assert (found.config.read_token, found.config.norm_eps) == (1, 1e-5)
    assert "first patch" in found.report.assumed["read_token"]
    assert compare(found.model, original) < EXACT


def test_the_number_of_heads_of_a_notebook_model_must_be_given(tmp_path: Path) -> None:
    """Even where a variant has the same widths: notebooks take any number of heads."""
    mnist = Size(96, 6, 6, 4, 28, 28, 10, 384, channels=1)
    path = saved(Notebook(mnist).state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match=r"--set num_heads=N \(one of 1, 2, 3, 4, 6"):
        load_checkpoint(path)
    found = load_checkpoint(path, variant="vit_mnist_28")
    assert found.report.assumed["num_heads"] == "3, from variant vit_mnist_28"


# wrong conversions

SMALL = Size(32, 1, 4, 8, 16, 16, 5, 64)


def originals(size: Size) -> dict[str, dict[str, Tensor]]:
    """A state dict in every layout."""
    google = google_arrays(size, big_vision=False)
    vision = google_arrays(size, big_vision=True)
    tv = torchvision.models.VisionTransformer(
        size.height, size.patch, size.depth, size.heads, size.width, size.hidden,
        num_classes=size.classes,
    )  # fmt: skip
    return {
        "timm": timm_vit(size).state_dict(),
        "huggingface": hf_model("ViTForImageClassification", size).state_dict(),
        "torchvision": tv.state_dict(),
        "google_jax": {name: torch.from_numpy(array) for name, array in google.items()},
        "big_vision": {name: torch.from_numpy(array) for name, array in vision.items()},
        "transformer_encoder": Notebook(size).state_dict(),
        "meta_dinov2": meta_dinov2(size),
        "meta_dinov3": meta_dinov3(size),
        "openclip": openclip(size),
        **{layout: hf_family(name, size, **options).state_dict()
           for layout, (name, options) in FAMILIES.items()},
    }  # fmt: skip


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "huggingface_dinov2": ("Dinov2WithRegistersModel", {"mlp_ratio": 2}),
    "huggingface_dinov3": ("DINOv3ViTModel", {"num_register_tokens": 2}),
    "huggingface_clip": ("CLIPVisionModelWithProjection", {"projection_dim": 8}),
    "huggingface_siglip": ("SiglipVisionModel", {}),
}


UNUSED = ("embeddings.mask_token", "embeddings.position_ids", "mask_token")
# without config.json, a file that lost one of these is one of a model that has none
OPTIONAL = (
    *UNUSED, "visual_projection.weight", "embeddings.register_tokens", "storage_tokens", "proj",
)  # fmt: skip
WITHOUT_CLASS_TOKEN = ("big_vision", "cls")  # its positions are of patches alone
LACKING = (
    r"global_pool='token'|not in the checkpoint|no class token|not in the model|"
    "reads the class token"
)


def settings_for(layout: str, size: Size) -> dict[str, Any]:
    """What the tensors of a family do not show."""
    settings: dict[str, Any] = {"num_heads": size.heads}
    if layout in FAMILIES or layout in ("meta_dinov2", "meta_dinov3", "openclip"):
        settings |= {"act_layer": "gelu", "img_size": size.image}
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "vit_export"])
def test_every_tensor_of_a_file_is_needed(layout: str, tmp_path: Path) -> None:
    """No file loads when any one of its tensors is removed."""
    state = originals(SQUARE[0])[layout]
    for name in state:
        rest = {other: tensor for other, tensor in state.items() if other != name}
        settings = settings_for(layout, SQUARE[0])
        path = saved(rest, tmp_path)
        if name in OPTIONAL or (layout, name) == WITHOUT_CLASS_TOKEN:
            continue
        with pytest.raises((CheckpointError, ConfigError), match=LACKING):
            load_checkpoint(path, overrides=settings, layout=layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "vit_export"])
def test_every_tensor_of_a_file_reaches_the_logits(layout: str, tmp_path: Path) -> None:
    """Change each tensor in turn: the logits change too."""
    state = originals(SMALL)[layout]
    state = {
        name: tensor if name == PERIODS else tensor + 0.1 * torch.randn_like(tensor)
        for name, tensor in state.items()
    }
    settings = settings_for(layout, SMALL)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def logits(state: Mapping[str, Tensor]) -> Tensor:
        model = load_checkpoint(saved(state, tmp_path), overrides=settings, layout=layout).model
        return model.double()(x).detach()

    expected = logits(state)
    for name, tensor in state.items():
        # softmax ignores what is added to all keys alike
        key_bias = name.endswith(("/key/bias", "k_proj.bias"))
        other = {**state, name: tensor + 0.1 * torch.randn_like(tensor)}
        if name == PERIODS:
            with pytest.raises(CheckpointError, match="other periods"):
                logits(other)
            continue
        changed = logits(other)
        difference = (changed - expected).abs().max() / expected.abs().max()
        assert key_bias or name in UNUSED or difference > 1e-6, name


def swapped(state: Mapping[str, Tensor], one: str, other: str) -> dict[str, Tensor]:
    """The same file with two tensors exchanged."""
    return {**state, one: state[other], other: state[one]}


def permuted_rows(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The same file with queries, keys and values in another order."""
    q, k, v = state[name].chunk(3)
    return {**state, name: torch.cat((k, q, v))}


_HF0 = "vit.layers.0.attention"
_JAX0 = "Transformer/encoderblock_0"
_ATTENTION0 = f"{_JAX0}/MultiHeadDotProductAttention_1"


@pytest.mark.parametrize(
    ("layout", "mutate"),
    [
        ("timm", lambda s: permuted_rows(s, "blocks.0.attn.qkv.weight")),
        ("timm", lambda s: {**s, "blocks.0.attn.proj.weight": s["blocks.0.attn.proj.weight"].T}),
        ("huggingface", lambda s: swapped(s, f"{_HF0}.q_proj.weight", f"{_HF0}.v_proj.weight")),
        ("huggingface", lambda s: swapped(s, f"{_HF0}.q_proj.weight", f"{_HF0}.k_proj.weight")),
        ("torchvision", lambda s: permuted_rows(
            s, "encoder.layers.encoder_layer_0.self_attention.in_proj_weight")),
        ("google_jax", lambda s: swapped(
            s, f"{_ATTENTION0}/query/kernel", f"{_ATTENTION0}/value/kernel")),
        ("google_jax", lambda s: {
            **s, "embedding/kernel": s["embedding/kernel"].transpose(0, 1)}),
        ("transformer_encoder", lambda s: {
            **s, "patch_embeddings.pos_embedding":
            s["patch_embeddings.pos_embedding"].roll(1, dims=1)}),
    ],
    ids=["timm-qkv", "timm-transposed", "hf-q-v", "hf-q-k", "torchvision-qkv", "jax-q-v",
         "jax-kernel", "notebook-order"],
)  # fmt: skip
def test_a_permuted_or_transposed_tensor_fails_the_comparison(
    layout: str,
    mutate: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    """The error of a wrong conversion is far above the tolerance."""
    state = {
        name: tensor + 0.1 * torch.randn_like(tensor)
        for name, tensor in originals(SQUARE[0])[layout].items()
    }
    settings = {"num_heads": SQUARE[0].heads}
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    right = load_checkpoint(saved(state, tmp_path), overrides=settings).model.double()(x)
    wrong = load_checkpoint(saved(mutate(state), tmp_path), overrides=settings).model.double()(x)
    assert (wrong - right).abs().max() > 1e9 * EXACT * right.abs().max()


def test_an_untransposed_kernel_does_not_fit(tmp_path: Path) -> None:
    """The error shows both shapes."""
    state = originals(SQUARE[0])["google_jax"]
    name = f"{_JAX0}/MlpBlock_3/Dense_0/kernel"
    path = saved({**state, name: state[name].T}, tmp_path)
    with pytest.raises(CheckpointError, match=r"mlp.fc1.weight: checkpoint \(32, 64\), model") as e:
        load_checkpoint(path)
    assert name in str(e.value)


def test_each_layout_is_recognised_by_its_own_names() -> None:
    """And not as another one."""
    for layout, state in originals(SQUARE[0]).items():
        recognised = recognise(state)
        assert recognised is not None
        assert recognised.name == layout
        assert not bind(recognised, state).unexpected
