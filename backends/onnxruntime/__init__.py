"""ONNX Runtime: sessions in child processes, timing, capability probes."""
