"""Runner of TensorRT engines: a pool of contexts, CUDA graphs, tensors on the GPU."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cuda.core import Device
from cuda.core.utils import StridedMemoryView
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from vit_export.artifact.engine_sidecar import Sidecar, read_plan_file
from vit_export.artifact.manifest import Manifest, TensorSpec
from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import ArtifactError, InputError, ProviderError, UsageError, with_article
from vit_export.runtime.checks import check_feeds, check_names, check_sizes, with_batch
from vit_export.runtime.tensorrt.backend import load_backend
from vit_export.runtime.tensorrt.cuda import current_gpu, working_on
from vit_export.runtime.tensorrt.plan import Plan, check_compatible
from vit_export.runtime.tensorrt.session import Session, split

CUDA = 2  # DLPack's kDLCUDA
MAX_RUNS = 4  # of one engine at a time: a GPU gains little from more, and each has its own memory


class TrtRunner:
    """An engine on one GPU; threads may share it, and `MAX_RUNS` of them run at once.

    Memory on the GPU is freed with the runner, or by `release`.
    Arguments and errors are those of `vit_export.runtime.load_engine`; with `cuda_graphs`, a batch
    size that comes again is replayed as one CUDA graph.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        provider: str | Sequence[str] = "auto",
        device: int | None = None,
        allow_host_code: bool = False,
        cuda_graphs: bool = True,
        runtime_cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.sidecar = Sidecar.read(path)
        plan = read_plan_file(self.path, self.sidecar)
        names = list(provider) if isinstance(provider, list | tuple) else [provider]
        if names not in (["auto"], [self.sidecar.backend]):
            raise ProviderError(
                f"{self.path.name}: only {self.sidecar.backend} runs this engine, and provider is "
                f"{provider!r}",
                hint="leave the provider out",
            )
        if runtime_cache is not None and self.sidecar.backend != "tensorrt-rtx":
            raise UsageError(
                f"{self.path.name}: runtime_cache={runtime_cache} is for engines of tensorrt-rtx; "
                f"{self.sidecar.backend} has compiled this one when it was built",
                hint="leave it out",
            )
        backend = load_backend(self.sidecar.backend)
        self.gpu = check_compatible(self.path, self.sidecar, backend.version, current_gpu(device))
        self.ordinal: int = Device(device).device_id  # of the GPU that every thread uses
        self.provider = self.sidecar.backend
        self.manifest: Manifest | None = self.sidecar.manifest
        self.inputs: tuple[TensorSpec, ...] = self.sidecar.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = self.sidecar.manifest.outputs
        self._ranges = ranges = self.sidecar.batch_ranges
        # `run` takes any batch, which it splits and pads to these sizes
        self.profile: tuple[int, int, int] | None = (
            min(sizes.min for sizes in ranges),
            ranges[0].opt,
            max(sizes.max for sizes in ranges),
        )
        self._load = functools.partial(
            Plan.load,
            backend,
            self.path,
            self.sidecar,
            allow_host_code=allow_host_code,
            runtime_cache=None if runtime_cache is None else Path(runtime_cache),
        )
        self._graphs_off = threading.Event()
        if backend.is_rtx or not cuda_graphs:
            self._graphs_off.set()
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(MAX_RUNS)
        self._idle: list[Session] = []
        with working_on(self.ordinal):
            self._plan: Plan | None = self._load(plan)

    def _loaded(self) -> Plan:
        if self._plan is None:  # after a release
            self._plan = self._load(read_plan_file(self.path, self.sidecar))
        return self._plan

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        """Lend the session that ran last, or a new one; it is deleted if its run fails."""
        with self._slots, working_on(self.ordinal):
            with self._lock:
                if self._idle:
                    session = self._idle.pop()
                else:
                    session = Session(self._loaded(), graphs_off=self._graphs_off)
            usable = True
            try:
                yield session
            except BaseException as error:
                usable = isinstance(error, InputError)  # raised before the run
                raise
            finally:
                with self._lock:
                    if usable and session.plan is self._plan:  # not released meanwhile
                        self._idle.append(session)

    @property
    def engine(self) -> Any:
        """TensorRT's own `ICudaEngine`."""
        with self._lock, working_on(self.ordinal):
            return self._loaded().engine

    def release(self) -> None:
        """Free the engine and its memory on the GPU, of a running thread when its run ends."""
        with self._lock, working_on(self.ordinal):
            if self._plan is not None and self._plan.runtime_cache is not None:
                self._plan.runtime_cache.save()
            self._idle.clear()
            self._plan = None

    def has_tensor(self, name: str) -> bool:
        """Return whether the engine has an output of that name; inner tensors are fused away."""
        return any(spec.name == name for spec in self.outputs)

    def expose(self, names: Collection[str]) -> TrtRunner:
        if missing := [name for name in names if not self.has_tensor(name)]:
            raise ArtifactError(f"{self.path.name}: an engine has no inner tensor {missing[0]!r}")
        return self

    def run(
        self, feeds: Mapping[str, Any], *, preprocess: Preprocess | None = None
    ) -> dict[str, NDArray[Any]]:
        """Compute every output from numpy arrays, or from CUDA tensors that support DLPack.

        The first input, as an array, must have the range of images normalised by `preprocess`.
        Batches of arrays that no profile accepts are split or padded with zeros.
        """
        if not all(isinstance(value, np.ndarray) for value in feeds.values()):
            with self._session() as session:
                results = self._run_on_device(session, feeds, {})
                return session.to_host({name: (x.ptr, x.shape[0]) for name, x in results.items()})
        check_feeds(self.inputs, feeds, preprocess=preprocess)
        chunks = split(len(feeds[self.inputs[0].name]), self._ranges)
        with self._session() as session:
            parts = [session.run(feeds, chunk) for chunk in chunks]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def run_on_device(
        self, feeds: Mapping[str, Any], *, out: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Compute every output and leave it on the GPU, without a copy.

        Where all inputs and outputs have the addresses of an earlier call, a CUDA graph is
        replayed. Outputs are complete when this returns. The memory of a dropped output is reused
        as soon as the work that was queued on CUDA's default stream before is done; if another
        stream reads an output, keep the output until that stream is done.

        Args:
            feeds: CUDA tensors that support DLPack, of a batch that a profile accepts.
            out: Writable CUDA tensors for outputs, of exactly their shapes in this run; other
                outputs get memory of their own.

        Returns:
            Tensors that support DLPack, e.g. for `torch.from_dlpack`, by output name.
        """
        with self._session() as session:
            return self._run_on_device(session, feeds, out or {})

    def _run_on_device(
        self, session: Session, feeds: Mapping[str, Any], out: Mapping[str, Any]
    ) -> dict[str, Any]:
        check_names(self.inputs, feeds)
        check_names(self.outputs, out, kind="output")
        views = {s.name: self._view(s, feeds[s.name], session) for s in self.inputs}
        check_sizes(self.inputs, {name: view.shape for name, view in views.items()})
        batch = views[self.inputs[0].name].shape[0]
        chunk, *others = split(batch, self._ranges)
        if others or chunk.batch > batch:
            accepted = ", ".join(f"{sizes.min} to {sizes.max}" for sizes in self._ranges)
            raise InputError(
                f"batch {batch}: the engine accepts batches of {accepted}, and tensors on the "
                "GPU are neither split nor padded",
                hint="split or pad the batch, or pass numpy arrays to run()",
            )
        targets = {}
        for spec in self.outputs:
            if spec.name in out:
                exact = TensorSpec(spec.name, spec.dtype, with_batch(spec.shape, batch))
                targets[spec.name] = view = self._view(exact, out[spec.name], session)
                if view.readonly:
                    raise InputError(f"{spec.name!r} is read-only, and out= is written to")
        return session.run_on_device(views, targets, chunk.profile)

    def _view(self, spec: TensorSpec, value: Any, session: Session) -> Any:
        """Return a tensor on the engine's GPU without a copy (StridedMemoryView)."""
        kind, ordinal = getattr(value, "__dlpack_device__", lambda: (None, None))()
        if kind != CUDA:
            raise InputError(
                f"{spec.name!r} is {with_article(type(value).__name__)} in host memory; expected a "
                f"CUDA tensor that supports DLPack ({spec})"
            )
        if ordinal != self.ordinal:
            raise InputError(
                f"{spec.name!r} is on GPU {ordinal}, and the engine was loaded on GPU "
                f"{self.ordinal}",
                hint=f"copy the tensor to GPU {self.ordinal}, or load the engine with "
                f"device={ordinal}",
            )
        try:
            # the tensor's library makes the session's stream wait for its data
            view = StridedMemoryView.from_dlpack(value, session.handle)
            found = f"{view.dtype} {view.shape}"
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{spec.name!r} cannot be used without a copy ({str(error).partition(chr(10))[0]})",
                hint="pass x.detach().contiguous()",
            ) from error
        if view.dtype != spec.dtype or not spec.fits(view.shape):
            raise InputError(f"{spec.name!r} is {found}; expected {spec}")
        if not _is_contiguous(view):
            raise InputError(f"{spec.name!r} is not contiguous", hint="pass x.contiguous()")
        return view


def _is_contiguous(view: Any) -> bool:
    """Return whether the elements are in row-major order without gaps; strides count elements."""
    one_byte_each = as_strided(np.empty(1, np.int8), view.shape, view.strides)
    return bool(one_byte_each.flags.c_contiguous)
