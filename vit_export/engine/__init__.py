"""ONNX to a TensorRT engine."""
