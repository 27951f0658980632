"""The emitters by the operator that they add."""

from __future__ import annotations

from collections.abc import Callable

from fuzz.draw import Draw

Emitter = Callable[[Draw, str], None]
EMITTERS: dict[str, Emitter] = {}


def emits(*op_types: str) -> Callable[[Emitter], Emitter]:
    """Register a function for these operators; it is told which one to add."""

    def register(emitter: Emitter) -> Emitter:
        for op_type in op_types:
            if op_type in EMITTERS:
                raise ValueError(f"two emitters for {op_type}")
            EMITTERS[op_type] = emitter
        return emitter

    return register
