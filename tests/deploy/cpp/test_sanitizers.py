"""The C++ library under sanitizers and valgrind: damaged files, misuse, threads, many loads."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_export.artifact import onnx_wire as wire
from vit_export.artifact.onnx_reader import OnnxFile, mapped

pytestmark = pytest.mark.cpp
HERE = Path(__file__).parent
EDGE = HERE.parents[1] / "edge" / "data"
MODEL, GOLDEN = EDGE / "edge.onnx", EDGE / "edge.golden.npz"
DEBUG = "-DCMAKE_BUILD_TYPE=Debug"
Run = Callable[..., subprocess.CompletedProcess[str]]
# ONNX Runtime's library is not instrumented: ThreadSanitizer would see what it does to memory, but
# not the locks and atomics that order it. Nothing of vit_export is left out.
THREADS = "ignore_noninstrumented_modules=1 halt_on_error=1"


@pytest.fixture(scope="session")
def address(cmake_build: Callable[..., Path]) -> Path:
    """Folder of the programs with AddressSanitizer and UndefinedBehaviorSanitizer."""
    return cmake_build(HERE, "address", "-DVIT_EXPORT_SANITIZE=address,undefined", DEBUG)


def with_manifest(text: str, model: bytes = MODEL.read_bytes()) -> bytes:
    """Return a model with other text as its manifest."""
    kept = [f.raw for f in wire.fields(memoryview(model)) if f.number != wire.METADATA]
    value = wire.message(2, text.encode("utf-8", "surrogateescape"))
    return b"".join(kept) + wire.message(wire.METADATA, wire.message(1, b"vit_export") + value)


def manifests() -> Iterator[tuple[str, str]]:
    """Yield texts that are no manifest, each with a part of the expected message."""
    file = OnnxFile.read(MODEL)
    good = json.loads(file.metadata["vit_export"])

    def changed(path: str, value: Any) -> str:
        data = json.loads(file.metadata["vit_export"])
        *outer, last = path.split(".")
        inner = data
        for key in outer:
            inner = inner[int(key) if key.isdigit() else key]
        inner[last] = value
        return json.dumps(data)

    yield "", "it is no JSON"
    yield "{", "it is no JSON"
    yield "[" * 100_000, "levels deep"
    yield '{"a":' * 1_000, "levels deep"
    yield "[]", "expected an object"
    yield "{}", "schema_version"
    yield json.dumps(good)[:-10], "it is no JSON"
    yield json.dumps(good).replace("airplane", "\udcff", 1), "it is no JSON"  # not UTF-8
    yield changed("schema_version", 99), "reads versions up to 1"
    yield changed("schema_version", "1"), "schema_version"
    yield changed("precision", "fp4"), "precision='fp4'"
    yield changed("activation", "tanh"), "activation='tanh'"
    yield changed("opset", 1e99), "opset"
    yield changed("opset", -1), "opset"
    yield changed("variant", 7), "variant: expected text"
    yield changed("variant", "a\0b"), "zero byte"
    yield changed("inputs", []), "inputs is empty"
    yield changed("inputs", [7]), "inputs[0]: expected an object"
    yield changed("inputs.0.shape", None), "shape"
    yield changed("outputs", None), "outputs: expected a list"
    yield changed("labels", "cat"), "labels: expected a list"
    yield changed("labels", [1]), "labels[0]: expected text"
    yield changed("labels", ["a"]), "1 labels for a model of 10 classes"
    yield changed("certificate", [{}]), "certificate"
    yield changed("preprocess", "x"), "preprocess: expected an object"
    for field, value in (
        ("size", [0, 32]), ("size", [32]), ("size", [1 << 40, 1 << 40]), ("crop_pct", 0),
        ("crop_pct", -1.0), ("crop_pct", "1"), ("interpolation", "area"), ("crop_mode", "pad"),
        ("color", "BGR"), ("mean", [0.5]), ("mean", [None] * 3), ("std", [0, 1, 1]),
        ("std", [1e999, 1, 1]), ("mean", [0.5] * 5000),
    ):  # fmt: skip
        yield changed(f"preprocess.{field}", value), field if field != "size" else "size"
    yield changed("inputs.0.name", "image"), "its manifest says"
    for shape in ([0, 3, 32, 32], ["batch_size", 3, 32, 0]):
        yield changed("inputs.0.shape", shape), "expected 1 to"
    yield changed("outputs.0.shape", ["batch_size", 0]), "outputs[0].shape"
    for shape in ([], [7], [4, 3, 32, 32], ["batch_size", 3, 64, 64], ["b", 3, "h", "w"]):
        yield changed("inputs.0.shape", shape), "its graph takes pixel_values: float32 ("
    yield changed("preprocess.size", [64, 32]), "its manifest prepares images of 3x64x32"
    yield changed("preprocess.size", [65536, 65536]), "size (65536, 65536): more than"
    grey = {"color": "L", "mean": [0.5], "std": [0.5]}
    yield (
        changed("preprocess", good["preprocess"] | grey),
        "its manifest prepares images of 1x32x32",
    )
    del good["preprocess"]
    yield json.dumps(good | {"inputs": [good["inputs"][0] | {"shape": []}]}), "its graph takes"
    yield changed("outputs.0.name", "logit"), "promises the output 'logit'"


def models(folder: Path) -> Iterator[tuple[Path, str]]:
    """Write damaged models; yield each with a part of the expected message."""
    good = MODEL.read_bytes()
    contents: list[tuple[bytes, str]] = [
        (b"", "the file is empty"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "not an ONNX file"),
        (GOLDEN.read_bytes(), "not an ONNX file"),
        (b"\x08\x0a", "no IR version or graph output"),
        (wire.varint(7 << 3 | 2) + wire.varint(1 << 62), "beyond the end"),  # a graph of 4 EB
        (b"\xff" * 30, "a number does not end"),
        (b"\x08" + b"\x80" * 20, "a number does not end"),
        (good + wire.message(14, wire.message(1, b"vit_export")), "it is no JSON"),
        (good + wire.message(7, b"\x0a\xff\xff\xff\xff\x0f"), "beyond the end"),
    ]
    contents += [(good[: len(good) * i // 23], "") for i in range(1, 23)]
    contents += [(with_manifest(text), words) for text, words in manifests()]
    with mapped(MODEL) as buffer:
        bare = b"".join(f.raw for f in wire.fields(buffer) if f.number != wire.METADATA)
    contents.append((bare, "no vit-export manifest"))
    for i, (content, words) in enumerate(contents):
        path = folder / f"{i}.onnx"
        path.write_bytes(content)
        yield path, words
    yield folder, "is a folder, expected a "
    yield folder / "none.onnx", "none.onnx: no such file"
    yield Path("/dev/zero"), "is a pipe, socket or device, expected a file"


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(header: bytes, data: bytes = b"") -> bytes:
    """Return a zip of one array `images` whose header and data are given."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
        archive.writestr("images.npy", start + header + data)
    return stream.getvalue()


