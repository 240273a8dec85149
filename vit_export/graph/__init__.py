"""ONNX graphs: export from torch, simplification, conversion to half precision and INT8."""
