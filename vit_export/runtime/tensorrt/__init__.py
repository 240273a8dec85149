"""Engines run by TensorRT and TensorRT-RTX."""
