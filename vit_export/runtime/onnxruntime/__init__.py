"""Artifacts run by ONNX Runtime."""
