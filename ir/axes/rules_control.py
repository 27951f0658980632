"""Relations of If, Loop and Scan: dims go into bodies and come out of them."""

from __future__ import annotations

from collections.abc import Sequence

from opgraft.ir.axes.graph import Direction
from opgraft.ir.axes.rule import AxisRule, NodeAxes
from opgraft.ir.program import direct_subgraphs

_UNKNOWN = "the shape is not known"


def _pass_on(n: NodeAxes, sources: Sequence[int] | None, targets: Sequence[int] | None) -> bool:
    """The same dims, where sizes agree; mixed where they do not (another branch may decide the size)."""
    if sources is None or targets is None or len(sources) != len(targets):
        return False
    for source, target in zip(sources, targets, strict=True):
        if n.size(source) == n.size(target):
            n.same(source, target)
        else:
            n.placed(source, target, 0)
    return True


def _if(n: NodeAxes) -> None:
    known = True
    for branch in direct_subgraphs(n.node):
        for index, end in enumerate(branch.outputs[: len(n.node.outputs)]):
            known &= _pass_on(n, n.graph.of(end), n.output(index))
    if not known:
        n.opaque(_UNKNOWN)


def _loop(n: NodeAxes) -> None:
    """Inputs: trip count, condition, states. Body: iteration, condition, states -> condition, states, collected."""
    (body,) = direct_subgraphs(n.node)
    n_states = len(n.node.inputs) - 2
    known = True
    for index in range(n_states):
        state = n.graph.of(body.inputs[index + 2])
        known &= _pass_on(n, n.operand(index + 2), state)
        known &= _pass_on(n, n.graph.of(body.outputs[index + 1]), n.output(index))
    for index in range(n_states, len(n.node.outputs)):
        outs, each = n.output(index), n.graph.of(body.outputs[index + 1])
        if outs is None or each is None or len(outs) != len(each) + 1:
            known = False
            continue
        n.created(outs[0], "one place per iteration")
        n.all_same(each, outs[1:])
    if not known:
        n.opaque(_UNKNOWN)


def _scan(n: NodeAxes) -> None:
    """Inputs: states, sequences. Body: states, elements -> states, elements collected."""
    (body,) = direct_subgraphs(n.node)
    n_sequences = n.int_attribute("num_scan_inputs", 0)
    if len(body.inputs) != len(n.node.inputs):
        n.opaque("a Scan over samples, as before opset 9")
        return
    n_states = len(n.node.inputs) - n_sequences
    n_collected = len(n.node.outputs) - n_states
    in_axes = n.ints_attribute("scan_input_axes") or [0] * n_sequences
    out_axes = n.ints_attribute("scan_output_axes") or [0] * n_collected
    in_order = n.ints_attribute("scan_input_directions") or [0] * n_sequences
    out_order = n.ints_attribute("scan_output_directions") or [0] * n_collected
    known = True
    for index in range(n_states):
        known &= _pass_on(n, n.operand(index), n.graph.of(body.inputs[index]))
        known &= _pass_on(n, n.graph.of(body.outputs[index]), n.output(index))
    scanned = []
    for index, axis in enumerate(in_axes):
        ins, each = n.operand(n_states + index), n.graph.of(body.inputs[n_states + index])
        if ins is None or each is None:
            known = False
            continue
        scanned.append((ins[axis % len(ins)], in_order[index]))
        known &= _pass_on(n, [d for i, d in enumerate(ins) if i != axis % len(ins)], each)
    for index, axis in enumerate(out_axes):
        outs, each = n.output(n_states + index), n.graph.of(body.outputs[n_states + index])
        if outs is None or each is None:
            known = False
            continue
        for source, order in scanned:
            directions = {(0, 0): Direction.FORWARD, (1, 1): Direction.BACKWARD}
            n.mixed(source, outs[axis % len(outs)], directions.get((order, out_order[index]), Direction.BOTH))
        known &= _pass_on(n, each, [d for i, d in enumerate(outs) if i != axis % len(outs)])
    if not known:
        n.opaque(_UNKNOWN)


CONTROL_AXIS_RULES: dict[str, AxisRule] = {"If": _if, "Loop": _loop, "Scan": _scan}
