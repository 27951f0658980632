"""Which stages a run has: the pipeline that was asked for or decided, its opset, where it stops."""

from __future__ import annotations

from opgraft.cli.options import DEFAULT_PIPELINE, Options
from opgraft.ir.errors import UsageError
from opgraft.passes._pipeline import Group, Pipeline, Stage


def pipeline_of(options: Options) -> Pipeline:
    """Raises UsageError when decisions are to be replayed in another pipeline than theirs."""
    decided = options.decisions.pipeline if options.decisions is not None else None
    is_default = options.passes == DEFAULT_PIPELINE and options.opset is None
    wanted = decided if decided is not None and is_default else options.passes
    pipeline = wanted if isinstance(wanted, Pipeline) else Pipeline.parse(wanted)
    stages = list(pipeline.stages)
    if options.opset is not None:
        stages += Pipeline.parse(f"upgrade-opset{{version={options.opset}}}").stages
    if options.stop_after is not None:
        stages = stages[: find_stage(stages, options.stop_after, last=True) + 1]
    pipeline = Pipeline(stages, list(pipeline.instruments))
    if decided is not None and str(pipeline) != decided:
        raise UsageError(
            "the decisions file belongs to another pipeline", remedy="leave out --passes, --opset and --stop-after"
        )
    return pipeline


def find_stage(stages: list[Stage], name: str, *, last: bool = False) -> int:
    """The index of the first or last stage that is, or holds, the pass `name`. Raises UsageError."""
    members = [{p.name for p in s.passes} if isinstance(s, Group) else {s.name} for s in stages]
    found = [i for i, names in enumerate(members) if name in names]
    if not found:
        known = ", ".join(sorted(set().union(*members)))
        raise UsageError(f"no stage of the pipeline holds a pass named {name!r}", remedy=f"it has: {known}")
    return found[-1 if last else 0]
