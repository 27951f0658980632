"""Lossless simplification: each file is one pass."""
