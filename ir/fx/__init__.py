"""Emission as a torch.fx graph: a rule per ONNX operator (`rules*.py`), and what torch has no operator for (`ops_*`).

Everything here imports torch; `opgraft.ir.emit_fx` is the door, and imports this package when it is called.
"""
