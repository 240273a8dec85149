"""Every attribute of TensorRT and of CUDA that the code names, in their real bindings."""

from __future__ import annotations

import ast
import inspect
import json
import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tensorrt_rtx
from cuda.bindings import driver
from cuda.bindings import runtime as cudart
from cuda.core import (
    Buffer,
    Device,
    DeviceMemoryResource,
    DeviceMemoryResourceOptions,
    LegacyPinnedMemoryResource,
    Stream,
)
from cuda.core._device import DeviceProperties
from cuda.core.graph import Graph, GraphBuilder
from cuda.core.utils import StridedMemoryView

from vit_export.engine.settings import HARDWARE_COMPATIBILITY, SWITCHES
from vit_export.runtime.tensorrt.backend import DTYPES

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted((ROOT / "vit_export" / "engine").glob("*.py")),
    *(
        ROOT / "vit_export" / "runtime" / "tensorrt" / f"{name}.py"
        for name in ("backend", "plan", "runner", "session")
    ),
]
# What an object is called in these files -> its class; "" is the module.
OWNERS = {
    "trt": "", "builder": "Builder", "config": "IBuilderConfig", "definition": "INetworkDefinition",
    "parser": "OnnxParser", "layer": "ILayer",
    "optimization_profile": "IOptimizationProfile",
    "plan": "IHostMemory",
    "engine": "ICudaEngine", "context": "IExecutionContext", "_context": "IExecutionContext",
    "runtime": "Runtime", "inspector": "EngineInspector", "cache": "ITimingCache",
    "refitter": "Refitter", "tensor": "ITensor", "e": "ParserError", "attention": "IAttention",
    "severity": "ILogger", "runtime_config": "IRuntimeConfig", "kernels": "IRuntimeCache",
}  # fmt: skip
OURS = {  # attributes of objects of ours that bear one of those names
    "plan": {"backend", "engine", "inputs", "memory", "outputs", "runtime_cache", "sidecar"},
    "tensor": {"nbytes"},
    "layer": {"get", "attention"}, "parser": {"refit_from_file"},
}  # fmt: skip
ELSEWHERE = {  # of which class those are that the names above hide
    "IAttentionOutputLayer": {"attention"},
    "OnnxParserRefitter": {"refit_from_file"}, "IHostMemory": {"nbytes"},
}  # fmt: skip
RTX_ONLY = {  # behind `is_rtx`
    "": {"ComputeCapability", "CudaGraphStrategy"},
    "CudaGraphStrategy": {"WHOLE_GRAPH_CAPTURE"},
    "IBuilderConfig": {"num_compute_capabilities", "set_compute_capability"},
    "ICudaEngine": {"create_runtime_config"},
    "IRuntimeConfig": {"create_runtime_cache", "cuda_graph_strategy", "set_runtime_cache"},
    "IRuntimeCache": {"deserialize", "serialize"},
}
SINCE = {  # behind `hasattr`, or refused by name in an older version
    ("", "IAttentionOutputLayer"): (10, 14),
    ("LayerType", "ATTENTION_OUTPUT"): (10, 14),
    ("IAttentionOutputLayer", "attention"): (10, 14),
    ("IAttention", "decomposable"): (10, 14),
    ("IAttention", "get_input"): (10, 14),
    ("HardwareCompatibilityLevel", "SAME_COMPUTE_CAPABILITY"): (10, 9),
}
VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")


def last_name(node: ast.expr) -> str:
    """`config` of `config`, and of `self.config`."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def touched() -> set[tuple[str, str]]:
    """(class, attribute) of everything that the code names, seen in its syntax tree."""
    found = {(name, attribute) for name, names in ELSEWHERE.items() for attribute in names}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
                continue
            owner, of = last_name(node.value), node.value
            if isinstance(of, ast.Attribute) and last_name(of.value) == "trt":
                found.add((of.attr, node.attr))  # an enum's member: trt.BuilderFlag.TF32
            elif owner in OWNERS and node.attr not in OURS.get(owner, ()):
                found.add((OWNERS[owner], node.attr))
    found |= {("BuilderFlag", flag) for flag, _ in SWITCHES.values()}
    found |= {("HardwareCompatibilityLevel", level) for level, _ in HARDWARE_COMPATIBILITY.values()}
    found |= {("DataType", name) for name in DTYPES}
    return found


def missing(known: dict[str, list[str]], names: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Names that a version does not know."""
    return {(owner, name) for owner, name in names if name not in known.get(owner, ())}


def expected_of(version: str) -> set[tuple[str, str]]:
    """What the code needs of a version of TensorRT."""
    numbers = tuple(int(part) for part in version.split("."))[:2]
    return {
        (owner, name)
        for owner, name in touched()
        if name not in RTX_ONLY.get(owner, ())
        and owner not in ("ComputeCapability", "CudaGraphStrategy")
        and numbers >= SINCE.get((owner, name), (0, 0))
    }


