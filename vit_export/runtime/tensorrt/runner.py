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

from vit_export.artifact.engine_sidecar import Sidecar, batch_range
from vit_export.artifact.manifest import Manifest, TensorSpec
from vit_export.errors import ArtifactError, InputError, ProviderError, nearest
from vit_export.runtime.checks import check_feeds, check_names, check_sizes, with_batch
from vit_export.runtime.tensorrt.backend import load_backend
from vit_export.runtime.tensorrt.batches import Chunk, split
from vit_export.runtime.tensorrt.compatibility import check_plan_undamaged, check_runs_here
from vit_export.runtime.tensorrt.cuda import current_gpu, current_ordinal, working_on
from vit_export.runtime.tensorrt.dlpack import CUDA, View, view
from vit_export.runtime.tensorrt.plan import Plan
from vit_export.runtime.tensorrt.session import DeviceTensor, Session


class _OfThread(threading.local):
    """What a thread has of its own, and gives back when it ends."""

    session: Session | None = None


class TrtRunner:
    """One engine on one GPU; threads may share it, each has a context of its own.

    The GPU is the one that the loading thread works on. Memory on it goes back with the thread
    that took it, with the runner, or by `release`.

    Args:
        path: The `.engine` file, with its sidecar.
        provider: `"auto"`, or the backend that the engine was built with.
        allow_host_code: Whether code that lies in the plan may run on the host, as a version
            compatible engine brings it.
        cuda_graphs: Whether a batch size that comes again is replayed as one CUDA graph.

    Attributes:
        provider: `"tensorrt"` or `"tensorrt-rtx"`.
        sidecar: What is known of the engine.
        gpu: The GPU that runs it.
        ordinal: Its number; every thread works on that one.

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
        allow_host_code: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        self.path = Path(path)
        self.sidecar = Sidecar.read(path)
        check_plan_undamaged(self.path, self.sidecar)
        if provider not in ("auto", self.sidecar.backend):
            raise ProviderError(
                f"{self.path.name}: is an engine of {self.sidecar.backend}, which nothing else "
                f"runs; leave --provider {provider} out"
            )
        self._backend = load_backend(self.sidecar.backend)
        self.gpu = check_runs_here(self.path, self.sidecar, self._backend.version, current_gpu())
        self.ordinal = current_ordinal()
        self.provider = self.sidecar.backend
        self.manifest: Manifest | None = self.sidecar.manifest
        self.inputs: tuple[TensorSpec, ...] = self.sidecar.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = self.sidecar.manifest.outputs
        self._host_code, self._cuda_graphs = allow_host_code, cuda_graphs
        self._ends = [batch_range(profile) for profile in self.sidecar.profiles]
        self._lock = threading.Lock()
        self._of_thread = _OfThread()
        self._plan: Plan | None = None
        self._loaded()

    def _loaded(self) -> Plan:
        """The plan, loaded again where it was released."""
        if self._plan is None:
            self._plan = Plan.load(
                self._backend, self.path, self.sidecar, allow_host_code=self._host_code
            )
        return self._plan

    def _session(self) -> Session:
        with self._lock:
            if self._of_thread.session is None:
                self._of_thread.session = Session(self._loaded(), cuda_graphs=self._cuda_graphs)
            return self._of_thread.session

    @property
    def engine(self) -> Any:
        """TensorRT's own `ICudaEngine`."""
        with self._lock, working_on(self.ordinal):
            return self._loaded().engine

    def release(self) -> None:
        """Free the engine and all memory on the GPU; the next run loads it again.

        What another thread runs meanwhile is freed when it is done.
        """
        with self._lock, working_on(self.ordinal):
            self._plan = None
            self._of_thread = _OfThread()  # the one that goes takes every thread's session along

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
        with working_on(self.ordinal):
            session = self._session()
            parts = [session.run(_cut(self.inputs, feeds, chunk), chunk)
                     for chunk in self._cuts(feeds)]  # fmt: skip
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
            out: CUDA tensors to write to, by output, of exactly its shape in this run; memory of
                this call otherwise. Where inputs and outputs lie where they lay the last time, a
                CUDA graph is replayed.

        Returns:
            Tensors that speak dlpack, e.g. for `torch.from_dlpack`, by output name.

        Raises:
            InputError: A wrong name, dtype, shape or GPU, or a batch that no profile serves.
        """
        check_names(self.inputs, feeds)
        out = out or {}
        self._check_unknown_outputs(out)
        with working_on(self.ordinal):
            session = self._session()
            views = {s.name: self._view(s, feeds[s.name], session) for s in self.inputs}
            check_sizes(self.inputs, {name: found.shape for name, found in views.items()})
            batch = views[self.inputs[0].name].shape[0]
            profile = self._profile(batch)
            written = [
                TensorSpec(spec.name, spec.dtype, with_batch(spec.shape, batch))
                for spec in self.outputs
                if spec.name in out
            ]
            given = {spec.name: self._view(spec, out[spec.name], session) for spec in written}
            return session.run_on_device(views, given, profile)

    def _check_unknown_outputs(self, out: Collection[str]) -> None:
        known = [spec.name for spec in self.outputs]
        for name in out:
            if name not in known:
                raise InputError(
                    f"unknown output {name!r}{nearest(name, known)} (the engine gives: "
                    f"{'; '.join(map(str, self.outputs))})"
                )

    def _profile(self, batch: int) -> int:
        """The profile that serves a batch as it is."""
        if not self._ends:
            return 0
        first, *others = split(batch, self._ends)
        if others or first.padded:
            served = ", ".join(f"{ends.min} to {ends.max}" for ends in self._ends)
            raise InputError(
                f"batch {batch}: the engine serves {served}, and tensors on the GPU are "
                "taken as they are; cut or fill the batch, or give numpy arrays to run()"
            )
        return first.profile

    def _view(self, spec: TensorSpec, value: Any, session: Session) -> View:
        """A tensor where it lies, which is on the engine's GPU."""
        if not hasattr(value, "__dlpack_device__") or isinstance(value, np.ndarray):
            raise InputError(
                f"{spec.name!r} is a {type(value).__name__}; expected a CUDA tensor that speaks "
                f"dlpack ({spec})"
            )
        kind, ordinal = value.__dlpack_device__()
        if kind != CUDA:
            raise InputError(f"{spec.name!r} lies in host memory, expected a CUDA tensor ({spec})")
        if ordinal != self.ordinal:
            raise InputError(
                f"{spec.name!r} lies on GPU {ordinal}, and the engine was loaded on GPU "
                f"{self.ordinal}; bring it there, or load the engine while its thread works on "
                f"GPU {ordinal}"
            )
        found = view(value, stream=session.stream.handle)
        if found.dtype != spec.dtype or not spec.fits(found.shape):
            raise InputError(f"{spec.name!r} is {found.dtype} {found.shape}, expected {spec}")
        return found


def _cut(
    inputs: Collection[TensorSpec], feeds: Mapping[str, NDArray[Any]], chunk: Chunk
) -> dict[str, NDArray[Any]]:
    """The rows of a chunk; inputs without a batch dimension whole."""
    rows = slice(chunk.start, chunk.start + chunk.rows)
    return {s.name: feeds[s.name][rows] if s.dynamic else feeds[s.name] for s in inputs}
