"""Record a run as a CUDA graph, once for each batch size, and replay it from fixed buffers.

Each batch size has its own graph under the run option `gpu_graph_id` (ONNX Runtime, "CUDA Execution
Provider", CUDA graphs). ONNX Runtime keeps graphs by thread (`PerThreadContext` in its
cuda_execution_provider.cc), so one thread does all runs of a session: the threads of a server would
otherwise each record every batch size. On the CPU the same code runs, and records nothing.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

NOT_RECORDED = -1  # graph number of a run that is neither recorded nor replayed
MAX_GRAPHS = 16  # each keeps its buffers on the GPU
Feeds = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Recorded:
    """The buffers of one batch size, and the number of its graph."""

    graph: int
    binding: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]

    def results(self) -> Outputs:
        return {name: value.numpy().copy() for name, value in self.outputs.items()}


class RecordedRuns:
    """Runs a session, created with `enable_cuda_graph`, from fixed buffers; threads take turns."""

    def __init__(
        self, session: ort.InferenceSession, outputs: Sequence[str], device: tuple[str, int]
    ) -> None:
        self._session, self._outputs, self._device = session, tuple(outputs), device
        # the least recently used first
        self._recorded: dict[tuple[tuple[str, tuple[int, ...]], ...], _Recorded] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cuda-graph")

    def run(self, feeds: Feeds) -> Outputs:
        """Copy checked inputs to the buffers, replay the graph or record it, copy the outputs."""
        return self._thread.submit(self._run, feeds).result()

    def _run(self, feeds: Feeds) -> Outputs:
        key = tuple(sorted((name, array.shape) for name, array in feeds.items()))
        recorded = self._recorded.pop(key, None)
        if recorded is None:
            graph = self._free_graph()
            recorded = self._prepare(feeds, graph)
            if graph == NOT_RECORDED:
                return recorded.results()
        self._recorded[key] = recorded
        for name, array in feeds.items():
            recorded.inputs[name].update_inplace(np.asarray(array, order="C"))
        self._session.run_with_iobinding(recorded.binding, _run_options(recorded.graph))
        return recorded.results()

    def _free_graph(self) -> int:
        """Return the number for a new graph, at the limit that of the least recently used."""
        if len(self._recorded) == MAX_GRAPHS:
            if not hasattr(self._session, "release_captured_graph"):  # an older ONNX Runtime
                return NOT_RECORDED
            oldest = self._recorded.pop(next(iter(self._recorded)))
            self._session.release_captured_graph(oldest.graph)
        in_use = {recorded.graph for recorded in self._recorded.values()}
        return next(number for number in range(MAX_GRAPHS) if number not in in_use)

    def _prepare(self, feeds: Feeds, graph: int) -> _Recorded:
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
        return _Recorded(graph, binding, inputs, outputs)


def _run_options(graph_id: int) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
