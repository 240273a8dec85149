"""The candidates: what writes a file, what runs it, and what reads a folder of photographs.

Words in braces are filled in: `{weights}`, `{hugging_face}` and `{photographs}` are inputs of every
candidate, `{after}` is the file of another export, `{output}` the file that is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peers.environments import OURS

PYTHON = "{python}"
OUR_COMMAND = (PYTHON, "-m", "vit_export")
OUR_FP32, OUR_INT8 = "vit-export fp32", "vit-export int8"
PLAIN, OPTIMUM = "torch.onnx.export", "optimum"
ORT_OPTIMIZER = "onnxruntime.transformers"
OPENVINO, NNCF = "OpenVINO fp32", "OpenVINO int8 (NNCF)"
EAGER, ONE_BY_ONE = "torch eager", "bare session, one by one"
FOLDER_BATCH = 8  # of the peers that do not choose themselves


@dataclass(frozen=True)
class Export:
    """A command that writes a file."""

    name: str
    environment: str
    command: tuple[str, ...]
    file: str  # that is written, below the folder of the variant
    after: str = ""  # name of the export whose file it reads


@dataclass(frozen=True)
class Session:
    """A model in memory that computes logits."""

    name: str
    environment: str
    module: str  # of `peers`
    export: str = ""  # name of the export whose file it runs; empty: it reads the weights
    arguments: dict[str, Any] = field(default_factory=dict)
    is_int8: bool = False


def _optimum(level: str = "") -> Export:
    suffix = f" {level}" if level else ""
    folder = f"optimum{level}"
    optimize = ("--optimize", level) if level else ()
    return Export(
        OPTIMUM + suffix, "optimum",
        ("{bin}/optimum-cli", "export", "onnx", "--model", "{hugging_face}",
         "--task", "image-classification", *optimize, "{output_folder}"),
        f"{folder}/model.onnx",
    )  # fmt: skip


EXPORTS = (
    Export(OUR_FP32, OURS, (*OUR_COMMAND, "onnx", "--weights", "{weights}", "--mean", "0.5",
            "--std", "0.5", "-o", "{output}"),
           "ours.onnx"),
    Export(PLAIN, "torch",
           (PYTHON, "-m", "peers.torch_export", "{variant}", "{weights}", "{output}"),
           "plain.onnx"),
    _optimum(), _optimum("O1"), _optimum("O2"), _optimum("O3"),
    Export(ORT_OPTIMIZER, "torch",  # it imports torch
           (PYTHON, "-m", "onnxruntime.transformers.optimizer", "--model_type", "vit",
            "--num_heads", "{num_heads}", "--hidden_size", "{embed_dim}",
            "--input", "{after}", "--output", "{output}"),
           "onnxruntime.onnx", after=PLAIN),
    Export(OPENVINO, "openvino",
           (PYTHON, "-m", "peers.openvino_export", "{after}", "{output}"),
           "openvino.xml", after=PLAIN),
    Export(NNCF, "openvino",
           (PYTHON, "-m", "peers.nncf_quantize", "{after}", "{photographs}", "{img_size}",
            "{output}"),
           "nncf.xml", after=PLAIN),
    Export(OUR_INT8, OURS,
           (*OUR_COMMAND, "quantize", "{after}", "--precision", "int8", "-o", "{output}"),
           "ours.int8.onnx", after=OUR_FP32),
)  # fmt: skip

WEIGHTS = {"variant": "{variant}", "weights": "{weights}"}
SESSIONS = (
    Session(OUR_FP32, OURS, "our_session", OUR_FP32),
    Session(EAGER, "torch", "torch_session", arguments={**WEIGHTS, "compiled": False}),
    Session("torch.compile", "torch", "torch_session", arguments={**WEIGHTS, "compiled": True}),
    *(Session(name, "onnxruntime", "onnx_session", name)
      for name in (PLAIN, OPTIMUM, "optimum O1", "optimum O2", "optimum O3", ORT_OPTIMIZER)),
    Session(OPENVINO, "openvino", "openvino_session", OPENVINO),
    Session(NNCF, "openvino", "openvino_session", NNCF, is_int8=True),
    Session(OUR_INT8, OURS, "our_session", OUR_INT8, is_int8=True),
)  # fmt: skip

FOLDERS = (
    Session(OUR_FP32, OURS, "our_folder", OUR_FP32),
    Session(ONE_BY_ONE, "onnxruntime", "one_by_one", OUR_FP32),
    Session("Hugging Face pipeline", "transformers", "hugging_face_folder",
            arguments={"model": "{hugging_face}", "batch": FOLDER_BATCH}),
    Session("timm", "torch", "timm_folder", arguments={**WEIGHTS, "batch": FOLDER_BATCH}),
    Session(OUR_INT8, OURS, "our_folder", OUR_INT8, is_int8=True),
)  # fmt: skip

QUICK = (OUR_FP32, OUR_INT8, EAGER, PLAIN, ORT_OPTIMIZER, ONE_BY_ONE)
# With --quick these are not installed anew: scripts/setup installs the same packages.
QUICK_BORROWED = ("torch",)
