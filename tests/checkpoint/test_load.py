"""Loading checkpoints: the report, contradictions, heads, sizes, and what does not fit."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from vit_export.artifact.manifest import METADATA_KEY
from vit_export.artifact.preprocess import Preprocess
from vit_export.checkpoint.assemble import blank_model
from vit_export.checkpoint.load import load_checkpoint
from vit_export.checkpoint.own import save_checkpoint
from vit_export.errors import CheckpointError, OutputError, UnknownVariantError, UsageError
from vit_export.model.vit import VisionTransformer, create_model
from vit_export.variants import ViTConfig, get_variant

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
HEADS = {"num_heads": 4}
Randomised = Callable[..., nn.Module]


def tiny(**overrides: Any) -> VisionTransformer:
    """A small model, every parameter perturbed."""
    config = ViTConfig(**{"variant": "tiny", **TINY, "num_classes": 5, **overrides})  # type: ignore[arg-type]
    model = create_model(config, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def plain(state: Mapping[str, Tensor], path: Path) -> Path:
    """A file of timm's names, without a config inside."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights of a tiny model under timm's names."""
    return plain(tiny().state_dict(), tmp_path / "tiny.safetensors")


# our own layout


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"distilled": True},
        {"img_size": (16, 40), "num_classes": 3},
        {"pos_embed": "sincos", "global_pool": "avg"},
        {"pos_embed": "none", "representation_size": 12},
        {"in_chans": 1, "mean": (0.25,), "std": (0.125,), "norm_eps": 1e-5, "read_token": 1},
        {"num_classes": 0, "act_layer": "gelu_tanh", "qkv_bias": False, "crop_mode": "squash"},
    ],
)
def test_a_saved_checkpoint_loads_bit_for_bit(overrides: dict[str, Any], tmp_path: Path) -> None:
    """Weights, architecture, preparation and labels, without any settings."""
    model = tiny(**overrides)
    labels = tuple(f"class {n}" for n in range(model.config.num_classes))
    path = tmp_path / "own.safetensors"
    save_checkpoint(model, path, labels=labels)
    found = load_checkpoint(path)
    assert found.config == model.config
    assert found.labels == labels
    assert found.preprocess == Preprocess.of(model.config)
    assert found.report.layout == "vit_export"
    assert not found.report.assumed
    assert not found.model.training
    x = torch.randn(2, model.config.in_chans, *model.config.image_hw)
    assert torch.equal(found.model(x), model(x))


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    """And leaves no other file in the folder."""
    model = tiny()
    for name in ("a", "b"):
        save_checkpoint(model, tmp_path / name, labels=("x",) * 5)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """For example into a folder that does not exist."""
    with pytest.raises(OutputError, match=r"cannot write the checkpoint .*x\.safetensors"):
        save_checkpoint(tiny(), tmp_path / "gone" / "x.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        *("nonsense", "{}", "3", '{"config": {}}', '{"config": {"variant": "x", "new": 1}}'),
        '{"config": {"variant": "x", "global_pool": null}}',
    ],
)
def test_a_config_of_another_version_is_refused(text: str, tmp_path: Path) -> None:
    """The metadata have vit-export's key, but its content cannot be read."""
    path = tmp_path / "x.safetensors"
    save_file(dict(tiny().state_dict()), path, metadata={METADATA_KEY: text})
    with pytest.raises(CheckpointError, match="pip install -U vit-export"):
        load_checkpoint(path)


# what the report says


def test_the_report_lists_every_tensor(file: Path) -> None:
    """Each used once; hash, source and layout are those of the manifest."""
    found = load_checkpoint(file, overrides=HEADS)
    assert sorted(found.report.used) == sorted(load_file(file))
    assert found.report.resampled == found.report.reinitialised == found.report.unused == ()
    assert found.report.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.weights.source == "tiny.safetensors"
    assert (found.weights.layout, found.weights.changes) == ("timm", ())
    assert found.report.inferred == {
        **{"embed_dim": 32, "depth": 2, "patch_size": 8, "in_chans": 3, "mlp_ratio": 4.0},
        **{"qkv_bias": True, "distilled": False, "representation_size": 0},
        **{"num_classes": 5, "img_size": 32},
    }


