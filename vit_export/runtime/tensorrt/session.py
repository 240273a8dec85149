"""What one run of an engine at a time needs: contexts, a stream, memory, and CUDA graphs."""

import contextlib
import gc
import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from cuda.core import LEGACY_DEFAULT_STREAM, Device

# cuda-core has no public name for its errors
from cuda.core._utils.cuda_utils import CUDAError
from cuda.core.utils import StridedMemoryView
from numpy.typing import NDArray

from vit_export.artifact.engine_sidecar import BatchRange
from vit_export.artifact.manifest import TensorSpec
from vit_export.errors import ProviderError, ProviderWarning
from vit_export.runtime.checks import with_batch
from vit_export.runtime.tensorrt.cuda import copy, pinned_array
from vit_export.runtime.tensorrt.plan import Plan

MAX_GRAPHS = 8  # per session; the least recently used one is dropped
_capturing = threading.Lock()  # garbage collection stops and starts for the whole process

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
    """Runs an engine on the current GPU, one run at a time; frees its memory when deleted.

    All contexts run on one stream, one after the other, so they share their scratch memory.
    TensorRT-RTX compiles kernels and captures CUDA graphs by itself.
    """

    def __init__(self, plan: Plan, *, graphs_off: threading.Event) -> None:
        self._context: Any = None  # the first attribute is the first that is deleted
        self.plan = plan
        self._inputs, self._outputs = plan.sidecar.manifest.inputs, plan.sidecar.manifest.outputs
        self._graphs_off = graphs_off  # of all sessions of an engine
        self.stream = Device().create_stream()
        self.handle = int(self.stream.handle)  # as TensorRT expects it
        self._host: dict[str, NDArray[Any]] = {}  # pinned
        self._device: dict[str, Any] = {}  # buffers for the largest batch that was run
        # Addresses of earlier runs; for those that came twice, a context and its graph.
        self._graphs: OrderedDict[Addresses, tuple[Any, Any] | None] = OrderedDict()
        self._context = self._new_context()

    def _pinned(self, spec: TensorSpec, batch: int) -> NDArray[Any]:
        """Return the reused array of a tensor in pinned memory, for a batch."""
        shape = with_batch(spec.shape, batch)
        if spec.name not in self._host or len(self._host[spec.name]) < shape[0]:
            self._host.pop(spec.name, None)
            self._host[spec.name] = pinned_array(shape, np.dtype(spec.dtype))
        return self._host[spec.name][: shape[0]]

    def _reserve(self, name: str, nbytes: int) -> int:
        """Return the address of the reused buffer of that name on the GPU, of at least a size."""
        if name not in self._device or self._device[name].size < nbytes:
            self._graphs.clear()  # they use the present buffer
            self._device.pop(name, None)
            self._device[name] = self.plan.memory.allocate(nbytes, stream=self.stream)
        return int(self._device[name].handle)

    def _new_context(self) -> Any:
        backend, engine = self.plan.backend, self.plan.engine
        if backend.is_rtx:
            runtime_config = engine.create_runtime_config()
            runtime_config.cuda_graph_strategy = backend.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if (runtime_cache := self.plan.runtime_cache) is not None:
                runtime_cache.use(runtime_config)
            context = engine.create_execution_context(runtime_config)
        else:
            strategy = backend.trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
        if context is None:
            raise ProviderError(
                f"{backend.name} cannot create an execution context: most likely the GPU has too "
                "little free memory"
            )
        return context

    def run(self, feeds: Mapping[str, NDArray[Any]], chunk: Chunk) -> dict[str, NDArray[Any]]:
        """Compute the outputs of a chunk of arrays in host memory."""
        given = slice(chunk.start, chunk.start + chunk.rows)
        tensors: list[tuple[str, int, tuple[int, ...]]] = []
        for spec in (*self._inputs, *self._outputs):
            host = self._pinned(spec, chunk.batch)
            address = self._reserve(spec.name, host.nbytes)
            tensors.append((spec.name, address, host.shape))
            if spec.name in feeds:
                values = feeds[spec.name][given if spec.dynamic else ...]
                host[: len(values)] = values
                host[len(values) :] = 0
                copy(address, host.ctypes.data, host.nbytes, self.stream)
        self._enqueue(tuple(tensors), chunk.profile)
        return self.to_host({name: (address, chunk.rows) for name, address, _ in tensors})

    def to_host(self, outputs: Mapping[str, tuple[int, int]]) -> dict[str, NDArray[Any]]:
        """Copy outputs to arrays, given their address and number of rows."""
        hosts = {}
        for spec in self._outputs:
            address, rows = outputs[spec.name]
            hosts[spec.name] = host = self._pinned(spec, rows)
            copy(host.ctypes.data, address, host.nbytes, self.stream)
        self.stream.sync()
        return {name: host.copy() for name, host in hosts.items()}

    def run_on_device(
        self, inputs: Mapping[str, Any], targets: Mapping[str, Any], profile: int
    ) -> dict[str, Any]:
        """Compute outputs from tensors on the GPU (StridedMemoryView), without a copy.

        Outputs are written to `targets`, of exactly their shapes; others get memory of their own.
        """
        batch = inputs[self._inputs[0].name].shape[0]
        results, made = dict(targets), []
        for spec in self._outputs:
            if spec.name not in targets:
                shape, dtype = with_batch(spec.shape, batch), np.dtype(spec.dtype)
                nbytes = math.prod(shape) * dtype.itemsize
                made.append(self.plan.memory.allocate(nbytes, stream=self.stream))
                results[spec.name] = StridedMemoryView.from_buffer(made[-1], shape, dtype=dtype)
        tensors = {**inputs, **results}
        self._enqueue(tuple((name, t.ptr, tuple(t.shape)) for name, t in tensors.items()), profile)
        self.stream.sync()
        for memory in made:  # freed after what the caller has queued there, e.g. by torch
            memory.set_deallocation_stream(LEGACY_DEFAULT_STREAM)
        return results

    def _enqueue(self, tensors: Addresses, profile: int) -> None:
        """Run once; capture a graph the second time, and replay it from then on."""
        captured = self._graphs.get(tensors)
        if captured is not None:
            captured[1].launch(self.stream)
        elif tensors in self._graphs and not self._graphs_off.is_set():
            captured = self._capture(tensors, profile)
        else:
            self._execute(self._context, tensors, profile)
        if not self._graphs_off.is_set():
            self._graphs[tensors] = captured
            self._graphs.move_to_end(tensors)
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)

    def _capture(self, tensors: Addresses, profile: int) -> tuple[Any, Any] | None:
        """Run once, and capture a further run; without graphs from then on if that fails.

        A graph holds the state of its context, so it has its own. The mode of capture is that of
        `trtexec`. Garbage collection could free memory of CUDA, which breaks a capture.
        """
        context = self._new_context()
        self._execute(context, tensors, profile)  # TensorRT updates itself in the first run
        self.stream.sync()
        recording = self.stream.create_graph_builder()
        with _capturing, self.plan.backend.collect_messages() as messages:
            collects_garbage = gc.isenabled()
            gc.disable()
            try:
                recording.begin_building("thread_local")
                if context.execute_async_v3(self.handle):
                    return context, recording.end_building().complete()
                reason = messages.reason()
            except (CUDAError, RuntimeError) as error:
                reason = f"{error}; {messages.reason()}" if messages.errors else str(error)
            finally:
                if collects_garbage:
                    gc.enable()
            with contextlib.suppress(CUDAError):  # of the capture; this ends it
                recording.close()
            if not self._graphs_off.is_set():
                self._graphs_off.set()
                warnings.warn(
                    f"this engine runs without CUDA graphs: capturing one failed ({reason})",
                    ProviderWarning,
                    stacklevel=2,
                )
        return None

    def _execute(self, context: Any, tensors: Addresses, profile: int) -> None:
        backend, inputs = self.plan.backend, {spec.name for spec in self._inputs}
        with backend.collect_messages() as messages:
            done = context.set_optimization_profile_async(profile, self.handle)
            for name, address, shape in tensors:
                done = done and (name not in inputs or context.set_input_shape(name, shape))
                done = done and context.set_tensor_address(name, address)
            if done and not backend.is_rtx:
                nbytes = max(int(context.update_device_memory_size_for_shapes()), 1)
                context.set_device_memory(self._reserve("scratch memory", nbytes), nbytes)
            if not (done and context.execute_async_v3(self.handle)):
                raise ProviderError(
                    f"{backend.name} cannot run the engine with profile {profile} and "
                    f"{'; '.join(f'{name} {shape}' for name, _, shape in tensors)}: "
                    f"{messages.reason()}"
                )
        if (runtime_cache := self.plan.runtime_cache) is not None:
            runtime_cache.save_after((profile, *(shape for _, _, shape in tensors)))
