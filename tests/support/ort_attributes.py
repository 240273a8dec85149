"""The attributes of onnxruntime that the package uses, found in its code.

`InferenceSession` and the other classes are recognised by the names of their attributes: each name
that is read anywhere in these files, and that a class of the newest onnxruntime has, counts.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "vit_export"
FILES = (*(PACKAGE / "runtime" / "onnxruntime").glob("*.py"), PACKAGE / "host" / "probes.py")
CLASSES = (
    *("InferenceSession", "IOBinding", "OrtEpAssignedNode", "OrtEpAssignedSubgraph"),
    *("OrtEpDevice", "OrtValue", "RunOptions", "SessionOptions"),
)
# what the package does without, or names in an error, where onnxruntime is older
CHECKED_FIRST = {"OrtValue.from_dlpack", "InferenceSession.release_captured_graph"}
# of the newest; `test_the_list_of_used_attributes_is_complete` says what changed
USED: dict[str, set[str]] = {
    "": {
        *("InferenceSession", "OrtValue", "RunOptions", "SessionOptions"),
        *("__file__", "__version__"),
        *("get_available_providers", "get_ep_devices", "preload_dlls"),
        "register_execution_provider_library",
    },
    "InferenceSession": {
        *("get_outputs", "get_provider_graph_assignment_info", "get_providers", "io_binding"),
        *("release_captured_graph", "run", "run_with_iobinding"),
    },
    "IOBinding": {
        *("bind_ortvalue_input", "bind_ortvalue_output", "bind_output", "clear_binding_outputs"),
        *("get_outputs", "synchronize_inputs", "synchronize_outputs"),
    },
    "OrtEpAssignedNode": {"domain", "name", "op_type"},
    "OrtEpAssignedSubgraph": {"ep_name", "get_nodes"},
    "OrtEpDevice": {"device", "ep_name"},
    "OrtValue": {
        *("data_type", "from_dlpack", "numpy", "ortvalue_from_numpy", "shape", "update_inplace"),
    },
    "RunOptions": {"add_run_config_entry", "log_severity_level"},
    "SessionOptions": {
        *("add_provider_for_devices", "add_session_config_entry", "inter_op_num_threads"),
        *("intra_op_num_threads", "log_severity_level"),
    },
}


def used_attributes(onnxruntime: Any) -> dict[str, set[str]]:
    """Return the names that the package reads, by class; those of the module by `""`."""
    read: set[str] = set()
    of_module: set[str] = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
                if isinstance(node.value, ast.Name) and node.value.id in ("ort", "onnxruntime"):
                    of_module.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)  # of `hasattr` and `getattr`
    by_class = {
        name: {each for each in read & set(dir(getattr(onnxruntime, name))) if each[0] != "_"}
        for name in CLASSES
    }
    return {"": of_module, **by_class}


def missing_attributes(onnxruntime: Any) -> set[str]:
    """Return what the package uses and this onnxruntime lacks."""
    return {
        f"{name}.{attribute}".removeprefix(".")
        for name, attributes in USED.items()
        for attribute in attributes
        if not hasattr(getattr(onnxruntime, name) if name else onnxruntime, attribute)
    }