def test_a_model_that_is_no_variant_is_named_after_its_file(file: Path) -> None:
    """Without alias and hub repository."""
    config = load_checkpoint(file, overrides=HEADS).config
    assert (config.variant, config.alias, config.hub) == ("tiny", "", "")


def test_a_link_to_a_checkpoint_counts_by_its_own_name(file: Path) -> None:
    """In the hub's cache it points to a file named by its hash."""
    blob = file.rename(file.with_name("0a1b2c"))
    file.symlink_to(blob)
    loaded = load_checkpoint(file, overrides=HEADS)
    assert loaded.config.variant == "tiny"
    assert loaded.weights.source == "tiny.safetensors"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_are_reported(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """The values of the file, rounded once."""
    state = {name: tensor.to(dtype) for name, tensor in tiny().state_dict().items()}
    found = load_checkpoint(plain(state, tmp_path / "x.safetensors"), overrides=HEADS)
    assert all(torch.equal(t, state[n].float()) for n, t in found.model.state_dict().items())
    kind = str(dtype).removeprefix("torch.")
    assert found.weights.changes == (f"{kind} -> float32: {len(state)} tensors",)


def test_the_number_of_heads_of_a_variant_is_reported(tmp_path: Path) -> None:
    """The joined weights do not show it."""
    model = create_model(get_variant("mnist"))
    path = plain(model.state_dict(), tmp_path / "digits.safetensors")
    found = load_checkpoint(path)
    assert found.config == get_variant("mnist")
    assert found.report.assumed["num_heads"] == "3, from variant vit_mnist_28"
    assert "unknown" in found.report.assumed["preprocess"]
    assert not found.preprocess.known
    assert load_checkpoint(path, variant="mnist").preprocess.known


def test_an_unknown_number_of_heads_is_an_error_that_lists_the_possible_ones(file: Path) -> None:
    """Divisors of the width."""
    with pytest.raises(CheckpointError, match=r"--set num_heads=N \(one of 1, 2, 4, 8\)"):
        load_checkpoint(file)


def test_loading_leaves_the_random_state_alone(file: Path) -> None:
    """No random weights are drawn."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_checkpoint(file, overrides=HEADS)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_does_not_share_memory_with_its_file(file: Path) -> None:
    """Overwriting the file does not change the model."""
    found = load_checkpoint(file, overrides=HEADS)
    before = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
    with file.open("r+b") as raw:
        raw.seek(-1000, 2)
        raw.write(b"\xff" * 1000)
    assert all(torch.equal(t, before[n]) for n, t in found.model.state_dict().items())


# contradictions


def test_a_variant_that_contradicts_the_file_is_one_error_with_every_field(tmp_path: Path) -> None:
    """Width, depth, patch size, channels and size at once, and the variant that fits."""
    path = plain(create_model(get_variant("mnist")).state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, variant="ti16")
    text = str(error.value)
    for line in (
        "! embed_dim: file 96, variant vit_tiny_patch16_224 192",
        "! depth: file 6, variant vit_tiny_patch16_224 12",
        "! patch_size: file 4, variant vit_tiny_patch16_224 16",
        "! in_chans: file 1, variant vit_tiny_patch16_224 3",
        "! img_size: file 28, variant vit_tiny_patch16_224 224",
        "hint: --variant vit_mnist_28",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("name", "value"),
    [("embed_dim", 64), ("depth", "3"), ("patch_size", "4"), ("mlp_ratio", 2), ("in_chans", 1),
     ("qkv_bias", "false"), ("distilled", True)],
)  # fmt: skip
def test_a_setting_that_contradicts_the_file_is_an_error(
    name: str, value: object, file: Path
) -> None:
    """Such as the width and the depth."""
    with pytest.raises(CheckpointError, match=f"! {name}: file .*, you"):
        load_checkpoint(file, overrides={**HEADS, name: value})


def test_a_setting_that_agrees_with_the_file_is_accepted(file: Path) -> None:
    """Also as text, from a command line."""
    settings = {"depth": "2", "embed_dim": "32", "patch_size": 8, "qkv_bias": "true", **HEADS}
    assert load_checkpoint(file, overrides=settings).config.depth == 2


def test_settings_that_shapes_do_not_show_are_taken_from_the_user(file: Path) -> None:
    """They are not reported as assumptions."""
    settings = {**HEADS, "norm_eps": 1e-5, "crop_pct": 1.0, "mean": "0,0,0", "drop_rate": 0.1}
    found = load_checkpoint(file, overrides=settings)
    assert (found.config.norm_eps, found.config.drop_rate) == (1e-5, 0.1)
    assert found.preprocess.mean == (0, 0, 0)
    assert found.model.norm.eps == 1e-5
    assert "norm_eps" not in found.report.assumed


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"variant": "b17"}, UnknownVariantError),
        ({"layout": "tim"}, UsageError),
        ({"overrides": {"num_head": 3}}, UsageError),
    ],
)
def test_a_mistyped_name_is_a_usage_error(
    arguments: dict[str, Any], error: type[Exception], file: Path
) -> None:
    """The message offers the nearest name."""
    with pytest.raises(error, match="did you mean"):
        load_checkpoint(file, **{"overrides": HEADS, **arguments})


# heads


def test_another_number_of_classes_needs_reset_head(file: Path) -> None:
    """The hint lists all three solutions."""
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(file, overrides={**HEADS, "num_classes": 7})
    text = str(error.value)
    assert "a head for 5 classes, and 7 classes were requested" in text
    for solution in ("--reset-head", "--num-classes 5", "--num-classes 0"):
        assert solution in text


@pytest.mark.parametrize("distilled", [False, True])
def test_a_reset_head_is_zero_and_the_body_stays(distilled: bool, tmp_path: Path) -> None:
    """Pre-logits are dropped, labels too."""
    model = tiny(distilled=distilled, representation_size=0 if distilled else 12)
    save_checkpoint(model, tmp_path / "x.safetensors", labels=tuple("abcde"))
    found = load_checkpoint(
        tmp_path / "x.safetensors", overrides={"num_classes": 7}, reset_head=True
    )
    heads = ["head.weight", "head.bias"]
    heads += ["head_dist.weight", "head_dist.bias"] if distilled else []
    assert set(found.report.reinitialised) == set(heads)
    assert set(found.report.unused) == {
        name for name in model.state_dict() if name.startswith(("head", "pre_logits"))
    }
    state = found.model.state_dict()
    assert state["head.weight"].shape == (7, 32)
    assert not any(state[name].any() for name in heads)
    body = [name for name in state if name not in heads]
    assert all(torch.equal(state[name], model.state_dict()[name]) for name in body)
    assert (found.config.representation_size, found.config.num_classes) == (0, 7)
    assert found.labels == ()
    assert any("re-initialised to zero: head" in change for change in found.weights.changes)


def test_a_head_may_be_reset_to_the_same_classes(file: Path) -> None:
    """The number of classes need not be given."""
    found = load_checkpoint(file, overrides=HEADS, reset_head=True)
    assert found.config.num_classes == 5
    assert not found.model.head.weight.any()


def test_no_classes_exports_features(file: Path) -> None:
    """The head's tensors are unused, and listed."""
    found = load_checkpoint(file, overrides={**HEADS, "num_classes": 0})
    assert sorted(found.report.unused) == ["head.bias", "head.weight"]
    assert found.weights.changes == ("unused: head.bias, head.weight",)
    assert found.model(torch.randn(1, 3, 32, 32)).shape == (1, 32)


def test_a_checkpoint_without_head_gets_classes_only_by_reset_head(tmp_path: Path) -> None:
    """Only --reset-head states how a new head starts."""
    path = plain(tiny(num_classes=0).state_dict(), tmp_path / "x.safetensors")
    assert load_checkpoint(path, overrides=HEADS).config.num_classes == 0
    with pytest.raises(CheckpointError, match="has no head, and 3 classes were requested"):
        load_checkpoint(path, overrides={**HEADS, "num_classes": 3})
    with pytest.raises(CheckpointError, match="the number of classes is unknown"):
        load_checkpoint(path, overrides=HEADS, reset_head=True)
    reset = load_checkpoint(path, overrides={**HEADS, "num_classes": 3}, reset_head=True)
    assert reset.config.num_classes == 3


# other sizes


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("size", [64, (16, 40), "40x16"])
def test_another_image_size_resamples_the_positions(
    size: object, distilled: bool, tmp_path: Path, randomised: Randomised
) -> None:
    """The same logits as timm's model after timm's own resampling."""
    kind = timm.models.deit.VisionTransformerDistilled if distilled else (
        timm.models.vision_transformer.VisionTransformer
    )  # fmt: skip
    original = randomised(
        kind(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5)
    )
    path = plain(original.state_dict(), tmp_path / "x.safetensors")
    found = load_checkpoint(path, overrides={**HEADS, "img_size": size})
    original.set_input_size(img_size=found.config.image_hw)
    x = torch.randn(2, 3, *found.config.image_hw, dtype=torch.float64)
    expected = original.double()(x)
    assert (found.model.double()(x) - expected).abs().max() < 1e-12 * expected.abs().max()
    assert found.report.resampled == ("pos_embed",)
    assert "pos_embed" not in found.report.used
    assert found.preprocess.size == found.config.image_hw
    assert any("pos_embed resampled: 4x4 -> " in change for change in found.weights.changes)


def test_sine_cosine_positions_are_computed_for_a_new_size(tmp_path: Path) -> None:
    """A formula needs no resampling."""
    save_checkpoint(tiny(pos_embed="sincos"), tmp_path / "x.safetensors")
    found = load_checkpoint(tmp_path / "x.safetensors", overrides={"img_size": 64})
    expected = create_model(found.config).pos_embed
    assert expected is not None
    assert torch.equal(found.model.state_dict()["pos_embed"], expected)
    assert found.report.unused == ("pos_embed",)


# what does not fit


def test_every_tensor_that_does_not_fit_is_in_one_error(file: Path) -> None:
    """Wrong shapes, missing tensors and unexpected ones."""
    state = load_file(file)
    state["blocks.1.norm1.weight"] = torch.ones(33)
    state["blocks.0.mlp.fc2.weight"] = torch.ones(32, 127)
    state["blocks.0.mlp.fc1.bias"] = torch.ones(128, dtype=torch.int64)
    del state["blocks.1.attn.proj.bias"]
    state["blocks.1.attn.bonus"] = torch.ones(3)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(plain(state, file), overrides=HEADS)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("into 'tiny': 5 tensors do not fit")
    assert sorted(lines[1:-1]) == [
        "  ! blocks.0.mlp.fc1.bias: checkpoint int64, expected floating-point numbers",
        "  ! blocks.0.mlp.fc2.weight: checkpoint (32, 127), model (32, 128)",
        "  ! blocks.1.norm1.weight: checkpoint (33,), model (32,)",
        "  + blocks.1.attn.bonus: in the checkpoint, not in the model",
        "  - blocks.1.attn.proj.bias: in the model, not in the checkpoint",
    ]
    assert lines[-1].startswith("hint: ")


def test_a_missing_part_of_a_joined_tensor_is_named(tmp_path: Path) -> None:
    """A query and a value without their key."""
    state = dict(tiny().state_dict())
    weight = state.pop("blocks.0.attn.qkv.weight")
    state["blocks.0.attn.q.weight"], state["blocks.0.attn.v.weight"] = weight[:32], weight[64:]
    with pytest.raises(CheckpointError, match=r"qkv.weight: .*\(lacks blocks.0.attn.k.weight\)"):
        load_checkpoint(plain(state, tmp_path / "x.safetensors"), overrides=HEADS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float, file: Path) -> None:
    """All such tensors at once."""
    state = load_file(file)
    for name in ("norm.bias", "blocks.1.mlp.fc1.weight"):
        state[name].view(-1)[1] = value
    with pytest.raises(CheckpointError, match="NaN or Inf in 2 tensors: ") as error:
        load_checkpoint(plain(state, file), overrides=HEADS)
    assert "norm.bias" in str(error.value)
    assert "blocks.1.mlp.fc1.weight" in str(error.value)


def test_unused_tensors_are_not_checked(file: Path) -> None:
    """A broken head does not change features."""
    state = load_file(file)
    state["head.bias"][0] = float("nan")
    loaded = load_checkpoint(plain(state, file), overrides={**HEADS, "num_classes": 0})
    assert set(loaded.report.unused) == {"head.weight", "head.bias"}
    assert torch.isfinite(loaded.model(torch.zeros(1, 3, 32, 32))).all()


def test_another_architecture_is_not_recognised(tmp_path: Path) -> None:
    """A ResNet, and a text model whose names look like Hugging Face's."""
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="is not recognised as a Vision Transformer") as e:
        load_checkpoint(tmp_path / "resnet.pth")
    assert "conv1.weight" in str(e.value)
    layer = "bert.encoder.layer.0.attention.self.query.weight"
    plain({layer: torch.ones(2, 2)}, tmp_path / "bert.safetensors")
    with pytest.raises(CheckpointError, match="is not recognised as a Vision"):
        load_checkpoint(tmp_path / "bert.safetensors")


