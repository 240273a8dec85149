"""TensorRT engines: one context per thread, CUDA graphs, tensors in and out where they lie.

Needs `tensorrt` (or `tensorrt_rtx`) and `cuda-bindings`; neither torch nor onnx.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.enginefile import Sidecar, batch_ends
from vit_export.errors import ArtifactError, InputError, ProviderError
from vit_export.manifest import Manifest, TensorSpec
from vit_export.nvinfer import load_backend
from vit_export.runtime.batches import Chunk, split
from vit_export.runtime.device import current_gpu
from vit_export.runtime.dlpack import CUDA, View, view
from vit_export.runtime.fitness import refuse_damaged, refuse_misfit
from vit_export.runtime.plan import Plan
from vit_export.runtime.tensors import check_feeds, check_names, fits
from vit_export.runtime.trt_session import DeviceTensor, Session


class TrtRunner:
    """One engine on one GPU; threads may share it, each has a context of its own.

    Args:
        path: The `.engine` file, with its sidecar.
        provider: `"auto"`, or the backend that the engine was built with.
        host_code: Whether code that lies in the plan may run on the host, as a version
            compatible engine brings it.
        cuda_graphs: Whether a batch size that comes again is replayed as one CUDA graph.

    Attributes:
        provider: `"tensorrt"` or `"tensorrt-rtx"`.
        sidecar: What is known of the engine.

    Raises:
        ArtifactError: The engine or its sidecar is missing or damaged.
        ProviderError: It cannot run here: no GPU, or another version or GPU than it was built
            for. The message has both sides and the command that rebuilds it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        provider: str = "auto",
        host_code: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        self.path = Path(path)
        self.sidecar = Sidecar.read(path)
        refuse_damaged(self.path, self.sidecar)
        if provider not in ("auto", self.sidecar.backend):
            raise ProviderError(
                f"{self.path.name}: is an engine of {self.sidecar.backend}, which nothing else "
                f"runs; leave --provider {provider} out"
            )
        self._backend = load_backend(self.sidecar.backend)
        self.gpu = refuse_misfit(self.path, self.sidecar, self._backend.version, current_gpu())
        self.provider = self.sidecar.backend
        self.manifest: Manifest | None = self.sidecar.manifest
        self.inputs: tuple[TensorSpec, ...] = self.sidecar.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = self.sidecar.manifest.outputs
        self._host_code, self._cuda_graphs = host_code, cuda_graphs
        self._ends = [batch_ends(profile) for profile in self.sidecar.profiles]
        self._lock = threading.Lock()
        self._sessions: dict[int, Session] = {}  # by thread
        self._plan: Plan | None = self._load()

    def _load(self) -> Plan:
        return Plan.load(self._backend, self.path, self.sidecar, host_code=self._host_code)

    def _session(self) -> Session:
        with self._lock:
            if self._plan is None:
                self._plan = self._load()
            thread = threading.get_ident()
            if thread not in self._sessions:
                self._sessions[thread] = Session(self._plan, cuda_graphs=self._cuda_graphs)
            return self._sessions[thread]

    @property
    def engine(self) -> Any:
        """TensorRT's own `ICudaEngine`."""
        return self._session().plan.engine

    def release(self) -> None:
        """Free the engine and all memory on the GPU; the next run loads it again."""
        with self._lock:
            for session in self._sessions.values():
                session.free()
            self._sessions.clear()
            self._plan = None

    def has_tensor(self, name: str) -> bool:
        """Whether the engine gives a tensor of that name; inner ones are fused away."""
        return any(spec.name == name for spec in self.outputs)

    def expose(self, names: Collection[str]) -> TrtRunner:
        """This runner, where the tensors are outputs.

        Raises:
            ArtifactError: They are inner tensors, which an engine does not have.
        """
        if missing := [name for name in names if not self.has_tensor(name)]:
            raise ArtifactError(f"{self.path.name}: an engine has no inner tensor {missing[0]!r}")
        return self

    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Compute every output.

        A batch beyond the profiles is cut into batches that they serve; one below is filled up
        with zeros, whose rows are dropped.

        Args:
            feeds: For each input a numpy array, or a CUDA tensor that speaks dlpack.

        Returns:
            numpy arrays by output name.

        Raises:
            InputError: A wrong name, dtype or shape.
        """
        if not all(isinstance(value, np.ndarray) for value in feeds.values()):
            return {name: value.numpy() for name, value in self.run_on_device(feeds).items()}
        check_feeds(self.inputs, feeds)
        session = self._session()
        parts = [session.run(_cut(self.inputs, feeds, chunk), chunk) for chunk in self._cuts(feeds)]
        return {
            spec.name: np.concatenate([part[spec.name] for part in parts])
            if len(parts) > 1
            else parts[0][spec.name]
            for spec in self.outputs
        }

    def _cuts(self, feeds: Mapping[str, NDArray[Any]]) -> list[Chunk]:
        rows = len(feeds[self.inputs[0].name])
        return split(rows, self._ends) if self._ends else [Chunk(0, rows, rows, 0)]

    def run_on_device(
        self, feeds: Mapping[str, Any], *, out: Mapping[str, Any] | None = None
    ) -> dict[str, DeviceTensor]:
        """Compute every output and leave it on the GPU.

        Args:
            feeds: For each input a CUDA tensor that speaks dlpack; it is read where it lies.
            out: CUDA tensors to write to, by output; memory of this call otherwise. Where
                inputs and outputs lie where they lay the last time, a CUDA graph is replayed.

        Returns:
            Tensors that speak dlpack, e.g. for `torch.from_dlpack`, by output name.

        Raises:
            InputError: A wrong name, dtype, shape or device, or a batch that no profile serves.
        """
        check_names(self.inputs, feeds)
        session = self._session()
        views = {spec.name: self._on_gpu(spec, feeds[spec.name], session) for spec in self.inputs}
        batch = views[self.inputs[0].name].shape[0]
        profile = 0
        if self._ends:
            first, *others = split(batch, self._ends)
            if others or first.padded:
                served = ", ".join(f"{ends.min} to {ends.max}" for ends in self._ends)
                raise InputError(
                    f"batch {batch}: the engine serves {served}, and tensors on the GPU are "
                    "taken as they are; cut or fill the batch, or give numpy arrays to run()"
                )
            profile = first.profile
        given = {
            spec.name: self._on_gpu(spec, out[spec.name], session)
            for spec in self.outputs
            if out is not None and spec.name in out
        }
        return session.run_on_device(views, given, profile)

    def _on_gpu(self, spec: TensorSpec, value: Any, session: Session) -> View:
        if not hasattr(value, "__dlpack__") or isinstance(value, np.ndarray):
            raise InputError(
                f"{spec.name!r} is a {type(value).__name__}; expected a CUDA tensor that speaks "
                f"dlpack ({spec})"
            )
        found = view(value, stream=session.stream.handle)
        if found.device[0] != CUDA:
            raise InputError(f"{spec.name!r} lies in host memory, expected a CUDA tensor ({spec})")
        if found.dtype != spec.dtype or not fits(spec.shape, found.shape):
            raise InputError(f"{spec.name!r} is {found.dtype} {found.shape}, expected {spec}")
        return found


def _cut(
    inputs: Collection[TensorSpec], feeds: Mapping[str, NDArray[Any]], chunk: Chunk
) -> dict[str, NDArray[Any]]:
    """The rows of a chunk; inputs without a batch dimension whole."""
    rows = slice(chunk.start, chunk.start + chunk.rows)
    return {s.name: feeds[s.name][rows] if s.dynamic else feeds[s.name] for s in inputs}
