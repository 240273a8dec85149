"""What one thread needs to run an engine: contexts, a stream, memory, and CUDA graphs."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from cuda.core import Device
from cuda.core.utils import StridedMemoryView
from numpy.typing import NDArray

from vit_export.artifact.engine_sidecar import BatchRange
from vit_export.artifact.manifest import TensorSpec
from vit_export.errors import ProviderError
from vit_export.runtime.checks import with_batch
from vit_export.runtime.tensorrt.cuda import copy, device_memory, pinned_array
from vit_export.runtime.tensorrt.plan import Plan

MAX_GRAPHS = 8  # per thread; the least recently used one is dropped

Addresses = tuple[tuple[str, int, tuple[int, ...]], ...]  # name, address, shape of every tensor


class Chunk(NamedTuple):
    """Rows of a batch that run together."""

    start: int  # first row
    rows: int
    batch: int  # batch size that the engine gets; rows beyond `rows` are zeros
    profile: int  # index of the optimization profile


def split(rows: int, profiles: Sequence[BatchRange]) -> list[Chunk]:
    """Split a batch into chunks that the profiles accept: largest ones, and the rest.

    A chunk is padded as little as possible, and runs in the profile with the nearest `opt`.
    """
    chunks = []
    largest = max(batch.max for batch in profiles)
    for start in range(0, rows, largest):
        given = min(rows - start, largest)
        _, _, best = min(
            (max(batch.min - given, 0), abs(batch.opt - given), index)
            for index, batch in enumerate(profiles)
            if batch.max >= given
        )
        chunks.append(Chunk(start, given, max(given, profiles[best].min), best))
    return chunks


class Session:
    """Runs an engine for one thread, which uses the engine's GPU; frees its memory when deleted.

    All contexts run on one stream, one after the other, so they share their scratch memory.
    TensorRT-RTX compiles kernels and captures CUDA graphs by itself.
    """

    def __init__(self, plan: Plan, *, cuda_graphs: bool) -> None:
        self._plan = plan
        self._inputs, self._outputs = plan.sidecar.manifest.inputs, plan.sidecar.manifest.outputs
        self._captures_graphs = cuda_graphs and not plan.backend.is_rtx
        device = Device()
        self.stream = device.create_stream()
        self.handle = int(self.stream.handle)  # as TensorRT expects it
        self._memory = device_memory(device)
        self._scratch: Any = None
        self._context = self._new_context()
        largest = max(batches.max for batches in plan.sidecar.batch_ranges)
        self._host = {
            spec.name: pinned_array(with_batch(spec.shape, largest), np.dtype(spec.dtype))
            for spec in (*self._inputs, *self._outputs)
        }
        self._device = {name: self._allocate(host.nbytes) for name, host in self._host.items()}
        self._address = {name: int(buffer.handle) for name, buffer in self._device.items()}
        # Addresses of earlier runs; for those that came twice, a context and its graph.
        self._graphs: OrderedDict[Addresses, tuple[Any, Any] | None] = OrderedDict()

    def _allocate(self, nbytes: int) -> Any:
        return self._memory.allocate(nbytes, stream=self.stream)

    def _new_context(self) -> Any:
        backend, engine = self._plan.backend, self._plan.engine
        if backend.is_rtx:
            config = engine.create_runtime_config()
            config.cuda_graph_strategy = backend.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        else:
            config = backend.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(config)
        if context is None:
            raise ProviderError(
                f"{backend.name} cannot create an execution context: most likely the GPU has too "
                "little free memory"
            )
        if not backend.is_rtx:
            if self._scratch is None:
                self._scratch = self._allocate(max(int(engine.device_memory_size_v2), 1))
            context.set_device_memory(int(self._scratch.handle), self._scratch.size)
        return context

    def run(self, feeds: Mapping[str, NDArray[Any]], chunk: Chunk) -> dict[str, NDArray[Any]]:
        """Compute the outputs of a chunk of arrays in host memory."""
        given = slice(chunk.start, chunk.start + chunk.rows)
        tensors: list[tuple[str, int, tuple[int, ...]]] = []
        for spec in self._inputs:
            values = feeds[spec.name][given if spec.dynamic else ...]
            host = self._host[spec.name][: chunk.batch if spec.dynamic else None]
            host[: len(values)] = values
            host[len(values) :] = 0
            copy(self._address[spec.name], host.ctypes.data, host.nbytes, self.stream)
            tensors.append((spec.name, self._address[spec.name], host.shape))
        for spec in self._outputs:
            shape = with_batch(spec.shape, chunk.batch)
            tensors.append((spec.name, self._address[spec.name], shape))
        self._enqueue(tuple(tensors), chunk.profile)
        results = {}
        for spec in self._outputs:
            host = self._host[spec.name][: chunk.rows if spec.dynamic else None]
            copy(host.ctypes.data, self._address[spec.name], host.nbytes, self.stream)
            results[spec.name] = host
        self.stream.sync()
        return {name: host.copy() for name, host in results.items()}

    def run_on_device(
        self, inputs: Mapping[str, Any], targets: Mapping[str, Any], profile: int
    ) -> dict[str, Any]:
        """Compute outputs from tensors on the GPU (StridedMemoryView), without a copy.

        Outputs are written to `targets`, of exactly their shapes; others get memory of their own.
        """
        batch = inputs[self._inputs[0].name].shape[0]
        results = {
            spec.name: targets[spec.name] if spec.name in targets else self._new_tensor(spec, batch)
            for spec in self._outputs
        }
        tensors = {**inputs, **results}
        self._enqueue(tuple((name, t.ptr, tuple(t.shape)) for name, t in tensors.items()), profile)
        self.stream.sync()
        return results

    def _new_tensor(self, spec: TensorSpec, batch: int) -> Any:
        shape, dtype = with_batch(spec.shape, batch), np.dtype(spec.dtype)
        memory = self._allocate(math.prod(shape) * dtype.itemsize)
        return StridedMemoryView.from_buffer(memory, shape, dtype=dtype)

    def _enqueue(self, tensors: Addresses, profile: int) -> None:
        """Run once; capture a graph the second time, and replay it from then on."""
        captured = self._graphs.get(tensors)
        if captured is not None:
            captured[1].launch(self.stream)
        elif tensors in self._graphs:
            captured = self._capture(tensors, profile)
        else:
            self._execute(self._context, tensors, profile)
        if self._captures_graphs:
            self._graphs[tensors] = captured
            self._graphs.move_to_end(tensors)
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)

    def _capture(self, tensors: Addresses, profile: int) -> tuple[Any, Any]:
        """Run once and capture the run; a graph holds the state of its context, so has its own."""
        context = self._new_context()
        self._execute(context, tensors, profile)  # TensorRT updates itself in the first run
        self.stream.sync()
        recording = self.stream.create_graph_builder().begin_building("thread_local")
        if not context.execute_async_v3(self.handle):
            recording.close()
            raise ProviderError(f"{self._plan.backend.name} cannot capture a CUDA graph")
        return context, recording.end_building().complete()

    def _execute(self, context: Any, tensors: Addresses, profile: int) -> None:
        inputs = {spec.name for spec in self._inputs}
        with self._plan.backend.collect_messages() as messages:
            done = context.set_optimization_profile_async(profile, self.handle)
            for name, address, shape in tensors:
                done = done and (name not in inputs or context.set_input_shape(name, shape))
                done = done and context.set_tensor_address(name, address)
            if not (done and context.execute_async_v3(self.handle)):
                raise ProviderError(
                    f"{self._plan.backend.name} cannot run the engine with profile {profile} and "
                    f"{'; '.join(f'{name} {shape}' for name, _, shape in tensors)}: "
                    f"{messages.reason()}"
                )
