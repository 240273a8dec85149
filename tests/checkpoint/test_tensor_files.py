"""Weights files of every kind, complete, damaged and of other programs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_export.checkpoint.tensor_files import open_tensors
from vit_export.errors import CheckpointError


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Two tensors."""
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def same(path: Path, state: dict[str, Tensor]) -> bool:
    """Whether a file gives back exactly these tensors."""
    file = open_tensors(path)
    return set(file.tensors) == set(state) and all(
        file.tensors[name].is_meta
        and file.tensors[name].shape == tensor.shape
        and torch.equal(file.read(name), tensor)
        for name, tensor in state.items()
    )


def write_npz(state: dict[str, Tensor], path: Path) -> None:
    """An archive of arrays, under any name."""
    with path.open("wb") as file:
        np.savez(file, **{name: tensor.numpy() for name, tensor in state.items()})


def write_legacy(state: dict[str, Tensor], path: Path) -> None:
    """A file as torch wrote it before it used zip."""
    torch.save(state, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "safetensors": save_file,
    "torch": torch.save,
    "torch before 1.6": write_legacy,
    "npz": write_npz,
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".npz", ".weights"])
@pytest.mark.parametrize("kind", WRITERS)
def test_the_kind_of_a_file_is_recognised_from_its_content(
    kind: str, suffix: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """Every kind under every name."""
    path = tmp_path / f"weights{suffix}"
    WRITERS[kind](state, path)
    assert same(path, state)
    assert open_tensors(path).sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("wrapped", [
    lambda s: {"model": s, "optimizer": {"lr": 0.1}, "epoch": 3},
    lambda s: {"state_dict": {f"module.{n}": t for n, t in s.items()}},
    lambda s: {"model_state_dict": {f"module._orig_mod.{n}": t for n, t in s.items()}},
    lambda s: {"state_dict": {f"model.{n}": t for n, t in s.items()}, "lr": 1.0},
    lambda s: {"model_ema": {"module": s}, "model": {n: 2 * t for n, t in s.items()}},
    lambda s: {"state_dict_ema": s, "state_dict": {n: 2 * t for n, t in s.items()}},
    lambda s: {"ema": {"state_dict": {f"_orig_mod.{n}": t for n, t in s.items()}}},
])  # fmt: skip
def test_wrappers_of_training_scripts_are_removed(
    wrapped: Callable[[dict[str, Tensor]], object], state: dict[str, Tensor], tmp_path: Path
) -> None:
    """DataParallel, torch.compile, Lightning, timm; averaged weights before the others."""
    path = tmp_path / "checkpoint.pth"
    torch.save(wrapped(state), path)
    assert same(path, state)


def test_entries_beside_the_weights_are_listed(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Such as the optimizer; a note names the averaged copy that was chosen."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"model_ema": state, "model": state, "optimizer": {}, "epoch": 1}, path)
    file = open_tensors(path)
    assert set(file.aside) == {"model", "optimizer", "epoch"}
    assert file.notes == {"weights": "model_ema, the averaged copy"}


def test_prefixes_are_removed_from_safetensors_too(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    """The layouts expect names without them."""
    save_file({f"module.{n}": t for n, t in state.items()}, tmp_path / "x.safetensors")
    assert same(tmp_path / "x.safetensors", state)


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    """`model.` in front of some names belongs to the model."""
    mixed = {"model.a": torch.ones(1), "head": torch.ones(1)}
    torch.save(mixed, tmp_path / "x.pth")
    assert same(tmp_path / "x.pth", mixed)


def test_bfloat16_survives_numpy(tmp_path: Path) -> None:
    """To numpy it is two raw bytes."""
    tensor = torch.tensor([1.5, -2.0]).bfloat16()
    raw = tensor.view(torch.int16).numpy().view("V2")
    np.savez(tmp_path / "x.npz", w=raw)
    file = open_tensors(tmp_path / "x.npz")
    assert file.tensors["w"].dtype == torch.bfloat16
    assert torch.equal(file.read("w"), tensor)


@pytest.mark.filterwarnings("ignore")  # torch deprecates quantised tensors
def test_quantised_and_sparse_tensors_can_lie_in_a_file(tmp_path: Path) -> None:
    """Quantised ones are listed as whole numbers, which the model cannot use; sparse ones load."""
    quantised = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    torch.save({"q": quantised, "s": torch.eye(3).to_sparse()}, tmp_path / "x.pth")
    file = open_tensors(tmp_path / "x.pth")
    assert not file.tensors["q"].is_floating_point()
    assert torch.equal(file.read("s"), torch.eye(3))


def test_tensors_without_data_are_refused_by_name(tmp_path: Path) -> None:
    """Training in shards can save placeholders on torch's device 'meta'."""
    torch.save({"a": torch.ones(1), "b": torch.empty(2, device="meta")}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"holds 1 tensors without data .*first is b"):
        open_tensors(tmp_path / "x.pth")


# folders and shards


def shards(folder: Path, state: dict[str, Tensor]) -> Path:
    """One file for each tensor, and their index."""
    weight_map = {}
    for number, (name, tensor) in enumerate(state.items(), start=1):
        weight_map[name] = f"model-{number:05d}-of-{len(state):05d}.safetensors"
        save_file({name: tensor}, folder / weight_map[name])
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards_are_read_as_one_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    """By their index or their folder; the hash covers all of them in order."""
    index = shards(tmp_path, state)
    assert same(index, state)
    assert same(tmp_path, state)
    content = b"".join(p.read_bytes() for p in sorted(tmp_path.glob("*.safetensors")))
    assert open_tensors(index).sha256() == hashlib.sha256(content).hexdigest()


def test_a_shard_that_is_absent_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    """All missing files are listed."""
    index = shards(tmp_path, state)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not beside it: model-00002-of-00002"):
        open_tensors(index)


def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    """A downloaded index must not reach other files of the machine."""
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its own folder"):
        open_tensors(index)


@pytest.mark.parametrize("text", ["{}", "no json", '{"weight_map": 3}', "[]"])
def test_a_json_that_is_no_index_is_refused(text: str, tmp_path: Path) -> None:
    """Any other content."""
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(CheckpointError, match="is not the index of a sharded file"):
        open_tensors(index)


def test_an_index_and_its_files_must_agree(state: dict[str, Tensor], tmp_path: Path) -> None:
    """A tensor that its file does not hold."""
    save_file(state, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    weight_map = dict.fromkeys([*state, "gone"], "one.safetensors")
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="do not hold: gone"):
        open_tensors(index)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "anything.pth"])
def test_the_weights_of_a_folder_are_found(
    name: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """Under the hub's names, or alone."""
    WRITERS["safetensors" if name.endswith("safetensors") else "torch"](state, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    assert same(tmp_path, state)


def test_a_folder_without_weights_is_an_error_that_lists_the_expected_names(tmp_path: Path) -> None:
    """An empty folder, and one with two candidates."""
    with pytest.raises(CheckpointError, match=r"holds no weights: expected one of model\.safe"):
        open_tensors(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save({}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"several weights files: a\.pth, b\.pth"):
        open_tensors(tmp_path)


# damaged, unknown and hostile files


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_a_truncated_file_is_one_clear_error(kind: str, share: float, tmp_path: Path) -> None:
    """At any length."""
    path = tmp_path / "x.bin"
    WRITERS[kind]({"a": torch.randn(64, 64), "b": torch.randn(64)}, path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_tensors(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><title>Not found</title>", "it is a text file.*DOCTYPE"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5 file"),
        (b"\x93NUMPY\x01\x00" + bytes(64), r"single numpy array"),
        (bytes(range(128, 256)) * 9, "of an unknown kind"),
        (b"\x80", "of an unknown kind"),
        (b"\x80\x02garbage", "truncated or damaged"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{not json at all", "truncated or damaged"),
    ],
)  # fmt: skip
def test_other_files_are_refused_by_their_kind(content: bytes, match: str, tmp_path: Path) -> None:
    """A pointer, a web page, another format, noise."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=match):
        open_tensors(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With its path."""
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such weights file"):
        open_tensors(tmp_path / "gone.pth")


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_does_not_run(legacy: bool, tmp_path: Path) -> None:
    """The error names the function, and shows how to convert a trusted file."""
    marker, path = tmp_path / "ran", tmp_path / "hostile.pth"
    torch.save({"a": Hostile(marker)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"needs \w+\.system") as error:
        open_tensors(path)
    assert "can run any code" in str(error.value)
    assert "save_file(" in str(error.value)
    assert not marker.exists()


def test_code_in_an_npz_does_not_run(tmp_path: Path) -> None:
    """Arrays of Python objects are pickles too."""
    marker, path = tmp_path / "ran", tmp_path / "hostile.npz"
    np.savez(path, a=np.array([Hostile(marker)], dtype=object))
    with pytest.raises(CheckpointError, match="pickled Python objects"):
        open_tensors(path)
    assert not marker.exists()


def test_an_array_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    """Before memory is allocated for it."""
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 8)}
    np.lib.format.write_array_header_1_0(header, shape)  # type: ignore[arg-type]
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("cls.npy", header.getvalue() + bytes(64))
    with pytest.raises(CheckpointError, match="array 'cls' is shorter than its shape"):
        open_tensors(tmp_path / "x.npz")


def test_a_pickled_module_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    """torch.save(model) instead of torch.save(model.state_dict())."""
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"needs torch\.nn\.modules\.linear\.Linear") as e:
        open_tensors(tmp_path / "model.pth")
    assert "'model.safetensors'" in str(e.value)


def test_a_program_is_no_checkpoint(tmp_path: Path) -> None:
    """TorchScript holds code."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/constants.pkl", b"")
        archive.writestr("x/code/__torch__.py", "")
        archive.writestr("x/data.pkl", b"")
    with pytest.raises(CheckpointError, match=r"TorchScript or torch\.export"):
        open_tensors(tmp_path / "x.pt")


def test_a_zip_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    """For example a compressed folder."""
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"without weights .*readme\.txt"):
        open_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({}, "empty state dict"),
        ({"epoch": 3, "lr": 0.1}, r"holds no tensors \(its keys: epoch, lr\)"),
        ([torch.ones(1)], "holds a list; expected a state dict"),
        (torch.ones(1), "holds a Tensor; expected a state dict"),
    ],
)
def test_a_file_of_torch_without_a_state_dict_is_refused(
    content: object, match: str, tmp_path: Path
) -> None:
    """Files of torch.save that hold something else."""
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=match):
        open_tensors(tmp_path / "x.pth")
