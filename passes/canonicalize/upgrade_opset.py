"""Convert the model to another version of the standard operator set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opgraft.ir.program import Program
from opgraft.passes._pass import Contract, NoMatch, Pass, PassContext
from opgraft.passes.opset.convert import convert_opset
from opgraft.passes.opset.place import scoped_graphs
from opgraft.passes.opset.schemas import NEWEST_OPSET, OLDEST_TARGET


@dataclass(frozen=True)
class UpgradeOpset(Pass):
    """model of opset M -> model of opset N

    All or nothing: the model stays as it is when one of its nodes has no equivalent at that version, or one that the
    target's runtime has no kernel for. EXACT where kernels that round alike run the model before and after.
    """

    contract: ClassVar[Contract] = Contract.NUMERIC

    version: int = 0
    """The opset to convert to, older ones included; 0 stands for the newest that the runtime runs."""

    def __post_init__(self) -> None:
        if self.version and not OLDEST_TARGET <= self.version <= NEWEST_OPSET:
            raise ValueError(f"version={self.version} is not 0 or one of {OLDEST_TARGET} to {NEWEST_OPSET}")

    def run(self, program: Program, context: PassContext) -> int:
        version = self.version or min(context.newest_opset, NEWEST_OPSET)
        if not version:
            context.missed(self.name, NoMatch("the newest opset of the runtime is not known; give one: version=N"))
            return 0
        versions = {v for _, _, v in scoped_graphs(program.model) if v is not None}
        if versions <= {version} or not context.allows(self.name):
            return 0
        if not self.version and max(versions) > version:
            context.missed(self.name, NoMatch("the model's opset {} is newer", None, max(versions)))
            return 0
        conversion = convert_opset(program.model, version, context.kernels() if context.kernels is not None else None)
        for refusal in conversion.refusals:
            context.missed(self.name, NoMatch(str(refusal)))
        if conversion.refusals:
            return 0
        # The conversion makes names of its own, and graphs are at another opset now.
        for stale in ("names", "opset-of-graph"):
            context.facts.pop(stale, None)
        contract = Contract.EXACT if conversion.is_exact else Contract.NUMERIC
        context.applied(self, f"opset {', '.join(map(str, sorted(versions)))} -> {version}", contract)
        return 1