def goldens(folder: Path) -> Iterator[tuple[Path, str]]:
    """Write damaged golden files; yield each with a part of the expected message."""
    good = GOLDEN.read_bytes()
    arrays = dict(np.load(GOLDEN))
    compressed = io.BytesIO()
    np.savez_compressed(compressed, **arrays)
    end = good.rindex(b"PK\x05\x06")

    def huge(shape: str) -> bytes:
        return npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': " + shape.encode() + b"}")

    contents: list[tuple[bytes, str]] = [
        (b"", "no zip archive"),
        (b"PK", "no zip archive"),
        (MODEL.read_bytes(), "no zip archive"),
        (good[:-1], ""),
        (good[: end + 10] + b"\xff\xff" + good[end + 12 :], "damaged"),  # 65535 entries
        (good[: end + 16] + b"\xfe\xff\xff\xff" + good[end + 20 :], ""),  # the directory is beyond
        (good.replace(b"NUMPY", b"NUMPX", 1), "wrong checksum"),
        (compressed.getvalue(), "is compressed"),
        (npz(), "it has no images"),
        (npz(images=arrays["images"]), "it lacks its outputs"),
        (npz(**(arrays | {"images": arrays["images"][:, :, :, :2]})), "takes 3 channels"),
        (npz(**(arrays | {"images": arrays["images"].astype(np.float32)})), "images is float32"),
        (npz(**(arrays | {"images": arrays["images"][:, :16]})), "another model"),
        (npz(**(arrays | {"images": arrays["images"][:2]})), "output.features is"),
        (npz(**{n: a for n, a in arrays.items() if n != "e32.logits"}), "lacks 'e32.logits'"),
        (npz(**(arrays | {"e32.logits": np.float64("nan")})), "e32.logits holds"),
        (npz(**(arrays | {"e32.logits": np.zeros(3)})), "e32.logits is float64 (3)"),
        (npz(**(arrays | {"block.indices": arrays["block.indices"][:1]})), "block.indices"),
        (npz(**(arrays | {"block.indices": -arrays["block.indices"] - 1})), "block.indices"),
        (npz(**(arrays | {"output.logits": arrays["output.logits"][:, :7]})), "differs"),
        (npz(**(arrays | {"output.logits": arrays["output.logits"] + 1})), "differs"),
        (npz(**(arrays | {"output.logits": arrays["output.logits"] * np.nan})), "differs"),
        (npz(**(arrays | {"e32.logits": np.float64(9)})), "so loose a baseline"),
        (huge("(1, 1099511627776, 1099511627776, 3)"), "claims more than"),
        (huge("(4, 32, 32, 3)"), "has 0 bytes of data"),
        (huge("(" + "1, " * 50 + ")"), "damaged header"),
        (huge("(99999999999999999999,)"), "damaged header"),
        (npy(b"{'descr': 'O', 'fortran_order': False, 'shape': ()}"), "of type 'O'"),
        (npy(b"{'descr': '<U999999', 'fortran_order': False, 'shape': ()}"), "bytes of data"),
        (npy(b"{'descr': '<f3', 'fortran_order': False, 'shape': ()}"), "of type '<f3'"),
        (npy(b"{'shape': (1,)}"), "damaged header"),
        (npy(b"{" * 300), "damaged header"),
        (npy(b""), "damaged header"),
    ]
    contents += [(good[: len(good) * i // 23], "") for i in range(1, 23)]
    for i, (content, words) in enumerate(contents):
        path = folder / f"{i}.npz"
        path.write_bytes(content)
        yield path, words
    yield folder, "is a folder, expected a "


def without_logits(folder: Path) -> tuple[Path, Path, str]:
    """Write a model that computes scores, with features, and a golden file without its logits."""
    file = OnnxFile.read(EDGE / "edge.op.onnx")
    manifest = json.loads(file.metadata["vit_export"])
    features = {"name": "features", "dtype": "float32", "shape": ["batch_size", 32]}
    manifest["outputs"].append(features)
    model, golden = folder / "op.onnx", folder / "op.npz"
    model.write_bytes(with_manifest(json.dumps(manifest), file.expose(["features"], inline=True)))
    arrays = np.load(EDGE / "edge.op.golden.npz")
    np.savez(golden, **{n: arrays[n] for n in arrays.files if not n.endswith(".logits")})
    return model, golden, "logits: promised by the manifest, but not in the golden file"


def test_damaged_files_are_errors_with_a_message(
    address: Path, onnxruntime_library: Path, tmp_path: Path
) -> None:
    """Bytes that are flipped at random may leave a file that works, or one that differs."""
    for name in ("models", "goldens", "flipped"):
        (tmp_path / name).mkdir()
    entries = [(path, GOLDEN, words) for path, words in models(tmp_path / "models")]
    entries += [(MODEL, path, words) for path, words in goldens(tmp_path / "goldens")]
    entries.append(without_logits(tmp_path))
    damaged = len(entries)
    random = np.random.default_rng(0)
    for i in range(60):
        model, golden = bytearray(MODEL.read_bytes()), bytearray(GOLDEN.read_bytes())
        flipped = golden if i % 3 == 0 else model
        flipped[random.integers(len(flipped))] ^= 1 << random.integers(8)
        for content, suffix in ((model, "onnx"), (golden, "npz")):
            (tmp_path / "flipped" / f"{i}.{suffix}").write_bytes(content)
        model_path, golden_path = (tmp_path / "flipped" / f"{i}.{s}" for s in ("onnx", "npz"))
        entries.append((model_path, golden_path, ""))
    child = subprocess.run(
        [address / "hostile"], input="".join(f"{m}\t{g}\n" for m, g, _ in entries),
        capture_output=True, text=True, timeout=600, check=False,
        env={"ONNXRUNTIME_LIBRARY": str(onnxruntime_library)},
    )  # fmt: skip
    lines = child.stdout.splitlines()
    last = entries[min(len(lines), len(entries) - 1)]
    assert child.returncode == 0, f"{last}\n{child.stderr[-3000:]}"
    assert len(lines) == len(entries)
    for line, (model_file, golden_file, words) in zip(lines, entries, strict=True):
        assert line.startswith(("ok", "differs ", "error ")), line
        assert not line.startswith("error 8"), line  # a mistake in the library
        if (model_file, golden_file, words) in entries[:damaged]:
            assert line != "ok", (model_file, golden_file)
            assert words in line, (model_file, golden_file, line)


def test_the_c_interface_bears_misuse(address: Path, run_program: Run) -> None:
    child = run_program(address / "misuse", MODEL)
    assert child.stdout == "0 failures\n", child.stdout + child.stderr
    assert child.returncode == 0, child.stderr


def test_eight_threads_share_a_model(cmake_build: Callable[..., Path], run_program: Run) -> None:
    folder = cmake_build(HERE, "thread", "-DVIT_EXPORT_SANITIZE=thread", DEBUG)
    child = run_program(folder / "threads", MODEL, TSAN_OPTIONS=THREADS)
    assert child.stdout == "0 differences\n", child.stdout + child.stderr[-3000:]
    assert child.returncode == 0, child.stderr[-3000:]


def test_a_hundred_loads_leak_no_memory(release: Path, run_program: Run) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind on this machine: scripts/test-cpp installs it")
    child = run_program(
        "valgrind", "--leak-check=full", "--errors-for-leak-kinds=definite,possible",
        "--error-exitcode=9", f"--suppressions={HERE / 'valgrind.supp'}", "--quiet",
        release / "loads", MODEL, "100",
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    assert child.stdout == "100 loads, 200 errors\n"
