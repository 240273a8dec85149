"""What one thread needs to run an engine: contexts, a stream, memory, and CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.manifest import TensorSpec
from vit_export.errors import ProviderError
from vit_export.runtime.checks import with_batch
from vit_export.runtime.tensorrt.batches import Chunk
from vit_export.runtime.tensorrt.cuda import DeviceBuffer, Graph, PinnedArray, Stream, working_on
from vit_export.runtime.tensorrt.dlpack import CUDA, View, capsule_of
from vit_export.runtime.tensorrt.plan import Plan

MOST_GRAPHS = 8  # per thread; the one that was not used for longest goes first

Addresses = tuple[tuple[str, int, tuple[int, ...]], ...]  # name, address, shape of every tensor


class DeviceTensor:
    """An output on the GPU.

    Attributes:
        address: Where it lies.
        shape: Its shape.
        dtype: numpy's name.
        ordinal: Of the GPU.
    """

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: str, ordinal: int, owner: Any
    ) -> None:
        self.address, self.shape, self.dtype, self.ordinal = address, shape, dtype, ordinal
        self._owner = owner

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.ordinal

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        """A capsule; the data is ready, whatever the stream."""
        return capsule_of(
            self.address, self.shape, dtype=self.dtype, device=self.__dlpack_device__(), owner=self
        )

    def numpy(self) -> NDArray[Any]:
        """A copy in host memory."""
        with working_on(self.ordinal):
            host, stream = PinnedArray(self.shape, np.dtype(self.dtype)), Stream()
            stream.to_host(host.address, self.address, host.array.nbytes)
            stream.synchronize()
            return host.array.copy()


class Session:
    """Runs an engine for one thread, which works on its GPU; all is given back with this object.

    All contexts work on one stream, one after the other, so they share their scratch memory.
    TensorRT-RTX compiles and captures by itself; it is left to it.
    """

    def __init__(self, plan: Plan, *, cuda_graphs: bool) -> None:
        self.plan = plan
        self._graphs_wanted = cuda_graphs and not plan.backend.is_rtx
        self.stream = Stream()
        self._scratch: DeviceBuffer | None = None
        self._context = self._new_context()
        self._device: dict[str, DeviceBuffer] = {}
        self._host: dict[str, PinnedArray] = {}
        for spec in (*plan.inputs, *plan.outputs):
            shape = self._largest(spec)
            self._host[spec.name] = PinnedArray(shape, np.dtype(spec.dtype))
            self._device[spec.name] = DeviceBuffer(self._host[spec.name].array.nbytes)
        self._seen: OrderedDict[Addresses, tuple[Any, Graph] | None] = OrderedDict()

    def _largest(self, spec: TensorSpec) -> tuple[int, ...]:
        most = max(
            (
                ranges.max[0]
                for profile in self.plan.sidecar.profiles
                for ranges in profile.values()
            ),
            default=1,
        )
        return with_batch(spec.shape, most)

    def _new_context(self) -> Any:
        trt, engine = self.plan.backend.trt, self.plan.engine
        if self.plan.backend.is_rtx:
            config = engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        else:
            strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
        if context is None:
            raise ProviderError(
                f"{self.plan.backend.name} cannot create an execution context: most likely the "
                "GPU has too little free memory"
            )
        if not self.plan.backend.is_rtx:
            if self._scratch is None:
                self._scratch = DeviceBuffer(max(int(engine.device_memory_size_v2), 1))
            context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        return context

    def run(self, feeds: Mapping[str, NDArray[Any]], chunk: Chunk) -> dict[str, NDArray[Any]]:
        """Compute a chunk from arrays in host memory, through pinned memory."""
        shapes: dict[str, tuple[int, ...]] = {}
        for spec in self.plan.inputs:
            values = feeds[spec.name]
            rows = chunk.batch if spec.dynamic else len(values)
            host = self._host[spec.name].array[:rows]
            host[: len(values)] = values
            host[len(values) :] = 0
            shapes[spec.name] = (rows, *values.shape[1:])
            self.stream.to_device(
                self._device[spec.name].address, self._host[spec.name].address, host.nbytes
            )
        for spec in self.plan.outputs:
            shapes[spec.name] = with_batch(spec.shape, chunk.batch)
        where = tuple((name, self._device[name].address, shapes[name]) for name in shapes)
        self._enqueue(where, chunk.profile)
        for spec in self.plan.outputs:
            nbytes = int(np.prod(shapes[spec.name])) * self._host[spec.name].array.itemsize
            self.stream.to_host(
                self._host[spec.name].address, self._device[spec.name].address, nbytes
            )
        self.stream.synchronize()
        return {
            spec.name: self._host[spec.name].array[: chunk.rows if spec.dynamic else None].copy()
            for spec in self.plan.outputs
        }

    def run_on_device(
        self, views: Mapping[str, View], given: Mapping[str, View], profile: int
    ) -> dict[str, DeviceTensor]:
        """Compute from tensors on the GPU, where they lie.

        Args:
            views: Every input.
            given: Outputs that are written where they lie; of exactly the shapes of this run.
            profile: Index of the optimization profile.
        """
        batch = views[self.plan.inputs[0].name].shape[0]
        ordinal = views[self.plan.inputs[0].name].device[1]
        results: dict[str, DeviceTensor] = {}
        for spec in self.plan.outputs:
            shape = with_batch(spec.shape, batch)
            owner: View | DeviceBuffer | None = given.get(spec.name)
            if owner is None:
                owner = DeviceBuffer(int(np.prod(shape)) * np.dtype(spec.dtype).itemsize)
            results[spec.name] = DeviceTensor(owner.address, shape, spec.dtype, ordinal, owner)
        where = (
            *((name, found.address, found.shape) for name, found in views.items()),
            *((name, made.address, made.shape) for name, made in results.items()),
        )
        self._enqueue(where, profile)
        self.stream.synchronize()
        return results

    def _enqueue(self, where: Addresses, profile: int) -> None:
        """Run once; what comes a second time is captured, and replayed from then on."""
        known = self._seen.get(where)
        if known is not None:
            self._seen.move_to_end(where)
            self.stream.launch(known[1])
            return
        if not self._graphs_wanted or where not in self._seen:
            self._execute(self._context, where, profile)
            if self._graphs_wanted:
                self._remember(where, None)
            return
        # A graph holds the state of its context, so that context is not used for anything else.
        context = self._new_context()
        self._execute(context, where, profile)  # TensorRT updates itself in the first run
        self.stream.synchronize()
        self.stream.begin_capture()
        started = context.execute_async_v3(self.stream.handle)
        graph = self.stream.end_capture()
        if not started:
            raise ProviderError(f"{self.plan.backend.name} cannot capture a CUDA graph")
        self._remember(where, (context, graph))

    def _remember(self, where: Addresses, graph: tuple[Any, Graph] | None) -> None:
        self._seen[where] = graph
        self._seen.move_to_end(where)
        while len(self._seen) > MOST_GRAPHS:
            self._seen.popitem(last=False)

    def _execute(self, context: Any, where: Addresses, profile: int) -> None:
        inputs = {spec.name for spec in self.plan.inputs}
        if not context.set_optimization_profile_async(profile, self.stream.handle):
            raise ProviderError(f"{self.plan.backend.name} does not take profile {profile}")
        for name, address, shape in where:
            if name in inputs and not context.set_input_shape(name, shape):
                raise ProviderError(f"{self.plan.backend.name} does not take {name!r} of {shape}")
            if not context.set_tensor_address(name, address):
                raise ProviderError(f"{self.plan.backend.name} does not take {name!r}'s address")
        with self.plan.backend.listening() as said:
            if not context.execute_async_v3(self.stream.handle):
                raise ProviderError(f"{self.plan.backend.name} failed while it ran: {said.why()}")
