"""The two registries of adapters: what to do when an operator changed at a version, upwards and downwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir
from opgraft.passes.opset.site import Site

Results = Sequence[onnx_ir.Value | None] | None
"""What stands for the node's outputs (None for an unread one); None when the node may stay as it is."""
Adapter = Callable[[Site], Results]

UPGRADES: dict[tuple[str, int], Adapter] = {}
"""(operator, version that changed it) -> how to write the older node at that version."""
DOWNGRADES: dict[tuple[str, int], Adapter] = {}
"""(operator, version that changed it) -> how to write the node before that version."""


def upgrade(version: int, *op_types: str) -> Callable[[Adapter], Adapter]:
    """Register the adapter that takes `op_types` from below `version` to `version`."""

    def register(adapter: Adapter) -> Adapter:
        for op_type in op_types:
            UPGRADES[op_type, version] = adapter
        return adapter

    return register


def downgrade(version: int, *op_types: str) -> Callable[[Adapter], Adapter]:
    """Register the adapter that takes `op_types` from `version` to below it."""

    def register(adapter: Adapter) -> Adapter:
        for op_type in op_types:
            DOWNGRADES[op_type, version] = adapter
        return adapter

    return register
