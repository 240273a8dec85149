"""What is on disk: ONNX files, manifests, golden files, engine sidecars."""
