"""Kernels: a NumPy reference and a TVM schedule under one name, one file each."""
