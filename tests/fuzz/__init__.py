"""Random ONNX graphs, run before and after the lossless passes; what differs is shrunk to a few nodes."""
