"""A plan, deserialized and compared with what its sidecar promises; needs the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_export.artifact.engine_sidecar import Sidecar
from vit_export.artifact.manifest import TensorSpec
from vit_export.errors import ArtifactError, ProviderError
from vit_export.runtime.tensorrt.backend import DTYPES, Backend
from vit_export.runtime.tensorrt.compatibility import source_of


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A deserialized engine, and what must live as long as it does."""

    backend: Backend
    runtime: Any
    engine: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sidecar: Sidecar

    @classmethod
    def load(cls, backend: Backend, path: Path, sidecar: Sidecar, *, allow_host_code: bool) -> Plan:
        """Deserialize a plan.

        Raises:
            ArtifactError: TensorRT does not take it, or it is not what its sidecar says.
            ProviderError: It brings code that runs on the host, which was not allowed.
        """
        trt = backend.trt
        with backend.listening() as said:
            runtime = trt.Runtime(backend.logger)
            if sidecar.options.get("version_compatible"):
                if not allow_host_code:
                    raise ProviderError(
                        f"{path.name}: is version compatible, so its plan brings code that runs "
                        "on the host",
                        hint="if you trust its source: load_engine(..., allow_host_code=True), or "
                        "--trust-host-code",
                    )
                runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise ArtifactError(
                    f"{path.name}: {backend.name} {backend.version} cannot load it: {said.why()}; "
                    f"rebuild it: {sidecar.rebuild_command(path)}"
                )
            if sidecar.options.get("strip"):
                _refit(backend, engine, source_of(path, sidecar))
            if sidecar.options.get("weight_streaming"):
                engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        plan = cls(
            backend=backend,
            runtime=runtime,
            engine=engine,
            inputs=sidecar.manifest.inputs,
            outputs=sidecar.manifest.outputs,
            sidecar=sidecar,
        )
        plan._check_other_signature(path)
        return plan

    def _check_other_signature(self, path: Path) -> None:
        """Raise ArtifactError unless tensors and profiles are those of the sidecar."""
        trt, engine = self.backend.trt, self.engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {
            name: (
                "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output",
                DTYPES.get(engine.get_tensor_dtype(name).name, "?"),
                tuple(max(size, -1) for size in engine.get_tensor_shape(name)),
            )
            for name in names
        }
        expected = {
            spec.name: (
                mode,
                spec.dtype,
                tuple(-1 if isinstance(size, str) else size for size in spec.shape),
            )
            for mode, specs in (("input", self.inputs), ("output", self.outputs))
            for spec in specs
        }
        profiles = [
            {
                name: tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, index))
                for name in profile
            }
            for index, profile in enumerate(self.sidecar.profiles)
        ]
        promised = [
            {name: (ranges.min, ranges.opt, ranges.max) for name, ranges in profile.items()}
            for profile in self.sidecar.profiles
        ]
        if found != expected or profiles != promised:
            raise ArtifactError(
                f"{path.name}: the engine takes and gives {found}, profiles {profiles}; its "
                f"sidecar says {expected}, profiles {promised}; the two do not belong together"
            )


def _refit(backend: Backend, engine: Any, source: Path) -> None:
    """Give a stripped engine its weights, from the .onnx file that it was built from."""
    refitter = backend.trt.Refitter(engine, backend.logger)
    parser = backend.trt.OnnxParserRefitter(refitter, backend.logger)
    with backend.listening() as said:
        if not parser.refit_from_file(str(source)) or not refitter.refit_cuda_engine():
            raise ArtifactError(
                f"{source}: {backend.name} cannot take the engine's weights: {said.why()}"
            )
