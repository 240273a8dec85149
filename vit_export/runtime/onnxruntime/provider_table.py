"""The execution providers of ONNX Runtime, and what installs each; imports no ONNX Runtime."""

from dataclasses import dataclass

from vit_export.host.nvidia import RTX_INSTALL, RTX_PLUGIN


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes:
        ort_name: Its name in ONNX Runtime.
        wheel: What pip installs to get it; empty where no wheel contains it.
        plugin: Module of a wheel that adds it to the plain onnxruntime.
        numbered: Whether it takes the number of a GPU (`device_id`).
        memory: Where the tensors of a run lie, in ONNX Runtime's spelling.
    """

    ort_name: str
    wheel: str = ""
    plugin: str = ""
    numbered: bool = False
    memory: str = "cpu"


GPU_WHEEL = "onnxruntime-gpu[cuda,cudnn]"
PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", "onnxruntime"),
    "cuda": Provider("CUDAExecutionProvider", GPU_WHEEL, numbered=True, memory="cuda"),
    "tensorrt": Provider("TensorrtExecutionProvider", GPU_WHEEL, numbered=True, memory="cuda"),
    "tensorrt-rtx": Provider(
        "NvTensorRTRTXExecutionProvider", RTX_INSTALL.split()[-1], RTX_PLUGIN, numbered=True
    ),
    "openvino": Provider("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "coreml": Provider("CoreMLExecutionProvider", "onnxruntime"),  # in its wheels for macOS
    "directml": Provider("DmlExecutionProvider", "onnxruntime-directml", numbered=True),
    # a plugin from version 2 on; before, a wheel of ONNX Runtime
    "qnn": Provider("QNNExecutionProvider", "onnxruntime-qnn", "onnxruntime_qnn"),
    "xnnpack": Provider("XnnpackExecutionProvider"),
    "migraphx": Provider("MIGraphXExecutionProvider", "onnxruntime-migraphx", numbered=True),
}
BUILDS = {  # hints for providers that no wheel adds on this system
    "coreml": "the wheels of onnxruntime for macOS contain it",
    "xnnpack": "build onnxruntime with --use_xnnpack",
}
AUTO = ("cuda", "cpu")  # best first; TensorRT builds an engine for minutes, so it is left out