def test_a_file_without_tensors_is_an_error(tmp_path: Path) -> None:
    """An empty safetensors file is a valid one."""
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load_checkpoint(plain({}, tmp_path / "x.safetensors"))


def test_patches_that_are_not_square_are_refused(file: Path) -> None:
    """vit-export's model has square patches only."""
    state = load_file(file)
    state["patch_embed.proj.weight"] = torch.ones(32, 3, 8, 4)
    with pytest.raises(CheckpointError, match="patches of 8 x 4 px"):
        load_checkpoint(plain(state, file), overrides=HEADS)


def test_position_embeddings_of_huge_grids_are_refused_without_memory(file: Path) -> None:
    """Shapes are compared without allocating memory."""
    state = load_file(file)
    state["pos_embed"] = torch.ones(1, 1 + 1000**2, 1)
    with pytest.raises(CheckpointError, match=r"pos_embed: checkpoint \(1, 1000001, 1\), model"):
        load_checkpoint(plain(state, file), overrides=HEADS)


def test_a_layout_can_be_forced(file: Path) -> None:
    """The tensors must then have the names of that layout."""
    assert load_checkpoint(file, overrides=HEADS, layout="timm").report.layout == "timm"
    with pytest.raises(CheckpointError, match="not in the model"):
        load_checkpoint(file, overrides=HEADS, layout="torchvision")


