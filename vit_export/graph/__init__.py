"""What the network becomes (onnx)."""