def test_names_are_found_in_code() -> None:
    """A builder's flag, a method, an enum's member and a property are among what was found."""
    assert {
        ("BuilderFlag", "TF32"),
        ("IExecutionContext", "execute_async_v3"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("IBuilderConfig", "progress_monitor"),
        ("IExecutionContext", "update_device_memory_size_for_shapes"),
    } <= touched()
    assert len(touched()) > 80


def test_every_tensorrt_object_in_the_code_is_in_the_table() -> None:
    """A method with TensorRT's spelling, on a variable that is not in `OWNERS`, would go unseen."""
    classes = [value for value in vars(tensorrt_rtx).values() if isinstance(value, type)]
    spelt = {name for value in classes for name in dir(value) if "_" in name.strip("_")}
    strays = {
        (last_name(node.value), node.attr)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in spelt and node.attr[0] != "_"
        if last_name(node.value) not in OWNERS and ".trt." not in f".{ast.unparse(node)}"
    }
    assert strays == set()


def test_the_flag_that_tensorrt_11_dropped_is_not_used() -> None:
    """`BuilderFlag.FP16` gives an FP32 engine where it is missing, so nobody touches it."""
    flags = {name for owner, name in touched() if owner == "BuilderFlag"}
    assert flags.isdisjoint({"FP16", "BF16", "INT8", "OBEY_PRECISION_CONSTRAINTS"})


@pytest.mark.slow  # downloads a wheel of 1.3 MB
@pytest.mark.parametrize("version", VERSIONS)
def test_the_real_bindings_have_every_name(version: str) -> None:
    """From JetPack 6's TensorRT 10.3 to 11.4, one code path."""
    script = str(ROOT / "scripts" / "tensorrt-api")
    child = subprocess.run(
        [sys.executable, script, version, "--json"], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    known = json.loads(child.stdout)
    assert missing(known, expected_of(version)) == set()
    assert "FP16" not in known["BuilderFlag"] or version.startswith("10.")


def test_the_rtx_bindings_have_every_name() -> None:
    """TensorRT-RTX is installed here, whole."""
    classes = {n: v for n, v in vars(tensorrt_rtx).items() if isinstance(v, type)}
    known = {name: dir(value) for name, value in classes.items()}
    known[""] = list(vars(tensorrt_rtx))
    wanted = touched() | {(owner, n) for owner, names in RTX_ONLY.items() for n in names}
    assert missing(known, wanted) == set()


@pytest.mark.parametrize(
    ("function", "arguments", "keywords"),
    [
        (Device.create_stream, 1, ()),
        (Device.set_current, 1, ()),
        (Stream.sync, 1, ()),
        (Stream.create_graph_builder, 1, ()),
        (GraphBuilder.begin_building, 2, ()),
        (GraphBuilder.end_building, 1, ()),
        (GraphBuilder.complete, 1, ()),
        (GraphBuilder.close, 1, ()),
        (Graph.launch, 2, ()),
        (DeviceMemoryResource.allocate, 2, ("stream",)),
        (LegacyPinnedMemoryResource.allocate, 2, ()),
        (Buffer.from_handle, 2, ()),
        (Buffer.copy_from, 2, ("stream",)),
        (StridedMemoryView.from_dlpack, 2, ()),
        (StridedMemoryView.from_buffer, 2, ("dtype",)),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_cuda_core_has_every_method_with_these_arguments(
    function: Callable[..., Any], arguments: int, keywords: tuple[str, ...]
) -> None:
    """A method's first argument is its object."""
    inspect.signature(function).bind(*[None] * arguments, **dict.fromkeys(keywords))


def test_cuda_core_has_every_property() -> None:
    for owner, names in (
        (Device, ("device_id", "name", "compute_capability", "properties", "memory_resource")),
        (DeviceProperties, ("memory_pools_supported",)),
        (Stream, ("handle",)),
        (Buffer, ("handle", "size")),
        (StridedMemoryView, ("ptr", "shape", "dtype", "strides", "device_id")),
    ):
        assert [name for name in names if not hasattr(owner, name)] == []
    assert DeviceMemoryResourceOptions()


@pytest.mark.parametrize("module", [cudart, driver], ids=["cudart", "driver"])
def test_cuda_bindings_have_every_name(module: ModuleType) -> None:
    """Functions and constants that are read as attributes of the module."""
    prefix = module.__name__.rpartition(".")[2].replace("runtime", "cudart") + "."
    tree = ast.parse(
        (ROOT / "vit_export" / "runtime" / "tensorrt" / "cuda.py").read_text(encoding="utf-8")
    )
    names = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    chains = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    assert len(chains) >= 2
    for chain in chains:
        operator.attrgetter(chain)(module)
