"""What one thread needs to run an engine: contexts, a stream, memory, and CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.engine_sidecar import batch_range
from vit_export.errors import ProviderError
from vit_export.runtime.checks import with_batch
from vit_export.runtime.tensorrt.cuda import DeviceBuffer, Graph, PinnedArray, Stream, working_on
from vit_export.runtime.tensorrt.dlpack import CUDA, View, capsule_of
from vit_export.runtime.tensorrt.plan import Plan

MAX_GRAPHS = 8  # per thread; the least recently used one is dropped

Addresses = tuple[tuple[str, int, tuple[int, ...]], ...]  # name, address, shape of every tensor


class DeviceTensor:
    """An output on the GPU: `shape`, `dtype` (numpy's name), `address`, `ordinal` (the GPU's)."""

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: str, ordinal: int, owner: Any
    ) -> None:
        self.address, self.shape, self.dtype, self.ordinal = address, shape, dtype, ordinal
        self._owner = owner

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.ordinal

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        """Return a capsule; the data is ready on every stream."""
        return capsule_of(
            self.address, self.shape, dtype=self.dtype, device=self.__dlpack_device__(), owner=self
        )

    def numpy(self) -> NDArray[Any]:
        """Return a copy in host memory."""
        with working_on(self.ordinal):
            host, stream = PinnedArray(self.shape, np.dtype(self.dtype)), Stream()
            stream.to_host(host.address, self.address, host.array.nbytes)
            stream.synchronize()
            return host.array.copy()


class Session:
    """Runs an engine for one thread, which uses the engine's GPU; frees its memory when deleted.

    All contexts run on one stream, one after the other, so they share their scratch memory.
    TensorRT-RTX compiles kernels and captures CUDA graphs by itself.
    """

    def __init__(self, plan: Plan, *, cuda_graphs: bool) -> None:
        self._plan = plan
        self._inputs, self._outputs = plan.sidecar.manifest.inputs, plan.sidecar.manifest.outputs
        self._captures_graphs = cuda_graphs and not plan.backend.is_rtx
        self.stream = Stream()
        self._scratch: DeviceBuffer | None = None
        self._context = self._new_context()
        self._device: dict[str, DeviceBuffer] = {}
        self._host: dict[str, PinnedArray] = {}
        largest = max((batch_range(p).max for p in plan.sidecar.profiles), default=1)
        for spec in (*self._inputs, *self._outputs):
            host = PinnedArray(with_batch(spec.shape, largest), np.dtype(spec.dtype))
            self._host[spec.name] = host
            self._device[spec.name] = DeviceBuffer(host.array.nbytes)
        # Addresses of earlier runs, and the graph of those that came twice.
        self._graphs: OrderedDict[Addresses, tuple[Any, Graph] | None] = OrderedDict()

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
                self._scratch = DeviceBuffer(max(int(engine.device_memory_size_v2), 1))
            context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        return context

    def run(
        self, feeds: Mapping[str, NDArray[Any]], *, batch: int, profile: int
    ) -> dict[str, NDArray[Any]]:
        """Compute outputs from arrays in host memory.

        Inputs are padded with zeros to `batch`; outputs come without the rows of the padding.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        rows = batch
        for spec in self._inputs:
            values, memory = feeds[spec.name], self._host[spec.name]
            host = memory.array[: batch if spec.dynamic else len(values)]
            host[: len(values)] = values
            host[len(values) :] = 0
            shapes[spec.name] = host.shape
            rows = len(values) if spec.dynamic else rows
            self.stream.to_device(self._device[spec.name].address, memory.address, host.nbytes)
        for spec in self._outputs:
            shapes[spec.name] = with_batch(spec.shape, batch)
        tensors = ((name, self._device[name].address, shape) for name, shape in shapes.items())
        self._enqueue(tuple(tensors), profile)
        for spec in self._outputs:
            memory = self._host[spec.name]
            nbytes = memory.array[: shapes[spec.name][0]].nbytes
            self.stream.to_host(memory.address, self._device[spec.name].address, nbytes)
        self.stream.synchronize()
        return {
            spec.name: self._host[spec.name].array[: rows if spec.dynamic else None].copy()
            for spec in self._outputs
        }

    def run_on_device(
        self, views: Mapping[str, View], targets: Mapping[str, View], profile: int
    ) -> dict[str, DeviceTensor]:
        """Compute outputs from tensors on the GPU, without a copy.

        Outputs are written to `targets`, of exactly their shapes; others get memory of their own.
        """
        first = views[self._inputs[0].name]
        batch, ordinal = first.shape[0], first.device[1]
        results: dict[str, DeviceTensor] = {}
        for spec in self._outputs:
            shape = with_batch(spec.shape, batch)
            owner: View | DeviceBuffer | None = targets.get(spec.name)
            if owner is None:
                owner = DeviceBuffer(int(np.prod(shape)) * np.dtype(spec.dtype).itemsize)
            results[spec.name] = DeviceTensor(owner.address, shape, spec.dtype, ordinal, owner)
        addresses = (
            *((name, view.address, view.shape) for name, view in views.items()),
            *((name, result.address, result.shape) for name, result in results.items()),
        )
        self._enqueue(addresses, profile)
        self.stream.synchronize()
        return results

    def _enqueue(self, tensors: Addresses, profile: int) -> None:
        """Run once; capture a graph the second time, and replay it from then on."""
        captured = self._graphs.get(tensors)
        if captured is not None:
            self._graphs.move_to_end(tensors)
            self.stream.launch(captured[1])
            return
        if not self._captures_graphs or tensors not in self._graphs:
            self._execute(self._context, tensors, profile)
            if self._captures_graphs:
                self._remember(tensors, None)
            return
        # A graph holds the state of its context, so that context is used for nothing else.
        context = self._new_context()
        self._execute(context, tensors, profile)  # TensorRT updates itself in the first run
        self.stream.synchronize()
        self.stream.begin_capture()
        started = context.execute_async_v3(self.stream.handle)
        graph = self.stream.end_capture()
        if not started:
            raise ProviderError(f"{self._plan.backend.name} cannot capture a CUDA graph")
        self._remember(tensors, (context, graph))

    def _remember(self, tensors: Addresses, captured: tuple[Any, Graph] | None) -> None:
        self._graphs[tensors] = captured
        self._graphs.move_to_end(tensors)
        while len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)

    def _execute(self, context: Any, tensors: Addresses, profile: int) -> None:
        inputs = {spec.name for spec in self._inputs}
        with self._plan.backend.collect_messages() as messages:
            done = context.set_optimization_profile_async(profile, self.stream.handle)
            for name, address, shape in tensors:
                done = done and (name not in inputs or context.set_input_shape(name, shape))
                done = done and context.set_tensor_address(name, address)
            if not (done and context.execute_async_v3(self.stream.handle)):
                raise ProviderError(
                    f"{self._plan.backend.name} cannot run the engine with profile {profile} and "
                    f"{'; '.join(f'{name} {shape}' for name, _, shape in tensors)}: "
                    f"{messages.reason()}"
                )
