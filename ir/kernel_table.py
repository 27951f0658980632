"""Which versions of the operators a runtime has kernels for: its registry, as data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

_NO_LAST_OPSET = 2**31 - 1


@dataclass(frozen=True)
class Kernel:
    """An entry of the registry: the types each type variable takes."""

    domain: str
    operator: str
    first_opset: int
    last_opset: int
    types: dict[str, list[str]]

    def serves(self, since_version: int) -> bool:
        """Whether it runs the operator as opset `since_version` defines it.

        Until another kernel is registered behind it, a kernel stands for its first opset only: the runtime does not
        take it for what later opsets made of the operator.
        """
        return self.first_opset == since_version or (
            self.first_opset < since_version <= self.last_opset < _NO_LAST_OPSET
        )

    def takes(self, types: Mapping[str, Collection[str]]) -> bool:
        """Whether it takes these types, as schemas spell them, by type variable or by name of an input or output."""
        for variable, allowed in self.types.items():
            for name in types.get(variable, ()):
                # Where there is no kernel for it, the runtime casts float16 and uses that for float.
                if name not in allowed and not (name == "tensor(float16)" and "tensor(float)" in allowed):
                    return False
        return True


class KernelTable:
    """The kernels of one runtime, by operator."""

    def __init__(self, kernels: Iterable[Kernel]) -> None:
        self._kernels: dict[tuple[str, str], list[Kernel]] = {}
        for kernel in kernels:
            self._kernels.setdefault((kernel.domain, kernel.operator), []).append(kernel)

    def has(self, operator: str, since_version: int, types: Mapping[str, Collection[str]], domain: str = "") -> bool:
        """Whether the operator, as opset `since_version` defines it, has a kernel for `types` (see `Kernel.takes`)."""
        kernels = self._kernels.get((domain, operator), ())
        return any(kernel.serves(since_version) and kernel.takes(types) for kernel in kernels)
