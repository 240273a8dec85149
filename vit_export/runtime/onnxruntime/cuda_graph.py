"""Record a run as a CUDA graph, once for each batch size, and replay it from fixed buffers.

Each batch size has its own buffers, and its own graph under the run option `gpu_graph_id` (ONNX
Runtime, "CUDA Execution Provider", CUDA graphs). On the CPU nothing is recorded, and the same code
runs the model from the same buffers, which is how it is tested without a GPU.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

NOT_RECORDED = -1  # graph number of a run that is neither recorded nor replayed


@dataclass(frozen=True)
class _Recorded:
    """The buffers of one batch size, and the number of its graph."""

    binding: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    run_options: Any


class RecordedRuns:
    """Runs a session, created with `enable_cuda_graph`, from fixed buffers; threads take turns."""

    def __init__(
        self, session: ort.InferenceSession, outputs: Sequence[str], device: tuple[str, int]
    ) -> None:
        self._session, self._outputs, self._device = session, tuple(outputs), device
        self._recorded: dict[tuple[tuple[str, tuple[int, ...]], ...], _Recorded] = {}
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Copy checked inputs to the buffers, replay the graph or record it, copy the outputs."""
        key = tuple(sorted((name, array.shape) for name, array in feeds.items()))
        with self._lock:
            if key not in self._recorded:
                self._recorded[key] = self._prepare(feeds)
            recorded = self._recorded[key]
            for name, array in feeds.items():
                recorded.inputs[name].update_inplace(np.ascontiguousarray(array))
            self._session.run_with_iobinding(recorded.binding, recorded.run_options)
            return {name: value.numpy().copy() for name, value in recorded.outputs.items()}

    def _prepare(self, feeds: Mapping[str, NDArray[Any]]) -> _Recorded:
        """Run once without recording; its outputs are the buffers of all later runs."""
        # copied: in host memory an OrtValue shares the array's memory, and later runs write to it
        inputs = {
            name: ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), *self._device)
            for name, array in feeds.items()
        }
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, *self._device)
        self._session.run_with_iobinding(binding, _run_options(NOT_RECORDED))
        outputs = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        binding.clear_binding_outputs()
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return _Recorded(binding, inputs, outputs, _run_options(len(self._recorded)))


def _run_options(graph_id: int) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
