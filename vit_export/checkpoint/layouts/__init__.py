"""Tensor names of the libraries that write Vision Transformer checkpoints."""
