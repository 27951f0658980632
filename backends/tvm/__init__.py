"""Apache TVM as a kernel generator, behind an ONNX Runtime custom operator."""
