"""OpenVINO's conversion of an ONNX file, weights kept in fp32.

python -m peers.openvino_export ONNX OUTPUT
"""

from __future__ import annotations

import sys

import openvino


def main() -> None:
    """Do what the module says."""
    source, output = sys.argv[1:]
    openvino.save_model(openvino.convert_model(source), output, compress_to_fp16=False)


if __name__ == "__main__":
    main()