def test_the_report_names_a_folder_by_its_base_name(file: Path) -> None:
    """The manifest gets its base name, no path."""
    found = load_checkpoint(file.parent, overrides=HEADS)
    assert found.report.source == file.parent.name
    assert found.config.variant == file.parent.name


def memory(field: str) -> int:
    """An entry of /proc/self/status in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(field + ":")[1].split()[0])


def test_loading_needs_little_more_memory_than_the_model(tmp_path: Path) -> None:
    """Below 1.3 times the file: the memory of each tensor is released after it is read."""
    config = ViTConfig(variant="x", **{**TINY, "embed_dim": 512, "depth": 6})  # type: ignore[arg-type]
    path = plain(blank_state(config), tmp_path / "large.safetensors")
    limit, models = 1.3 * path.stat().st_size, []
    for _ in range(3):  # one is enough: busy machines give pages back late
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = memory("VmRSS")
        models.append(load_checkpoint(path, overrides=HEADS))  # kept, so that none is reused
        peak = memory("VmHWM") - before
        if peak < limit:
            break
    assert peak < limit


def blank_state(config: ViTConfig) -> dict[str, Tensor]:
    """Zeros in the shapes of a model."""
    shapes = blank_model(config).state_dict()
    return {name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}


def test_config_and_labels_are_json_in_the_metadata(tmp_path: Path) -> None:
    """Plain JSON under one key."""
    save_checkpoint(tiny(), tmp_path / "x.safetensors", labels=tuple("abcde"))
    size = int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
    header = json.loads((tmp_path / "x.safetensors").read_bytes()[8 : 8 + size])
    about = json.loads(header["__metadata__"][METADATA_KEY])
    assert about["labels"] == list("abcde")
    assert set(about["config"]) == {field.name for field in dataclasses.fields(ViTConfig)}
